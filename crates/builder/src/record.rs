//! Records of builders as Buildx stores them: one JSON file a builder.
//!
//! Fields that a newer Buildx may have added are kept when a record is written again. `TLS` is
//! ours: stock ignores it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use driver::engine::TlsFiles;
use oci::Platform;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::BuilderError;
use crate::names::validate_name;

/// A builder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeGroup {
    /// Its name.
    pub name: String,
    /// Name of the driver of all its nodes; empty for a context's builder whose Engine was not
    /// asked yet.
    #[serde(default)]
    pub driver: String,
    /// Its nodes.
    #[serde(default, with = "null_if_empty")]
    pub nodes: Vec<NodeRecord>,
    /// Nodes come and go by themselves.
    #[serde(default)]
    pub dynamic: bool,
    /// What we do not know.
    #[serde(flatten)]
    pub unknown: serde_json::Map<String, serde_json::Value>,
}

/// A node of a builder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeRecord {
    /// Its name.
    pub name: String,
    /// A context's name or an address.
    #[serde(default)]
    pub endpoint: String,
    /// Platforms the user fixed.
    #[serde(default, with = "null_if_empty")]
    pub platforms: Vec<Platform>,
    /// Driver options.
    #[serde(default, with = "null_if_empty")]
    pub driver_opts: BTreeMap<String, String>,
    /// Arguments of the server.
    #[serde(default, with = "null_if_empty")]
    pub flags: Vec<String>,
    /// Files under `/etc/buildkit`.
    #[serde(default, with = "files")]
    pub files: BTreeMap<String, Vec<u8>>,
    /// Certificates for an endpoint whose TLS came from the environment.
    #[serde(default, rename = "TLS", skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// What we do not know.
    #[serde(flatten)]
    pub unknown: serde_json::Map<String, serde_json::Value>,
}

/// What to change in a node, or how a new one is; `None` leaves what is there.
#[derive(Clone, Debug, Default)]
pub struct NodeChange {
    /// Which node; empty: a new one with the next free name.
    pub name: String,
    /// Where it is.
    pub endpoint: String,
    /// The user named the endpoint.
    pub endpoint_is_set: bool,
    /// Certificates for it.
    pub tls: Option<TlsFiles>,
    /// Fixed platforms.
    pub platforms: Option<Vec<Platform>>,
    /// Server arguments.
    pub flags: Option<Vec<String>>,
    /// Files.
    pub files: Option<BTreeMap<String, Vec<u8>>>,
    /// Options; those of an existing node that are not named stay.
    pub driver_opts: BTreeMap<String, String>,
    /// Add a node if there is none of that name.
    pub append: bool,
}

impl NodeGroup {
    /// Removes a node, but not the last one.
    pub fn leave(&mut self, node: &str) -> Result<(), BuilderError> {
        let invalid = |text: &str| Err(BuilderError::Invalid(text.to_owned()));
        if self.dynamic {
            return invalid("dynamic node group does not support Leave");
        }
        let Some(index) = self.position(node) else {
            return Err(BuilderError::Invalid(format!(
                "node {node:?} not found for {}",
                self.name
            )));
        };
        if self.nodes.len() == 1 {
            return invalid("can not leave last node, do you want to rm instance instead?");
        }
        self.nodes.remove(index);
        Ok(())
    }

    /// Changes a node or adds one.
    pub fn update(&mut self, change: NodeChange) -> Result<(), BuilderError> {
        if self.dynamic {
            return Err(BuilderError::Invalid(
                "dynamic node group does not support Update".to_owned(),
            ));
        }
        match self.position(&change.name) {
            Some(index) => {
                let endpoint = change.endpoint.clone();
                self.nodes[index].apply(change);
                self.check_duplicates(&endpoint, index)
            }
            None if !change.append && !self.nodes.is_empty() => Err(BuilderError::Invalid(
                format!("node {} not found, did you mean to append?", change.name),
            )),
            None => self.add(change),
        }
    }

    fn add(&mut self, change: NodeChange) -> Result<(), BuilderError> {
        let name = if change.name.is_empty() {
            self.next_node_name()
        } else {
            validate_name(&change.name)?
        };
        let endpoint = change.endpoint;
        self.nodes.push(NodeRecord {
            name,
            endpoint: endpoint.clone(),
            platforms: change.platforms.unwrap_or_default(),
            driver_opts: change.driver_opts,
            flags: change.flags.unwrap_or_default(),
            files: change.files.unwrap_or_default(),
            tls: change.tls,
            unknown: serde_json::Map::new(),
        });
        self.check_duplicates(&endpoint, self.nodes.len() - 1)
    }

