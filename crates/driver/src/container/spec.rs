//! What the container of a node is made of, and the digest by which a change is noticed.
//!
//! | part | in the digest |
//! |---|---|
//! | image named by the user | its name |
//! | default image | no: a running server is not replaced because the client was updated |
//! | arguments, environment, limits, network, restart policy, mounts | yes |
//! | files | names and contents |
//! | labels | no |

use std::collections::BTreeMap;

use engine_api::{
    ContainerConfig, ContainerCreate, ContainerInspect, EngineInfo, HostConfig, Mount,
};
use oci::{Digest, DigestHasher};

use super::{ContainerDriver, LABEL_OWNER, LABEL_SPEC};
use crate::DriverError;
use crate::registries::{CONFIG_FILE, with_inherited};
use crate::tarball::Tarball;

/// Where the server keeps its state.
const STATE_DIR: &str = "/var/lib/buildkit";
/// Where the server's configuration stands.
pub(super) const CONFIG_DIR: &str = "/etc/buildkit";
/// Parent of all builders' cgroups with the cgroupfs driver, so that limits can be put on it.
const CGROUP_PARENT: &str = "/docker/buildx";

/// What a container is made from; its image is still to be named.
pub(super) struct ContainerSpec {
    pub(super) create: ContainerCreate,
    /// Files under the configuration directory.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) digest: Digest,
}

impl ContainerDriver {
    /// Computes what the container should be on that Engine.
    pub(super) fn spec(&self, info: &EngineInfo) -> Result<ContainerSpec, DriverError> {
        let mut files = self.node.files.clone();
        let own = files.get(CONFIG_FILE).map(Vec::as_slice);
        if let Some(merged) = with_inherited(own, &self.inheritable(info)) {
            files.insert(CONFIG_FILE.to_owned(), merged);
        }
        let mut cmd = Vec::new();
        if files.contains_key(CONFIG_FILE) {
            // Before the user's own flags, so that those can override it.
            cmd.push("--config".to_owned());
            cmd.push(format!("{CONFIG_DIR}/{CONFIG_FILE}"));
        }
        cmd.extend(self.node.flags.iter().cloned());
        let mut create = ContainerCreate {
            config: ContainerConfig {
                image: self.options.image.clone().unwrap_or_default(),
                cmd,
                env: self.environment(info),
                labels: BTreeMap::new(),
            },
            host_config: self.host_config(info)?,
        };
        let digest = digest(&create, &files)?;
        create.config.labels = self.labels();
        create
            .config
            .labels
            .insert(LABEL_SPEC.to_owned(), digest.to_string());
        Ok(ContainerSpec {
            create,
            files,
            digest,
        })
    }

    /// True when the container was made by us from something else. Another owner's, or stock's,
    /// is left as it is.
    pub(super) fn differs(&self, container: &ContainerInspect, wanted: &ContainerSpec) -> bool {
        let labels = &container.config.labels;
        let ours = labels.get(LABEL_OWNER) == Some(&self.node.owner);
        match labels.get(LABEL_SPEC) {
            Some(made_from) if ours => *made_from != wanted.digest.to_string(),
            _ => false,
        }
    }

    fn host_config(&self, info: &EngineInfo) -> Result<HostConfig, DriverError> {
        let options = &self.options;
        let volume = Mount {
            kind: "volume".to_owned(),
            source: self.volume_name(),
            target: STATE_DIR.to_owned(),
            read_only: false,
        };
        Ok(HostConfig {
            privileged: true,
            restart_policy: options.restart_policy.clone(),
            // Processes of ended builds are reaped by it.
            init: Some(true),
            mounts: vec![volume],
            network_mode: options.network.clone(),
            userns_mode: if info.remaps_users() {
                "host".to_owned()
            } else {
                String::new()
            },
            cgroup_parent: cgroup_parent(options.cgroup_parent.as_deref(), &info.cgroup_driver)?,
            memory: options.memory,
            memory_swap: options.memory_swap,
            cpu_quota: options.cpu_quota,
            cpu_period: options.cpu_period,
            cpu_shares: options.cpu_shares,
            cpuset_cpus: options.cpuset_cpus.clone(),
            cpuset_mems: options.cpuset_mems.clone(),
            device_requests: options.gpus.iter().cloned().collect(),
            security_opt: Vec::new(),
        })
    }

