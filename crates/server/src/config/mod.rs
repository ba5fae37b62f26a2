//! `buildkitd.toml`: every key of upstream's documented file, in typed form.
//!
//! Keys that this server does not know are reported with their line and passed over, so that a file
//! written for a newer server starts an older one; so are keys that mean nothing here, with the
//! reason. A value that asks for what cannot be given (the containerd worker, proxy networks) is an
//! error.

mod keys;
mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use registry::RegistryConfig;
use serde::Deserialize;

pub use keys::{Remark, RemarkKind};
pub use values::{Disk, DiskSpace, Span};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to load config from {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not the TOML it should be; the message shows the place.
    #[error("failed to load config from {path}: {message}")]
    Parse {
        /// The file.
        path: String,
        /// What the parser said.
        message: String,
    },
    /// A value asks for something that is not offered.
    #[error("{0}")]
    Unsupported(String),
    /// A value is wrong.
    #[error("{0}")]
    Invalid(String),
}

impl From<ConfigError> for diag::Error {
    fn from(error: ConfigError) -> Self {
        let code = match &error {
            ConfigError::Read { .. } => diag::Code::NotFound,
            ConfigError::Unsupported(_) => diag::Code::Unimplemented,
            _ => diag::Code::InvalidArgument,
        };
        diag::Error::new(code, error.to_string())
    }
}

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Deprecated form of `log.level = "debug"`.
    pub debug: bool,
    /// Deprecated form of `log.level = "trace"`.
    pub trace: bool,
    /// Where all state is kept.
    pub root: Option<PathBuf>,
    /// Entitlements that clients may ask for.
    #[serde(rename = "insecure-entitlements")]
    pub entitlements: Vec<String>,
    /// Not offered.
    #[serde(rename = "proxyNetwork")]
    pub proxy_network: bool,
    /// Logging.
    pub log: LogConfig,
    /// Where it listens.
    pub grpc: GrpcConfig,
    /// Workers.
    pub worker: WorkersConfig,
    /// Registries by host.
    pub registry: BTreeMap<String, RegistryConfig>,
    /// Name servers of steps.
    pub dns: DnsConfig,
    /// What is kept of finished builds.
    pub history: HistoryConfig,
    /// Frontends by name.
    pub frontend: BTreeMap<String, FrontendConfig>,
    /// Of the machine.
    pub system: SystemConfig,
    /// Devices of steps.
    pub cdi: CdiConfig,
}

/// Devices that steps may be given.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CdiConfig {
    /// Whether there are none.
    pub disabled: bool,
    /// Directories with the files that describe them, later ones winning; empty for
    /// [`cdi::SPEC_DIRS`].
    #[serde(rename = "specDirs")]
    pub spec_dirs: Vec<PathBuf>,
    /// Names or kinds (`vendor/class`) of those that any build may use.
    #[serde(rename = "autoAllowed")]
    pub auto_allowed: Vec<String>,
}

impl CdiConfig {
    /// The devices; `None` if there are to be none.
    pub fn registry(&self) -> Option<cdi::Registry> {
        let dirs = match self.spec_dirs.as_slice() {
            [] => cdi::SPEC_DIRS.iter().map(PathBuf::from).collect(),
            dirs => dirs.to_vec(),
        };
        (!self.disabled).then(|| cdi::Registry::new(dirs, self.auto_allowed.clone()))
    }
}

/// Logging.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// `text` or `json`; empty for `text`.
    pub format: String,
    /// `error`, `warn`, `info`, `debug` or `trace`; empty for `info`.
    pub level: String,
}

/// Where the server listens.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GrpcConfig {
    /// `unix://…`, `tcp://…` or `fd://…`.
    pub address: Vec<String>,
    /// Where metrics are served: `host:port`, `tcp://…` or `unix://…`; empty for nowhere.
    #[serde(rename = "debugAddress")]
    pub debug_address: String,
    /// Owner of unix sockets; -1 in the file is none.
    #[serde(deserialize_with = "values::owner")]
    pub uid: Option<u32>,
    /// Group of unix sockets; with one the sockets are 0660. -1 in the file is none.
    #[serde(deserialize_with = "values::owner")]
    pub gid: Option<u32>,
    /// TLS of TCP listeners.
    pub tls: TlsConfig,
}

/// Certificates of a TCP listener.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TlsConfig {
    /// Certificate file.
    pub cert: Option<PathBuf>,
    /// Key file.
    pub key: Option<PathBuf>,
    /// Authorities that clients' certificates must come from.
    pub ca: Option<PathBuf>,
}

/// Workers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WorkersConfig {
    /// The one there is.
    pub oci: WorkerConfig,
    /// Not offered; only `enabled` is looked at.
    pub containerd: ContainerdConfig,
}

/// The containerd worker, which this server does not have.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerdConfig {
    /// True is an error.
    pub enabled: Option<bool>,
}

