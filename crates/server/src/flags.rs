//! The command line of `buildkitd`: all of upstream's flags. A flag that was given wins over the
//! configuration file; one that asks for a feature this server does not have is an error.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser;

use crate::config::{Config, ConfigError, Span, UnknownKey};

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_CONFIG: &str = "/etc/buildkit/buildkitd.toml";
/// Where state is kept when nothing else is said.
pub const DEFAULT_ROOT: &str = "/var/lib/buildkit";
/// Where the server listens when nothing else is said.
pub const DEFAULT_ADDRESS: &str = "unix:///run/buildkit/buildkitd.sock";

/// build daemon
#[derive(Debug, Parser)]
#[command(
    name = "buildkitd",
    disable_version_flag = true,
    disable_help_subcommand = true
)]
pub struct Flags {
    /// path to config file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// enable debug output in logs
    #[arg(long)]
    debug: bool,
    /// enable trace output in logs
    #[arg(long, hide = true)]
    trace: bool,
    /// path to state directory (default: /var/lib/buildkit)
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// listening address, unix, tcp or fd (default: unix:///run/buildkit/buildkitd.sock)
    #[arg(long, value_name = "ADDRESS")]
    addr: Vec<String>,
    /// log formatter: json or text
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// set the log level
    #[arg(long, env = "BUILDKITD_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
    /// group (name or gid) which will own all Unix socket listening addresses
    #[arg(long)]
    group: Option<String>,
    /// accepted for compatibility: nothing listens there
    #[arg(long, env = "BUILDKITD_DEBUGADDR", value_name = "ADDRESS")]
    debugaddr: Option<String>,
    /// certificate file to use
    #[arg(long, value_name = "FILE")]
    tlscert: Option<PathBuf>,
    /// key file to use
    #[arg(long, value_name = "FILE")]
    tlskey: Option<PathBuf>,
    /// ca certificate to verify clients
    #[arg(long, value_name = "FILE")]
    tlscacert: Option<PathBuf>,
    /// allows insecure entitlements e.g. network.host, security.insecure, device
    #[arg(long, value_name = "ENTITLEMENT")]
    allow_insecure_entitlement: Vec<String>,
    /// not offered
    #[arg(long, hide = true)]
    proxy_network: bool,
    /// accepted for compatibility
    #[arg(long, hide = true)]
    otel_socket_path: Option<String>,
    /// accepted for compatibility
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    cdi_disabled: Option<bool>,
    /// accepted for compatibility
    #[arg(long, hide = true)]
    cdi_spec_dir: Vec<String>,
    /// accepted for compatibility
    #[arg(long, hide = true)]
    save_cache_debug: bool,
    /// accepted for compatibility
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    rootless: Option<bool>,
    /// end when no client was connected for that long
    #[arg(long, hide = true, value_name = "DURATION")]
    pub idle_timeout: Option<Span>,
    #[command(flatten)]
    worker: WorkerFlags,
    #[command(flatten)]
    containerd: ContainerdFlags,
    /// print the version
    #[arg(short = 'v', long)]
    pub version: bool,
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
    #[arg(long, hide = true)]
    oci_worker_proxy_snapshotter_path: Option<String>,
    /// override supported platforms for worker
    #[arg(long, value_name = "PLATFORM")]
    oci_worker_platform: Vec<String>,
    /// worker network type: auto or host
    #[arg(long, value_name = "TYPE")]
    oci_worker_net: Option<String>,
    #[arg(long, hide = true)]
    oci_cni_config_path: Option<String>,
    #[arg(long, hide = true)]
    oci_cni_binary_dir: Option<String>,
    #[arg(long, hide = true)]
    oci_cni_pool_size: Option<String>,
    /// accepted for compatibility: steps need no external runtime
    #[arg(long, hide = true)]
    oci_worker_binary: Option<String>,
    #[arg(long, hide = true)]
    oci_worker_apparmor_profile: Option<String>,
    #[arg(long, hide = true)]
    oci_worker_selinux: bool,
    /// maximum number of parallel build steps that can be run at the same time
    #[arg(long, value_name = "N")]
    oci_max_parallelism: Option<String>,
    #[arg(long, hide = true)]
    oci_worker_no_process_sandbox: bool,
    /// enable automatic garbage collection on worker
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    oci_worker_gc: Option<bool>,
    /// amount of storage GC keep locally, format "Reserved[,Free[,Maximum]]" (MB)
    #[arg(long, value_name = "MB")]
    oci_worker_gc_keepstorage: Option<String>,
}

/// Flags of a worker there is not: accepted so that a command line starts, and refused where they
/// ask for it.
#[derive(Debug, clap::Args)]
struct ContainerdFlags {
    #[arg(long, hide = true)]
    containerd_worker: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_addr: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_labels: Vec<String>,
    #[arg(long, hide = true)]
    containerd_worker_platform: Vec<String>,
    #[arg(long, hide = true)]
    containerd_worker_namespace: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_runtime: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_net: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_config_path: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_binary_dir: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_pool_size: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_snapshotter: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_apparmor_profile: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_selinux: bool,
    #[arg(long, hide = true)]
    containerd_max_parallelism: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    containerd_worker_gc: Option<bool>,
    #[arg(long, hide = true)]
    containerd_worker_gc_keepstorage: Option<String>,
}

