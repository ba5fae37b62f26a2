//! One file: its fields, and what makes it unusable.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::yaml;

/// Versions of the format.
const VERSIONS: &[&str] = &[
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];
const HOOKS: &[&str] = &[
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// A file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Spec {
    #[serde(default)]
    cdi_version: String,
    /// `vendor/class`, which is in front of the names of its devices.
    #[serde(default)]
    pub(crate) kind: String,
    #[serde(default, deserialize_with = "texts")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) devices: Vec<SpecDevice>,
    /// For each container with one of its devices.
    #[serde(default)]
    pub(crate) container_edits: ContainerEdits,
}

/// A device in it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SpecDevice {
    #[serde(deserialize_with = "text")]
    pub(crate) name: String,
    #[serde(default, deserialize_with = "texts")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) container_edits: ContainerEdits,
}

/// What is to be done to a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct ContainerEdits {
    #[serde(deserialize_with = "list")]
    pub(crate) env: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub(crate) device_nodes: Vec<SpecNode>,
    #[serde(deserialize_with = "list")]
    pub(crate) net_devices: Vec<Value>,
    #[serde(deserialize_with = "list")]
    pub(crate) hooks: Vec<Hook>,
    #[serde(deserialize_with = "list")]
    pub(crate) mounts: Vec<SpecMount>,
    pub(crate) intel_rdt: Option<Value>,
    #[serde(deserialize_with = "list")]
    pub(crate) additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct SpecNode {
    pub(crate) path: String,
    pub(crate) host_path: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) file_mode: Option<u32>,
    pub(crate) permissions: String,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// A mount.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct SpecMount {
    pub(crate) host_path: String,
    pub(crate) container_path: String,
    #[serde(deserialize_with = "list")]
    pub(crate) options: Vec<String>,
    #[serde(rename = "type")]
    pub(crate) kind: String,
}

/// A program to be run beside the container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct Hook {
    pub(crate) hook_name: String,
    pub(crate) path: String,
    #[serde(rename = "args")]
    _args: Value,
    #[serde(deserialize_with = "list")]
    env: Vec<String>,
    #[serde(rename = "timeout")]
    _timeout: Value,
}

impl Spec {
    /// Reads a file's text, YAML or JSON.
    ///
    /// # Errors
    /// In words, why it cannot be used.
    pub(crate) fn parse(text: &str) -> Result<Spec, String> {
        let value = yaml::parse(text)?;
        if value.is_null() {
            return Err("no Spec data".to_owned());
        }
        let spec: Spec = serde_json::from_value(value).map_err(|error| error.to_string())?;
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), String> {
        let version = self.cdi_version.trim_start_matches('v');
        if !VERSIONS.contains(&version) {
            return Err(format!("invalid version {:?}", self.cdi_version));
        }
        let (vendor, class) = self.kind.split_once('/').unwrap_or(("", &self.kind));
        check_name(vendor, "_-.", true).map_err(|why| format!("invalid vendor. {why}"))?;
        check_name(class, "_-.", true).map_err(|why| format!("invalid class. {why}"))?;
        self.container_edits.check()?;
        if self.devices.is_empty() {
            return Err("invalid spec, no devices".to_owned());
        }
        for (at, device) in self.devices.iter().enumerate() {
            let name = &device.name;
            let checked = check_name(name, "_-.:", false)
                .and_then(|()| device.container_edits.check())
                .and_then(|()| match device.container_edits.is_empty() {
                    true => Err("empty device edits".to_owned()),
                    false => Ok(()),
                });
            checked.map_err(|why| format!("invalid device {name:?}: {why}"))?;
            if self.devices[..at].iter().any(|other| other.name == *name) {
                return Err(format!("invalid spec, multiple device {name:?}"));
            }
        }
        Ok(())
    }
}

impl ContainerEdits {
    fn is_empty(&self) -> bool {
        self.env.is_empty()
            && self.device_nodes.is_empty()
            && self.net_devices.is_empty()
            && self.hooks.is_empty()
            && self.mounts.is_empty()
            && self.intel_rdt.is_none()
            && self.additional_gids.is_empty()
    }