/// The worker.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WorkerConfig {
    /// False is an error: there is no other worker.
    pub enabled: Option<bool>,
    /// Labels that clients choose workers by.
    pub labels: BTreeMap<String, String>,
    /// Platforms instead of those detected.
    pub platforms: Vec<String>,
    /// `auto`, `overlayfs` or `native`.
    pub snapshotter: String,
    /// Whether old cache is removed without being asked.
    pub gc: Option<bool>,
    /// Deprecated name of `reservedSpace`.
    #[serde(rename = "gckeepstorage")]
    pub gc_keep_storage: DiskSpace,
    /// What GC never goes below.
    #[serde(rename = "reservedSpace")]
    pub reserved_space: DiskSpace,
    /// What GC keeps the cache under.
    #[serde(rename = "maxUsedSpace")]
    pub max_used_space: DiskSpace,
    /// What GC tries to leave free on the disk.
    #[serde(rename = "minFreeSpace")]
    pub min_free_space: DiskSpace,
    /// Policies instead of the default ones, in order.
    pub gcpolicy: Vec<GcPolicyConfig>,
    /// `auto`, `host` or empty.
    #[serde(rename = "networkMode")]
    pub network_mode: String,
    /// The bridge that `networkMode = "bridge"` makes; empty for `buildkit0`, or the next number that is free.
    #[serde(rename = "bridgeName")]
    pub bridge_name: String,
    /// Its addresses, such as `10.10.0.0/16`; empty for some that no route knows.
    #[serde(rename = "bridgeSubnet")]
    pub bridge_subnet: String,
    /// cgroup under which those of steps are made.
    #[serde(rename = "defaultCgroupParent")]
    pub default_cgroup_parent: String,
    /// How many steps run at once; 0, or less in the file, for any number.
    #[serde(rename = "max-parallelism", deserialize_with = "values::limit")]
    pub max_parallelism: usize,
}

/// One GC policy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GcPolicyConfig {
    /// Whether internal and shared records count too.
    pub all: bool,
    /// Which records it is about.
    pub filters: Vec<String>,
    /// How long a record is kept after its last use.
    #[serde(rename = "keepDuration")]
    pub keep_duration: Span,
    /// Deprecated name of `reservedSpace`.
    #[serde(rename = "keepBytes")]
    pub keep_bytes: DiskSpace,
    /// What it never goes below.
    #[serde(rename = "reservedSpace")]
    pub reserved_space: DiskSpace,
    /// What it keeps the cache under.
    #[serde(rename = "maxUsedSpace")]
    pub max_used_space: DiskSpace,
    /// What it tries to leave free on the disk.
    #[serde(rename = "minFreeSpace")]
    pub min_free_space: DiskSpace,
}

/// Name servers of steps.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Addresses.
    pub nameservers: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
    /// Search domains.
    #[serde(rename = "searchDomains")]
    pub search_domains: Vec<String>,
}

/// What is kept of finished builds.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct HistoryConfig {
    /// How long.
    #[serde(rename = "maxAge")]
    pub max_age: Span,
    /// How many; records beyond both limits go.
    #[serde(rename = "maxEntries", deserialize_with = "values::whole")]
    pub max_entries: i64,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        HistoryConfig {
            max_age: Span::from_secs(48 * 60 * 60),
            max_entries: 50,
        }
    }
}

/// A frontend.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct FrontendConfig {
    /// Whether it can be used; `None` is yes.
    pub enabled: Option<bool>,
    /// Images a gateway frontend may come from; empty for any.
    #[serde(rename = "allowedRepositories")]
    pub allowed_repositories: Vec<String>,
}

/// Of the machine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SystemConfig {
    /// How long the list of platforms is believed.
    #[serde(rename = "platformsCacheMaxAge")]
    pub platforms_cache_max_age: Option<Span>,
    /// Connections to one registry at once.
    #[serde(
        rename = "maxRegistryConcurrency",
        deserialize_with = "values::maybe_whole"
    )]
    pub max_registry_concurrency: Option<i64>,
}

impl Config {
    /// Reads a file. A file that does not exist is an empty configuration unless `required`.
    pub fn load(path: &Path, required: bool) -> Result<(Config, Vec<Remark>), ConfigError> {
        let shown = path.display().to_string();
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&utf8(bytes, &shown)?, &shown),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {
                Ok(Default::default())
            }
            Err(source) => Err(ConfigError::Read {
                path: shown,
                source,
            }),
        }
    }

    /// Reads the text of a file; `path` is for messages.
    pub fn parse(text: &str, path: &str) -> Result<(Config, Vec<Remark>), ConfigError> {
        let failed = |error: toml::de::Error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        };
        let remarks = keys::remarks(text, path).map_err(failed)?;
        let remarks = remarks.map_err(|fault| ConfigError::Parse {
            path: path.to_owned(),
            message: format!("line {}: {}", fault.line, fault.message),
        })?;
        let misspelt = |remark: &Remark| matches!(remark.kind, RemarkKind::Spelling(_));
        let config: Config = if remarks.iter().any(misspelt) {
            let mut table: toml::Table = toml::from_str(text).map_err(failed)?;
            keys::with_documented_case(&mut table);
            table.try_into().map_err(failed)?
        } else {
            // Errors in values name their place only this way.
            toml::from_str(text).map_err(failed)?
        };
        config.check()?;
        Ok((config, remarks))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let unsupported = |text: &str| Err(ConfigError::Unsupported(text.to_owned()));
        if self.worker.oci.enabled == Some(false) {
            return unsupported("worker.oci.enabled = false: this server has no other worker");
        }
        if self.worker.containerd.enabled == Some(true) {
            return unsupported("worker.containerd.enabled = true: there is no containerd worker");
        }
        if self.proxy_network {
            return unsupported("proxyNetwork = true: proxy networks are not offered");
        }
        if let Some(count) = self.system.max_registry_concurrency
            && count <= 0
        {
            return Err(ConfigError::Invalid(format!(
                "maxRegistryConcurrency must be greater than zero; set to {count} in the configuration file"
            )));
        }
        Ok(())
    }
}

/// The text of a file; its errors name the line.
fn utf8(bytes: Vec<u8>, path: &str) -> Result<String, ConfigError> {
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        ConfigError::Parse {
            path: path.to_owned(),
            message: format!("line {line}: this is not UTF-8"),
        }
    })
}

#[cfg(test)]
mod tests;
