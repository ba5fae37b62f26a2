//! How each registry is reached: mirrors, plain HTTP, certificates.
//!
//! Settings are found by a registry's host and port. One without settings of its own may have those
//! of a network its address is in (`[registry."10.0.0.0/8"]`), as the Docker Engine has it with
//! insecure registries; the network with the longest prefix wins.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use crate::network::Network;

/// The settings of one registry: the `[registry."host"]` table of `buildkitd.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
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
pub struct RegistryHosts(Arc<Configured>);

#[derive(Clone, Debug, Default)]
struct Configured {
    hosts: BTreeMap<String, RegistryConfig>,
    /// Longest prefix first.
    networks: Vec<(Network, RegistryConfig)>,
}

impl RegistryHosts {
    /// Registries by the host of their names (`docker.io`, `localhost:5000`), and networks of
    /// registries by their address and prefix length (`10.0.0.0/8`).
    pub fn new(configs: BTreeMap<String, RegistryConfig>) -> Self {
        let mut configured = Configured::default();
        for (key, config) in configs {
            match key.parse() {
                Ok(network) => configured.networks.push((network, config)),
                Err(_) => {
                    configured.hosts.insert(key, config);
                }
            }
        }
        configured
            .networks
            .sort_by_key(|(network, _)| Reverse(network.prefix_bits()));
        RegistryHosts(Arc::new(configured))
    }

    /// The same, except that this registry may be plain HTTP or have any certificate: what
    /// `registry.insecure=true` of an exporter asks for.
    #[must_use]
    pub fn with_insecure(&self, registry: &str) -> Self {
        let mut configured = (*self.0).clone();
        let entry = configured.hosts.entry(registry.to_owned()).or_default();
        entry.insecure = Some(true);
        entry.http = Some(true);
        RegistryHosts(Arc::new(configured))
    }

    /// Whom to ask for the repositories of a registry, in order; the registry itself is last.
    ///
    /// Looks up the addresses of a registry's name when there are settings by network.
    pub async fn endpoints(&self, registry: &str) -> Vec<Endpoint> {
        if registry == "docker.io" {
            // Public whatever its addresses are.
            let config = self.0.hosts.get(registry).cloned().unwrap_or_default();
            return self.with_mirrors("registry-1.docker.io", &config).await;
        }
        let config = self.config(registry).await;
        self.with_mirrors(registry, &config).await
    }

    async fn with_mirrors(&self, host: &str, config: &RegistryConfig) -> Vec<Endpoint> {
        let mut endpoints = Vec::with_capacity(config.mirrors.len() + 1);
        for mirror in &config.mirrors {
            let (host, path) = split_mirror(mirror);
            let own = self.config(&host).await;
            endpoints.push(endpoint(&host, path, &own, true));
        }
        endpoints.push(endpoint(host, "/v2".to_owned(), config, false));
        endpoints
    }

    /// The settings of a host: its own, else those of a network that one of its addresses is in.
    async fn config(&self, host: &str) -> RegistryConfig {
        if let Some(config) = self.0.hosts.get(host) {
            return config.clone();
        }
        if self.0.networks.is_empty() {
            return RegistryConfig::default();
        }
        let addresses = addresses(host).await;
        let mut networks = self.0.networks.iter();
        let found = networks
            .find(|(network, _)| addresses.iter().any(|address| network.contains(*address)));
        found.map(|(_, config)| config.clone()).unwrap_or_default()
    }
}

/// The addresses of a host with or without a port; none for a name that cannot be looked up, of
/// which the request itself will say what is wrong.
async fn addresses(host: &str) -> Vec<IpAddr> {
    let name = host_name(host);
    if let Ok(address) = name.parse() {
        return vec![address];
    }
    match tokio::net::lookup_host((name, 0)).await {
        Ok(found) => found.map(|address| address.ip()).collect(),
        Err(_) => Vec::new(),
    }
}

/// A host without its port and without the brackets of IPv6.
fn host_name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None if host.matches(':').count() > 1 => host,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
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
    let name = host_name(host);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
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

    #[tokio::test]
    async fn this_machines_registries_are_plain_http_unless_told_otherwise() {
        let none = hosts(&[]);
        for (registry, scheme) in [
            ("localhost:5000", Scheme::Http),
            ("127.1.2.3", Scheme::Http),
            ("[::1]:5000", Scheme::Http),
            ("example.com:5000", Scheme::Https),
            ("10.0.0.1:5000", Scheme::Https),
        ] {
            assert_eq!(
                none.endpoints(registry).await[0].scheme,
                scheme,
                "{registry}"
            );
        }
        let insecure = none.with_insecure("example.com");
        assert_eq!(
            insecure.endpoints("example.com").await[0].scheme,
            Scheme::HttpsThenHttp
        );
        let https = RegistryConfig {
            http: Some(false),
            ..Default::default()
        };
        let hosts = hosts(&[("localhost", https)]);
        assert_eq!(hosts.endpoints("localhost").await[0].scheme, Scheme::Https);
    }

    #[tokio::test]
    async fn mirrors_come_first_with_their_own_settings() {
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
        let all = hosts.endpoints("docker.io").await;
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

    #[tokio::test]
    async fn a_registry_without_settings_has_those_of_its_network() {
        let insecure = RegistryConfig {
            http: Some(true),
            insecure: Some(true),
            ..Default::default()
        };
        let https = RegistryConfig {
            http: Some(false),
            ..Default::default()
        };
        let hosts = hosts(&[
            ("10.0.0.0/8", insecure.clone()),
            ("10.1.0.0/16", https.clone()),
            ("127.0.0.0/8", insecure),
            ("10.2.3.4:5000", https),
        ]);
        for (registry, scheme) in [
            ("10.0.0.1:5000", Scheme::HttpsThenHttp),
            ("10.1.0.1:5000", Scheme::Https),
            ("10.2.3.4:5000", Scheme::Https),
            ("10.2.3.4:5001", Scheme::HttpsThenHttp),
            ("11.0.0.1", Scheme::Https),
            // By the addresses of its name.
            ("localhost:5000", Scheme::HttpsThenHttp),
        ] {
            let endpoints = hosts.endpoints(registry).await;
            assert_eq!(endpoints[0].scheme, scheme, "{registry}");
            let insecure = scheme == Scheme::HttpsThenHttp;
            assert_eq!(endpoints[0].tls.insecure, insecure, "{registry}");
        }
    }
}
