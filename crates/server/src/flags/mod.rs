//! The command line of `buildkitd`: all of upstream's flags. A flag that was given wins over the
//! configuration file; one that asks for a feature this server does not have is an error, and one that
//! means nothing here says so in the log.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::TypedValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser};

use crate::config::{Config, ConfigError, DiskSpace, Remark, Span};

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_CONFIG: &str = "/etc/buildkit/buildkitd.toml";
/// Where state is kept when nothing else is said.
pub const DEFAULT_ROOT: &str = "/var/lib/buildkit";
/// Where the server listens when nothing else is said.
pub const DEFAULT_ADDRESS: &str = "unix:///run/buildkit/buildkitd.sock";

/// What is said below the list of flags.
const AFTER_HELP: &str = "\
Flags win over the configuration file. Other flags of BuildKit's server are accepted and say in the \
log that they have no effect here.

Environment:
  OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_EXPORTER=otlp   send traces of builds there
  NOTIFY_SOCKET, LISTEN_FDS                                set by systemd
  NO_COLOR                                                 plain log lines on a terminal";

/// Builds images from Dockerfiles and LLB, as a server that speaks BuildKit's API.
#[derive(Debug, Parser)]
#[command(
    name = "buildkitd",
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_override_self = true,
    after_help = AFTER_HELP
)]
pub struct Flags {
    /// path to config file (default: /etc/buildkit/buildkitd.toml)
    #[arg(long, value_name = "FILE", value_parser = path())]
    config: Option<PathBuf>,
    /// enable debug output in logs
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = go_bool, value_name = "BOOL")]
    debug: Option<bool>,
    /// enable trace output in logs (deprecated: --log-level=trace)
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = go_bool)]
    trace: Option<bool>,
    /// path to state directory (default: /var/lib/buildkit)
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// listening address: unix://PATH, tcp://HOST:PORT or fd:// for sockets from systemd; may be given
    /// several times (default: unix:///run/buildkit/buildkitd.sock)
    #[arg(long, value_name = "ADDRESS")]
    addr: Vec<String>,
    /// log formatter: json or text (default: text)
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// set the log level: error, warn, info, debug or trace (default: info)
    #[arg(long, env = "BUILDKITD_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
    /// group (name or gid) which will own all Unix socket listening addresses
    #[arg(long)]
    group: Option<String>,
    /// address of metrics in Prometheus' form, such as 127.0.0.1:6060 (at /metrics)
    #[arg(long, env = "BUILDKITD_DEBUGADDR", value_name = "ADDRESS")]
    debugaddr: Option<String>,
    /// certificate file of TCP listeners
    #[arg(long, value_name = "FILE", value_parser = path())]
    tlscert: Option<PathBuf>,
    /// key file of TCP listeners
    #[arg(long, value_name = "FILE", value_parser = path())]
    tlskey: Option<PathBuf>,
    /// ca certificate that clients' certificates must come from
    #[arg(long, value_name = "FILE", value_parser = path())]
    tlscacert: Option<PathBuf>,
    /// allows insecure entitlements e.g. network.host, security.insecure, device
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',')]
    allow_insecure_entitlement: Vec<String>,
    /// disables support of the Container Device Interface (CDI)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = go_bool)]
    cdi_disabled: Option<bool>,
    /// list of directories to scan for CDI spec files
    #[arg(long, value_name = "DIR")]
    cdi_spec_dir: Vec<PathBuf>,
    /// not offered
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = go_bool)]
    proxy_network: Option<bool>,
    /// end when no client was connected for that long
    #[arg(long, hide = true, value_name = "DURATION")]
    pub idle_timeout: Option<Span>,
    #[command(flatten)]
    worker: WorkerFlags,
    /// only `false` and `auto` are offered
    #[arg(long, hide = true)]
    containerd_worker: Option<String>,
    /// print the version
    #[arg(short = 'v', long, action = ArgAction::SetTrue)]
    pub version: bool,
    /// taken, and passed over, as stock does
    #[arg(hide = true)]
    words: Vec<OsString>,
    /// What to say in the log of flags that were given.
    #[arg(skip)]
    remarks: Vec<String>,
}

