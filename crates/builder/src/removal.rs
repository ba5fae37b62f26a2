//! Stopping and removing builders without taking anything from anybody.
//!
//! The record goes last: whatever happens on the way, it still leads to what is left. There is no
//! deadline on a removal; one that cannot reach its Engine keeps the record and notes why.

use std::sync::Arc;
use std::time::Duration;

use driver::{Driver, Removal, Status};
use futures::future::join_all;

use crate::builder::LoadOptions;
use crate::{Builder, BuilderError, Docker, Node, Transaction};

/// How often a builder that drains is asked.
const DRAIN_PAUSE: Duration = Duration::from_millis(500);

/// How `rm` removes.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveRequest {
    /// Keeps the volumes.
    pub keep_state: bool,
    /// Keeps the servers; only the record goes.
    pub keep_daemon: bool,
    /// Ends running builds, and forgets what cannot be reached.
    pub force: bool,
    /// Waits for running builds.
    pub drain: bool,
}

/// How `stop` stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct StopRequest {
    /// Ends running builds.
    pub force: bool,
    /// Waits for running builds.
    pub drain: bool,
}

/// What a removal did.
#[derive(Clone, Debug, Default)]
pub struct Removed {
    /// The builder.
    pub name: String,
    /// What was forgotten and may remain, by name.
    pub remains: Vec<String>,
}

impl Builder {
    /// Removes a builder by name.
    pub async fn remove(
        docker: &Docker,
        name: Option<&str>,
        request: RemoveRequest,
    ) -> Result<Removed, diag::Error> {
        let mut builder = match Builder::load(docker, name) {
            Ok(builder) => builder,
            Err(BuilderError::CorruptRecord { name, .. }) if request.force => {
                docker.store().transaction().remove(&name)?;
                let remains = vec![format!(
                    "containers and volumes of {name}, which its record no longer names"
                )];
                return Ok(Removed { name, remains });
            }
            Err(error) => return Err(error.into()),
        };
        if builder.is_context {
            // What stands in for an Engine has no record, but files.
            let _ = builder.load_nodes(LoadOptions::default()).await;
        }
        if builder.is_context && builder.stand_in().is_none() {
            let name = builder.name();
            return Err(diag::Error::invalid(format!(
                "context builder cannot be removed, run `docker context rm {name}` to remove this context"
            )));
        }
        if request.keep_daemon {
            let txn = docker.store().transaction();
            builder.note_kept(&txn, true);
            txn.remove(builder.name())?;
            return Ok(Removed {
                name: builder.name().to_owned(),
                remains: Vec::new(),
            });
        }
        if !builder.is_context {
            builder.load_nodes(LoadOptions::default()).await?;
        }
        builder.remove_loaded(request).await
    }

    /// Removes a builder whose nodes are loaded.
    pub async fn remove_loaded(&self, request: RemoveRequest) -> Result<Removed, diag::Error> {
        let store = self.docker().store();
        store.transaction().check_removable(self.name())?;
        if !request.force {
            self.settle(request.drain).await?;
        }
        let what = Removal {
            state: !request.keep_state,
            daemon: !request.keep_daemon,
        };
        let removals = self.nodes().iter().map(|node| self.remove_node(node, what));
        let mut remains = Vec::new();
        let mut failure: Option<diag::Error> = None;
        for result in join_all(removals).await {
            match result {
                Ok(left) => remains.extend(left),
                Err(BuilderError::Unreachable {
                    source,
                    remains: left,
                }) if request.force => {
                    tracing::debug!(%source, "forgetting a node that cannot be reached");
                    remains.extend(left);
                }
                Err(error) => failure = Some(failure.unwrap_or_else(|| error.into())),
            }
        }
        if !remains.is_empty() && !request.force && failure.is_none() {
            failure = Some(diag::Error::new(
                diag::Code::Unknown,
                format!("failed to remove {}", remains.join("; ")),
            ));
        }
        let txn = self.docker().store().transaction();
        match failure {
            Some(error) => {
                txn.set_broken(
                    self.name(),
                    Some(&format!("removal did not finish: {error}")),
                );
                Err(error)
            }
            None => {
                self.note_kept(&txn, request.keep_state);
                txn.remove(self.name())?;
                drop(txn);
                self.sweep(what).await;
                Ok(Removed {
                    name: self.name().to_owned(),
                    remains,
                })
            }
        }
    }

