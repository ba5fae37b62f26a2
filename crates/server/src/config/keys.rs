//! Which keys there are, which of them mean nothing here, and finding those that are not among them.

use std::collections::BTreeSet;
use std::fmt;

use super::values;
use toml::de::{DeTable, DeValue};

/// Every key of the documented file, by its path (`*` is any name, quotes are around one with dots),
/// with the reason why it has no effect here, if it has none.
const KNOWN: &[(&str, Option<&str>)] = &[
    ("debug", None),
    ("trace", None),
    ("root", None),
    ("insecure-entitlements", None),
    ("proxyNetwork", None),
    ("provenanceEnvDir", Some("no provenance is made")),
    ("log.format", None),
    ("log.level", None),
    ("grpc.address", None),
    ("grpc.debugAddress", None),
    ("grpc.uid", None),
    ("grpc.gid", None),
    ("grpc.securityDescriptor", Some("it is for Windows")),
    ("grpc.tls.cert", None),
    ("grpc.tls.key", None),
    ("grpc.tls.ca", None),
    ("otel.socketPath", Some(NO_STEP_TRACES)),
    ("cdi.disabled", None),
    ("cdi.specDirs", None),
    ("cdi.autoAllowed", None),
    ("history.maxAge", None),
    ("history.maxEntries", None),
    ("dns.nameservers", None),
    ("dns.options", None),
    ("dns.searchDomains", None),
    ("worker.oci.enabled", None),
    ("worker.oci.labels.*", None),
    ("worker.oci.platforms", None),
    ("worker.oci.snapshotter", None),
    ("worker.oci.rootless", Some(NO_ROOTLESS)),
    ("worker.oci.gc", None),
    ("worker.oci.gckeepstorage", None),
    ("worker.oci.reservedSpace", None),
    ("worker.oci.maxUsedSpace", None),
    ("worker.oci.minFreeSpace", None),
    ("worker.oci.gcpolicy.all", None),
    ("worker.oci.gcpolicy.filters", None),
    ("worker.oci.gcpolicy.keepDuration", None),
    ("worker.oci.gcpolicy.keepBytes", None),
    ("worker.oci.gcpolicy.reservedSpace", None),
    ("worker.oci.gcpolicy.maxUsedSpace", None),
    ("worker.oci.gcpolicy.minFreeSpace", None),
    ("worker.oci.networkMode", None),
    ("worker.oci.cniConfigPath", Some(NO_CNI)),
    ("worker.oci.cniBinaryPath", Some(NO_CNI)),
    ("worker.oci.cniPoolSize", Some(NO_CNI)),
    ("worker.oci.bridgeName", None),
    ("worker.oci.bridgeSubnet", None),
    ("worker.oci.defaultCgroupParent", None),
    ("worker.oci.apparmor-profile", Some(NO_APPARMOR)),
    ("worker.oci.selinux", Some(NO_SELINUX)),
    ("worker.oci.max-parallelism", None),
    ("worker.oci.noProcessSandbox", Some(ALWAYS_SANDBOX)),
    ("worker.oci.binary", Some(NO_RUNTIME)),
    ("worker.oci.proxySnapshotterPath", Some(NO_SNAPSHOTTERS)),
    ("worker.oci.stargzSnapshotter.*", Some(NO_SNAPSHOTTERS)),
    (
        "worker.oci.userRemapUnsupported",
        Some("it is for upstream's tests"),
    ),
    ("worker.containerd.enabled", None),
    ("worker.containerd.address", None),
    ("worker.containerd.labels.*", None),
    ("worker.containerd.platforms", None),
    ("worker.containerd.namespace", None),
    ("worker.containerd.runtime.name", None),
    ("worker.containerd.runtime.path", None),
    ("worker.containerd.runtime.options.*", None),
    ("worker.containerd.snapshotter", None),
    ("worker.containerd.rootless", None),
    ("worker.containerd.gc", None),
    ("worker.containerd.gckeepstorage", None),
    ("worker.containerd.reservedSpace", None),
    ("worker.containerd.maxUsedSpace", None),
    ("worker.containerd.minFreeSpace", None),
    ("worker.containerd.gcpolicy.all", None),
    ("worker.containerd.gcpolicy.filters", None),
    ("worker.containerd.gcpolicy.keepDuration", None),
    ("worker.containerd.gcpolicy.keepBytes", None),
    ("worker.containerd.gcpolicy.reservedSpace", None),
    ("worker.containerd.gcpolicy.maxUsedSpace", None),
    ("worker.containerd.gcpolicy.minFreeSpace", None),
    ("worker.containerd.networkMode", None),
    ("worker.containerd.cniConfigPath", None),
    ("worker.containerd.cniBinaryPath", None),
    ("worker.containerd.cniPoolSize", None),
    ("worker.containerd.bridgeName", None),
    ("worker.containerd.bridgeSubnet", None),
    ("worker.containerd.defaultCgroupParent", None),
    ("worker.containerd.apparmor-profile", None),
    ("worker.containerd.selinux", None),
    ("worker.containerd.max-parallelism", None),
    ("registry.*.mirrors", None),
    ("registry.*.http", None),
    ("registry.*.insecure", None),
    ("registry.*.ca", None),
    ("registry.*.tlsconfigdir", None),
    ("registry.*.keypair.key", None),
    ("registry.*.keypair.cert", None),
    ("frontend.\"dockerfile.v0\".enabled", None),
    ("frontend.\"gateway.v0\".enabled", None),
    ("frontend.\"gateway.v0\".allowedRepositories", None),
    ("system.platformsCacheMaxAge", None),
    ("system.maxRegistryConcurrency", None),
    ("cache.gha.*", Some(NO_SIGNED_CACHE)),
    ("ghacache.*", Some(NO_SIGNED_CACHE)),
];