/// Flags of the worker there is.
#[derive(Debug, clap::Args)]
struct WorkerFlags {
    /// enable oci workers (true/false/auto)
    #[arg(long, value_name = "BOOL")]
    oci_worker: Option<String>,
    /// user-specific annotation labels (com.example.foo=bar)
    #[arg(long, value_name = "NAME=VALUE")]
    oci_worker_labels: Vec<String>,
    /// name of snapshotter: auto, overlayfs or native
    #[arg(long, value_name = "NAME")]
    oci_worker_snapshotter: Option<String>,
    /// override supported platforms for worker
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    oci_worker_platform: Vec<String>,
    /// worker network type: auto, host or bridge
    #[arg(long, value_name = "TYPE")]
    oci_worker_net: Option<String>,
    /// maximum number of parallel build steps that can be run at the same time, or num-cpu
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    oci_max_parallelism: Option<String>,
    /// enable automatic garbage collection on worker (default: true)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = go_bool, value_name = "BOOL")]
    oci_worker_gc: Option<bool>,
    /// amount of storage GC keep locally, format "Reserved[,Free[,Maximum]]" (MB)
    #[arg(long, value_name = "MB")]
    oci_worker_gc_keepstorage: Option<String>,
}

/// A flag that means nothing here.
struct Unused {
    name: &'static str,
    /// Whether it can stand alone.
    is_switch: bool,
    why: &'static str,
}

const fn value(name: &'static str, why: &'static str) -> Unused {
    Unused {
        name,
        is_switch: false,
        why,
    }
}

const fn switch(name: &'static str, why: &'static str) -> Unused {
    Unused {
        name,
        is_switch: true,
        why,
    }
}

const NO_CONTAINERD: &str = "there is no containerd worker";
const NO_CNI: &str = "the network of steps needs no CNI plugins";
const NO_PROFILES: &str = "this program takes no profiles of itself";
const NEEDS_ROOT: &str = "the server needs to be root";

/// Flags of upstream's that mean nothing here.
const UNUSED: &[Unused] = &[
    switch("rootless", NEEDS_ROOT),
    value("otel-socket-path", "steps are given no collector's socket"),
    switch("save-cache-debug", "keys of the cache are kept always"),
    value("profile-cpu", NO_PROFILES),
    value("profile-memory", NO_PROFILES),
    value("profile-memoryrate", NO_PROFILES),
    value("profile-block", NO_PROFILES),
    value("profile-mutex", NO_PROFILES),
    value("profile-trace", NO_PROFILES),
    switch("oci-worker-rootless", NEEDS_ROOT),
    switch(
        "oci-worker-no-process-sandbox",
        "steps always have a process namespace of their own",
    ),
    value(
        "oci-worker-proxy-snapshotter-path",
        "there are no external snapshotters",
    ),
    value("oci-cni-config-path", NO_CNI),
    value("oci-cni-binary-dir", NO_CNI),
    value("oci-cni-pool-size", NO_CNI),
    value("oci-worker-binary", "steps need no external runtime"),
    value(
        "oci-worker-apparmor-profile",
        "no AppArmor profile is applied to steps",
    ),
    switch(
        "oci-worker-selinux",
        "no SELinux labels are applied to steps",
    ),
    value("containerd-worker-addr", NO_CONTAINERD),
    value("containerd-worker-labels", NO_CONTAINERD),
    value("containerd-worker-platform", NO_CONTAINERD),
    value("containerd-worker-namespace", NO_CONTAINERD),
    value("containerd-worker-runtime", NO_CONTAINERD),
    value("containerd-worker-net", NO_CONTAINERD),
    value("containerd-cni-config-path", NO_CONTAINERD),
    value("containerd-cni-binary-dir", NO_CONTAINERD),
    value("containerd-cni-pool-size", NO_CONTAINERD),
    value("containerd-worker-snapshotter", NO_CONTAINERD),
    value("containerd-worker-apparmor-profile", NO_CONTAINERD),
    switch("containerd-worker-selinux", NO_CONTAINERD),
    value("containerd-max-parallelism", NO_CONTAINERD),
    switch("containerd-worker-rootless", NO_CONTAINERD),
    switch("containerd-worker-gc", NO_CONTAINERD),
    value("containerd-worker-gc-keepstorage", NO_CONTAINERD),
];

impl Unused {
    fn arg(&self) -> Arg {
        let arg = Arg::new(self.name)
            .long(self.name)
            .hide(true)
            .action(ArgAction::Append);
        match self.is_switch {
            true => arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(go_bool_text),
            false => arg.num_args(1),
        }
    }

