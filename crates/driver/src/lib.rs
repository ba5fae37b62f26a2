//! Where a build server runs, and how to reach it.
//!
//! A [`Driver`] boots, describes, dials, stops and removes the server of one node of a builder.
//! Drivers: `docker-container` (a container of a Docker Engine), `docker` (the server inside the
//! Engine), `embedded` (the server on this machine) and `remote` (a server somebody else runs).
//!
//! This crate knows nothing of builder records or commands, and of builds only as much as a dial
//! needs. Invariant: no call of a driver asks the user anything or writes to the terminal; what
//! happens while booting goes to a [`BootProgress`].

mod active;
mod connection;
mod container;
mod docker;
mod embedded;
mod error;
mod go_number;
mod health;
mod image_order;
mod moby_version;
mod node;
mod progress_steps;
mod registries;
mod remote;
mod server_image;
mod tarball;

use std::collections::BTreeMap;
use std::net::IpAddr;

use async_trait::async_trait;

pub use active::{ActiveBuild, active_builds};
pub use connection::{Connection, connect, with_causes};
pub use container::{Orphan, orphans};
pub use embedded::default_base;
pub use engine_api::{self as engine, BoxedIo};
pub use error::DriverError;
pub use go_number::{parse_bool, parse_duration, parse_int, parse_size};
pub use image_order::{IMAGE_ORDER_OPTION, ImageOrder};
pub use node::{NodeConfig, ProxySettings, PullAuth};
pub use progress_steps::{BootProgress, VertexProgress};
pub use registries::{EffectiveRegistry, Origin};

/// What every container and volume of a builder is named by: this and the node's name.
pub const NAME_PREFIX: &str = "buildx_buildkit_";

/// What a node's server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// There is none; booting makes it.
    Inactive,
    /// It is about to run.
    Starting,
    /// It runs.
    Running,
    /// It is about to end.
    Stopping,
    /// It exists and does not run.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Status::Inactive => "inactive",
            Status::Starting => "starting",
            Status::Running => "running",
            Status::Stopping => "stopping",
            Status::Stopped => "stopped",
        })
    }
}

/// What a driver's servers can do; the names are those `inspect --debug` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Exports OCI archives.
    OciExporter,
    /// Exports docker archives.
    DockerExporter,
    /// Exports build caches.
    CacheExport,
    /// Builds for several platforms at once.
    MultiPlatform,
    /// Pushes by itself.
    DirectPush,
    /// The digest of the image, and not of its configuration, is its ID.
    PreferImageDigest,
    /// A build without output loads its image into the Engine.
    DefaultLoad,
}

impl Feature {
    /// The name users see.
    pub fn name(self) -> &'static str {
        match self {
            Feature::OciExporter => "OCI exporter",
            Feature::DockerExporter => "Docker exporter",
            Feature::CacheExport => "Cache export",
            Feature::MultiPlatform => "Multi-platform build",
            Feature::DirectPush => "Direct push",
            Feature::PreferImageDigest => "Prefer image digest",
            Feature::DefaultLoad => "Automatically load images to the Docker Engine image store",
        }
    }
}

/// Every feature with whether it is there.
pub type Features = BTreeMap<Feature, bool>;

/// What a BuildKit server that is not an Engine's offers, wherever it runs.
pub(crate) fn features_of_own_server(default_load: bool) -> Features {
    BTreeMap::from([
        (Feature::OciExporter, true),
        (Feature::DockerExporter, true),
        (Feature::CacheExport, true),
        (Feature::MultiPlatform, true),
        (Feature::DirectPush, true),
        (Feature::DefaultLoad, default_load),
    ])
}

/// What removal takes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// The server's state too.
    pub state: bool,
    /// The server itself; without it nothing is removed.
    pub daemon: bool,
}

/// How a server was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What happened, for users.
    pub cause: String,
    /// Somebody stopped or removed it: it must not be booted again.
    pub on_purpose: bool,
}

