//! From what a frontend returned to what exporters take.

use std::collections::BTreeMap;

use diag::{Error, Result};
use exporter::{Annotations, ExportSource, PlatformImage};
use futures::future::try_join_all;
use oci::Platform;
use serde::Deserialize;

use crate::job::{BuildResult, Job};

/// Frontends' names for what they say of a result.
mod key {
    pub const PLATFORMS: &str = "refs.platforms";
    pub const CONFIG: &str = "containerimage.config";
    pub const BASE_CONFIG: &str = "containerimage.base.config";
    pub const INLINE_CACHE: &str = "containerimage.inlinecache";
    pub const IMAGE_NAME: &str = "image.name";
    pub const EPOCH: &str = "source.date.epoch";
}

#[derive(Deserialize)]
struct Platforms {
    #[serde(rename = "Platforms", default)]
    platforms: Vec<PlatformEntry>,
}

#[derive(Deserialize)]
struct PlatformEntry {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Platform")]
    platform: Platform,
}

/// Solves everything a build returned; all platforms at once.
pub async fn export_source(job: &Job, result: &BuildResult) -> Result<ExportSource> {
    let known = platforms(result)?;
    let platforms = try_join_all(result.refs.iter().map(|(id, reference)| {
        let known = &known;
        async move {
            let stack = match reference {
                Some(reference) => job.evaluate(reference).await?.stack,
                None => Default::default(),
            };
            let meta = Metadata {
                all: &result.metadata,
                id: (!result.single).then_some(id.as_str()),
            };
            let platform = match known.as_slice() {
                [(_, only)] if result.single => only.clone(),
                known => known
                    .iter()
                    .find(|(name, _)| name == id)
                    .map(|(_, platform)| platform.clone())
                    .or_else(|| meta.config_platform())
                    .unwrap_or_else(Platform::host),
            };
            Ok::<_, Error>(PlatformImage {
                id: match id.as_str() {
                    "" => platform.to_string(),
                    id => id.to_owned(),
                },
                platform,
                stack,
                config: meta.bytes(key::CONFIG),
                base_config: meta.bytes(key::BASE_CONFIG),
                inline_cache: meta.bytes(key::INLINE_CACHE),
                epoch: meta.number(key::EPOCH)?,
            })
        }
    }))
    .await?;
    let whole = Metadata {
        all: &result.metadata,
        id: None,
    };
    let mut annotations = Annotations::default();
    for (name, value) in &result.metadata {
        annotations.add(name, &String::from_utf8_lossy(value))?;
    }
    let mut source = ExportSource {
        platforms,
        multi: !result.single,
        image_name: whole
            .bytes(key::IMAGE_NAME)
            .map(|name| String::from_utf8_lossy(&name).into_owned()),
        epoch: whole.number(key::EPOCH)?,
        annotations,
    };
    order(&mut source.platforms, &known);
    Ok(source)
}

/// The platforms in the order the frontend names them.
fn order(platforms: &mut [PlatformImage], known: &[(String, Platform)]) {
    platforms.sort_by_key(|platform| {
        known
            .iter()
            .position(|(id, _)| *id == platform.id)
            .unwrap_or(usize::MAX)
    });
}

fn platforms(result: &BuildResult) -> Result<Vec<(String, Platform)>> {
    let Some(text) = result.metadata.get(key::PLATFORMS) else {
        return Ok(Vec::new());
    };
    let parsed: Platforms = serde_json::from_slice(text).map_err(|error| {
        Error::invalid(format!(
            "failed to parse platforms passed to exporter: {error}"
        ))
    })?;
    let known: Vec<(String, Platform)> = parsed
        .platforms
        .into_iter()
        .map(|entry| (entry.id, entry.platform))
        .collect();
    if !result.single {
        for (id, _) in &result.refs {
            if !known.iter().any(|(name, _)| name == id) {
                return Err(Error::invalid(format!(
                    "failed to find ref for ID {id}: it is not among the platforms"
                )));
            }
        }
    }
    Ok(known)
}

/// The metadata of one platform: its own entries, named `KEY/ID`, before those of all.
struct Metadata<'m> {
    all: &'m BTreeMap<String, Vec<u8>>,
    id: Option<&'m str>,
}

impl Metadata<'_> {
    fn bytes(&self, key: &str) -> Option<Vec<u8>> {
        let own = self.id.and_then(|id| self.all.get(&format!("{key}/{id}")));
        own.or_else(|| self.all.get(key)).cloned()
    }

    fn number(&self, key: &str) -> Result<Option<i64>> {
        let Some(bytes) = self.bytes(key).filter(|bytes| !bytes.is_empty()) else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.parse().map(Some).map_err(|_| {
            Error::invalid(format!("invalid SOURCE_DATE_EPOCH from frontend: {text:?}"))
        })
    }

    /// What the configuration says it runs on.
    fn config_platform(&self) -> Option<Platform> {
        serde_json::from_slice(&self.bytes(key::CONFIG)?).ok()
    }
}