    /// What to say of it, if it was given and asks for something.
    fn remark(&self, matches: &ArgMatches) -> Option<String> {
        let given = matches.value_source(self.name) == Some(ValueSource::CommandLine);
        let mut values = matches.get_many::<String>(self.name)?;
        let asks = values.any(|value| !value.is_empty() && value != "false");
        (given && asks).then(|| format!("--{} has no effect: {}", self.name, self.why))
    }
}

impl Flags {
    /// Reads a command line; the first word is the program.
    pub fn parse_from_args(args: &[OsString]) -> Result<Self, clap::Error> {
        // Go's flag package takes `-addr` for `--addr`; clap would read letters.
        let args = args.iter().map(|arg| match arg.to_str() {
            Some(text) if is_long_with_one_dash(text) => OsString::from(format!("-{text}")),
            _ => arg.clone(),
        });
        let mut matches = Self::whole_command().try_get_matches_from(args)?;
        let remarks = UNUSED.iter().filter_map(|flag| flag.remark(&matches));
        let remarks = remarks.collect();
        let mut flags = Self::from_arg_matches_mut(&mut matches)?;
        flags.remarks = remarks;
        for word in &flags.words {
            let text = format!("the argument {word:?} is passed over: flags are all there is");
            flags.remarks.push(text);
        }
        if flags.trace.is_some() {
            let text = "--trace is deprecated, use --log-level=trace instead";
            flags.remarks.push(text.to_owned());
        }
        Ok(flags)
    }

    /// What there is to say in the log of the flags that were given.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The configuration that file and flags give together, with what there is to say of the file.
    pub fn configuration(&self) -> Result<(Config, Vec<Remark>), ConfigError> {
        let path = self.config.as_deref().filter(|path| is_given(path));
        let (mut config, remarks) =
            Config::load(path.unwrap_or(Path::new(DEFAULT_CONFIG)), path.is_some())?;
        self.apply(&mut config)?;
        Ok((config, remarks))
    }

    /// The command with those flags too that mean nothing here.
    fn whole_command() -> clap::Command {
        Self::command().args(UNUSED.iter().map(Unused::arg))
    }

    fn apply(&self, config: &mut Config) -> Result<(), ConfigError> {
        if config.root.is_none() || self.root.is_some() {
            let root = self.root.clone();
            config.root = Some(root.unwrap_or_else(|| PathBuf::from(DEFAULT_ROOT)));
        }
        if !self.addr.is_empty() {
            config.grpc.address.clone_from(&self.addr);
        } else if config.grpc.address.is_empty() {
            config.grpc.address = vec![DEFAULT_ADDRESS.to_owned()];
        }
        if let Some(format) = &self.log_format {
            config.log.format.clone_from(format);
        }
        // The last one that speaks wins, as with stock.
        if self.debug == Some(true) {
            config.log.level = "debug".to_owned();
        }
        if self.trace == Some(true) {
            config.log.level = "trace".to_owned();
        }
        if let Some(level) = &self.log_level {
            config.log.level.clone_from(level);
        }
        if let Some(address) = &self.debugaddr {
            config.grpc.debug_address.clone_from(address);
        }
        if let Some(group) = self.group.as_ref().filter(|group| !group.is_empty()) {
            config.grpc.gid = Some(group_id(group)?);
        }
        let tls = &mut config.grpc.tls;
        for (flag, value) in [
            (&self.tlscert, &mut tls.cert),
            (&self.tlskey, &mut tls.key),
            (&self.tlscacert, &mut tls.ca),
        ] {
            if flag.as_deref().is_some_and(is_given) {
                value.clone_from(flag);
            }
        }
        if !self.allow_insecure_entitlement.is_empty() {
            config
                .entitlements
                .clone_from(&self.allow_insecure_entitlement);
        }
        if let Some(disabled) = self.cdi_disabled {
            config.cdi.disabled = disabled;
        }
        if !self.cdi_spec_dir.is_empty() {
            config.cdi.spec_dirs.clone_from(&self.cdi_spec_dir);
        }
        if self.proxy_network == Some(true) {
            let text = "--proxy-network: proxy networks are not offered";
            return Err(ConfigError::Unsupported(text.into()));
        }
        if bool_or_auto("containerd-worker", self.containerd_worker.as_deref())? == Some(true) {
            let text = "--containerd-worker=true: there is no containerd worker";
            return Err(ConfigError::Unsupported(text.into()));
        }
        self.worker.apply(config)
    }
}