    /// No two nodes have an endpoint, and a platform belongs to the node it was last fixed for.
    fn check_duplicates(&mut self, endpoint: &str, index: usize) -> Result<(), BuilderError> {
        let same = self.nodes.iter().filter(|node| node.endpoint == endpoint);
        if same.count() > 1 {
            return Err(BuilderError::Invalid(format!(
                "invalid duplicate endpoint {endpoint}"
            )));
        }
        let taken = self.nodes[index].platforms.clone();
        for (other, node) in self.nodes.iter_mut().enumerate() {
            if other != index {
                node.platforms.retain(|platform| !taken.contains(platform));
            }
        }
        Ok(())
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    fn next_node_name(&self) -> String {
        let mut index = 0;
        loop {
            // Node names are in lower case, as the names of records are.
            let name = format!("{}{index}", self.name.to_ascii_lowercase());
            if self.position(&name).is_none() {
                return name;
            }
            index += 1;
        }
    }
}

impl NodeRecord {
    fn apply(&mut self, change: NodeChange) {
        if change.endpoint_is_set {
            self.endpoint = change.endpoint;
            self.tls = change.tls;
        }
        if let Some(platforms) = change.platforms {
            self.platforms = platforms;
        }
        if let Some(flags) = change.flags {
            self.flags = flags;
        }
        if let Some(files) = change.files {
            self.files = files;
        }
        self.driver_opts.extend(change.driver_opts);
    }
}

/// Go writes an empty list or map as `null` when nothing was ever put in it.
mod null_if_empty {
    use super::*;

    pub(super) trait MaybeEmpty {
        fn has_none(&self) -> bool;
    }

    impl<T> MaybeEmpty for Vec<T> {
        fn has_none(&self) -> bool {
            self.is_empty()
        }
    }

    impl<K, V> MaybeEmpty for BTreeMap<K, V> {
        fn has_none(&self) -> bool {
            self.is_empty()
        }
    }

    pub(super) fn serialize<T: MaybeEmpty + Serialize, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if value.has_none() {
            serializer.serialize_none()
        } else {
            value.serialize(serializer)
        }
    }

    pub(super) fn deserialize<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
    }
}

/// Go writes bytes as base64.
mod files {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        files: &BTreeMap<String, Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let encoded: BTreeMap<&String, String> = files
            .iter()
            .map(|(name, data)| (name, STANDARD.encode(data)))
            .collect();
        if encoded.is_empty() {
            serializer.serialize_none()
        } else {
            encoded.serialize(serializer)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, Vec<u8>>, D::Error> {
        let encoded = Option::<BTreeMap<String, Option<String>>>::deserialize(deserializer)?;
        encoded
            .unwrap_or_default()
            .into_iter()
            .map(|(name, text)| {
                let data = STANDARD
                    .decode(text.unwrap_or_default())
                    .map_err(serde::de::Error::custom)?;
                Ok((name, data))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: &str = r#"{"Name":"b","Driver":"docker-container","Nodes":[{"Name":"b0","Endpoint":"unix:///var/run/docker.sock","Platforms":[{"architecture":"amd64","os":"linux"}],"DriverOpts":null,"Flags":["--allow-insecure-entitlement=network.host"],"Files":{"buildkitd.toml":"YQ=="}}],"Dynamic":false}"#;

    #[test]
    fn nodes_of_a_builder_in_capitals_are_named_in_lower_case() {
        let mut group = NodeGroup {
            name: "Box".into(),
            ..NodeGroup::default()
        };
        group.update(change("", "default")).unwrap();
        assert_eq!(group.nodes[0].name, "box0");
    }

    #[test]
    fn a_record_of_stock_is_read_and_written_byte_for_byte() {
        let group: NodeGroup = serde_json::from_str(STOCK).unwrap();
        assert_eq!(group.nodes[0].files["buildkitd.toml"], b"a");
        assert_eq!(serde_json::to_string(&group).unwrap(), STOCK);
    }

    #[test]
    fn fields_of_a_newer_version_are_kept() {
        let text = STOCK.replace("\"Dynamic\":false", "\"Dynamic\":false,\"New\":1");
        let group: NodeGroup = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&group).unwrap(), text);
    }

    fn change(name: &str, endpoint: &str) -> NodeChange {
        NodeChange {
            name: name.to_owned(),
            endpoint: endpoint.to_owned(),
            endpoint_is_set: true,
            append: true,
            ..NodeChange::default()
        }
    }

    #[test]
    fn a_change_touches_only_what_it_names() {
        let mut group = NodeGroup {
            name: "b".into(),
            ..NodeGroup::default()
        };
        let mut first = change("", "e");
        first.driver_opts = BTreeMap::from([("memory".into(), "1g".into())]);
        first.flags = Some(vec!["--debug".into()]);
        group.update(first).unwrap();
        assert_eq!(group.nodes[0].name, "b0");
        let mut second = change("b0", "other");
        second.endpoint_is_set = false;
        second.driver_opts = BTreeMap::from([("network".into(), "host".into())]);
        group.update(second).unwrap();
        let node = &group.nodes[0];
        assert_eq!(node.endpoint, "e");
        assert_eq!(node.flags, ["--debug"]);
        assert_eq!(node.driver_opts.len(), 2);
    }

    #[test]
    fn a_platform_moves_to_the_node_it_is_fixed_for_last() {
        let mut group = NodeGroup {
            name: "b".into(),
            ..NodeGroup::default()
        };
        let arm: Platform = "linux/arm64".parse().unwrap();
        let mut one = change("", "a");
        one.platforms = Some(vec![arm.clone()]);
        group.update(one).unwrap();
        let mut two = change("", "b");
        two.platforms = Some(vec![arm.clone()]);
        group.update(two).unwrap();
        assert!(group.nodes[0].platforms.is_empty());
        assert_eq!(group.nodes[1].platforms, [arm]);
        assert!(group.update(change("", "b")).is_err());
        assert!(group.leave("b7").is_err());
    }
}
