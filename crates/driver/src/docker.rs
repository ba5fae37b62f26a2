//! The `docker` driver: the build server inside a Docker Engine, through `POST /grpc` and
//! `POST /session`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use async_trait::async_trait;
use engine_api::Engine;
use proto::worker::WorkerRecord;

use crate::connection::workers_over;
use crate::moby_version::buildkit_of_engine;
use crate::{
    BootProgress, BoxedIo, Driver, DriverError, Feature, Features, NodeConfig, Removal, Status,
};

/// Label of workers that keep images in containerd's store.
const LABEL_SNAPSHOTTER: &str = "org.mobyproject.buildkit.worker.snapshotter";
/// Label with the address of the host as containers see it.
const LABEL_HOST_GATEWAY: &str = "org.mobyproject.buildkit.worker.moby.host-gateway-ip";

/// The driver.
pub(crate) struct DockerDriver {
    node: NodeConfig,
    engine: Engine,
}

impl DockerDriver {
    pub(crate) fn new(node: NodeConfig) -> Result<Self, DriverError> {
        let Some(engine) = node.engine.clone() else {
            return Err(DriverError::Option(
                "docker driver requires docker API access".to_owned(),
            ));
        };
        if !node.files.is_empty() {
            return Err(DriverError::Option(
                "setting config file is not supported for docker driver, use dockerd configuration file"
                    .to_owned(),
            ));
        }
        Ok(DockerDriver { node, engine })
    }

    async fn workers(&self) -> Result<Vec<WorkerRecord>, DriverError> {
        workers_over(self.dial().await?).await
    }
}

#[async_trait]
impl Driver for DockerDriver {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn node(&self) -> &NodeConfig {
        &self.node
    }

    fn is_moby(&self) -> bool {
        true
    }

    async fn bootstrap(&self, _progress: &BootProgress) -> Result<(), DriverError> {
        Ok(())
    }

    async fn status(&self) -> Result<Status, DriverError> {
        match self.engine.version().await {
            Ok(_) => Ok(Status::Running),
            Err(error) => Err(DriverError::NotConnecting(error.to_string())),
        }
    }

    async fn version(&self) -> Result<String, DriverError> {
        let version = self
            .engine
            .version()
            .await
            .map_err(|error| DriverError::NotConnecting(error.to_string()))?
            .version;
        Ok(match buildkit_of_engine(&version) {
            Some(buildkit) => buildkit.to_owned(),
            None => version.trim_end_matches("-moby").to_owned(),
        })
    }

    async fn dial(&self) -> Result<BoxedIo, DriverError> {
        Ok(self.engine.hijack("/grpc", "h2c", &[]).await?)
    }

    async fn dial_session(
        &self,
        headers: &[(String, String)],
    ) -> Result<Option<BoxedIo>, DriverError> {
        Ok(Some(self.engine.hijack("/session", "h2c", headers).await?))
    }

    async fn stop(&self) -> Result<(), DriverError> {
        Ok(())
    }

    async fn remove(&self, _what: Removal) -> Result<Vec<String>, DriverError> {
        Ok(Vec::new())
    }

    async fn features(&self) -> Features {
        let workers = self.workers().await.unwrap_or_default();
        let containerd = workers
            .iter()
            .any(|worker| worker.labels.contains_key(LABEL_SNAPSHOTTER));
        BTreeMap::from([
            (Feature::OciExporter, containerd),
            (Feature::DockerExporter, containerd),
            (Feature::CacheExport, containerd),
            (Feature::MultiPlatform, containerd),
            (Feature::DirectPush, containerd),
            (Feature::PreferImageDigest, containerd),
            (Feature::DefaultLoad, true),
        ])
    }

    async fn host_gateway(&self) -> Result<IpAddr, DriverError> {
        let workers = self.workers().await?;
        let label = workers
            .iter()
            .find_map(|worker| worker.labels.get(LABEL_HOST_GATEWAY))
            .filter(|address| !address.is_empty());
        match label {
            Some(address) => address.parse().map_err(|_| {
                DriverError::Connection(format!("failed to parse host-gateway IP: {address}"))
            }),
            None => Err(DriverError::Unsupported(
                "host-gateway IP not found".to_owned(),
            )),
        }
    }
}
