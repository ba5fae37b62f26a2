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
mod outcome;
mod plan;
mod remote_dockerfile;
mod report;
mod request;
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
pub use outcome::{
    BUILD_REF, CONFIG_DIGEST, DESCRIPTOR, DIGEST, IMAGE_NAME, Outcome, metadata_value,
    remove_stale_image_id, write_file, write_image_id,
};
pub use plan::{NodeFacts, PlanContext, SolvePlan, no_output_warning};
pub use report::{error_report, exit_code};
pub use request::{BuildFlags, BuildRequest, Network};
pub use serve::{Peer, Services, auth, session_for};
pub use session::AuthOptions;
pub use solve::{Response, SolveFailure, canceled, solve};
pub use source_policy::{source_policy_of_environment, source_policy_of_json};
pub use status_error::{from_rpc_status, from_status, is_connection_failure};
pub use steps::Step;
