//! What a driver is made from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use engine_api::{Engine, RegistryAuth};
use oci::Platform;

/// Finds credentials for pulling a server image.
#[async_trait]
pub trait PullAuth: Send + Sync {
    /// Credentials for that registry (`docker.io` for Docker's), if there are any.
    async fn registry_auth(&self, registry: &str) -> Option<RegistryAuth>;
}

/// Proxies that processes in the server's container should use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxySettings {
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`, `FTP_PROXY`, `ALL_PROXY`, in either case.
    pub variables: BTreeMap<String, String>,
}

/// One node of a builder, as recorded, and what its driver needs besides.
#[derive(Clone)]
pub struct NodeConfig {
    /// Name of the builder.
    pub builder: String,
    /// Name of the node.
    pub name: String,
    /// Endpoint as recorded.
    pub endpoint: String,
    /// The Engine behind the endpoint; for `remote`, the current one.
    pub engine: Option<Engine>,
    /// Arguments of the server.
    pub flags: Vec<String>,
    /// Files under `/etc/buildkit`, by relative path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Platforms the user fixed.
    pub platforms: Vec<Platform>,
    /// Credentials for pulls.
    pub auth: Option<Arc<dyn PullAuth>>,
    /// Proxies from the user's configuration for this Engine.
    pub proxies: ProxySettings,
    /// Who makes containers and volumes: an identity of this user on this machine.
    pub owner: String,
    /// The executable that becomes the default server image.
    pub executable: PathBuf,
}

impl NodeConfig {
    /// Name of the node's container, and of its volume without its ending.
    pub fn container_name(&self) -> String {
        format!("{}{}", crate::NAME_PREFIX, self.name)
    }
}
