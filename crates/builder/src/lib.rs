//! Builders: their records, their nodes, and which node builds what.
//!
//! A builder is a record on disk ([`NodeGroup`]) or a Docker context; [`Builder::load`] finds it,
//! [`Builder::load_nodes`] makes a driver for each of its nodes and asks what they are doing,
//! [`Builder::boot`] brings them up and [`Builder::resolve`] chooses nodes for platforms.
//!
//! This crate knows nothing of builds, displays or the command line. Invariant: a record is
//! removed only after everything it leads to is gone, or when the user says to forget it.

mod builder;
mod config_dir;
mod create;
mod docker;
mod driver_opts;
mod error;
mod names;
mod node;
mod plan;
mod platforms;
mod record;
mod removal;
mod server_config;
mod store;

pub use builder::{Builder, LoadOptions, list_builders};
pub use config_dir::ConfigDir;
pub use create::{CreateRequest, create, leave};
pub use docker::{Docker, DockerContext, DockerOptions};
pub use driver::{BootProgress, Status};
pub use error::BuilderError;
pub use node::{Device, GcRule, Node};
pub use plan::{NodePlan, PlannedNode, ResolvedNode};
pub use platforms::{format_in_groups, parse_platforms};
pub use record::{NodeChange, NodeGroup, NodeRecord};
pub use removal::{RemoveRequest, Removed, StopRequest};
pub use store::{Store, Transaction};
