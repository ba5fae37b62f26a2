//! The registry settings a server in a container works with: those of its own configuration, and
//! for registries that it does not name, those of the Engine it runs in.
//!
//! The Engine's insecure networks (CIDR) become registries of that name: our server matches the
//! addresses of registries with them. BuildKit's own has no counterpart, so its images are not
//! given them. This machine's own addresses need no entry.

use std::collections::BTreeMap;

use engine_api::RegistryConfig;
use toml::{Table, Value};

/// Name of the configuration file among a node's files.
pub(crate) const CONFIG_FILE: &str = "buildkitd.toml";

/// Networks that every Engine lists.
const LOOPBACK: &[&str] = &["127.0.0.0/8", "::1/128"];

/// Where a setting came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The node's `buildkitd.toml`.
    Config,
    /// The Engine's own configuration.
    Engine,
}

/// How a registry is talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveRegistry {
    /// Host and port as in image names.
    pub host: String,
    /// Hosts asked first, in order.
    pub mirrors: Vec<String>,
    /// Plain HTTP.
    pub http: bool,
    /// Any certificate, or plain HTTP where TLS fails.
    pub insecure: bool,
    /// Where this came from.
    pub origin: Origin,
}

/// All registries with settings, by host.
pub fn effective_registries(
    config: Option<&[u8]>,
    engine: &RegistryConfig,
) -> Vec<EffectiveRegistry> {
    let table = parse(config);
    let mut all: BTreeMap<String, EffectiveRegistry> = inherited(engine)
        .into_iter()
        .map(|registry| (registry.host.clone(), registry))
        .collect();
    for (host, value) in registry_tables(&table) {
        let flag = |key| value.get(key).and_then(Value::as_bool).unwrap_or(false);
        let mirrors = value.get("mirrors").and_then(Value::as_array);
        let registry = EffectiveRegistry {
            host: host.clone(),
            mirrors: mirrors
                .into_iter()
                .flatten()
                .filter_map(|mirror| mirror.as_str().map(str::to_owned))
                .collect(),
            http: flag("http"),
            insecure: flag("insecure"),
            origin: Origin::Config,
        };
        all.insert(host.clone(), registry);
    }
    all.into_values().collect()
}

/// The configuration with what is inherited added; `None` when there is nothing to add.
pub(crate) fn with_inherited(config: Option<&[u8]>, engine: &RegistryConfig) -> Option<Vec<u8>> {
    let mut table = parse(config);
    let known: Vec<String> = registry_tables(&table)
        .map(|(host, _)| host.clone())
        .collect();
    let missing: Vec<EffectiveRegistry> = inherited(engine)
        .into_iter()
        .filter(|registry| !known.contains(&registry.host))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let registries = table
        .entry("registry")
        .or_insert_with(|| Value::Table(Table::new()))
        .as_table_mut()?;
    for registry in missing {
        let mut entry = Table::new();
        if !registry.mirrors.is_empty() {
            let mirrors = registry.mirrors.into_iter().map(Value::String).collect();
            entry.insert("mirrors".to_owned(), Value::Array(mirrors));
        }
        if registry.http {
            entry.insert("http".to_owned(), Value::Boolean(true));
        }
        if registry.insecure {
            entry.insert("insecure".to_owned(), Value::Boolean(true));
        }
        registries.insert(registry.host, Value::Table(entry));
    }
    toml::to_string(&table).ok().map(String::into_bytes)
}

