//! Finding builders, loading their nodes, booting them.

use std::time::Duration;

use driver::{BootProgress, Status};
use futures::future::join_all;
use jiff::Timestamp;

use crate::{BuilderError, Docker, Node, NodeGroup, NodeRecord, Transaction};

/// What to do without an Engine.
pub(crate) const EMBEDDED_HINT: &str =
    "`create --driver embedded --use` makes a builder that needs no Docker";

/// How a builder's nodes are loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Also asks the servers what they are doing and what they are.
    pub status: bool,
    /// How long each node may take for that; `None` is for ever.
    pub timeout: Option<Duration>,
}

impl LoadOptions {
    /// With status, each node within that time; zero is for ever.
    pub fn with_status(timeout: Duration) -> Self {
        LoadOptions {
            status: true,
            timeout: (!timeout.is_zero()).then_some(timeout),
        }
    }
}

/// A builder.
pub struct Builder {
    /// Its record; for a context's builder, one that stands for it.
    pub group: NodeGroup,
    /// True when it is a Docker context and has no record.
    pub is_context: bool,
    /// When it was last used, if that is known.
    pub last_activity: Option<Timestamp>,
    /// Why its nodes could not be loaded.
    pub error: Option<diag::Error>,
    /// Why its removal did not finish, if that was tried.
    pub broken: Option<String>,
    /// Why a server on this machine stands in for an Engine.
    stand_in: Option<String>,
    nodes: Vec<Node>,
    docker: Docker,
}

impl Builder {
    /// The builder of that name, or the current one.
    pub fn load(docker: &Docker, name: Option<&str>) -> Result<Self, BuilderError> {
        let txn = docker.store().transaction();
        match name.filter(|name| !name.is_empty()) {
            Some(name) => Self::by_name(docker, &txn, name),
            None => Self::current(docker, &txn),
        }
    }

    fn current(docker: &Docker, txn: &Transaction<'_>) -> Result<Self, BuilderError> {
        match txn.current(&docker.current_endpoint())? {
            Some(group) => Ok(Self::of_record(docker, txn, group)),
            None => Self::by_name(docker, txn, docker.current_context()),
        }
    }

    pub(crate) fn by_name(
        docker: &Docker,
        txn: &Transaction<'_>,
        name: &str,
    ) -> Result<Self, BuilderError> {
        match txn.get(name) {
            Ok(Some(group)) => return Ok(Self::of_record(docker, txn, group)),
            Ok(None) | Err(BuilderError::InvalidName(_)) => {}
            Err(error) => return Err(error),
        }
        if docker.context(name).is_none() {
            return Err(BuilderError::NoBuilder(name.to_owned()));
        }
        let record = NodeRecord {
            name: name.to_owned(),
            endpoint: name.to_owned(),
            ..NodeRecord::default()
        };
        let group = NodeGroup {
            name: name.to_owned(),
            nodes: vec![record],
            ..NodeGroup::default()
        };
        let mut builder = Self::of_record(docker, txn, group);
        builder.is_context = true;
        Ok(builder)
    }

