//! The attributes of a Dockerfile build, read once into types.

use std::collections::BTreeMap;
use std::net::IpAddr;

use diag::{Error, Result, Unsupported};
use dockerfile::lint::LintConfig;
use dockerfile::{csv, quote};
use llb::{NetMode, ULIMIT_NAMES, Ulimit};
use oci::Platform;

use crate::failure::fail;
use crate::platform::parse_platform;

/// What a build was asked to be.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// `build-arg:NAME`
    pub build_args: BTreeMap<String, String>,
    /// `label:NAME`
    pub labels: BTreeMap<String, String>,
    /// `target`: the stage to build; empty for the last one.
    pub target: String,
    /// `platform`: what to build for; empty for the worker's own.
    pub platforms: Vec<Platform>,
    /// Whether the outcome is by platform even if it is only one.
    pub multi_platform: bool,
    /// `image-resolve-mode`
    pub resolve_mode: ResolveMode,
    /// `no-cache`: the stages whose steps always run; an empty list means all.
    pub no_cache: Option<Vec<String>>,
    /// `add-hosts`: names and addresses.
    pub extra_hosts: Vec<(String, String)>,
    /// `force-network-mode`
    pub network: NetMode,
    /// `shm-size` in bytes; 0 for the default.
    pub shm_size: u64,
    /// `ulimit`
    pub ulimits: Vec<Ulimit>,
    /// `cgroup-parent`
    pub cgroup_parent: String,
    /// `hostname`
    pub hostname: String,
    /// `build-arg:BUILDKIT_CACHE_MOUNT_NS`: what stands in front of the names of cache mounts.
    pub cache_namespace: String,
    /// `build-arg:BUILDKIT_DOCKERFILE_CHECK`, in place of the file's `check` directive.
    pub lint: Option<LintConfig>,
    /// `cache-imports`, handed on as it is.
    pub cache_imports: String,
    /// `build-arg:BUILDKIT_SYNTAX`: the frontend to use in place of what the file asks for.
    pub syntax: Option<String>,
    /// Whether another frontend handed the request on, so that the file's `syntax` has been obeyed.
    pub forwarded: bool,
    /// Whether `attest:sbom` asks for a bill of materials.
    pub wants_sbom: bool,
    /// `requestid`: something other than a build.
    pub request: Option<String>,
    /// Where the context and the Dockerfile come from.
    pub context: ContextOptions,
    /// Attributes that are not known here.
    pub unknown: Vec<String>,
}

/// Where the context and the Dockerfile come from.
#[derive(Clone, Debug, Default)]
pub struct ContextOptions {
    /// `filename`: the Dockerfile's path; `Dockerfile` if empty.
    pub filename: String,
    /// The value of the context attribute: an address, or nothing for a local one.
    pub remote: String,
    /// `contextsubdir`
    pub subdir: Option<String>,
    /// `dockerfilekey`: the local directory the Dockerfile is in, even if the context is remote.
    pub dockerfile_local: Option<String>,
    /// `build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR`
    pub keep_git_dir: Option<bool>,
    /// Whether files of a git context get the commit's time.
    pub commit_times: bool,
    /// `context:NAME`: what stands for images and stages of that name.
    pub named: BTreeMap<String, String>,
    /// `input-metadata:NAME`
    pub input_metadata: BTreeMap<String, String>,
    /// `local-sessionid:NAME`: the session a local directory is asked from.
    pub local_sessions: BTreeMap<String, String>,
    /// `sharedkey:localdir:NAME`
    pub shared_keys: BTreeMap<String, String>,
}

/// Whether an image that is here already may be used without asking its registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResolveMode {
    /// The server decides.
    #[default]
    Default,
    /// No.
    Pull,
    /// Yes.
    Local,
}

impl ResolveMode {
    /// Its word in attributes.
    pub fn as_str(self) -> &'static str {
        match self {
            ResolveMode::Default => "default",
            ResolveMode::Pull => "pull",
            ResolveMode::Local => "local",
        }
    }
}