const NO_STEP_TRACES: &str = "steps are given no collector's socket";
const NO_ROOTLESS: &str = "the server needs to be root";
const NO_CNI: &str = "the network of steps needs no CNI plugins";
const NO_APPARMOR: &str = "no AppArmor profile is applied to steps";
const NO_SELINUX: &str = "no SELinux labels are applied to steps";
const ALWAYS_SANDBOX: &str = "steps always have a process namespace of their own";
const NO_RUNTIME: &str = "steps need no external runtime";
const NO_SNAPSHOTTERS: &str = "there are no external snapshotters";
const NO_SIGNED_CACHE: &str = "caches are not signed";
const NO_CONTAINERD: &str = "there is no containerd worker";

/// Those that are lists of tables: `[[…]]`.
const LISTS: &[&str] = &[
    "worker.oci.gcpolicy",
    "worker.containerd.gcpolicy",
    "registry.*.keypair",
];

/// Something in a file that its owner should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The file.
    pub path: String,
    /// Line, counted from 1.
    pub line: usize,
    /// The key with the tables it is in, joined by dots.
    pub key: String,
    /// What there is to say of it.
    pub kind: RemarkKind,
}

/// What there is to say of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemarkKind {
    /// It is not known; another, if one is close.
    Unknown(Option<String>),
    /// It is known, and has no effect here for that reason.
    NoEffect(&'static str),
    /// It was written otherwise than documented; that is how.
    Spelling(String),
    /// It was replaced by this.
    Deprecated(&'static str),
    /// Its value cannot do what it is for; why.
    Useless(String),
}

/// What makes a file unusable that TOML itself would let pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.path, self.line)?;
        let key = &self.key;
        match &self.kind {
            RemarkKind::Unknown(None) => write!(f, "unknown key `{key}` is passed over"),
            RemarkKind::Unknown(Some(close)) => {
                write!(
                    f,
                    "unknown key `{key}` is passed over: did you mean `{close}`?"
                )
            }
            RemarkKind::NoEffect(why) => write!(f, "`{key}` has no effect: {why}"),
            RemarkKind::Spelling(documented) => {
                write!(f, "`{key}` is read as `{documented}`")
            }
            RemarkKind::Deprecated(instead) => {
                write!(f, "`{key}` is deprecated, use `{instead}` instead")
            }
            RemarkKind::Useless(why) => write!(f, "`{key}`: {why}"),
        }
    }
}

