//! Docker's configuration directory: credentials, credential helpers, proxies, contexts.
//!
//! Reads `$DOCKER_CONFIG` or `~/.docker` as the Docker CLI does, and writes nothing. Only `credential_helper` runs
//! programs; nothing here talks to a registry or an Engine.
//!
//! Calls block (files, helper programs): from async code they belong on a blocking thread.

mod context;
mod credential_helper;
mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diag::Secret;

pub use context::{ContextInfo, DEFAULT_CONTEXT};

use credential_helper::CredentialHelper;
use file::{AuthEntry, ConfigFile};

/// The key under which credentials for Docker Hub are kept.
pub const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The host that serves Docker Hub's registry.
pub const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// Why configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("failed to read {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {reason}", .path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A credential helper failed.
    #[error("error getting credentials - err: {reason}, out: `{output}`")]
    Helper {
        /// How it ended.
        reason: String,
        /// What it printed, with what looks like a secret left out.
        output: String,
    },
    /// No context of that name.
    #[error("context {0:?}: context not found")]
    NoContext(String),
}

impl From<ConfigError> for diag::Error {
    fn from(error: ConfigError) -> Self {
        use diag::Code;
        let code = match &error {
            ConfigError::Read { source, .. } => {
                diag::Error::from(std::io::Error::from(source.kind())).code()
            }
            ConfigError::Malformed { .. } => Code::InvalidArgument,
            ConfigError::Helper { .. } => Code::Unauthenticated,
            ConfigError::NoContext(_) => Code::NotFound,
        };
        diag::Error::new(code, error.to_string())
    }
}

/// What is known about authenticating to a registry; everything empty means anonymous.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    /// User name; empty with an identity token.
    pub username: String,
    /// Password or access token.
    pub password: Secret<String>,
    /// A token to get access tokens with, instead of user name and password.
    pub identity_token: Secret<String>,
    /// A token to send to the registry as it is.
    pub registry_token: Secret<String>,
}

impl Auth {
    /// Whether there is nothing to authenticate with.
    pub fn is_anonymous(&self) -> bool {
        self.secret().is_empty() && self.registry_token.expose().is_empty()
    }

    /// The identity token or else the password.
    pub fn secret(&self) -> &str {
        match self.identity_token.expose() {
            token if !token.is_empty() => token,
            _ => self.password.expose(),
        }
    }
}

/// A loaded configuration.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    dir: PathBuf,
    file: ConfigFile,
}

impl DockerConfig {
    /// Loads the directory that the environment names: `$DOCKER_CONFIG`, else `~/.docker`.
    pub fn load() -> Result<Self, ConfigError> {
        Self::load_from(&Self::default_dir())
    }

    /// Loads a directory; one without `config.json` is an empty configuration.
    pub fn load_from(dir: &Path) -> Result<Self, ConfigError> {
        Self::with_file(dir, ConfigFile::load(&dir.join("config.json"))?)
    }

    /// Loads a directory as the Docker CLI does: when `config.json` cannot be used, goes on
    /// without it and gives the reason, for a warning.
    pub fn load_or_default(dir: &Path) -> Result<(Self, Option<ConfigError>), ConfigError> {
        let (file, trouble) = match ConfigFile::load(&dir.join("config.json")) {
            Ok(file) => (file, None),
            Err(error) => (ConfigFile::default(), Some(error)),
        };
        Ok((Self::with_file(dir, file)?, trouble))
    }

    fn with_file(dir: &Path, mut file: ConfigFile) -> Result<Self, ConfigError> {
        if let Some(extra) = std::env::var_os("DOCKER_AUTH_CONFIG") {
            file.add_auths_of(extra.as_encoded_bytes())?;
        }
        Ok(DockerConfig {
            dir: dir.to_owned(),
            file,
        })
    }

    /// The directory the environment names.
    pub fn default_dir() -> PathBuf {
        match std::env::var_os("DOCKER_CONFIG") {
            Some(dir) if !dir.is_empty() => dir.into(),
            _ => std::env::home_dir()
                .unwrap_or_else(|| "/".into())
                .join(".docker"),
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is known for a registry host such as `ghcr.io` or `registry-1.docker.io`: from the host's
    /// helper, else from the store for all hosts, else from the file.
    pub fn auth(&self, host: &str) -> Result<Auth, ConfigError> {
        let key = if host == DOCKER_HUB_HOST {
            DOCKER_HUB_KEY
        } else {
            host
        };
        let helper = self
            .file
            .cred_helpers
            .get(key)
            .or_else(|| self.file.cred_helpers.get(host));
        let helper = helper.unwrap_or(&self.file.creds_store);
        if !helper.is_empty() {
            let found = CredentialHelper::new(helper).get(key)?;
            // Some stores keep only part; what the file says of the host is the rest.
            if let Some(found) = found {
                return Ok(found);
            }
            if !self.file.auths.get(key).is_some_and(AuthEntry::has_secret) {
                return Ok(Auth::default());
            }
        }
        self.file.auth(key)
    }

    /// The environment that `proxies` asks for in containers of the Engine at `host` (such as
    /// `unix:///var/run/docker.sock`), in upper and lower case.
    pub fn proxies(&self, host: &str) -> BTreeMap<String, String> {
        let settings = self
            .file
            .proxies
            .get(host)
            .or_else(|| self.file.proxies.get("default"));
        let mut env = BTreeMap::new();
        let Some(settings) = settings else { return env };
        for (key, name) in [
            ("httpProxy", "HTTP_PROXY"),
            ("httpsProxy", "HTTPS_PROXY"),
            ("noProxy", "NO_PROXY"),
            ("ftpProxy", "FTP_PROXY"),
            ("allProxy", "ALL_PROXY"),
        ] {
            if let Some(value) = settings.get(key).filter(|value| !value.is_empty()) {
                env.insert(name.to_owned(), value.clone());
                env.insert(name.to_lowercase(), value.clone());
            }
        }
        env
    }

    /// The context that commands use: `default` when `$DOCKER_HOST` is set, else `$DOCKER_CONTEXT`,
    /// else what the file names.
    pub fn current_context(&self) -> String {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        if set("DOCKER_HOST").is_some() {
            return DEFAULT_CONTEXT.to_owned();
        }
        set("DOCKER_CONTEXT")
            .or_else(|| Some(self.file.current_context.clone()).filter(|name| !name.is_empty()))
            .unwrap_or_else(|| DEFAULT_CONTEXT.to_owned())
    }

    /// A context by name. The context `default` has no files and is not found here.
    pub fn context(&self, name: &str) -> Result<ContextInfo, ConfigError> {
        context::load(&self.dir, name)
    }

    /// All contexts with files, by name; broken ones are errors of their own.
    pub fn contexts(&self) -> Vec<Result<ContextInfo, ConfigError>> {
        context::list(&self.dir)
    }
}