impl WorkerFlags {
    fn apply(&self, config: &mut Config) -> Result<(), ConfigError> {
        let worker = &mut config.worker.oci;
        if bool_or_auto("oci-worker", self.oci_worker.as_deref())? == Some(false) {
            let text = "--oci-worker=false: this server has no other worker";
            return Err(ConfigError::Unsupported(text.into()));
        }
        for label in &self.oci_worker_labels {
            let (name, value) = label.split_once('=').ok_or_else(|| {
                ConfigError::Invalid(format!("invalid label {label:?}: expected NAME=VALUE"))
            })?;
            worker.labels.insert(name.to_owned(), value.to_owned());
        }
        if let Some(snapshotter) = &self.oci_worker_snapshotter {
            worker.snapshotter.clone_from(snapshotter);
        }
        if !self.oci_worker_platform.is_empty() {
            worker.platforms.clone_from(&self.oci_worker_platform);
        }
        if let Some(network) = &self.oci_worker_net {
            worker.network_mode.clone_from(network);
        }
        if let Some(count) = &self.oci_max_parallelism {
            worker.max_parallelism = parallelism(count)?;
        }
        if self.oci_worker_gc.is_some() {
            worker.gc = self.oci_worker_gc;
        }
        if let Some(text) = &self.oci_worker_gc_keepstorage {
            let [reserved, free, maximum] = keep_storage(text)?;
            worker.reserved_space = reserved;
            worker.min_free_space = free;
            worker.max_used_space = maximum;
        }
        Ok(())
    }
}

/// `--oci-worker-gc-keepstorage`: what is reserved, free and the most, each in megabytes or percent;
/// what is not there is not limited.
fn keep_storage(text: &str) -> Result<[DiskSpace; 3], ConfigError> {
    let wrong = || ConfigError::Invalid(format!("failed to parse storage {text:?}"));
    let mut spaces = [DiskSpace::Unset; 3];
    if text.is_empty() {
        return Ok(spaces);
    }
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > spaces.len() {
        return Err(wrong());
    }
    for (space, part) in spaces.iter_mut().zip(parts) {
        *space = match part.parse::<u32>() {
            Ok(megabytes) => DiskSpace::Bytes(i64::from(megabytes) * 1_000_000),
            Err(_) if part.is_empty() => return Err(wrong()),
            Err(_) => part.parse().map_err(|_| wrong())?,
        };
    }
    Ok(spaces)
}

/// A boolean, or nothing for `auto`.
fn bool_or_auto(flag: &str, text: Option<&str>) -> Result<Option<bool>, ConfigError> {
    match text {
        None | Some("") => Ok(None),
        Some(text) if text.eq_ignore_ascii_case("auto") => Ok(None),
        Some(text) => go_bool(text)
            .map(Some)
            .map_err(|error| ConfigError::Invalid(format!("--{flag}: {error}, nor auto"))),
    }
}

/// Reads a path, which may be empty: that is no path.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    clap::builder::OsStringValueParser::new().map(PathBuf::from)
}

fn is_given(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

/// A number, or `num-cpu`.
fn parallelism(text: &str) -> Result<usize, ConfigError> {
    if text == "num-cpu" {
        return Ok(std::thread::available_parallelism().map_or(1, Into::into));
    }
    // Less than none is no limit, as with stock.
    let limit = text.parse::<i64>();
    limit.map(|limit| usize::try_from(limit).unwrap_or(0)).map_err(|_| {
        ConfigError::Invalid(format!(
            "failed to parse oci-max-parallelism, should be positive integer, 0 for unlimited, or 'num-cpu' for setting to the number of CPUs: {text:?}"
        ))
    })
}

/// A group by number, or by its name in `/etc/group`.
fn group_id(group: &str) -> Result<u32, ConfigError> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&group))
        .and_then(|fields| fields.get(2)?.parse().ok())
        .ok_or_else(|| ConfigError::Invalid(format!("group: unknown group {group}")))
}

/// A boolean in every form that Go's `strconv.ParseBool` takes.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is no boolean")),
    }
}

/// The same in one form.
fn go_bool_text(text: &str) -> Result<String, String> {
    go_bool(text).map(|value| value.to_string())
}

fn is_long_with_one_dash(text: &str) -> bool {
    let name = text.split('=').next().unwrap_or(text);
    name.len() > 2 && name.starts_with('-') && !name.starts_with("--")
}

#[cfg(test)]
mod tests;
