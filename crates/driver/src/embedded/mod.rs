//! The `embedded` driver: the server on this machine, without Docker.
//!
//! The server is the running executable. It is started by the first command that needs it, shared
//! by all that come later, detached from any terminal, and ends by itself when nobody was connected
//! for a while. Names are those of the `docker-container` driver: what is there a container, is
//! here a folder, and what is there a volume, is here a folder as well:
//!
//! ```text
//! <base>/buildx_buildkit_<node>/config/    buildkitd.toml and the certificates it names
//! <base>/buildx_buildkit_<node>/buildkitd.log[.old]
//! <base>/buildx_buildkit_<node>_state/     the server's root
//! /run/cooperage/<id>/buildkitd.sock       where it listens, for its own user only
//! /run/cooperage/<id>/lock                 held by whoever starts or ends it
//! /run/cooperage/<id>/stopped              that and how somebody ended it on purpose
//! ```
//!
//! The base is the node's endpoint; `<id>` is made of the first folder's path, because a socket's
//! path must be short. **Invariant**: a server is started and ended only under the lock, and never
//! while another has the state.

mod boot;
mod diagnose;
mod lock;
mod options;
mod places;
mod process;
mod spec;

use std::net::{IpAddr, Ipv4Addr};

use async_trait::async_trait;
use engine_api::boxed;
use parking_lot::Mutex;
use tokio::net::UnixStream;

use crate::connection::workers_over;
use crate::registries::{CONFIG_FILE, effective_registries};
use crate::{
    BootProgress, BoxedIo, Driver, DriverError, EffectiveRegistry, Features, Loss, NodeConfig,
    Removal, Status, features_of_own_server,
};

use lock::RunLock;
use options::EmbeddedOptions;
pub(crate) use options::is_option;
use places::Places;
pub use places::default_base;
use process::ServerProcess;

/// Label with the address of the host as steps see it.
const LABEL_HOST_GATEWAY: &str = "org.mobyproject.buildkit.worker.moby.host-gateway-ip";
/// Label with the network of steps.
const LABEL_NETWORK: &str = "org.mobyproject.buildkit.worker.network";

/// The driver.
pub(crate) struct EmbeddedDriver {
    node: NodeConfig,
    options: EmbeddedOptions,
    places: Places,
    /// The process that was dialed last.
    dialed: Mutex<Option<i32>>,
}

impl EmbeddedDriver {
    pub(crate) fn new(node: NodeConfig) -> Result<Self, DriverError> {
        let options = EmbeddedOptions::parse(&node.options)?;
        spec::check_flags(&node.flags)?;
        let places = Places::of(&node, options.state.as_deref())?;
        Ok(EmbeddedDriver {
            node,
            options,
            places,
            dialed: Mutex::new(None),
        })
    }

    /// Steps need namespaces and mounts, and the folders are root's.
    fn need_root(&self) -> Result<(), DriverError> {
        if rustix::process::geteuid().is_root() {
            return Ok(());
        }
        Err(DriverError::NeedsRoot(format!(
            "builder {:?} runs its server on this machine, which needs root",
            self.node.builder
        )))
    }

    /// A connection to the server, if there is one that takes connections.
    async fn connect(&self) -> Result<Option<UnixStream>, DriverError> {
        use std::io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
        match UnixStream::connect(&self.places.socket).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error)
                if matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset) =>
            {
                Ok(None)
            }
            Err(source) => Err(DriverError::Io {
                context: format!("dialing {}", self.places.socket.display()),
                source,
            }),
        }
    }

    /// The server that listens now.
    async fn server(&self) -> Result<Option<ServerProcess>, DriverError> {
        match self.connect().await? {
            Some(stream) => match ServerProcess::behind(&stream) {
                Ok(server) => Ok(Some(server)),
                Err(DriverError::NotRunning) => Ok(None),
                Err(error) => Err(error),
            },
            None => Ok(None),
        }
    }

    /// Removes the folders of a server that has ended.
    async fn remove_folders(&self, state: bool) -> Result<(), DriverError> {
        let places = self.places.clone();
        let removed = tokio::task::spawn_blocking(move || places.remove(state));
        removed
            .await
            .map_err(|error| DriverError::Connection(error.to_string()))?
    }
}

