//! A client of BuildKit's API: builds, from what a user typed to what came out.
//!
//! Four stages, each a type of its own: [`BuildFlags`] (typed) → [`BuildRequest`] (resolved) →
//! `SolvePlan` (for one node) → the wire's `SolveRequest`.
//!
//! This crate knows nothing of command lines, of builder records or of how a node's server is
//! started.

mod build;
mod clock;
mod csv;
mod engine_image;
mod engine_push;
mod environment;
mod export;
mod facts;
mod gateway;
mod git_info;
mod git_ref;
mod id;
mod inputs;
mod join;
mod layout;
mod load;
mod node_solve;
mod outcome;
mod plan;
mod remote_dockerfile;
mod request;
mod response;
mod serve;
mod solve;
mod source_policy;
pub mod spec;
mod status_error;
mod steps;

pub use build::{BuildJob, build};
pub use environment::Environment;
pub use export::{Export, Target, prepare_exports};
pub use git_info::GitInfo;
pub use git_ref::is_local_context;
pub use id::new_id;
pub use inputs::{Inputs, OciLayoutRef, Upload, is_archive};
pub use layout::{enter_layouts, export_layout};
pub use outcome::{Outcome, metadata_value, remove_stale_image_id, write_file, write_image_id};
pub use plan::{NodeFacts, PlanContext, SolvePlan};
pub use request::{BuildFlags, BuildRequest, Network};
pub use response::{DIGEST, IMAGE_NAME, Response};
pub use serve::{Peer, Services, auth, session_for};
pub use session::AuthOptions;
pub use solve::{SolveFailure, canceled, solve};
pub use source_policy::{source_policy_of_environment, source_policy_of_json};
pub use status_error::from_rpc_status;
pub use steps::Step;