impl BuildOptions {
    /// Reads the attributes of a request.
    pub fn from_attrs(attrs: &BTreeMap<String, String>) -> Result<BuildOptions> {
        let text = |key: &str| attrs.get(key).cloned().unwrap_or_default();
        refuse_what_is_gone(attrs)?;
        let platforms = match text("platform") {
            list if list.is_empty() => Vec::new(),
            list => parse_platforms(&list)?,
        };
        let multi = attrs
            .get("build-arg:BUILDKIT_MULTI_PLATFORM")
            .or_else(|| attrs.get("multi-platform"))
            .filter(|value| !value.is_empty());
        let mut options = BuildOptions {
            resolve_mode: parse_resolve_mode(&text("image-resolve-mode"))?,
            extra_hosts: parse_extra_hosts(&text("add-hosts"))
                .map_err(|e| e.context("failed to parse additional hosts"))?,
            shm_size: parse_shm_size(&text("shm-size"))
                .map_err(|e| e.context("failed to parse shm size"))?,
            ulimits: parse_ulimits(&text("ulimit"))
                .map_err(|e| e.context("failed to parse ulimit"))?,
            network: parse_network(&text("force-network-mode"))?,
            multi_platform: parse_multi_platform(multi, platforms.len())?,
            platforms,
            build_args: with_prefix(attrs, "build-arg:"),
            labels: with_prefix(attrs, "label:"),
            target: text("target"),
            no_cache: attrs.get("no-cache").map(|list| match list.as_str() {
                "" => Vec::new(),
                list => list.split(',').map(str::to_owned).collect(),
            }),
            cgroup_parent: text("cgroup-parent"),
            cache_namespace: text("build-arg:BUILDKIT_CACHE_MOUNT_NS"),
            cache_imports: text("cache-imports"),
            syntax: attrs.get("build-arg:BUILDKIT_SYNTAX").cloned(),
            forwarded: attrs.contains_key("cmdline"),
            wants_sbom: attrs.contains_key("attest:sbom")
                || attrs.contains_key("build-arg:BUILDKIT_ATTEST_SBOM"),
            request: attrs.get("requestid").cloned(),
            ..BuildOptions::default()
        };
        options.hostname = match text("build-arg:BUILDKIT_SANDBOX_HOSTNAME") {
            name if name.is_empty() => text("hostname"),
            name => name,
        };
        if let Some(check) = attrs.get("build-arg:BUILDKIT_DOCKERFILE_CHECK") {
            let config = LintConfig::parse(check).map_err(|e| {
                fail(e).context("failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK")
            })?;
            options.lint = Some(config);
        }
        options.context = ContextOptions::from_attrs(attrs);
        let context_key = attrs.get("contextkey");
        options.unknown = attrs
            .keys()
            .filter(|key| !is_known(key) && Some(*key) != context_key)
            .cloned()
            .collect();
        Ok(options)
    }

    /// Whether the steps of the stage must run even if their outcome is known.
    pub(crate) fn ignores_cache(&self, stage: &str) -> bool {
        self.no_cache.as_ref().is_some_and(|stages| {
            stages.is_empty()
                || stages
                    .iter()
                    .any(|name| name.to_lowercase() == stage.to_lowercase())
        })
    }
}

impl ContextOptions {
    fn from_attrs(attrs: &BTreeMap<String, String>) -> ContextOptions {
        let key = attrs.get("contextkey").map_or("context", String::as_str);
        let epoch = attrs.get("build-arg:SOURCE_DATE_EPOCH");
        ContextOptions {
            filename: attrs
                .get("filename")
                .cloned()
                .unwrap_or_else(|| "Dockerfile".to_owned()),
            remote: attrs.get(key).cloned().unwrap_or_default(),
            subdir: attrs.get("contextsubdir").cloned(),
            dockerfile_local: attrs.get("dockerfilekey").cloned(),
            keep_git_dir: attrs
                .get("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR")
                .and_then(|value| quote::parse_bool(value)),
            commit_times: epoch.is_some_and(|value| !value.is_empty()),
            named: with_prefix(attrs, "context:"),
            input_metadata: with_prefix(attrs, "input-metadata:"),
            local_sessions: with_prefix(attrs, "local-sessionid:"),
            shared_keys: with_prefix(attrs, "sharedkey:localdir:"),
        }
    }
}

/// Attributes with one exact name. Some are for the server and only pass by.
const KNOWN: &[&str] = &[
    "add-hosts",
    "cache-from",
    "cache-imports",
    "cgroup-parent",
    "cmdline",
    "context",
    "contextkey",
    "contextsubdir",
    "dockerfilekey",
    "filename",
    "force-network-mode",
    "frontend.caps",
    "hostname",
    "image-resolve-mode",
    "multi-platform",
    "no-cache",
    "platform",
    "requestid",
    "shm-size",
    "source",
    "source-date-epoch",
    "target",
    "ulimit",
];

/// Attributes of which a name is the second half.
const KNOWN_PREFIXES: &[&str] = &[
    "attest:",
    "build-arg:",
    "context:",
    "input-metadata:",
    "label:",
    "local-sessionid:",
    "sharedkey:localdir:",
    "vcs:",
];

/// Limits that the language of builds has and our build graph has not.
const RESOURCES: &[&str] = &[
    "memory",
    "memswap",
    "cpushares",
    "cpuperiod",
    "cpuquota",
    "cpusetcpus",
    "cpusetmems",
];

