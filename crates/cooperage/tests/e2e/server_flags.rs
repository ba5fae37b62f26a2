//! Flags and signals of `buildkitd`.