/// One node's build server.
///
/// Life cycle: a driver is made by [`create`] from a node's record, which checks its options and
/// does no I/O. [`Driver::bootstrap`] brings the server to [`Status::Running`], whatever it was
/// doing: it is called on a server that exists, that is stopped, that another client is just
/// making, and on one whose options have changed. [`Driver::dial`] opens one connection that
/// speaks BuildKit's gRPC; there may be several at once, and each may be dropped at any time.
/// [`Driver::stop`] and [`Driver::remove`] succeed when there is nothing to stop or to remove.
///
/// ```text
/// let driver = driver::create("docker-container", node)?;
/// driver.bootstrap(&BootProgress::none()).await?;
/// let connection = driver::connect(driver.clone()).await?;
/// ControlClient::new(connection.channel.clone()).list_workers(..).await?;
/// driver.remove(Removal { state: true, daemon: true }).await?;
/// ```
///
/// A remote server is not ours: its `bootstrap` only waits for it, its `stop` and `remove` do
/// nothing.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// The driver's name, such as `docker-container`.
    fn name(&self) -> &'static str;

    /// The record this was made from.
    fn node(&self) -> &NodeConfig;

    /// True for the server inside a Docker Engine.
    fn is_moby(&self) -> bool {
        false
    }

    /// True when the server sees the files of this machine as we see them.
    fn is_on_this_machine(&self) -> bool {
        false
    }

    /// Brings the server up and waits until it answers.
    async fn bootstrap(&self, progress: &BootProgress) -> Result<(), DriverError>;

    /// What the server is doing.
    async fn status(&self) -> Result<Status, DriverError>;

    /// True when a server that runs was made with other options than the record has now, so that
    /// booting it again would make it anew.
    async fn is_outdated(&self) -> Result<bool, DriverError> {
        Ok(false)
    }

    /// The server's version, for servers too old to say it over gRPC; empty when unknown.
    async fn version(&self) -> Result<String, DriverError>;

    /// Opens a connection that speaks gRPC.
    async fn dial(&self) -> Result<BoxedIo, DriverError>;

    /// Opens a connection for a session where the server takes sessions beside gRPC (`docker`);
    /// `None` where they go through `Control.Session`.
    async fn dial_session(
        &self,
        _headers: &[(String, String)],
    ) -> Result<Option<BoxedIo>, DriverError> {
        Ok(None)
    }

    /// The authority that requests name, for proxies between us and the server.
    fn authority(&self) -> String {
        "localhost".to_owned()
    }

    /// Ends the server and keeps its state.
    async fn stop(&self) -> Result<(), DriverError>;

    /// Removes the server. Gives what could not be removed; an error means that not even that
    /// could be found out.
    async fn remove(&self, what: Removal) -> Result<Vec<String>, DriverError>;

    /// Names of what [`Driver::remove`] would remove, for messages when it cannot.
    fn belongings(&self, _what: Removal) -> Vec<String> {
        Vec::new()
    }

    /// What the server can do.
    async fn features(&self) -> Features;

    /// The address `host-gateway` stands for in `--add-host`.
    async fn host_gateway(&self) -> Result<IpAddr, DriverError>;

    /// Why a connection that just broke did: memory, exit code, last words. `None` when the
    /// server runs on.
    async fn diagnose(&self) -> Option<Loss> {
        None
    }

    /// Registries as the server will use them, each with where the setting came from.
    async fn registries(&self) -> Vec<EffectiveRegistry> {
        Vec::new()
    }

    /// Where the server has its files on this machine, each with what it is.
    fn places(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// The drivers of which a user can make instances, as `--driver` lists them.
pub const INSTANCE_DRIVERS: &[&str] = &["docker-container", "embedded", "remote"];

/// Makes the driver of a node; checks its options.
pub fn create(name: &str, node: NodeConfig) -> Result<std::sync::Arc<dyn Driver>, DriverError> {
    match name {
        "docker-container" => Ok(std::sync::Arc::new(container::ContainerDriver::new(node)?)),
        "docker" => Ok(std::sync::Arc::new(docker::DockerDriver::new(node)?)),
        "embedded" => Ok(std::sync::Arc::new(embedded::EmbeddedDriver::new(node)?)),
        "remote" => Ok(std::sync::Arc::new(remote::RemoteDriver::new(node)?)),
        _ => Err(DriverError::UnknownDriver(name.to_owned())),
    }
}

/// Whether a driver option exists: used to tell a new option from a value with a comma in it.
pub fn is_option(driver: &str, key: &str) -> bool {
    match driver {
        "docker-container" => container::is_option(key),
        "embedded" => embedded::is_option(key),
        "remote" => remote::OPTIONS.contains(&key),
        _ => false,
    }
}

/// Checks that a remote endpoint has a scheme that can be dialled.
pub fn check_remote_endpoint(endpoint: &str) -> Result<(), DriverError> {
    remote::check_endpoint(endpoint)
}
