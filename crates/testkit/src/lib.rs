//! Real parts for tests: Docker Engines, registries, stock clients and base images.
//!
//! Everything a test starts lives in a [`Lab`]: namespaces of its own for network, processes and
//! mounts, and a directory of its own. A lab ends with the process that made it, also when that is
//! killed: a pipe tells its first process, with which the kernel ends all others; a keeper outside
//! then removes the directory. A user's Docker Engine, networks and files are never touched.
//!
//! A failure to start a part panics with its log: a test cannot go on without it.

mod command;
pub mod conformance;
mod crash;
mod engine;
mod images;
mod lab;
mod peers;
mod registry;
mod server;

pub use command::{Output, Tool, normalized};
pub use crash::{CrashReport, check_blobs, crash};
pub use engine::{Engine, Release};
pub use images::{BaseImage, base_image};
pub use lab::Lab;
pub use peers::Peers;
pub use registry::{Registry, RegistryAccess};
pub use server::BuildServer;