#[async_trait]
impl Driver for EmbeddedDriver {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn node(&self) -> &NodeConfig {
        &self.node
    }

    fn is_on_this_machine(&self) -> bool {
        true
    }

    async fn bootstrap(&self, progress: &BootProgress) -> Result<(), DriverError> {
        self.need_root()?;
        progress
            .vertex("[internal] booting buildkit", |steps| async move {
                self.boot(&steps).await
            })
            .await
    }

    async fn status(&self) -> Result<Status, DriverError> {
        self.need_root()?;
        if self.connect().await?.is_some() {
            return Ok(Status::Running);
        }
        Ok(match self.places.dir.exists() {
            true => Status::Stopped,
            false => Status::Inactive,
        })
    }

    async fn is_outdated(&self) -> Result<bool, DriverError> {
        match self.server().await? {
            Some(server) => Ok(server.spec() != Some(self.spec()?.digest.to_string())),
            None => Ok(false),
        }
    }

    async fn version(&self) -> Result<String, DriverError> {
        // Every server of this driver says it over gRPC.
        Ok(String::new())
    }

    async fn dial(&self) -> Result<BoxedIo, DriverError> {
        self.need_root()?;
        let stream = self.connect().await?.ok_or(DriverError::NotRunning)?;
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
        *self.dialed.lock() = process;
        Ok(boxed(stream))
    }

    async fn stop(&self) -> Result<(), DriverError> {
        self.need_root()?;
        if !self.places.run.exists() {
            return Ok(());
        }
        let _lock = RunLock::take(&self.places.lock).await?;
        self.end_server("stopped").await
    }

    async fn remove(&self, what: Removal) -> Result<Vec<String>, DriverError> {
        self.need_root()?;
        if !what.daemon {
            return Ok(Vec::new());
        }
        let _lock = RunLock::take(&self.places.lock).await?;
        self.end_server("removed").await?;
        // State in a folder that the user named is the user's.
        self.remove_folders(what.state && self.options.state.is_none())
            .await?;
        Ok(Vec::new())
    }

    fn belongings(&self, what: Removal) -> Vec<String> {
        let mut names = Vec::new();
        if what.daemon {
            names.push(format!("folder {}", self.places.dir.display()));
            if what.state && self.options.state.is_none() {
                names.push(format!("folder {}", self.places.state.display()));
            }
        }
        names
    }

    async fn features(&self) -> Features {
        features_of_own_server(self.options.default_load)
    }

    async fn host_gateway(&self) -> Result<IpAddr, DriverError> {
        let workers = workers_over(self.dial().await?).await?;
        let label = |name: &str| workers.iter().find_map(|worker| worker.labels.get(name));
        if let Some(address) = label(LABEL_HOST_GATEWAY).and_then(|text| text.parse().ok()) {
            return Ok(address);
        }
        // In the host's own network the host is here.
        match label(LABEL_NETWORK).map(String::as_str) {
            Some("host") => Ok(Ipv4Addr::LOCALHOST.into()),
            _ => Err(DriverError::Unsupported(
                "the server does not say under which address steps reach the host".to_owned(),
            )),
        }
    }

    async fn diagnose(&self) -> Option<Loss> {
        self.diagnosis().await
    }

    async fn registries(&self) -> Vec<EffectiveRegistry> {
        let config = self.node.files.get(CONFIG_FILE).map(Vec::as_slice);
        effective_registries(config, &Default::default())
    }

    fn places(&self) -> Vec<(&'static str, String)> {
        let shown = |path: &std::path::Path| path.display().to_string();
        vec![
            ("Socket", shown(&self.places.socket)),
            ("State", shown(&self.places.state)),
            ("Log", shown(&self.places.log)),
        ]
    }
}
