//! The conformance corpus: Dockerfiles with their contexts and what stock BuildKit made of them.
//!
//! A case is a folder with `case.toml` (what to build and how), `ctx/` (the context) and
//! `expect.json` (the outcome that was recorded); the README of the corpus tells the fields. Here
//! cases are read ([`Case`]), written out ready to build ([`prepare`]), built by any client with any
//! builder ([`Bench`]), looked at ([`Outcome`]), compared and recorded.
//!
//! Everything is fixed that can be: owners, modes and times of a context, the ids of git commits, the
//! [`Bases`] that Dockerfiles start from, and the two servers ([`Servers`]) on 127.0.0.1. So an
//! outcome depends on the builder only. Ports are the same everywhere: a bench needs a lab's network.

mod bases;
mod bench;
mod case;
mod compare;
mod fuzz;
mod image;
mod layer_tar;
mod outcome;
mod prepare;
mod record;
mod servers;
mod tree;
mod yard;

pub use bases::Bases;
pub use bench::{Bench, Builder, run_all};
pub use case::{Build, Case, Expect, Unit, cases_below};
pub use compare::{compare, first_difference};
pub use fuzz::{FuzzCase, Verdict, generate};
pub use outcome::Outcome;
pub use prepare::prepare;
pub use record::{record, write_recording};
pub use servers::{REGISTRY_PORT, Servers, WEB_PORT};
pub use yard::Yard;
