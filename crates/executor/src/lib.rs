//! Runs one process in a root file system.
//!
//! A step is started by spawning this very executable in a hidden init mode ([`init_main`]). That
//! small, single-threaded process (the *supervisor*) makes the step's cgroup, forks the process
//! that becomes pid 1 of new namespaces, waits for it, and clears up: mount stubs in the root file
//! system, the cgroup, and the report of how it ended. The server only spawns it, hands it the
//! specification and file descriptors over a socket, and reads its report. So nothing that
//! allocates ever runs between a fork and an exec of the server, and when the server dies, even by
//! SIGKILL, the socket closes and each supervisor kills its step and still clears up.
//!
//! This crate knows nothing of LLB graphs, layers, images or sessions: it is given a directory and
//! mounts. It never pulls, hashes or commits anything.
//!
//! Invariant: when [`Executor::run`] returned, no process, mount, cgroup or stub file of the step
//! is left. What [`Executor::start_in`] puts into its container ends with it at the latest.

mod bridge;
mod cgroup;
mod container;
mod control;
mod error;
mod executor;
mod init;
mod keyring;
mod launch;
mod network;
mod observer;
mod passwd;
mod platforms;
mod rootpath;
mod seccomp;
mod spec;
mod sys;

pub use bridge::{Bridge, BridgeConfig, Subnet};
pub use cgroup::Layout as CgroupLayout;
pub use container::Container;
pub use error::ExecError;
pub use executor::{Executor, ExecutorConfig, Process};
pub use init::init_main;
pub use network::{NetworkConfig, default_gateway};
pub use observer::StartObserver;
pub use passwd::resolve_user;
pub use platforms::{Emulation, emulation, emulator_hint, platforms, platforms_now};
pub use spec::{
    DeviceKind, DeviceNode, ExitStatus, MountFlags, MountSource, ProcessIo, ProcessMount,
    ProcessSpec, Stdio, Terminal, UserIds, WindowSize,
};

/// The word that, as the first argument, makes the executable call [`init_main`].
pub const INIT_ARGUMENT: &str = "cooperage-init";
