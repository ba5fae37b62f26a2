//! Containers: create, start, stop, remove, inspect, list, logs, copy into.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use tokio_util::io::StreamReader;

use crate::client::{Call, bytes_body, percent_encode};
use crate::multiplex::{Output, read_all};
use crate::system::null_default;
use crate::{Engine, EngineError};

/// What a container is made from. Empty values are left out, so that the Engine's defaults hold.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerCreate {
    /// The process.
    #[serde(flatten)]
    pub config: ContainerConfig,
    /// Everything that depends on the host.
    pub host_config: HostConfig,
}

/// The process of a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// Name, tag or ID.
    pub image: String,
    /// Arguments of the entrypoint.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    pub env: Vec<String>,
    /// Labels.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_default"
    )]
    pub labels: BTreeMap<String, String>,
}

/// Everything about a container that depends on the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// All capabilities and devices.
    pub privileged: bool,
    /// What happens when the process ends.
    pub restart_policy: RestartPolicy,
    /// Runs an init process that reaps others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// Volumes and directories.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    pub mounts: Vec<Mount>,
    /// Network name or mode.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network_mode: String,
    /// User namespace: `host` or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub userns_mode: String,
    /// Parent in the cgroup tree.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup_parent: String,
    /// Bytes; 0 is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory: i64,
    /// Bytes of memory and swap together; -1 is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_swap: i64,
    /// Microseconds a period.
    #[serde(skip_serializing_if = "is_zero")]
    pub cpu_quota: i64,
    /// Microseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub cpu_period: i64,
    /// Relative weight.
    #[serde(skip_serializing_if = "is_zero")]
    pub cpu_shares: i64,
    /// CPUs, such as `0-2,4`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cpuset_cpus: String,
    /// Memory nodes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cpuset_mems: String,
    /// GPUs.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    pub device_requests: Vec<DeviceRequest>,
    /// Options such as `label=disable`.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_default"
    )]
    pub security_opt: Vec<String>,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// What happens when a container's process ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// `no`, `always`, `unless-stopped`, `on-failure` or empty.
    pub name: String,
    /// Only for `on-failure`; 0 is for ever.
    pub maximum_retry_count: i64,
}

/// A mount that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Mount {
    /// `volume` or `bind`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Volume name or path on the host.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Cannot be written.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// Devices that are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceRequest {
    /// Driver of the Engine; empty: by capabilities.
    pub driver: String,
    /// How many; -1 is all.
    pub count: i64,
    /// Which.
    #[serde(rename = "DeviceIDs")]
    pub device_ids: Option<Vec<String>>,
    /// Alternatives of sets of capabilities.
    pub capabilities: Vec<Vec<String>>,
    /// The driver's own.
    pub options: BTreeMap<String, String>,
}

/// A container as it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerInspect {
    /// Its ID.
    #[serde(rename = "Id")]
    pub id: String,
    /// ID of its image.
    pub image: String,
    /// What it is doing.
    pub state: ContainerState,
    /// Its process.
    pub config: ContainerConfig,
    /// What depends on the host.
    pub host_config: HostConfig,
    /// What is mounted.
    #[serde(deserialize_with = "null_default")]
    pub mounts: Vec<ContainerMount>,
    /// Its addresses.
    #[serde(deserialize_with = "null_default")]
    pub network_settings: NetworkSettings,
    /// Times the Engine started it again.
    pub restart_count: i64,
}

/// What a container is doing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerState {
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    pub status: String,
    /// Its process runs.
    pub running: bool,
    /// Its process is frozen.
    pub paused: bool,
    /// It is about to be started again.
    pub restarting: bool,
    /// The kernel killed it for its memory.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// The Engine failed to remove it.
    pub dead: bool,
    /// Of the last run.
    pub exit_code: i64,
    /// Why the last start failed.
    pub error: String,
}

/// A mount of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerMount {
    /// `volume` or `bind`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Of the volume.
    pub name: String,
    /// Path in the container.
    pub destination: String,
}

/// A container's networks.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSettings {
    /// By network name.
    #[serde(deserialize_with = "null_default")]
    pub networks: BTreeMap<String, ContainerNetwork>,
}

