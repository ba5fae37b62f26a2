//! One node of a builder, with its driver and what its server says of itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use driver::{BootProgress, Connection, Driver, Loss, NodeConfig, ProxySettings, Removal, Status};
use oci::Platform;
use proto::control::control_client::ControlClient;
use proto::control::{InfoRequest, ListWorkersRequest};
use proto::worker::WorkerRecord;
use tokio::sync::Mutex;

use crate::platforms::dedupe;
use crate::{Docker, NodeRecord, Store};

/// Longest time a server that is in use may take to answer a question about itself.
const ACTIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A rule of a server's garbage collection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcRule {
    /// Also internal and frontend images.
    pub all: bool,
    /// Which records it is for.
    pub filters: Vec<String>,
    /// What was used within that time stays.
    pub keep_duration: Duration,
    /// Bytes that always may be kept.
    pub reserved_space: i64,
    /// Bytes that may be kept at most.
    pub max_used_space: i64,
    /// Bytes of the disk to leave free.
    pub min_free_space: i64,
}

/// A device that a server can give to steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its CDI name.
    pub name: String,
    /// Made when asked for.
    pub on_demand: bool,
    /// Given without being allowed first.
    pub auto_allow: bool,
    /// What its maker says of it.
    pub annotations: BTreeMap<String, String>,
}

/// A node.
pub struct Node {
    /// As recorded.
    pub record: NodeRecord,
    /// Name of the builder.
    pub builder: String,
    /// Its driver, if the record is good for one.
    pub driver: Option<Arc<dyn Driver>>,
    /// What its server is doing, when that was asked.
    pub status: Option<Status>,
    /// Why nothing more is known.
    pub error: Option<diag::Error>,
    /// Version of its server.
    pub version: String,
    /// IDs of its server's workers.
    pub ids: Vec<String>,
    /// Fixed platforms, and those of its workers.
    pub platforms: Vec<Platform>,
    /// Rules of its first worker.
    pub gc_policy: Vec<GcRule>,
    /// Labels of its first worker.
    pub labels: BTreeMap<String, String>,
    /// Devices of its last worker.
    pub devices: Vec<Device>,
    /// Proxies for its steps, from the user's configuration.
    pub proxies: ProxySettings,
    connection: Mutex<Option<Connection>>,
    store: Store,
}

impl Node {
    /// A node and its driver; does no I/O beyond reading files.
    pub(crate) fn new(
        docker: &Docker,
        builder: &str,
        driver_name: &str,
        record: &NodeRecord,
    ) -> Self {
        let mut node = Node::new_empty(record, builder, docker.store());
        node.platforms = record.platforms.clone();
        match node.make_driver(docker, driver_name, record.driver_opts.clone()) {
            Ok(driver) => node.driver = Some(driver),
            Err(error) => node.error = Some(error),
        }
        node
    }

    /// A driver that forgets options, to remove what a record with bad options left behind.
    pub(crate) fn driver_for_removal(
        &self,
        docker: &Docker,
        driver_name: &str,
    ) -> Option<Arc<dyn Driver>> {
        match &self.driver {
            Some(driver) => Some(driver.clone()),
            None => {
                let mut clone = Node::new_empty(&self.record, &self.builder, &self.store);
                clone.make_driver(docker, driver_name, BTreeMap::new()).ok()
            }
        }
    }

    /// A node of which only the record is known.
    fn new_empty(record: &NodeRecord, builder: &str, store: &Store) -> Self {
        Node {
            record: record.clone(),
            builder: builder.to_owned(),
            driver: None,
            status: None,
            error: None,
            version: String::new(),
            ids: Vec::new(),
            platforms: Vec::new(),
            gc_policy: Vec::new(),
            labels: BTreeMap::new(),
            devices: Vec::new(),
            proxies: ProxySettings::default(),
            connection: Mutex::new(None),
            store: store.clone(),
        }
    }

