//! Volumes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::client::{Call, percent_encode};
use crate::system::null_default;
use crate::{Engine, EngineError};

/// A volume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeInspect {
    /// Its name.
    pub name: String,
    /// Its labels.
    #[serde(deserialize_with = "null_default")]
    pub labels: BTreeMap<String, String>,
    /// Where the Engine keeps it.
    pub mountpoint: String,
}

impl Engine {
    /// Makes a volume; one that exists stays as it is, labels included.
    pub async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<VolumeInspect, EngineError> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Create<'a> {
            name: &'a str,
            labels: &'a BTreeMap<String, String>,
        }
        self.call_json(Call::post("/volumes/create").json(&Create { name, labels })?)
            .await
    }

    /// A volume by name.
    pub async fn volume(&self, name: &str) -> Result<VolumeInspect, EngineError> {
        self.call_json(Call::get(format!("/volumes/{}", percent_encode(name))))
            .await
    }

    /// Volumes that have all these labels (`key` or `key=value`).
    pub async fn volumes(&self, labels: &[String]) -> Result<Vec<VolumeInspect>, EngineError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct List {
            #[serde(deserialize_with = "null_default", default)]
            volumes: Vec<VolumeInspect>,
        }
        let filters = serde_json::json!({ "label": labels });
        let list: List = self
            .call_json(Call::get("/volumes").query("filters", filters.to_string()))
            .await?;
        Ok(list.volumes)
    }

    /// Removes a volume that no container uses.
    pub async fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        self.call(Call::delete(format!("/volumes/{}", percent_encode(name))))
            .await?;
        Ok(())
    }
}