/// A container in one network.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerNetwork {
    /// Address of the host in it; may be empty.
    pub gateway: String,
    /// The container's own.
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
}

/// A container of a list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSummary {
    /// Its ID.
    #[serde(rename = "Id")]
    pub id: String,
    /// Names, each with a leading slash.
    #[serde(deserialize_with = "null_default")]
    pub names: Vec<String>,
    /// `running`, `exited`, …
    pub state: String,
    /// Labels.
    #[serde(deserialize_with = "null_default")]
    pub labels: BTreeMap<String, String>,
    /// What is mounted.
    #[serde(deserialize_with = "null_default")]
    pub mounts: Vec<ContainerMount>,
}

impl ContainerSummary {
    /// Its first name without the slash.
    pub fn name(&self) -> &str {
        self.names
            .first()
            .map_or("", |name| name.trim_start_matches('/'))
    }
}

/// Longest logs that are read into memory.
const LOG_BYTES_MAX: usize = 8 << 20;

impl Engine {
    /// Makes a container; gives its ID.
    pub async fn create_container(
        &self,
        name: &str,
        create: &ContainerCreate,
    ) -> Result<String, EngineError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            id: String,
        }
        let call = Call::post("/containers/create")
            .query("name", name)
            .json(create)?;
        Ok(self.call_json::<Created>(call).await?.id)
    }

    /// Starts a container; one that runs is left alone.
    pub async fn start_container(&self, name: &str) -> Result<(), EngineError> {
        self.container_action(name, "start").await
    }

    /// Thaws a frozen container.
    pub async fn unpause_container(&self, name: &str) -> Result<(), EngineError> {
        self.container_action(name, "unpause").await
    }

    /// Asks a container to end and kills it after the Engine's grace time; one that does not run
    /// is left alone.
    pub async fn stop_container(&self, name: &str) -> Result<(), EngineError> {
        self.container_action(name, "stop").await
    }

    async fn container_action(&self, name: &str, action: &str) -> Result<(), EngineError> {
        let path = format!("/containers/{}/{action}", percent_encode(name));
        self.call(Call::post(path)).await?;
        Ok(())
    }

    /// Removes a container with its anonymous volumes; `force` kills it first.
    pub async fn remove_container(&self, name: &str, force: bool) -> Result<(), EngineError> {
        let call = Call::delete(format!("/containers/{}", percent_encode(name)))
            .query("v", "1")
            .query("force", if force { "1" } else { "0" });
        self.call(call).await?;
        Ok(())
    }

    /// A container by name or ID.
    pub async fn container(&self, name: &str) -> Result<ContainerInspect, EngineError> {
        self.call_json(Call::get(format!(
            "/containers/{}/json",
            percent_encode(name)
        )))
        .await
    }

    /// Containers that have all these labels (`key` or `key=value`), running or not.
    pub async fn containers(
        &self,
        labels: &[String],
    ) -> Result<Vec<ContainerSummary>, EngineError> {
        let filters = serde_json::json!({ "label": labels });
        self.call_json(
            Call::get("/containers/json")
                .query("all", "1")
                .query("filters", filters.to_string()),
        )
        .await
    }

    /// The last lines a container wrote, in order.
    pub async fn container_logs(
        &self,
        name: &str,
        tail_lines: u32,
    ) -> Result<Vec<Output>, EngineError> {
        let call = Call::get(format!("/containers/{}/logs", percent_encode(name)))
            .query("stdout", "1")
            .query("stderr", "1")
            .query("tail", tail_lines.to_string());
        let response = self.send(call).await?;
        let stream = response
            .into_body()
            .into_data_stream()
            .map_err(std::io::Error::other);
        Ok(read_all(StreamReader::new(stream), LOG_BYTES_MAX).await?)
    }

    /// Unpacks a tar archive into a directory of a container.
    pub async fn copy_into_container(
        &self,
        name: &str,
        directory: &str,
        tar: Vec<u8>,
    ) -> Result<(), EngineError> {
        let call = Call::new(
            http::Method::PUT,
            format!("/containers/{}/archive", percent_encode(name)),
        )
        .query("path", directory)
        .query("noOverwriteDirNonDir", "true")
        .body("application/x-tar", bytes_body(Bytes::from(tar)));
        self.call(call).await?;
        Ok(())
    }
}