    /// `env.*` as given; below it proxies, the user's for this Engine or else the Engine's own,
    /// each under its name in capitals and in small letters.
    fn environment(&self, info: &EngineInfo) -> Vec<String> {
        let mut env = BTreeMap::new();
        if self.options.inherit_proxies {
            let configured = &self.node.proxies.variables;
            let of_engine = BTreeMap::from([
                ("HTTP_PROXY".to_owned(), info.http_proxy.clone()),
                ("HTTPS_PROXY".to_owned(), info.https_proxy.clone()),
                ("NO_PROXY".to_owned(), info.no_proxy.clone()),
            ]);
            let proxies = if configured.is_empty() {
                &of_engine
            } else {
                configured
            };
            for (name, value) in proxies.iter().filter(|(_, value)| !value.is_empty()) {
                env.insert(name.to_ascii_uppercase(), value.clone());
                env.insert(name.to_ascii_lowercase(), value.clone());
            }
        }
        for (name, value) in &self.options.env {
            // What the user set is not contradicted by the same name in the other case.
            env.retain(|known: &String, _| !known.eq_ignore_ascii_case(name));
            env.insert(name.clone(), value.clone());
        }
        env.into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }
}

/// The parent as the Engine's cgroup driver names it. With systemd, `/docker/buildx` becomes
/// `docker-buildx.slice`.
fn cgroup_parent(wanted: Option<&str>, driver: &str) -> Result<String, DriverError> {
    match (driver, wanted) {
        ("cgroupfs", wanted) => Ok(wanted.unwrap_or(CGROUP_PARENT).to_owned()),
        (_, None) => Ok(String::new()),
        ("systemd", Some(wanted)) => slice(wanted).ok_or_else(|| {
            DriverError::Option(format!(
                "cgroup-parent {wanted:?} cannot be honoured: the Engine uses systemd for cgroups, \
                 which takes a slice such as \"docker-buildx.slice\""
            ))
        }),
        (driver, Some(wanted)) => Err(DriverError::Option(format!(
            "cgroup-parent {wanted:?} cannot be honoured: the Engine's cgroup driver is {driver:?}"
        ))),
    }
}

/// A path as a slice's name: systemd nests slices by the dashes in their names.
fn slice(path: &str) -> Option<String> {
    if path.ends_with(".slice") && !path.contains('/') {
        return Some(path.to_owned());
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let plain = |part: &&str| {
        part.bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':'))
            && !part.starts_with('.')
    };
    (!parts.is_empty() && parts.iter().all(plain)).then(|| format!("{}.slice", parts.join("-")))
}

fn digest(
    create: &ContainerCreate,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<Digest, DriverError> {
    let json = serde_json::to_vec(create).map_err(|e| DriverError::Option(e.to_string()))?;
    let mut hasher = DigestHasher::new();
    hasher.field(&json);
    for (name, data) in files {
        hasher.field(name.as_bytes());
        hasher.field(data);
    }
    Ok(hasher.finish())
}

/// The files as an archive to unpack into the configuration directory's parent.
pub(super) fn files_archive(files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>, DriverError> {
    let invalid = |name: &str| DriverError::Option(format!("invalid config file path {name:?}"));
    let mut directories = std::collections::BTreeSet::from(["buildkit".to_owned()]);
    for name in files.keys() {
        let parts: Vec<&str> = name.split('/').collect();
        if parts
            .iter()
            .any(|part| part.is_empty() || *part == "." || *part == ".." || part.contains('\\'))
        {
            return Err(invalid(name));
        }
        for depth in 1..parts.len() {
            directories.insert(format!("buildkit/{}", parts[..depth].join("/")));
        }
    }
    let mut tar = Tarball::default();
    for directory in &directories {
        tar.directory(&format!("{directory}/"), 0o755)
            .map_err(|e| DriverError::Option(e.to_string()))?;
    }
    for (name, data) in files {
        let path = format!("buildkit/{name}");
        if directories.contains(&path) {
            return Err(DriverError::Option(format!(
                "config file path {name:?} conflicts with directory"
            )));
        }
        tar.file(&path, 0o644, data)
            .map_err(|e| DriverError::Option(e.to_string()))?;
    }
    Ok(tar.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_parents_follow_the_engines_driver() {
        let parent = |wanted, driver| cgroup_parent(wanted, driver).map_err(|e| e.to_string());
        assert_eq!(parent(None, "cgroupfs").unwrap(), "/docker/buildx");
        assert_eq!(parent(Some("/x"), "cgroupfs").unwrap(), "/x");
        assert_eq!(parent(None, "systemd").unwrap(), "");
        assert_eq!(
            parent(Some("/docker/buildx"), "systemd").unwrap(),
            "docker-buildx.slice"
        );
        assert_eq!(parent(Some("a-b.slice"), "systemd").unwrap(), "a-b.slice");
        assert!(parent(Some("/a/b c"), "systemd").is_err());
        assert!(parent(Some("/x"), "none").is_err());
    }

    #[test]
    fn file_names_that_leave_the_directory_are_refused() {
        for bad in ["../x", "/x", "a//b", "a/./b", "a\\b"] {
            let files = BTreeMap::from([(bad.to_owned(), Vec::new())]);
            assert!(files_archive(&files).is_err(), "{bad}");
        }
        let files = BTreeMap::from([("certs/r/ca.pem".to_owned(), b"x".to_vec())]);
        assert!(files_archive(&files).is_ok());
    }
}