/// A configuration that cannot be read has no registries here; the server says what is wrong.
fn parse(config: Option<&[u8]>) -> Table {
    config
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

fn registry_tables(table: &Table) -> impl Iterator<Item = (&String, &Table)> {
    table
        .get("registry")
        .and_then(Value::as_table)
        .into_iter()
        .flatten()
        .filter_map(|(host, value)| Some((host, value.as_table()?)))
}

/// What the Engine's configuration means in BuildKit's words: a mirror is a host, and a mirror over
/// plain HTTP is a registry over plain HTTP.
fn inherited(engine: &RegistryConfig) -> Vec<EffectiveRegistry> {
    let mut all: BTreeMap<String, EffectiveRegistry> = BTreeMap::new();
    let add_mirrors = |host: &str, urls: &[String], all: &mut BTreeMap<_, _>| {
        for url in urls {
            let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
            let mirror = rest.trim_end_matches('/').to_owned();
            let mirror_host = mirror.split('/').next().unwrap_or(&mirror).to_owned();
            let entry: &mut EffectiveRegistry = all
                .entry(host.to_owned())
                .or_insert_with(|| of_engine(host));
            if !entry.mirrors.contains(&mirror) {
                entry.mirrors.push(mirror);
            }
            if scheme == "http" {
                all.entry(mirror_host.clone())
                    .or_insert_with(|| of_engine(&mirror_host))
                    .http = true;
            }
        }
    };
    add_mirrors("docker.io", &engine.mirrors, &mut all);
    for (host, index) in &engine.index_configs {
        add_mirrors(host, &index.mirrors, &mut all);
        if !index.secure {
            insecure(host, &mut all);
        }
    }
    for network in &engine.insecure_registry_cidrs {
        if !LOOPBACK.contains(&network.as_str()) {
            insecure(network, &mut all);
        }
    }
    all.into_values().collect()
}

/// The Engine tries TLS with any certificate and then plain HTTP, which takes both words.
fn insecure(host: &str, all: &mut BTreeMap<String, EffectiveRegistry>) {
    let entry = all
        .entry(host.to_owned())
        .or_insert_with(|| of_engine(host));
    (entry.http, entry.insecure) = (true, true);
}

fn of_engine(host: &str) -> EffectiveRegistry {
    EffectiveRegistry {
        host: host.to_owned(),
        mirrors: Vec::new(),
        http: false,
        insecure: false,
        origin: Origin::Engine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_api::IndexConfig;

    fn engine() -> RegistryConfig {
        RegistryConfig {
            insecure_registry_cidrs: vec!["127.0.0.0/8".into(), "10.1.0.0/16".into()],
            index_configs: BTreeMap::from([
                (
                    "docker.io".into(),
                    IndexConfig {
                        mirrors: vec!["http://m:5000/".into()],
                        secure: true,
                    },
                ),
                (
                    "r:5000".into(),
                    IndexConfig {
                        mirrors: Vec::new(),
                        secure: false,
                    },
                ),
            ]),
            mirrors: vec!["http://m:5000/".into()],
        }
    }

    #[test]
    fn an_engine_without_settings_adds_nothing() {
        let plain = RegistryConfig {
            index_configs: BTreeMap::from([(
                "docker.io".into(),
                IndexConfig {
                    mirrors: Vec::new(),
                    secure: true,
                },
            )]),
            ..RegistryConfig::default()
        };
        assert_eq!(with_inherited(None, &plain), None);
    }

    #[test]
    fn mirrors_and_insecure_registries_are_inherited_and_explicit_settings_win() {
        let config = b"debug = true\n[registry.\"r:5000\"]\nhttp = true\n";
        let merged = with_inherited(Some(config), &engine()).unwrap();
        let table: Table = std::str::from_utf8(&merged).unwrap().parse().unwrap();
        assert_eq!(table["debug"].as_bool(), Some(true));
        assert_eq!(
            table["registry"]["docker.io"]["mirrors"][0].as_str(),
            Some("m:5000")
        );
        assert_eq!(table["registry"]["m:5000"]["http"].as_bool(), Some(true));
        assert!(table["registry"]["r:5000"].get("insecure").is_none());
        let shown: Vec<_> = effective_registries(Some(config), &engine())
            .into_iter()
            .map(|r| (r.host, r.origin))
            .collect();
        assert_eq!(
            shown,
            [
                ("10.1.0.0/16".to_owned(), Origin::Engine),
                ("docker.io".to_owned(), Origin::Engine),
                ("m:5000".to_owned(), Origin::Engine),
                ("r:5000".to_owned(), Origin::Config)
            ]
        );
    }
}