    /// Removes what a boot that was under way has made meanwhile. A boot looks for the record when it
    /// has made something, so nothing comes after this.
    async fn sweep(&self, what: Removal) {
        if self.group.driver != "docker-container" {
            return;
        }
        let removals = self.nodes().iter().map(|node| self.remove_node(node, what));
        for error in join_all(removals).await.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "after the record was removed");
        }
    }

    fn note_kept(&self, txn: &Transaction<'_>, kept: bool) {
        for record in &self.group.nodes {
            txn.set_kept(&record.name, kept);
        }
    }

    async fn remove_node(&self, node: &Node, what: Removal) -> Result<Vec<String>, BuilderError> {
        let driver_name = &self.group.driver;
        let Some(driver) = node.driver_for_removal(self.docker(), driver_name) else {
            // Nothing was ever booted by a record that has no driver.
            return Ok(Vec::new());
        };
        driver.remove(what).await.map_err(|source| {
            if source.is_unreachable() {
                let at = &node.record.endpoint;
                let names = driver.belongings(what).into_iter();
                BuilderError::Unreachable {
                    source,
                    remains: names.map(|name| format!("{name} on {at}")).collect(),
                }
            } else {
                source.into()
            }
        })
    }

    /// Stops the builder's servers; their state stays.
    pub async fn stop(&self, request: StopRequest) -> Result<(), diag::Error> {
        if !request.force {
            self.settle(request.drain).await?;
        }
        let drivers = self.nodes().iter().filter_map(|node| node.driver.clone());
        let stops = drivers.map(|driver| async move { driver.stop().await });
        for result in join_all(stops).await {
            result?;
        }
        match self.nodes().iter().find_map(|node| node.error.clone()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Makes sure that no builds run: waits for them (`drain`) or refuses.
    async fn settle(&self, drain: bool) -> Result<(), diag::Error> {
        loop {
            let asked = join_all(self.nodes().iter().map(running_builds)).await;
            let running: Vec<String> = asked.into_iter().flatten().collect();
            if running.is_empty() {
                return Ok(());
            }
            if !drain {
                let count = running.len();
                let builds = if count == 1 { "build is" } else { "builds are" };
                return Err(diag::Error::from(BuilderError::Busy(format!(
                    "{count} {builds} running on builder {:?}",
                    self.name()
                )))
                .hint("--drain waits for running builds, --force ends them"));
            }
            tokio::time::sleep(DRAIN_PAUSE).await;
        }
    }
}

/// Builds on a node's server; a server that cannot be asked is not known to build.
async fn running_builds(node: &Node) -> Vec<String> {
    let Some(driver): Option<&Arc<dyn Driver>> = node.driver.as_ref() else {
        return Vec::new();
    };
    // Only our own servers are stopped or removed.
    if !matches!(driver.name(), "docker-container" | "embedded") {
        return Vec::new();
    }
    match driver.status().await {
        Ok(Status::Running) => node.active_builds().await.unwrap_or_default(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CreateRequest, DockerOptions, NodeGroup, NodeRecord, create};

    /// Surroundings whose Engine is not there.
    fn surroundings() -> (tempfile::TempDir, Docker) {
        let dir = tempfile::tempdir().unwrap();
        let options = DockerOptions {
            config: Some(dir.path().to_owned()),
            host: Some(format!("unix://{}/d.sock", dir.path().display())),
            ..DockerOptions::default()
        };
        let docker = Docker::from_environment(&options).unwrap();
        (dir, docker)
    }

    fn has_record(docker: &Docker, name: &str) -> bool {
        docker.store().transaction().get(name).unwrap().is_some()
    }

    #[tokio::test]
    async fn a_builder_whose_engine_is_not_there_is_not_made() {
        let (_dir, docker) = surroundings();
        let request = CreateRequest {
            name: Some("b".to_owned()),
            ..CreateRequest::default()
        };
        let error = create(&docker, &request).await.err().unwrap().to_string();
        assert!(
            error.starts_with("failed to initialize builder b (b0): Cannot connect"),
            "{error}"
        );
        assert!(!has_record(&docker, "b"));
    }

    #[tokio::test]
    async fn a_record_whose_engine_is_not_there_is_kept_until_it_is_to_be_forgotten() {
        let (_dir, docker) = surroundings();
        let group = NodeGroup {
            name: "b".to_owned(),
            driver: "docker-container".to_owned(),
            nodes: vec![NodeRecord {
                name: "b0".to_owned(),
                endpoint: docker.current_endpoint(),
                ..NodeRecord::default()
            }],
            ..NodeGroup::default()
        };
        docker.store().transaction().save(&group).unwrap();
        let refused = Builder::remove(&docker, Some("b"), RemoveRequest::default()).await;
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .starts_with("Cannot connect")
        );
        assert!(has_record(&docker, "b"));
        assert!(docker.store().transaction().broken("b").is_some());
        let force = RemoveRequest {
            force: true,
            ..RemoveRequest::default()
        };
        let removed = Builder::remove(&docker, Some("b"), force).await.unwrap();
        assert_eq!(removed.remains.len(), 2);
        assert!(removed.remains[0].starts_with("container buildx_buildkit_b0 on unix://"));
        assert!(!has_record(&docker, "b"));
    }
}
