//! Dockerfiles of a seed.
