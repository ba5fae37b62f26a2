//! The Dockerfile frontend: a Dockerfile with its options → the build graph and image configuration
//! of every platform asked for.
//!
//! A frontend knows the language and what its words mean for a build; it knows nothing of how steps
//! are run or where images are kept. Whatever it needs from outside it asks of its [`Host`].
//!
//! Step names, messages, history entries and the encoding of operations are the stock frontend's:
//! people and scripts look for them, and builds by either are to hit each other's caches where the
//! operations are equal.
//!
//! Invariant: given the same options and the same answers of the host, the outcome is the same to
//! the byte.

mod build;
mod client;
mod convert;
mod failure;
mod git;
mod host;
mod image;
mod named;
mod options;
mod plan;
mod platform;
mod request;
mod state;
#[cfg(test)]
mod tests;

pub use build::{Forward, FrontendResult, PlatformRef, build};
pub use host::{FileStat, Host, OciStore, RefId, ResolvedImage, SourceTime, Warning};
pub use named::{FrontendSource, frontend_source};
pub use options::{BuildOptions, ContextOptions, ResolveMode};