/// What there is to say of a file, in the order of its lines; or what makes it unusable.
pub(super) fn remarks(
    text: &str,
    path: &str,
) -> Result<Result<Vec<Remark>, Fault>, toml::de::Error> {
    let table = DeTable::parse(text)?;
    let line = |at: usize| text[..at].bytes().filter(|byte| *byte == b'\n').count() + 1;
    let mut found = Vec::new();
    let walked = walk(table.get_ref(), &mut Vec::new(), &mut |keys, at, kind| {
        found.push(Remark {
            path: path.to_owned(),
            line: line(at),
            key: shown(keys),
            kind,
        });
    });
    found.sort_by_key(|remark| remark.line);
    Ok(walked.map(|()| found).map_err(|(at, message)| Fault {
        line: line(at),
        message,
    }))
}

/// Keys as TOML writes them: those with other signs than a plain word's are quoted.
fn shown(keys: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let quoted = |key: &String| match !key.is_empty() && key.chars().all(plain) {
        true => key.clone(),
        false => format!("{key:?}"),
    };
    keys.iter().map(quoted).collect::<Vec<_>>().join(".")
}

/// Renames keys that differ from the documented ones in case only, which stock takes too.
pub(super) fn with_documented_case(table: &mut toml::Table) {
    rename(table, &mut Vec::new());
}

fn rename(table: &mut toml::Table, above: &mut Vec<String>) {
    for (key, mut value) in std::mem::take(table) {
        above.push(key);
        if let Standing::OtherCase(documented) = standing(above) {
            *above.last_mut().unwrap_or(&mut String::new()) = documented;
        }
        match &mut value {
            toml::Value::Table(inner) => rename(inner, above),
            toml::Value::Array(entries) => {
                for entry in entries {
                    if let toml::Value::Table(inner) = entry {
                        rename(inner, above);
                    }
                }
            }
            _ => {}
        }
        table.insert(above.pop().unwrap_or_default(), value);
    }
}

/// Reports every key below `table` of which there is something to say. A place and a message are
/// what makes the file unusable.
fn walk<'i>(
    table: &DeTable<'i>,
    above: &mut Vec<String>,
    report: &mut impl FnMut(&[String], usize, RemarkKind),
) -> Result<(), (usize, String)> {
    let mut seen = BTreeSet::new();
    for (key, value) in table {
        let at = key.span().start;
        above.push(key.get_ref().to_string());
        if let Standing::OtherCase(documented) = standing(above) {
            let whole = [&above[..above.len() - 1], std::slice::from_ref(&documented)].concat();
            report(above, at, RemarkKind::Spelling(shown(&whole)));
            *above.last_mut().unwrap_or(&mut String::new()) = documented;
        }
        if !seen.insert(above.last().cloned()) {
            return Err((at, format!("`{}` is there twice", shown(above))));
        }
        match standing(above) {
            Standing::Unknown => report(above, at, RemarkKind::Unknown(closest(above))),
            Standing::Leaf(Some(why)) if asks(value.get_ref()) => {
                report(above, at, RemarkKind::NoEffect(why));
            }
            Standing::Leaf(_) => {
                if let Some(instead) = successor(above) {
                    report(above, at, RemarkKind::Deprecated(instead));
                }
                if let Some(why) = values::useless(above, value.get_ref()) {
                    report(above, at, RemarkKind::Useless(why));
                }
            }
            Standing::Inner | Standing::OtherCase(_) => {
                if let (["worker", "containerd"], DeValue::Table(table)) =
                    (words(above).as_slice(), value.get_ref())
                    && table.keys().any(|key| key.get_ref() != "enabled")
                {
                    report(above, at, RemarkKind::NoEffect(NO_CONTAINERD));
                }
                walk_tables(value.get_ref(), at, above, report)?;
            }
        }
        above.pop();
    }
    Ok(())
}

/// The same for the value of a key that is a table, or a list of tables.
fn walk_tables<'i>(
    value: &DeValue<'i>,
    at: usize,
    above: &mut Vec<String>,
    report: &mut impl FnMut(&[String], usize, RemarkKind),
) -> Result<(), (usize, String)> {
    let is_list = LISTS.iter().any(|list| {
        let parts = parts(list);
        parts.len() == above.len() && is_along(&parts, above)
    });
    let wrong = |above: &[String]| {
        let key = shown(above);
        let text = match is_list {
            true => format!("`{key}` is a list of tables: `[[{key}]]`"),
            false => format!("`{key}` is a table: `[{key}]`"),
        };
        Err((at, text))
    };
    match value {
        DeValue::Table(table) if !is_list => walk(table, above, report),
        DeValue::Array(entries) if is_list => {
            for entry in entries.iter() {
                let DeValue::Table(table) = entry.get_ref() else {
                    return wrong(above);
                };
                walk(table, above, report)?;
            }
            Ok(())
        }
        _ => wrong(above),
    }
}