fn is_known(key: &str) -> bool {
    KNOWN.contains(&key)
        || RESOURCES.contains(&key)
        || KNOWN_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

fn refuse_what_is_gone(attrs: &BTreeMap<String, String>) -> Result<()> {
    if attrs
        .get("override-copy-image")
        .is_some_and(|v| !v.is_empty())
    {
        return Err(fail(
            "support for \"override-copy-image\" was removed in BuildKit 0.11",
        ));
    }
    let no_file_op = attrs
        .get("build-arg:BUILDKIT_DISABLE_FILEOP")
        .and_then(|value| quote::parse_bool(value));
    if no_file_op == Some(true) {
        return Err(fail(
            "support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was removed in BuildKit 0.11",
        ));
    }
    for key in RESOURCES {
        if attrs.get(*key).is_some_and(|value| !value.is_empty()) {
            return Err(Error::unimplemented(format!(
                "the limit `{key}` for build steps is not supported"
            )));
        }
    }
    if let Some(caps) = attrs.get("frontend.caps") {
        check_caps(caps)?;
    }
    Ok(())
}

/// Capabilities that a client may require.
const CAPS: &[&str] = &[
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.gitquerystring",
];

fn check_caps(caps: &str) -> Result<()> {
    for cap in caps.split(',').filter(|cap| !cap.is_empty()) {
        let name = cap.split('+').next().unwrap_or_default();
        if !CAPS.contains(&name) {
            let name = name.to_owned();
            return Err(Error::unsupported(Unsupported::FrontendCapability(name)));
        }
    }
    Ok(())
}

fn with_prefix(attrs: &BTreeMap<String, String>, prefix: &str) -> BTreeMap<String, String> {
    attrs
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone())))
        .collect()
}

fn parse_platforms(list: &str) -> Result<Vec<Platform>> {
    let one = |text: &str| {
        parse_platform(text)
            .map_err(|e| fail(e).context(format!("failed to parse target platform {text}")))
    };
    list.split(',').map(one).collect()
}

fn parse_multi_platform(value: Option<&String>, platforms: usize) -> Result<bool> {
    let Some(value) = value else {
        return Ok(platforms > 1);
    };
    match quote::parse_bool(value) {
        None => Err(fail(format!(
            "invalid boolean value for multi-platform: {value}"
        ))),
        Some(false) if platforms > 1 => Err(fail(
            "conflicting config: returning multiple target platforms is not allowed",
        )),
        Some(value) => Ok(value),
    }
}

fn parse_resolve_mode(value: &str) -> Result<ResolveMode> {
    match value {
        "" | "default" => Ok(ResolveMode::Default),
        "pull" => Ok(ResolveMode::Pull),
        "local" => Ok(ResolveMode::Local),
        other => Err(fail(format!("invalid image-resolve-mode: {other}"))),
    }
}

fn parse_network(value: &str) -> Result<NetMode> {
    match value {
        "" | "sandbox" => Ok(NetMode::Unset),
        "none" => Ok(NetMode::None),
        "host" => Ok(NetMode::Host),
        other => Err(fail(format!("invalid netmode {other}"))),
    }
}

fn parse_extra_hosts(value: &str) -> Result<Vec<(String, String)>> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let pair = |field: &String| {
        let lower = field.to_lowercase();
        let Some((host, address)) = lower.split_once('=') else {
            return Err(fail(format!("invalid key-value pair {field}")));
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| fail(format!("failed to parse IP {address}")))?;
        // An IPv4 address in IPv6 form is printed as what it is.
        Ok((host.to_owned(), address.to_canonical().to_string()))
    };
    csv::fields(value).map_err(fail)?.iter().map(pair).collect()
}

fn parse_shm_size(value: &str) -> Result<u64> {
    if value.is_empty() {
        return Ok(0);
    }
    let size = parse_int(value)?;
    Ok(u64::try_from(size).unwrap_or(0))
}

fn parse_ulimits(value: &str) -> Result<Vec<Ulimit>> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let fields = csv::fields(value).map_err(fail)?;
    fields.iter().map(|field| parse_ulimit(field)).collect()
}

fn parse_ulimit(field: &str) -> Result<Ulimit> {
    let Some((name, limits)) = field.split_once('=') else {
        return Err(fail(format!("invalid ulimit argument: {field}")));
    };
    if !ULIMIT_NAMES.contains(&name) {
        return Err(fail(format!("invalid ulimit type: {name}")));
    }
    let (soft, hard) = match limits.split(':').collect::<Vec<_>>().as_slice() {
        [both] => (parse_int(both)?, parse_int(both)?),
        [soft, hard] => {
            let hard = parse_int(hard)?;
            (parse_int(soft)?, hard)
        }
        _ => {
            return Err(fail(format!(
                "too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`"
            )));
        }
    };
    let too_high = "ulimit soft limit must be less than or equal to hard limit";
    if hard != -1 && soft == -1 {
        return Err(fail(format!(
            "{too_high}: soft: -1 (unlimited), hard: {hard}"
        )));
    }
    if hard != -1 && soft > hard {
        return Err(fail(format!("{too_high}: {soft} > {hard}")));
    }
    Ok(Ulimit {
        name: name.to_owned(),
        soft,
        hard,
    })
}

/// A number as Go's `strconv.ParseInt` reads it, with its messages.
pub(crate) fn parse_int(text: &str) -> Result<i64> {
    text.parse::<i64>().map_err(|error| {
        use std::num::IntErrorKind;
        let what = match error.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        let text = quote::quoted(text);
        fail(format!("strconv.ParseInt: parsing {text}: {what}"))
    })
}

#[cfg(test)]
mod tests;
