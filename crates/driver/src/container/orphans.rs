//! What was made for builders whose records are gone.

use std::collections::BTreeMap;

use engine_api::{Engine, EngineError};

use super::{LABEL_BUILDER, LABEL_NODE, LABEL_OWNER};

/// A container or a volume that belongs to no builder any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// True for a volume, false for a container.
    pub is_volume: bool,
    /// Its name.
    pub name: String,
    /// The builder it was made for.
    pub builder: String,
    /// The node it was made for.
    pub node: String,
}

impl Orphan {
    /// `container` or `volume`.
    pub fn kind(&self) -> &'static str {
        if self.is_volume {
            "volume"
        } else {
            "container"
        }
    }

    /// Removes it; a container is killed first.
    pub async fn remove(&self, engine: &Engine) -> Result<(), EngineError> {
        if self.is_volume {
            engine.remove_volume(&self.name).await
        } else {
            engine.remove_container(&self.name, true).await
        }
    }
}

/// Finds what that owner has on that Engine for nodes of which `is_known(builder, node)` is false;
/// containers first, because they hold volumes.
pub async fn orphans(
    engine: &Engine,
    owner: &str,
    is_known: impl Fn(&str, &str) -> bool,
) -> Result<Vec<Orphan>, EngineError> {
    let filters = [format!("{LABEL_OWNER}={owner}")];
    let of = |is_volume, name: &str, labels: &BTreeMap<String, String>| Orphan {
        is_volume,
        name: name.to_owned(),
        builder: labels.get(LABEL_BUILDER).cloned().unwrap_or_default(),
        node: labels.get(LABEL_NODE).cloned().unwrap_or_default(),
    };
    let containers = engine.containers(&filters).await?;
    let volumes = engine.volumes(&filters).await?;
    let found = containers
        .iter()
        .map(|container| of(false, container.name(), &container.labels))
        .chain(
            volumes
                .iter()
                .map(|volume| of(true, &volume.name, &volume.labels)),
        );
    Ok(found
        .filter(|orphan| !is_known(&orphan.builder, &orphan.node))
        .collect())
}