    fn make_driver(
        &mut self,
        docker: &Docker,
        driver_name: &str,
        options: BTreeMap<String, String>,
    ) -> Result<Arc<dyn Driver>, diag::Error> {
        let record = &self.record;
        let engine = match driver_name {
            "remote" | "embedded" => docker.current_engine().ok(),
            _ => Some(docker.engine(&record.endpoint, record.tls.as_ref())?),
        };
        self.proxies = docker.proxies(engine.as_ref());
        let config = NodeConfig {
            builder: self.builder.clone(),
            name: record.name.clone(),
            endpoint: record.endpoint.clone(),
            engine,
            flags: record.flags.clone(),
            files: record.files.clone(),
            options,
            platforms: record.platforms.clone(),
            auth: Some(docker.pull_auth()),
            proxies: self.proxies.clone(),
            owner: docker.store().config().node_id(),
            executable: docker.executable().to_owned(),
        };
        Ok(driver::create(driver_name, config)?)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// The driver, or why there is none.
    pub fn driver(&self) -> Result<&Arc<dyn Driver>, diag::Error> {
        match (&self.driver, &self.error) {
            (Some(driver), _) => Ok(driver),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Err(diag::Error::internal("the node has no driver")),
        }
    }

    /// True when its server runs, as far as is known.
    pub fn is_running(&self) -> bool {
        self.status == Some(Status::Running)
    }

    /// The connection to its server, made on first use and shared afterwards.
    pub async fn client(&self) -> Result<Connection, diag::Error> {
        let driver = self.driver()?;
        let mut connection = self.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let made = driver::connect(driver.clone()).await?;
        *connection = Some(made.clone());
        Ok(made)
    }

    /// Forgets the connection, after the server was lost; the next [`Node::client`] makes another.
    pub async fn disconnect(&self) {
        *self.connection.lock().await = None;
    }

    /// Asks what its server is doing and, when it runs, what it is. `error` says what failed.
    pub async fn refresh(&mut self, timeout: Option<Duration>) {
        let loading = self.load();
        let loaded = match timeout {
            Some(timeout) => match tokio::time::timeout(timeout, loading).await {
                Ok(loaded) => loaded,
                Err(_) => Err(diag::Error::new(
                    diag::Code::DeadlineExceeded,
                    "context deadline exceeded",
                )
                .hint(format!(
                    "no answer within {} s; --timeout waits longer",
                    timeout.as_secs()
                ))),
            },
            None => loading.await,
        };
        if let Err(error) = loaded {
            self.error = Some(error);
        }
    }

    async fn load(&mut self) -> Result<(), diag::Error> {
        let driver = self.driver()?.clone();
        let status = driver.status().await?;
        self.status = Some(status);
        if status != Status::Running {
            return Ok(());
        }
        let connection = self.client().await?;
        let mut control = ControlClient::new(connection.channel.clone());
        let workers = control
            .list_workers(ListWorkersRequest { filter: Vec::new() })
            .await
            .map_err(|status| connection.call_error(&status, "listing workers"))?
            .into_inner()
            .record;
        self.take_workers(workers);
        self.version = match control.info(InfoRequest {}).await {
            Ok(answer) => answer
                .into_inner()
                .buildkit_version
                .map(|version| version.version)
                .unwrap_or_default(),
            Err(status) if status.code() == tonic::Code::Unimplemented => driver
                .version()
                .await
                .map_err(|error| diag::Error::from(error).context("getting version"))?,
            Err(_) => String::new(),
        };
        Ok(())
    }

    fn take_workers(&mut self, workers: Vec<WorkerRecord>) {
        let mut platforms = self.record.platforms.clone();
        self.ids.clear();
        for (index, worker) in workers.into_iter().enumerate() {
            self.ids.push(worker.id);
            platforms.extend(worker.platforms.into_iter().map(of_proto));
            if index == 0 {
                self.labels = worker.labels.into_iter().collect();
                self.gc_policy = worker.gc_policy.into_iter().map(rule).collect();
            }
            self.devices = worker
                .cdi_devices
                .into_iter()
                .map(|device| Device {
                    name: device.name,
                    on_demand: device.on_demand,
                    auto_allow: device.auto_allow,
                    annotations: device.annotations.into_iter().collect(),
                })
                .collect();
        }
        self.ids.sort();
        self.platforms = dedupe(platforms);
    }

    /// Makes sure its server runs and is what the record says, and connects to it.
    ///
    /// A server that runs with other options than the record has now is made anew, unless builds
    /// run on it.
    pub async fn boot(&self, progress: &BootProgress) -> Result<Connection, diag::Error> {
        let driver = self.driver()?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let running = driver.status().await? == Status::Running;
            if !running || (driver.is_outdated().await? && !self.has_active_builds().await) {
                self.disconnect().await;
                let booted = driver.bootstrap(progress).await;
                self.give_up_if_removed(driver).await?;
                booted?;
            }
            match self.client().await {
                // It ended between the two questions.
                Err(error) if attempts < 3 && error.message() == "driver not running" => {}
                result => return result,
            }
        }
    }

    /// Somebody may have removed the builder while it was booted: then nothing of it may stay, for no
    /// record leads to it any more.
    async fn give_up_if_removed(&self, driver: &Arc<dyn Driver>) -> Result<(), diag::Error> {
        let kept = {
            let txn = self.store.transaction();
            // Builders of other drivers may have no record, or own nothing.
            let by_record = driver.name() == "docker-container";
            if !by_record || !matches!(txn.get(&self.builder), Ok(None)) {
                return Ok(());
            }
            txn.kept()
        };
        if !kept.contains(&self.record.name) {
            let everything = Removal {
                state: true,
                daemon: true,
            };
            driver.remove(everything).await?;
        }
        Err(diag::Error::new(
            diag::Code::Unavailable,
            format!("builder {:?} was removed while it was booted", self.builder),
        ))
    }

    /// Names of builds that run on its server; empty as well when the server cannot tell.
    pub async fn active_builds(&self) -> Result<Vec<String>, diag::Error> {
        let ask = async {
            let connection = self.client().await?;
            let builds = driver::active_builds(connection.channel).await?;
            let builds = builds.unwrap_or_default().into_iter();
            Ok(builds.map(|build| build.reference).collect())
        };
        match tokio::time::timeout(ACTIVE_TIMEOUT, ask).await {
            Ok(result) => result,
            Err(_) => Ok(Vec::new()),
        }
    }

    async fn has_active_builds(&self) -> bool {
        self.active_builds()
            .await
            .is_ok_and(|builds| !builds.is_empty())
    }

    /// Why the connection to its server broke, when the server is the cause.
    pub async fn diagnose(&self) -> Option<Loss> {
        self.driver.as_ref()?.diagnose().await
    }
}

fn of_proto(platform: proto::pb::Platform) -> Platform {
    Platform {
        architecture: platform.architecture,
        os: platform.os,
        os_version: platform.os_version,
        os_features: platform.os_features,
        variant: platform.variant,
    }
}

fn rule(policy: proto::worker::GcPolicy) -> GcRule {
    GcRule {
        all: policy.all,
        filters: policy.filters,
        keep_duration: Duration::from_nanos(policy.keep_duration.max(0) as u64),
        reserved_space: policy.reserved_space,
        max_used_space: policy.max_used_space,
        min_free_space: policy.min_free_space,
    }
}
