//! Containers that gateway clients ask for: their files, and the processes in them.
//!
//! The first process of a container is pid 1 in it; later ones enter it, and it ends with the first.
//! A container lives until it is released or its build ends.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use diag::{Code, Error, Result};
use executor::{Process, ProcessIo};
use llb::{ExecOp, NetMode};
use oci::Digest;
use ops::work::{ContainerFiles, ContainerProcess, Output};
use parking_lot::Mutex;
use proto::gateway::NewContainerRequest;
use proto::pb;
use solver::RunContext;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::job::Job;

/// The containers of one build.
pub struct Containers {
    job: Arc<Job>,
    all: Mutex<HashMap<String, Arc<Container>>>,
    closed: CancellationToken,
}

/// A container. Its files go away when nobody has it any more.
pub struct Container {
    job: Arc<Job>,
    files: ContainerFiles,
    network: NetMode,
    mounts: usize,
    /// Set when the first process runs.
    running: tokio::sync::Mutex<Option<executor::Container>>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Containers {
    /// None yet.
    pub fn new(job: Arc<Job>) -> Self {
        Containers {
            job,
            all: Mutex::default(),
            closed: CancellationToken::new(),
        }
    }

    /// Makes one. Nothing runs in it yet.
    pub async fn create(&self, request: NewContainerRequest) -> Result<()> {
        if self.closed.is_cancelled() {
            return Err(Error::canceled());
        }
        let id = request.container_id.clone();
        let exists = || {
            Error::new(
                Code::AlreadyExists,
                format!("Container {id} already exists"),
            )
        };
        if self.all.lock().contains_key(&id) {
            return Err(exists());
        }
        let network = llb::net_mode_from_proto(request.network)?;
        self.job.entitlements().check_process(network, false)?;
        let mut inputs = Vec::new();
        let mut op = ExecOp {
            network,
            hostname: request.hostname,
            extra_hosts: request
                .extra_hosts
                .into_iter()
                .map(|host| (host.host, host.ip))
                .collect(),
            ..ExecOp::default()
        };
        for mut mount in request.mounts {
            mount.input = self.add_input(&mount, &mut inputs).await?;
            mount.output = -1;
            op.mounts.push(llb::mount_from_proto(mount, inputs.len())?);
        }
        let mounts = op.mounts.len();
        let cancel = CancellationToken::new();
        let context = RunContext::single(
            Digest::of(format!("container {id}")),
            self.job.context(),
            cancel.clone(),
        );
        let parts = &self.job.parts().ops;
        let files = ContainerFiles::prepare(parts, op, &inputs, context).await?;
        let container = Arc::new(Container {
            job: self.job.clone(),
            files,
            network,
            mounts,
            running: tokio::sync::Mutex::new(None),
            cancel,
            tasks: TaskTracker::new(),
        });
        match self.all.lock().entry(id.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => Err(exists()),
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert(container);
                Ok(())
            }
        }
    }

    /// The container of that name.
    pub fn get(&self, id: &str) -> Option<Arc<Container>> {
        self.all.lock().get(id).cloned()
    }

    /// Ends a container with everything in it.
    pub async fn release(&self, id: &str) -> Result<()> {
        let container = self.all.lock().remove(id);
        let container = container
            .ok_or_else(|| Error::not_found(format!("container details for {id} not found")))?;
        container.end().await;
        Ok(())
    }

    /// Ends all, for good.
    pub async fn release_all(&self) {
        self.closed.cancel();
        let all: Vec<_> = self.all.lock().drain().collect();
        futures::future::join_all(all.iter().map(|(_, container)| container.end())).await;
    }

    /// Fires when the build has ended.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// The number of the mount's input, -1 for none.
    async fn add_input(&self, mount: &pb::Mount, inputs: &mut Vec<Output>) -> Result<i64> {
        if mount.result_id.is_empty() {
            return Ok(-1);
        }
        let reference = self.job.find(&mount.result_id).map_err(|error| {
            error.context(format!(
                "failed to find ref {} for {:?} mount",
                mount.result_id, mount.dest
            ))
        })?;
        let Some(reference) = reference else {
            return Ok(-1);
        };
        inputs.push(self.job.evaluate(&reference).await?);
        Ok(inputs.len() as i64 - 1)
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        for container in self.all.lock().values() {
            container.cancel.cancel();
        }
    }
}

impl Container {
    /// Starts a process. Whether it runs, and how it ends, is what its `wait` tells.
    pub async fn start(&self, process: ContainerProcess, io: ProcessIo) -> Result<Process> {
        if self.cancel.is_cancelled() {
            return Err(Error::canceled());
        }
        let entitlements = self.job.entitlements();
        entitlements.check_process(self.network, process.insecure)?;
        let spec = self.files.process(process).await?;
        let executor = &self.job.parts().ops.executor;
        let mut running = self.running.lock().await;
        if let Some(container) = &*running {
            return Ok(executor.start_in(container, spec, io).await?);
        }
        let id = ContainerFiles::process_id();
        let mut first = executor.start(&id, spec, io).await?;
        *running = tokio::select! {
            container = first.container() => container?,
            () = self.cancel.cancelled() => None,
        };
        Ok(first)
    }

    /// Fires when the container is released.
    pub fn ended(&self) -> &CancellationToken {
        &self.cancel
    }

    /// What must have finished before the container is gone.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Where the files of the mount of that number are on this machine.
    pub fn path(&self, number: i32) -> Result<PathBuf> {
        let index = usize::try_from(number)
            .ok()
            .filter(|index| *index < self.mounts);
        let index = index.ok_or_else(|| {
            Error::invalid(format!(
                "mount index {number} is out of bounds ({} available)",
                self.mounts
            ))
        })?;
        let path = self.files.path(index);
        path.ok_or_else(|| Error::not_found(format!("mountable {number} not found")))
    }

    async fn end(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