/// Whether a value asks for anything at all.
fn asks(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Boolean(value) => *value,
        DeValue::String(text) => !text.is_empty(),
        DeValue::Integer(number) => number.as_str() != "0",
        DeValue::Array(entries) => !entries.is_empty(),
        DeValue::Table(table) => !table.is_empty(),
        _ => true,
    }
}

/// What a deprecated key was replaced by.
fn successor(keys: &[String]) -> Option<&'static str> {
    match words(keys).as_slice() {
        ["debug"] => Some("log.level = \"debug\""),
        ["trace"] => Some("log.level = \"trace\""),
        ["worker", "oci", "gckeepstorage"] | ["worker", "oci", "gcpolicy", "keepBytes"] => {
            Some("reservedSpace")
        }
        _ => None,
    }
}

enum Standing {
    Unknown,
    /// As the documented key of that spelling.
    OtherCase(String),
    /// A key with a value; what is in it is its own matter. With the reason why it has no effect.
    Leaf(Option<&'static str>),
    /// A table with keys of its own.
    Inner,
}

fn standing(keys: &[String]) -> Standing {
    let Some((last, above)) = keys.split_last() else {
        return Standing::Inner;
    };
    let mut standing = Standing::Unknown;
    for (known, effect) in KNOWN {
        let parts = parts(known);
        if !is_below(&parts, above) {
            continue;
        }
        let part = parts[above.len()];
        // Below any name, a table is not looked into further.
        let is_leaf = parts.len() == keys.len();
        if part == "*" || part == last {
            match is_leaf {
                true => return Standing::Leaf(*effect),
                false => standing = Standing::Inner,
            }
        } else if part.eq_ignore_ascii_case(last) && matches!(standing, Standing::Unknown) {
            standing = Standing::OtherCase(part.to_owned());
        }
    }
    standing
}

/// The keys of a known path.
fn parts(known: &str) -> Vec<&str> {
    match known.split('"').collect::<Vec<_>>().as_slice() {
        [before, quoted, after] => {
            let before = before.trim_end_matches('.').split('.');
            let after = after.trim_start_matches('.').split('.');
            before.chain([*quoted]).chain(after).collect()
        }
        _ => known.split('.').collect(),
    }
}

pub(super) fn words(keys: &[String]) -> Vec<&str> {
    keys.iter().map(String::as_str).collect()
}

/// Whether a known path goes through these tables and on.
fn is_below(parts: &[&str], above: &[String]) -> bool {
    parts.len() > above.len() && is_along(parts, above)
}

/// Whether two paths are the same as far as the shorter one goes.
fn is_along(parts: &[&str], keys: &[String]) -> bool {
    let mut pairs = parts.iter().zip(keys);
    pairs.all(|(part, key)| *part == "*" || part == key)
}

/// The known key of the same table that looks most like the last one.
fn closest(keys: &[String]) -> Option<String> {
    let (last, above) = keys.split_last()?;
    let siblings = KNOWN.iter().filter_map(|(known, _)| {
        let parts = parts(known);
        is_below(&parts, above).then(|| parts[above.len()])
    });
    let far = |name: &str| match name.strip_prefix(last.as_str()) {
        // Its dot was taken for the border of a table.
        Some(rest) if rest.starts_with('.') => 0,
        _ => distance(&last.to_lowercase(), &name.to_lowercase()),
    };
    let (distance, best) = siblings
        .filter(|name| *name != "*")
        .map(|name| (far(name), name))
        .min()?;
    // Further away it is another word, not a slip.
    (distance <= 2.max(last.len() / 4)).then(|| shown(&[above, &[best.to_owned()]].concat()))
}

/// How many letters must be put in, taken out or replaced to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
