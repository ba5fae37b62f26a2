//! Docker contexts: named endpoints with their TLS material.
//!
//! `contexts/meta/<sha256 of the name>/meta.json` describes one, `contexts/tls/<same>/docker/` holds
//! `ca.pem`, `cert.pem` and `key.pem`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::ConfigError;

/// The context that stands for `$DOCKER_HOST` or the local socket; it has no files.
pub const DEFAULT_CONTEXT: &str = "default";

/// A named endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContextInfo {
    /// Its name.
    pub name: String,
    /// What its maker said of it.
    pub description: String,
    /// The Engine's address, such as `tcp://host:2376` or `ssh://user@host`.
    pub host: String,
    /// Whether the Engine's certificate is not to be verified.
    pub skip_tls_verify: bool,
    /// Certificates to trust, PEM.
    pub ca: Option<PathBuf>,
    /// Our certificate, PEM.
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Meta {
    name: String,
    metadata: BTreeMap<String, serde_json::Value>,
    endpoints: BTreeMap<String, Endpoint>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    #[serde(rename = "Host")]
    host: String,
    #[serde(rename = "SkipTLSVerify")]
    skip_tls_verify: bool,
}

pub(crate) fn load(dir: &Path, name: &str) -> Result<ContextInfo, ConfigError> {
    let id = hex::encode(Sha256::digest(name.as_bytes()));
    match load_id(dir, &id) {
        Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(ConfigError::NoContext(name.to_owned()))
        }
        result => result,
    }
}

pub(crate) fn list(dir: &Path) -> Vec<Result<ContextInfo, ConfigError>> {
    let Ok(entries) = std::fs::read_dir(dir.join("contexts/meta")) else {
        return Vec::new();
    };
    let ids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let mut contexts: Vec<_> = ids.map(|id| load_id(dir, &id)).collect();
    contexts.sort_by_key(|context| match context {
        Ok(context) => context.name.clone(),
        Err(error) => error.to_string(),
    });
    contexts
}

fn load_id(dir: &Path, id: &str) -> Result<ContextInfo, ConfigError> {
    let path = dir.join("contexts/meta").join(id).join("meta.json");
    let data = std::fs::read(&path).map_err(|source| ConfigError::Read {
        path: path.clone(),
        source,
    })?;
    let meta: Meta = serde_json::from_slice(&data).map_err(|error| ConfigError::Malformed {
        path,
        reason: format!("invalid JSON: {error}"),
    })?;
    let mut endpoints = meta.endpoints;
    let endpoint = endpoints.remove("docker").unwrap_or_default();
    let tls = dir.join("contexts/tls").join(id).join("docker");
    let present = |name: &str| Some(tls.join(name)).filter(|path| path.exists());
    let description = meta
        .metadata
        .get("Description")
        .and_then(|text| text.as_str());
    Ok(ContextInfo {
        name: meta.name,
        description: description.unwrap_or_default().to_owned(),
        host: endpoint.host,
        skip_tls_verify: endpoint.skip_tls_verify,
        ca: present("ca.pem"),
        cert: present("cert.pem"),
        key: present("key.pem"),
    })
}

#[cfg(test)]
mod tests {
    use crate::DockerConfig;

    use super::*;

    #[test]
    fn contexts_are_read_with_their_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let id = hex::encode(Sha256::digest(b"far"));
        let meta = dir.path().join("contexts/meta").join(&id);
        let tls = dir.path().join("contexts/tls").join(&id).join("docker");
        std::fs::create_dir_all(&meta).unwrap();
        std::fs::create_dir_all(&tls).unwrap();
        std::fs::write(tls.join("ca.pem"), "x").unwrap();
        std::fs::write(
            meta.join("meta.json"),
            r#"{"Name":"far","Metadata":{"Description":"d"},"Endpoints":{"docker":{"Host":"tcp://h:1","SkipTLSVerify":true}}}"#,
        )
        .unwrap();
        let config = DockerConfig::load_from(dir.path()).unwrap();
        let far = config.context("far").unwrap();
        assert_eq!((&far.host[..], far.skip_tls_verify), ("tcp://h:1", true));
        assert_eq!(far.ca, Some(tls.join("ca.pem")));
        assert_eq!(far.cert, None);
        assert_eq!(config.contexts().len(), 1);
        let missing = config.context("near").unwrap_err();
        assert_eq!(missing.to_string(), "context \"near\": context not found");
    }

    #[test]
    fn a_broken_file_is_told_of_and_contexts_beside_it_are_still_read() {
        let dir = tempfile::tempdir().unwrap();
        let meta = dir.path().join("contexts/meta/x");
        std::fs::create_dir_all(&meta).unwrap();
        std::fs::write(
            meta.join("meta.json"),
            r#"{"Name":"far","Endpoints":{"docker":{"Host":"tcp://h:1"}}}"#,
        )
        .unwrap();
        std::fs::write(dir.path().join("config.json"), "{bad").unwrap();
        let (config, trouble) = DockerConfig::load_or_default(dir.path()).unwrap();
        let trouble = trouble.unwrap().to_string();
        assert!(trouble.contains("config.json: invalid JSON"), "{trouble}");
        assert_eq!(config.contexts().len(), 1);
    }

    #[test]
    fn proxies_of_the_host_win_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("config.json"),
            r#"{"proxies":{"default":{"httpProxy":"http://d"},"tcp://h:1":{"noProxy":"x","httpsProxy":"http://s"}}}"#,
        )
        .unwrap();
        let config = DockerConfig::load_from(dir.path()).unwrap();
        assert_eq!(config.proxies("unix:///x")["http_proxy"], "http://d");
        let env = config.proxies("tcp://h:1");
        assert_eq!((env.len(), &env["NO_PROXY"][..]), (4, "x"));
    }
}
