//! More processes in the container of one that runs.
//!
//! The first process of a container makes its namespaces and is pid 1 in them; one that is started
//! later enters them and its cgroup. It sees the same files, processes and network. When the first
//! process ends, so do all others.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::StepPlan;
use crate::error::ExecError;
use crate::executor::{Executor, Process};
use crate::spec::{ProcessIo, ProcessSpec};

/// The container of a process that runs. Clones are the same; holding one keeps nothing alive.
#[derive(Clone, Debug)]
pub struct Container {
    /// The first process.
    pub(crate) pidfd: Arc<OwnedFd>,
    pub(crate) cgroup: StepPlan,
    pub(crate) insecure: bool,
    pub(crate) keyring: String,
}

impl Process {
    /// Waits until the program runs; answers its container, into which [`Executor::start_in`] puts
    /// more. `None` for a process that never ran or has ended: [`Process::wait`] says how.
    pub async fn container(&mut self) -> Result<Option<Container>, ExecError> {
        let Some(pid) = self.started().await? else {
            return Ok(None);
        };
        let Some(pid) = Pid::from_raw(pid) else {
            return Ok(None);
        };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(None);
        };
        // The number may be another process's by now, but no other is the supervisor's child.
        if parent_of(pid).ok() != Some(self.supervisor_id()) {
            return Ok(None);
        }
        Ok(Some(Container {
            pidfd: Arc::new(pidfd),
            cgroup: self.cgroup_plan().clone(),
            insecure: self.is_insecure(),
            keyring: self.keyring().to_owned(),
        }))
    }
}

impl Executor {
    /// Starts a process in a container. Of the specification count program, environment, directory,
    /// user and limits; what is seen and what is allowed is the container's.
    ///
    /// A container that has ended is an error of [`Process::wait`]. What the process leaves running
    /// in the background stays until the container ends.
    pub async fn start_in(
        &self,
        container: &Container,
        mut spec: ProcessSpec,
        io: impl Into<ProcessIo>,
    ) -> Result<Process, ExecError> {
        tracing::debug!(args = ?spec.args, "starting a process in a container");
        spec.mounts.clear();
        spec.insecure = container.insecure;
        let (executor, container, io) = (self.clone(), container.clone(), io.into());
        tokio::task::spawn_blocking(move || executor.spawn_in(&container, spec, io))
            .await
            .map_err(|error| ExecError::Spawn(io::Error::other(error)))?
    }
}

/// The fourth field of `/proc/PID/stat`; the second is a name in parentheses and may hold anything.
fn parent_of(pid: Pid) -> io::Result<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let parent = fields.split_ascii_whitespace().nth(1);
    parent
        .and_then(|parent| parent.parse().ok())
        .ok_or_else(|| io::Error::other("no parent in /proc/PID/stat"))
}
