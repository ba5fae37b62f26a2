//! Which keys there are, and finding those that are not among them.

use std::fmt;

use toml::de::{DeTable, DeValue};

/// Every key of the documented file, by its path; `*` is any name.
const KNOWN: &[&str] = &[
    "debug",
    "trace",
    "root",
    "insecure-entitlements",
    "proxyNetwork",
    "provenanceEnvDir",
    "log.format",
    "log.level",
    "grpc.address",
    "grpc.debugAddress",
    "grpc.uid",
    "grpc.gid",
    "grpc.securityDescriptor",
    "grpc.tls.cert",
    "grpc.tls.key",
    "grpc.tls.ca",
    "otel.socketPath",
    "cdi.disabled",
    "cdi.specDirs",
    "cdi.autoAllowed",
    "history.maxAge",
    "history.maxEntries",
    "dns.nameservers",
    "dns.options",
    "dns.searchDomains",
    "worker.*.enabled",
    "worker.*.labels.*",
    "worker.*.platforms",
    "worker.*.snapshotter",
    "worker.*.rootless",
    "worker.*.gc",
    "worker.*.gckeepstorage",
    "worker.*.reservedSpace",
    "worker.*.maxUsedSpace",
    "worker.*.minFreeSpace",
    "worker.*.gcpolicy.all",
    "worker.*.gcpolicy.filters",
    "worker.*.gcpolicy.keepDuration",
    "worker.*.gcpolicy.keepBytes",
    "worker.*.gcpolicy.reservedSpace",
    "worker.*.gcpolicy.maxUsedSpace",
    "worker.*.gcpolicy.minFreeSpace",
    "worker.*.networkMode",
    "worker.*.cniConfigPath",
    "worker.*.cniBinaryPath",
    "worker.*.cniPoolSize",
    "worker.*.bridgeName",
    "worker.*.bridgeSubnet",
    "worker.*.defaultCgroupParent",
    "worker.*.apparmor-profile",
    "worker.*.selinux",
    "worker.*.max-parallelism",
    "worker.oci.noProcessSandbox",
    "worker.oci.binary",
    "worker.oci.proxySnapshotterPath",
    "worker.oci.userRemapUnsupported",
    "worker.oci.stargzSnapshotter",
    "worker.containerd.address",
    "worker.containerd.namespace",
    "worker.containerd.runtime",
    "registry.*.mirrors",
    "registry.*.http",
    "registry.*.insecure",
    "registry.*.ca",
    "registry.*.tlsconfigdir",
    "registry.*.keypair.key",
    "registry.*.keypair.cert",
    "frontend.*.enabled",
    "frontend.*.allowedRepositories",
    "system.platformsCacheMaxAge",
    "system.maxRegistryConcurrency",
    "cache.gha",
    "ghacache",
];

/// A key that this server does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKey {
    /// The file.
    pub path: String,
    /// Line, counted from 1.
    pub line: usize,
    /// The key with the tables it is in, joined by dots.
    pub key: String,
}

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: unknown key `{}`", self.path, self.line, self.key)
    }
}

/// The unknown keys of a file, in the order of their lines.
pub(super) fn unknown_keys(text: &str, path: &str) -> Result<Vec<UnknownKey>, toml::de::Error> {
    let table = DeTable::parse(text)?;
    let mut found = Vec::new();
    walk(table.get_ref(), &mut Vec::new(), &mut |keys, at| {
        found.push(UnknownKey {
            path: path.to_owned(),
            line: text[..at].bytes().filter(|byte| *byte == b'\n').count() + 1,
            key: keys.join("."),
        });
    });
    found.sort_by_key(|key| key.line);
    Ok(found)
}

/// Reports every key below `table` that no known path leads to or through.
fn walk<'i>(
    table: &DeTable<'i>,
    above: &mut Vec<String>,
    report: &mut impl FnMut(&[String], usize),
) {
    for (key, value) in table {
        above.push(key.get_ref().to_string());
        match standing(above) {
            Standing::Unknown => report(above, key.span().start),
            Standing::Leaf => {}
            Standing::Inner => match value.get_ref() {
                DeValue::Table(table) => walk(table, above, report),
                DeValue::Array(entries) => {
                    for entry in entries.iter() {
                        if let DeValue::Table(table) = entry.get_ref() {
                            walk(table, above, report);
                        }
                    }
                }
                // A wrong type is the typed reader's to report.
                _ => {}
            },
        }
        above.pop();
    }
}

enum Standing {
    Unknown,
    /// A key with a value; what is in it is its own matter.
    Leaf,
    /// A table with keys of its own.
    Inner,
}

fn standing(keys: &[String]) -> Standing {
    let mut standing = Standing::Unknown;
    for known in KNOWN {
        let parts: Vec<&str> = known.split('.').collect();
        let fits = parts.len() >= keys.len()
            && parts
                .iter()
                .zip(keys)
                .all(|(part, key)| *part == "*" || part == key);
        if !fits {
            continue;
        }
        if parts.len() == keys.len() {
            return Standing::Leaf;
        }
        standing = Standing::Inner;
    }
    standing
}
