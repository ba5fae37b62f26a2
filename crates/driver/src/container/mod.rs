//! The `docker-container` driver: the server in a container of a Docker Engine, its state in a
//! volume.
//!
//! Names: container `buildx_buildkit_<node>`, volume `buildx_buildkit_<node>_state`. All that is
//! made here is labelled with builder, node and owner, so that nothing is ever lost sight of; the
//! container also with a digest of what it was made from, so that a change of options reaches it.

mod boot;
mod diagnose;
mod options;
mod orphans;
mod spec;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use engine_api::{
    ContainerInspect, Engine, EngineError, EngineInfo, ExecStream, RegistryConfig, StderrTail,
    boxed,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OnceCell;

use crate::registries::{CONFIG_FILE, effective_registries};
use crate::{
    BootProgress, BoxedIo, Driver, DriverError, EffectiveRegistry, Features, Loss, NodeConfig,
    Removal, Status, features_of_own_server,
};

use options::ContainerOptions;
pub(crate) use options::is_option;
pub use orphans::{Orphan, orphans};

/// Label with the builder's name.
pub const LABEL_BUILDER: &str = "cooperage.builder";
/// Label with the node's name.
pub const LABEL_NODE: &str = "cooperage.node";
/// Label with the identity of who made it.
pub const LABEL_OWNER: &str = "cooperage.owner";
/// Label with the digest of what a container was made from.
pub const LABEL_SPEC: &str = "cooperage.spec";

/// Where the configuration directory is unpacked into.
const CONFIG_PARENT: &str = "/etc";

/// The driver.
pub(crate) struct ContainerDriver {
    node: NodeConfig,
    engine: Engine,
    options: ContainerOptions,
    info: OnceCell<EngineInfo>,
}

impl ContainerDriver {
    pub(crate) fn new(node: NodeConfig) -> Result<Self, DriverError> {
        let Some(engine) = node.engine.clone() else {
            return Err(DriverError::Option(
                "docker-container driver requires docker API access".to_owned(),
            ));
        };
        let options = ContainerOptions::parse(&node.options)?;
        Ok(ContainerDriver {
            node,
            engine,
            options,
            info: OnceCell::new(),
        })
    }

    fn container_name(&self) -> String {
        self.node.container_name()
    }

    /// The volume with the server's state; one that the user named is the user's.
    fn volume_name(&self) -> String {
        match &self.options.state {
            Some(volume) => volume.clone(),
            None => self.own_volume_name(),
        }
    }

    fn own_volume_name(&self) -> String {
        format!("{}_state", self.container_name())
    }

    fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (LABEL_BUILDER.to_owned(), self.node.builder.clone()),
            (LABEL_NODE.to_owned(), self.node.name.clone()),
            (LABEL_OWNER.to_owned(), self.node.owner.clone()),
        ])
    }

    fn label_filters(&self) -> Vec<String> {
        self.labels()
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect()
    }

    async fn info(&self) -> Result<&EngineInfo, EngineError> {
        self.info.get_or_try_init(|| self.engine.info()).await
    }

    /// The Engine's registry settings that a server can be told: settings by network are for our
    /// own, an image that the user named may not know them.
    fn inheritable(&self, info: &EngineInfo) -> RegistryConfig {
        let mut settings = info.registry_config.clone();
        if self.options.image.is_some() {
            settings.insecure_registry_cidrs.clear();
        }
        settings
    }

    /// The container, if there is one.
    async fn inspect(&self) -> Result<Option<ContainerInspect>, EngineError> {
        match self.engine.container(&self.container_name()).await {
            Ok(container) => Ok(Some(container)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn dial_exec(&self) -> Result<ExecStream, DriverError> {
        let command = ["buildctl", "dial-stdio"];
        match self.engine.exec(&self.container_name(), &command).await {
            Ok(stream) => Ok(stream),
            Err(error) if error.is_not_found() || error.is_conflict() => {
                Err(DriverError::NotRunning)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes containers of this node: by name, and by label those that were renamed.
    async fn remove_containers(&self, graceful: bool) -> Result<Vec<String>, DriverError> {
        let mut names = BTreeSet::from([self.container_name()]);
        for container in self.engine.containers(&self.label_filters()).await? {
            names.insert(container.name().to_owned());
        }
        let mut left = Vec::new();
        for name in names {
            if graceful {
                match self.engine.stop_container(&name).await {
                    Ok(()) => {}
                    Err(error) if error.is_unreachable() => return Err(error.into()),
                    // Removal by force below decides.
                    Err(_) => {}
                }
            }
            match self.engine.remove_container(&name, true).await {
                Ok(()) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) if error.is_unreachable() => return Err(error.into()),
                Err(error) => left.push(format!("container {name}: {error}")),
            }
        }
        Ok(left)
    }

    /// Removes volumes of this node: the one of the fixed name, and by label any other.
    async fn remove_volumes(&self) -> Result<Vec<String>, DriverError> {
        let mut names = BTreeSet::from([self.own_volume_name()]);
        for volume in self.engine.volumes(&self.label_filters()).await? {
            names.insert(volume.name);
        }
        if let Some(users) = &self.options.state {
            names.remove(users);
        }
        let mut left = Vec::new();
        for name in names {
            match self.engine.remove_volume(&name).await {
                Ok(()) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) if error.is_unreachable() => return Err(error.into()),
                Err(error) => left.push(format!("volume {name}: {error}")),
            }
        }
        Ok(left)
    }
}

#[async_trait]
impl Driver for ContainerDriver {
    fn name(&self) -> &'static str {
        "docker-container"
    }

    fn node(&self) -> &NodeConfig {
        &self.node
    }

    async fn bootstrap(&self, progress: &BootProgress) -> Result<(), DriverError> {
        progress
            .vertex("[internal] booting buildkit", |steps| async move {
                self.boot(&steps).await
            })
            .await
    }

    async fn status(&self) -> Result<Status, DriverError> {
        let Some(container) = self.inspect().await? else {
            return Ok(Status::Inactive);
        };
        let state = container.state;
        Ok(match state.status.as_str() {
            "removing" => Status::Stopping,
            _ if state.restarting => Status::Starting,
            _ if state.paused => Status::Stopped,
            _ if state.running => Status::Running,
            _ => Status::Stopped,
        })
    }

    async fn is_outdated(&self) -> Result<bool, DriverError> {
        let Some(container) = self.inspect().await? else {
            return Ok(false);
        };
        let wanted = self.spec(self.info().await?)?;
        Ok(self.differs(&container, &wanted))
    }

    async fn version(&self) -> Result<String, DriverError> {
        let output = self
            .engine
            .exec_output(&self.container_name(), &["buildkitd", "--version"])
            .await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.exit_code != 0 {
            return Err(DriverError::Connection(format!(
                "{}: exit code {}",
                output.stderr, output.exit_code
            )));
        }
        match text.split_whitespace().collect::<Vec<_>>().as_slice() {
            [_, _, version, _] => Ok((*version).to_owned()),
            _ => Err(DriverError::Connection(format!(
                "unexpected version format: {text}"
            ))),
        }
    }

    async fn dial(&self) -> Result<BoxedIo, DriverError> {
        Ok(boxed(LastWords::new(self.dial_exec().await?)))
    }

    async fn stop(&self) -> Result<(), DriverError> {
        match self.engine.stop_container(&self.container_name()).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn remove(&self, what: Removal) -> Result<Vec<String>, DriverError> {
        if !what.daemon {
            return Ok(Vec::new());
        }
        // A server whose state is thrown away need not be asked to end well.
        let mut left = self.remove_containers(!what.state).await?;
        if what.state {
            left.extend(self.remove_volumes().await?);
        }
        Ok(left)
    }

    fn belongings(&self, what: Removal) -> Vec<String> {
        let mut names = Vec::new();
        if what.daemon {
            names.push(format!("container {}", self.container_name()));
            if what.state && self.options.state.is_none() {
                names.push(format!("volume {}", self.own_volume_name()));
            }
        }
        names
    }

    async fn features(&self) -> Features {
        features_of_own_server(self.options.default_load)
    }

    async fn host_gateway(&self) -> Result<IpAddr, DriverError> {
        let container = self.inspect().await?.ok_or(DriverError::NotRunning)?;
        let gateways = container.network_settings.networks.values();
        let mut found = gateways.filter_map(|network| network.gateway.parse().ok());
        if let Some(address) = found.next() {
            return Ok(address);
        }
        // In the host's own network, the host is what containers of the default network see.
        let bridge = self.engine.network("bridge").await?;
        bridge
            .ipam
            .config
            .iter()
            .find_map(|subnet| subnet.gateway.parse().ok())
            .ok_or_else(|| {
                DriverError::Unsupported(format!(
                    "the network of {} has no gateway for host-gateway",
                    self.container_name()
                ))
            })
    }

    async fn diagnose(&self) -> Option<Loss> {
        self.diagnosis().await
    }

    async fn registries(&self) -> Vec<EffectiveRegistry> {
        let config = self.node.files.get(CONFIG_FILE).map(Vec::as_slice);
        match self.info().await {
            Ok(info) => effective_registries(config, &self.inheritable(info)),
            Err(_) => effective_registries(config, &Default::default()),
        }
    }
}

/// An exec stream whose end is an error when the process said something on stderr: `dial-stdio`
/// ends well only when we ended it.
struct LastWords {
    stream: ExecStream,
    stderr: StderrTail,
}

impl LastWords {
    fn new(stream: ExecStream) -> Self {
        let stderr = stream.stderr();
        LastWords { stream, stderr }
    }
}

impl AsyncRead for LastWords {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() == before && buf.remaining() > 0 {
            let text = self.stderr.text();
            if !text.is_empty() {
                return Poll::Ready(Err(std::io::Error::other(text)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LastWords {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