    fn of_record(docker: &Docker, txn: &Transaction<'_>, group: NodeGroup) -> Self {
        Builder {
            last_activity: txn.last_activity(&group.name),
            broken: txn.broken(&group.name),
            group,
            is_context: false,
            error: None,
            stand_in: None,
            nodes: Vec::new(),
            docker: docker.clone(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.group.name
    }

    /// The surroundings it was found in.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Refuses a context's builder when another context is current: its Engine is not the one that
    /// other commands would use.
    pub fn validate(&self) -> Result<(), BuilderError> {
        if self.is_context && self.name() != self.docker.current_context() {
            let name = self.name();
            return Err(BuilderError::Invalid(format!(
                "use `docker --context={name} buildx` to switch to context {name:?}"
            )));
        }
        Ok(())
    }

    /// The nodes, after [`Builder::load_nodes`].
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Makes the nodes' drivers and, when asked to, asks their servers, all at once: a node that
    /// does not answer holds up no other. A node's error is kept with the node.
    pub async fn load_nodes(&mut self, options: LoadOptions) -> Result<(), diag::Error> {
        if let Err(error) = self.find_driver(options.timeout).await {
            self.error = Some(error.clone());
            return Err(error);
        }
        self.nodes = self
            .group
            .nodes
            .iter()
            .map(|record| Node::new(&self.docker, &self.group.name, &self.group.driver, record))
            .collect();
        if options.status {
            join_all(
                self.nodes
                    .iter_mut()
                    .map(|node| node.refresh(options.timeout)),
            )
            .await;
        }
        Ok(())
    }

    /// A context's builder is the Engine's own server, and needs an Engine that answers.
    async fn find_driver(&mut self, timeout: Option<Duration>) -> Result<(), diag::Error> {
        if !self.group.driver.is_empty() {
            return Ok(());
        }
        let Some(record) = self.group.nodes.first() else {
            return Err(diag::Error::internal("the builder has no nodes"));
        };
        let engine = self.docker.engine(&record.endpoint, record.tls.as_ref())?;
        let asking = engine.ping();
        let answer = match timeout {
            Some(timeout) => tokio::time::timeout(timeout, asking).await.map_err(|_| {
                diag::Error::new(diag::Code::DeadlineExceeded, "context deadline exceeded")
            })?,
            None => asking.await,
        };
        let version = match answer {
            Ok(version) => version,
            Err(error) if self.is_context && is_absent(&error) => {
                return self.stand_in_for(&engine.endpoint().host, error.into());
            }
            Err(error) => return Err(error.into()),
        };
        // Engines before API 1.39 have no server of their own.
        let own_server = driver::engine::ApiVersion {
            major: 1,
            minor: 39,
        };
        self.group.driver = if version >= own_server {
            "docker".to_owned()
        } else {
            "docker-container".to_owned()
        };
        Ok(())
    }

    /// Makes this the builder of a server on this machine, where nobody chose an Engine and none
    /// is there.
    fn stand_in_for(&mut self, host: &str, error: diag::Error) -> Result<(), diag::Error> {
        if !self.docker.is_default_engine(self.name()) {
            return Err(error.hint(EMBEDDED_HINT));
        }
        if !rustix::process::geteuid().is_root() {
            return Err(error.hint(
                "as root (`sudo`) a build runs without Docker, on a server of this machine",
            ));
        }
        self.group.driver = "embedded".to_owned();
        for record in &mut self.group.nodes {
            record.endpoint = driver::default_base().to_string_lossy().into_owned();
        }
        self.stand_in = Some(format!(
            "No Docker Engine answers at {host}: using a build server of this machine (driver \
             embedded). `create --driver embedded --use` chooses it for good."
        ));
        Ok(())
    }

    /// For a context's builder whose Engine is not there, and for which a server on this machine
    /// stands in: what the user should be told.
    pub fn stand_in(&self) -> Option<&str> {
        self.stand_in.as_deref()
    }

    /// Boots every node that does not run, all at once. Says whether there was anything to boot;
    /// errors are kept with the nodes, and the first is returned. A node whose state could not be
    /// found out is such an error.
    pub async fn boot(&mut self, progress: &BootProgress) -> Result<bool, diag::Error> {
        let waiting: Vec<&mut Node> = self
            .nodes
            .iter_mut()
            .filter(|node| node.error.is_none() && node.status.is_some())
            .collect();
        let several = waiting.len() > 1;
        let booting = waiting.into_iter().map(|node| async move {
            let running = node.status == Some(Status::Running);
            let outdated = match &node.driver {
                Some(driver) if running => driver.is_outdated().await.unwrap_or(false),
                _ => false,
            };
            if running && !outdated {
                return Ok(false);
            }
            let progress = if several {
                progress.clone().with_prefix(&node.record.name)
            } else {
                progress.clone()
            };
            match node.boot(&progress).await {
                Ok(_) => Ok(true),
                Err(error) => {
                    node.error = Some(error.clone());
                    Err(error)
                }
            }
        });
        let results = join_all(booting).await;
        let mut booted = false;
        for result in results {
            booted |= result?;
        }
        if let Some(error) = self.nodes.iter().find_map(|node| node.error.clone()) {
            return Err(error);
        }
        if booted && !self.is_context && self.broken.is_some() {
            let txn = self.docker.store().transaction();
            txn.set_broken(&self.group.name, None);
        }
        Ok(booted)
    }

    /// Notes that the builder is used now. Best effort.
    pub fn touch(&self) {
        self.docker.store().transaction().touch(&self.group.name);
    }

    /// False when it had a record and that was removed since: nothing must be booted for it.
    pub fn still_exists(&self) -> bool {
        let txn = self.docker.store().transaction();
        self.is_context || !matches!(txn.get(self.name()), Ok(None))
    }

    /// True when no node's server runs.
    pub fn is_inactive(&self) -> bool {
        !self.nodes.iter().any(Node::is_running)
    }
}

/// Nobody listens at the endpoint, as opposed to somebody who does not answer well.
fn is_absent(error: &driver::engine::EngineError) -> bool {
    matches!(
        error,
        driver::engine::EngineError::Connect { denied: false, .. }
    )
}

/// Every builder: those with records by name, then Docker's contexts that have none. One whose
/// record cannot be read is listed with its error.
pub fn list_builders(docker: &Docker) -> Result<Vec<Builder>, BuilderError> {
    let txn = docker.store().transaction();
    let mut builders: Vec<Builder> = Vec::new();
    for name in txn.names()? {
        match Builder::by_name(docker, &txn, &name) {
            Ok(builder) => builders.push(builder),
            Err(error) => {
                let group = NodeGroup {
                    name,
                    ..NodeGroup::default()
                };
                let mut builder = Builder::of_record(docker, &txn, group);
                builder.error = Some(error.into());
                builders.push(builder);
            }
        }
    }
    for context in docker.contexts() {
        if builders
            .iter()
            .any(|builder| builder.name() == context.name)
        {
            continue;
        }
        builders.push(Builder::by_name(docker, &txn, &context.name)?);
    }
    Ok(builders)
}
