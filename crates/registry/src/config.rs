//! How each registry is reached: mirrors, plain HTTP, certificates.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

/// The settings of one registry: the `[registry."host"]` table of `buildkitd.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Hosts, each with an optional path, that are asked before the registry itself.
    pub mirrors: Vec<String>,
    /// `true`: plain HTTP. Unset: plain HTTP for this machine's own addresses only.
    pub http: Option<bool>,
    /// `true`: certificates are not verified; together with `http`, plain HTTP is the fallback.
    pub insecure: Option<bool>,
    /// Files with additional certificate authorities, PEM.
    pub ca: Vec<PathBuf>,
    /// Certificates to show to the registry.
    pub keypair: Vec<KeyPair>,
    /// Folders with `*.crt` (authorities) and `*.cert` with `*.key` (key pairs).
    pub tlsconfigdir: Vec<PathBuf>,
}

/// Files of a client certificate, PEM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct KeyPair {
    /// The private key.
    pub key: PathBuf,
    /// The certificate chain.
    pub cert: PathBuf,
}

/// How requests travel to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// TLS only.
    Https,
    /// Plain only.
    Http,
    /// TLS, and plain from then on if the host turns out not to speak TLS.
    HttpsThenHttp,
}

/// One host that serves a registry's repositories: the registry itself or a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and port as in URLs.
    pub host: String,
    /// Path of the API, `/v2` unless a mirror has a prefix.
    pub path: String,
    /// How it is reached.
    pub scheme: Scheme,
    /// True for mirrors: they get `?ns=<registry>` and no pushes.
    pub mirror: bool,
    /// Whose certificates it is reached with.
    pub(crate) tls: TlsSettings,
}

/// What a TLS connection is made with; equal settings share connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct TlsSettings {
    pub(crate) insecure: bool,
    pub(crate) ca: Vec<PathBuf>,
    pub(crate) keypair: Vec<KeyPair>,
    pub(crate) dirs: Vec<PathBuf>,
}

/// All configured registries. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RegistryHosts(Arc<BTreeMap<String, RegistryConfig>>);

impl RegistryHosts {
    /// Registries by the host of their names (`docker.io`, `localhost:5000`).
    pub fn new(configs: BTreeMap<String, RegistryConfig>) -> Self {
        RegistryHosts(Arc::new(configs))
    }

    /// The same, except that this registry may be plain HTTP or have any certificate: what
    /// `registry.insecure=true` of an exporter asks for.
    #[must_use]
    pub fn with_insecure(&self, registry: &str) -> Self {
        let mut configs = (*self.0).clone();
        let entry = configs.entry(registry.to_owned()).or_default();
        entry.insecure = Some(true);
        entry.http = Some(true);
        RegistryHosts(Arc::new(configs))
    }

    /// The settings of a registry, if it has some.
    pub fn get(&self, registry: &str) -> Option<&RegistryConfig> {
        self.0.get(registry)
    }

    /// Whom to ask for the repositories of a registry, in order; the registry itself is last.
    pub fn endpoints(&self, registry: &str) -> Vec<Endpoint> {
        let none = RegistryConfig::default();
        let config = self.0.get(registry).unwrap_or(&none);
        let mut endpoints: Vec<Endpoint> = config
            .mirrors
            .iter()
            .map(|mirror| {
                let (host, path) = split_mirror(mirror);
                endpoint(&host, path, self.0.get(&host).unwrap_or(&none), true)
            })
            .collect();
        let host = match registry {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        endpoints.push(endpoint(host, "/v2".to_owned(), config, false));
        endpoints
    }
}

/// Host and API path of `host[/prefix]`, with or without a scheme in front.
fn split_mirror(mirror: &str) -> (String, String) {
    let rest = mirror
        .strip_prefix("https://")
        .or_else(|| mirror.strip_prefix("http://"))
        .unwrap_or(mirror)
        .trim_end_matches('/');
    match rest.split_once('/') {
        Some((host, prefix)) => (host.to_owned(), format!("/v2/{prefix}")),
        None => (rest.to_owned(), "/v2".to_owned()),
    }
}

fn endpoint(host: &str, path: String, config: &RegistryConfig, mirror: bool) -> Endpoint {
    let insecure = config.insecure.unwrap_or(false);
    let has_certificates =
        !config.ca.is_empty() || !config.keypair.is_empty() || !config.tlsconfigdir.is_empty();
    let plain = config.http.unwrap_or_else(|| is_loopback(host));
    let scheme = match (plain, insecure) {
        (false, _) => Scheme::Https,
        (true, true) => Scheme::HttpsThenHttp,
        // Who configures certificates for a host on this machine means TLS.
        (true, false) if config.http.is_none() && has_certificates => Scheme::HttpsThenHttp,
        (true, false) => Scheme::Http,
    };
    Endpoint {
        host: host.to_owned(),
        path,
        scheme,
        mirror,
        tls: TlsSettings {
            insecure,
            ca: config.ca.clone(),
            keypair: config.keypair.clone(),
            dirs: config.tlsconfigdir.clone(),
        },
    }
}

/// True for `localhost`, `127.0.0.0/8` and `::1`, each with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) || host == "::1"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(entries: &[(&str, RegistryConfig)]) -> RegistryHosts {
        RegistryHosts::new(
            entries
                .iter()
                .map(|(host, config)| ((*host).to_owned(), config.clone()))
                .collect(),
        )
    }

    #[test]
    fn this_machines_registries_are_plain_http_unless_told_otherwise() {
        let none = hosts(&[]);
        for (registry, scheme) in [
            ("localhost:5000", Scheme::Http),
            ("127.1.2.3", Scheme::Http),
            ("[::1]:5000", Scheme::Http),
            ("example.com:5000", Scheme::Https),
            ("10.0.0.1:5000", Scheme::Https),
        ] {
            assert_eq!(none.endpoints(registry)[0].scheme, scheme, "{registry}");
        }
        let insecure = none.with_insecure("example.com");
        assert_eq!(
            insecure.endpoints("example.com")[0].scheme,
            Scheme::HttpsThenHttp
        );
        let https = RegistryConfig {
            http: Some(false),
            ..Default::default()
        };
        let hosts = hosts(&[("localhost", https)]);
        assert_eq!(hosts.endpoints("localhost")[0].scheme, Scheme::Https);
    }

    #[test]
    fn mirrors_come_first_with_their_own_settings() {
        let hosts = hosts(&[
            (
                "docker.io",
                RegistryConfig {
                    mirrors: vec!["m.example:1".into(), "n.example/prefix".into()],
                    ..Default::default()
                },
            ),
            (
                "m.example:1",
                RegistryConfig {
                    http: Some(true),
                    ..Default::default()
                },
            ),
        ]);
        let all = hosts.endpoints("docker.io");
        let seen: Vec<_> = all
            .iter()
            .map(|e| (e.host.as_str(), e.path.as_str(), e.scheme, e.mirror))
            .collect();
        assert_eq!(
            seen,
            [
                ("m.example:1", "/v2", Scheme::Http, true),
                ("n.example", "/v2/prefix", Scheme::Https, true),
                ("registry-1.docker.io", "/v2", Scheme::Https, false),
            ]
        );
    }
}