    fn check(&self) -> Result<(), String> {
        check_env(&self.env)?;
        for node in &self.device_nodes {
            let path = &node.path;
            if path.is_empty() {
                return Err("invalid (empty) device path".to_owned());
            }
            if !matches!(node.kind.as_str(), "" | "b" | "c" | "u" | "p") {
                return Err(format!("device {path:?}: invalid type {:?}", node.kind));
            }
            if !node.permissions.chars().all(|c| "rwm".contains(c)) {
                let permissions = &node.permissions;
                return Err(format!(
                    "device {path:?}: invalid permissions {permissions:?}"
                ));
            }
        }
        for hook in &self.hooks {
            let name = &hook.hook_name;
            if !HOOKS.contains(&name.as_str()) {
                return Err(format!("invalid hook name {name:?}"));
            }
            if hook.path.is_empty() {
                return Err(format!("invalid hook {name:?} with empty path"));
            }
            check_env(&hook.env)?;
        }
        for mount in &self.mounts {
            if mount.host_path.is_empty() {
                return Err("invalid mount, empty host path".to_owned());
            }
            if mount.container_path.is_empty() {
                return Err("invalid mount, empty container path".to_owned());
            }
        }
        Ok(())
    }
}

fn check_env(variables: &[String]) -> Result<(), String> {
    let bad = |variable: &&String| !matches!(variable.find('='), Some(1..));
    match variables.iter().find(bad) {
        Some(variable) => Err(format!("invalid environment variable {variable:?}")),
        None => Ok(()),
    }
}

/// Letters and digits with some others between them.
fn check_name(name: &str, others: &str, starts_with_letter: bool) -> Result<(), String> {
    let word = |c: char| c.is_ascii_alphanumeric();
    let starts_well = name.starts_with(|c: char| match starts_with_letter {
        true => c.is_ascii_alphabetic(),
        false => word(c),
    });
    let fine =
        starts_well && name.ends_with(word) && name.chars().all(|c| word(c) || others.contains(c));
    match fine {
        true => Ok(()),
        false => Err(format!("{name:?} is no name")),
    }
}

/// A list that may be `null`.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Texts by name, as [`text`].
fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let values: Option<BTreeMap<String, Value>> = Option::deserialize(from)?;
    let texts = values.unwrap_or_default().into_iter();
    texts
        .map(|(name, value)| Ok((name, text_of(value)?)))
        .collect()
}

/// A text, also one that was written like a number.
fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    text_of(Value::deserialize(from)?)
}

fn text_of<E: serde::de::Error>(value: Value) -> Result<String, E> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null => Ok(String::new()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        other => Err(E::custom(format!("{other} is no text"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole() {
        let text = "cdiVersion: 0.6.0\nkind: vendor.example/disk\nannotations:\n  a: true\n\
                    devices:\n- name: 0\n  containerEdits:\n    env: [A=1]\n";
        let spec = Spec::parse(text).unwrap();
        assert_eq!(spec.annotations["a"], "true");
        assert_eq!(spec.devices[0].name, "0");
        assert_eq!(spec.devices[0].container_edits.env, ["A=1"]);
    }

    #[test]
    fn files_that_cannot_be_used_say_why() {
        let device = r#"[{"name": "a", "containerEdits": {"env": ["A=1"]}}]"#;
        let file = |version: &str, kind: &str, devices: &str| {
            let text =
                format!(r#"{{"cdiVersion": "{version}", "kind": "{kind}", "devices": {devices}}}"#);
            Spec::parse(&text).map(drop).unwrap_err()
        };
        let kind = "vendor.example/disk";
        for (error, words) in [
            (file("0.9.0", kind, device), "invalid version"),
            (file("0.6.0", "disk", device), "invalid vendor"),
            (file("0.6.0", "1/disk", device), "invalid vendor"),
            (file("0.6.0", "v/-", device), "invalid class"),
            (file("0.6.0", kind, "[]"), "no devices"),
            (
                file("0.6.0", kind, r#"[{"name": "a"}]"#),
                "empty device edits",
            ),
            (
                file("0.6.0", kind, r#"[{"name": "a", "extra": 1}]"#),
                "unknown field `extra`",
            ),
            (
                file(
                    "0.6.0",
                    kind,
                    r#"[{"name": "a", "containerEdits": {"env": ["=1"]}}]"#,
                ),
                "invalid environment variable",
            ),
            (
                file(
                    "0.6.0",
                    kind,
                    r#"[{"name": "a", "containerEdits": {"deviceNodes": [{"path": "/dev/x", "type": "z"}]}}]"#,
                ),
                "invalid type \"z\"",
            ),
        ] {
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(Spec::parse("").unwrap_err().contains("no Spec data"));
    }
}
