//! `/version`, `/info`, networks.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::client::{Call, percent_encode};
use crate::{Engine, EngineError};

/// A version of the API, such as 1.41.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// Always 1 so far.
    pub major: u32,
    /// Counts up.
    pub minor: u32,
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for ApiVersion {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        Ok(ApiVersion {
            major: major.parse()?,
            minor: minor.parse()?,
        })
    }
}

/// Go writes empty lists and maps as `null`.
pub(crate) fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// `GET /version`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EngineVersion {
    /// Version of the Engine, such as `20.10.24`.
    pub version: String,
    /// GOOS.
    pub os: String,
    /// GOARCH.
    pub arch: String,
}

/// The parts of `GET /info` that builders look at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EngineInfo {
    /// `cgroupfs` or `systemd` or `none`.
    pub cgroup_driver: String,
    /// Such as `name=userns`.
    #[serde(deserialize_with = "null_default")]
    pub security_options: Vec<String>,
    /// Key and value of the storage driver's description.
    #[serde(deserialize_with = "null_default")]
    pub driver_status: Vec<Vec<String>>,
    /// The Engine's own proxy for `http:`.
    pub http_proxy: String,
    /// The Engine's own proxy for `https:`.
    pub https_proxy: String,
    /// What the Engine reaches without proxy.
    pub no_proxy: String,
    /// Mirrors and registries that may be insecure.
    #[serde(deserialize_with = "null_default")]
    pub registry_config: RegistryConfig,
    /// `x86_64`, `aarch64`, …
    pub architecture: String,
    /// `linux`.
    #[serde(rename = "OSType")]
    pub os_type: String,
    /// Host name of the Engine.
    pub name: String,
    /// Identity of the Engine.
    #[serde(rename = "ID")]
    pub id: String,
}

impl EngineInfo {
    /// True when containers run with remapped users, so that a privileged one must ask for the
    /// host's.
    pub fn remaps_users(&self) -> bool {
        self.security_options.iter().any(|option| {
            option
                .split(',')
                .any(|part| part == "name=userns" || part == "userns")
        })
    }

    /// True when images are kept in containerd's content store.
    pub fn has_containerd_store(&self) -> bool {
        self.driver_status.iter().any(|pair| {
            matches!(pair.as_slice(), [key, value]
                if key == "driver-type" && value == "io.containerd.snapshotter.v1")
        })
    }
}

/// How the Engine talks to registries.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegistryConfig {
    /// Networks whose registries may be insecure.
    #[serde(rename = "InsecureRegistryCIDRs", deserialize_with = "null_default")]
    pub insecure_registry_cidrs: Vec<String>,
    /// By registry name.
    #[serde(deserialize_with = "null_default")]
    pub index_configs: BTreeMap<String, IndexConfig>,
    /// Mirrors of Docker's registry, as URLs.
    #[serde(deserialize_with = "null_default")]
    pub mirrors: Vec<String>,
}

/// How the Engine talks to one registry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IndexConfig {
    /// URLs asked before the registry itself.
    #[serde(deserialize_with = "null_default")]
    pub mirrors: Vec<String>,
    /// False: plain HTTP and unknown certificates are accepted.
    pub secure: bool,
}

/// The parts of a network that matter here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkInspect {
    /// Its name.
    pub name: String,
    /// `bridge`, `host`, …
    pub driver: String,
    /// Addresses.
    #[serde(rename = "IPAM", deserialize_with = "null_default")]
    pub ipam: Ipam,
}

/// Address management of a network.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ipam {
    /// One a subnet.
    #[serde(deserialize_with = "null_default")]
    pub config: Vec<IpamConfig>,
}

/// A subnet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpamConfig {
    /// CIDR.
    pub subnet: String,
    /// Address of the host in it; may be empty.
    pub gateway: String,
}

/// Something that happened to a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerEvent {
    /// `start`, `die`, `oom`, …
    #[serde(rename = "Action")]
    pub action: String,
    /// Whom it happened to.
    #[serde(rename = "Actor")]
    pub actor: EventActor,
    /// Nanoseconds since the epoch.
    #[serde(rename = "timeNano")]
    pub time_nanos: i64,
}

/// Whom an event happened to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EventActor {
    /// Such as `exitCode`.
    #[serde(deserialize_with = "null_default")]
    pub attributes: BTreeMap<String, String>,
}

impl Engine {
    /// What happened to a container between two moments, in seconds since the epoch, as far as the
    /// Engine remembers.
    pub async fn container_events(
        &self,
        name: &str,
        since_secs: i64,
        until_secs: i64,
    ) -> Result<Vec<ContainerEvent>, EngineError> {
        let filters = serde_json::json!({ "type": ["container"], "container": [name] });
        let call = Call::get("/events")
            .query("since", since_secs.to_string())
            .query("until", until_secs.to_string())
            .query("filters", filters.to_string());
        let bytes = self.call(call).await?;
        // What is not an event is skipped: the stream has grown other kinds over the years.
        Ok(serde_json::Deserializer::from_slice(&bytes)
            .into_iter::<ContainerEvent>()
            .filter_map(Result::ok)
            .collect())
    }

    /// The Engine's version.
    pub async fn version(&self) -> Result<EngineVersion, EngineError> {
        self.call_json(Call::get("/version")).await
    }

    /// What the Engine says about itself.
    pub async fn info(&self) -> Result<EngineInfo, EngineError> {
        self.call_json(Call::get("/info")).await
    }

    /// A network by name or ID.
    pub async fn network(&self, name: &str) -> Result<NetworkInspect, EngineError> {
        self.call_json(Call::get(format!("/networks/{}", percent_encode(name))))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number_and_not_by_text() {
        let v = |text: &str| text.parse::<ApiVersion>().unwrap();
        assert!(v("1.9") < v("1.41"));
        assert_eq!(v("1.41").to_string(), "1.41");
    }

    #[test]
    fn an_info_with_nulls_is_read() {
        let info: EngineInfo = serde_json::from_str(
            r#"{"CgroupDriver":"cgroupfs","SecurityOptions":null,"DriverStatus":null,
                "RegistryConfig":{"Mirrors":null,"IndexConfigs":{"r:5000":{"Mirrors":null,"Secure":false}}}}"#,
        )
        .unwrap();
        assert!(!info.remaps_users() && !info.has_containerd_store());
        assert!(!info.registry_config.index_configs["r:5000"].secure);
        let info: EngineInfo = serde_json::from_str(
            r#"{"SecurityOptions":["name=seccomp,profile=default","name=userns"]}"#,
        )
        .unwrap();
        assert!(info.remaps_users());
    }
}