impl Flags {
    /// Reads a command line; the first word is the program.
    pub fn parse_from_args(args: &[OsString]) -> Result<Self, clap::Error> {
        // Go's flag package takes `-addr` for `--addr`; clap would read letters.
        let args = args.iter().map(|arg| match arg.to_str() {
            Some(text) if is_long_with_one_dash(text) => OsString::from(format!("-{text}")),
            _ => arg.clone(),
        });
        Flags::try_parse_from(args)
    }

    /// The configuration that file and flags give together, with what in the file is not known.
    pub fn configuration(&self) -> Result<(Config, Vec<UnknownKey>), ConfigError> {
        let path = self.config.as_deref();
        let (mut config, unknown) =
            Config::load(path.unwrap_or(Path::new(DEFAULT_CONFIG)), path.is_some())?;
        self.apply(&mut config)?;
        Ok((config, unknown))
    }

    fn apply(&self, config: &mut Config) -> Result<(), ConfigError> {
        config.debug |= self.debug;
        config.trace |= self.trace;
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
        if let Some(level) = &self.log_level {
            config.log.level.clone_from(level);
        }
        if let Some(group) = &self.group {
            config.grpc.gid = Some(group_id(group)?);
        }
        let tls = &mut config.grpc.tls;
        for (flag, value) in [
            (&self.tlscert, &mut tls.cert),
            (&self.tlskey, &mut tls.key),
            (&self.tlscacert, &mut tls.ca),
        ] {
            if flag.is_some() {
                value.clone_from(flag);
            }
        }
        if !self.allow_insecure_entitlement.is_empty() {
            config
                .entitlements
                .clone_from(&self.allow_insecure_entitlement);
        }
        if self.proxy_network {
            let text = "--proxy-network: proxy networks are not offered";
            return Err(ConfigError::Unsupported(text.into()));
        }
        if self.containerd.containerd_worker.as_deref() == Some("true") {
            let text = "--containerd-worker=true: there is no containerd worker";
            return Err(ConfigError::Unsupported(text.into()));
        }
        self.worker.apply(config)
    }
}

impl WorkerFlags {
    fn apply(&self, config: &mut Config) -> Result<(), ConfigError> {
        let worker = &mut config.worker.oci;
        if self.oci_worker.as_deref() == Some("false") {
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
            let mut parts = text.split(',');
            for space in [
                &mut worker.reserved_space,
                &mut worker.min_free_space,
                &mut worker.max_used_space,
            ] {
                if let Some(part) = parts.next().filter(|part| !part.is_empty()) {
                    *space = keep_storage(part)?;
                }
            }
        }
        Ok(())
    }
}

/// A part of `--oci-worker-gc-keepstorage`: megabytes, or a percentage.
fn keep_storage(text: &str) -> Result<crate::config::DiskSpace, ConfigError> {
    use crate::config::DiskSpace;
    match text.parse::<i64>() {
        Ok(megabytes) => Ok(DiskSpace::Bytes(megabytes * 1_000_000)),
        Err(_) => text.parse().map_err(ConfigError::Invalid),
    }
}

/// A number, or `num-cpu`.
fn parallelism(text: &str) -> Result<usize, ConfigError> {
    if text == "num-cpu" {
        return Ok(std::thread::available_parallelism().map_or(1, Into::into));
    }
    text.parse().map_err(|_| {
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

fn is_long_with_one_dash(text: &str) -> bool {
    let name = text.split('=').next().unwrap_or(text);
    name.len() > 2 && name.starts_with('-') && !name.starts_with("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(words: &[&str]) -> Flags {
        let args: Vec<OsString> = ["buildkitd"]
            .iter()
            .chain(words)
            .map(OsString::from)
            .collect();
        Flags::parse_from_args(&args).unwrap()
    }

    #[test]
    fn flags_win_over_the_file_and_defaults_fill_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b.toml");
        std::fs::write(
            &file,
            "root = \"/a\"\n[worker.oci]\nmax-parallelism = 2\n[log]\nlevel = \"warn\"\n",
        )
        .unwrap();
        let path = file.to_str().unwrap();
        let given = flags(&[
            "--config",
            path,
            "-root",
            "/b",
            "--allow-insecure-entitlement=network.host",
            "--oci-max-parallelism=7",
            "--oci-worker-gc=false",
            "--oci-worker-gc-keepstorage=100,20%",
        ]);
        let (config, unknown) = given.configuration().unwrap();
        assert!(unknown.is_empty());
        assert_eq!(config.root.as_deref(), Some(Path::new("/b")));
        assert_eq!(config.entitlements, ["network.host"]);
        assert_eq!(config.worker.oci.max_parallelism, 7);
        assert_eq!(config.worker.oci.gc, Some(false));
        assert_eq!(config.log.level, "warn");
        assert_eq!(config.grpc.address, [DEFAULT_ADDRESS]);
    }

    #[test]
    fn what_is_not_offered_is_refused_and_what_is_missing_named() {
        let refused = flags(&["--config", "/dev/null", "--containerd-worker=true"]);
        assert!(matches!(
            refused.configuration(),
            Err(ConfigError::Unsupported(_))
        ));
        let missing = flags(&["--config", "/no/such/file"]).configuration();
        assert!(matches!(missing, Err(ConfigError::Read { .. })));
    }
}
