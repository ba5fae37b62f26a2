//! Real parts for tests: Docker Engines, registries, stock clients and base images.
//!
//! Everything a test starts lives in a [`Lab`]: namespaces of its own for network, processes and
//! mounts, and a directory of its own. A lab ends with the process that made it, also when that is
//! killed: a pipe tells its first process, with which the kernel ends all others; a keeper outside
//! then removes the directory. A user's Docker Engine, networks and files are never touched.
//!
//! A failure to start a part panics with its log: a test cannot go on without it.

mod certificates;
mod command;
pub mod conformance;
mod crash;
mod dice;
mod engine;
mod fuzz;
mod git_server;
mod grpc;
mod held;
mod images;
mod lab;
mod name_server;
mod peers;
mod registry;
mod server;
mod ssh_server;
pub mod web;

pub use certificates::write_certificates;
pub use command::{Output, Tool, normalized, program};
pub use crash::{CrashReport, check_blobs, crash};
pub use dice::Dice;
pub use engine::{Engine, EngineOptions, Release};
pub use fuzz::{CountingAllocator, Fuzz};
pub use git_server::{GitRequestSeen, GitServer, GitServerOptions, GitWork};
pub use grpc::serve_build_server;
pub use held::Held;
pub use images::{BaseImage, base_image};
pub use lab::{Lab, wait_for};
pub use name_server::serve_names;
pub use peers::Peers;
pub use registry::{Registry, RegistryAccess};
pub use server::{BuildServer, ServerSetup};
pub use ssh_server::{SshAgent, SshServer, SshServerOptions};
