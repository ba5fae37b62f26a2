//! The Docker client's surroundings: configuration, contexts, the current endpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use docker_config::{DEFAULT_CONTEXT, DockerConfig};
use driver::engine::{Engine, EngineEndpoint, RegistryAuth, TlsFiles};
use driver::{DriverError, ProxySettings, PullAuth};

use crate::{BuilderError, ConfigDir, Store};

/// The Engine of this machine when nothing says otherwise.
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// What stands before the command's name on Docker's command line, and wins over the environment.
#[derive(Clone, Debug, Default)]
pub struct DockerOptions {
    /// `--config`: Docker's configuration directory.
    pub config: Option<PathBuf>,
    /// `--context`.
    pub context: Option<String>,
    /// `--host`.
    pub host: Option<String>,
    /// `--tls`.
    pub tls: Option<bool>,
    /// `--tlsverify`.
    pub tls_verify: Option<bool>,
    /// `--tlscacert`.
    pub tls_ca: Option<PathBuf>,
    /// `--tlscert`.
    pub tls_cert: Option<PathBuf>,
    /// `--tlskey`.
    pub tls_key: Option<PathBuf>,
}

/// A Docker context: a named endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerContext {
    /// Its name; `default` for the environment's endpoint.
    pub name: String,
    /// Address of its Engine.
    pub host: String,
    /// Certificates for it.
    pub tls: Option<TlsFiles>,
}

/// The surroundings. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Docker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: DockerConfig,
    warning: Option<String>,
    store: Store,
    current: String,
    default: DockerContext,
    executable: PathBuf,
}

impl Docker {
    /// Reads configuration and environment.
    pub fn from_environment(options: &DockerOptions) -> Result<Self, diag::Error> {
        let dir = options.config.clone();
        let dir = dir.unwrap_or_else(DockerConfig::default_dir);
        let (config, trouble) = DockerConfig::load_or_default(&dir)?;
        let warning = trouble.map(|error| format!("Error loading config file: {error}"));
        let store = Store::new(ConfigDir::of_environment(config.dir()));
        let current = match (&options.context, &options.host) {
            (Some(context), _) if !context.is_empty() => context.clone(),
            (_, Some(_)) => DEFAULT_CONTEXT.to_owned(),
            _ => config.current_context(),
        };
        let default = default_context(options, config.dir())?;
        Ok(Docker(Arc::new(Inner {
            config,
            warning,
            store,
            current,
            default,
            executable: server_executable(),
        })))
    }

    /// What the user should know of Docker's configuration: that it is not used, and why.
    pub fn warning(&self) -> Option<&str> {
        self.0.warning.as_deref()
    }

    /// Docker's configuration.
    pub fn config(&self) -> &DockerConfig {
        &self.0.config
    }

    /// Records of builders.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Name of the current context.
    pub fn current_context(&self) -> &str {
        &self.0.current
    }

    /// All contexts by name, `default` among them. One that cannot be read is left out.
    pub fn contexts(&self) -> Vec<DockerContext> {
        let named = self.0.config.contexts().into_iter().flatten();
        let mut all: Vec<DockerContext> = named.map(of_info).collect();
        all.push(self.0.default.clone());
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// A context by name.
    pub fn context(&self, name: &str) -> Option<DockerContext> {
        if name == DEFAULT_CONTEXT {
            return Some(self.0.default.clone());
        }
        self.0.config.context(name).ok().map(of_info)
    }

    /// True for the context of this machine's own Engine when nobody chose an Engine, neither by
    /// flags nor by the environment nor by `docker context use`.
    pub(crate) fn is_default_engine(&self, context: &str) -> bool {
        context == DEFAULT_CONTEXT
            && self.0.current == DEFAULT_CONTEXT
            && self.0.default.host == DEFAULT_HOST
    }

    /// What the current endpoint is called in records: the context's name, or the address when no
    /// context was chosen.
    pub fn current_endpoint(&self) -> String {
        if self.0.current == DEFAULT_CONTEXT {
            return self.0.default.host.clone();
        }
        self.0.current.clone()
    }

    /// Certificates of the current endpoint when they come from the environment, to be recorded
    /// beside the address.
    pub(crate) fn environment_tls(&self) -> Option<TlsFiles> {
        if self.0.current == DEFAULT_CONTEXT {
            return self.0.default.tls.clone();
        }
        None
    }

    /// A client of the Engine at an endpoint as recorded: a context's name, or an address with the
    /// certificates recorded beside it.
    pub fn engine(&self, endpoint: &str, tls: Option<&TlsFiles>) -> Result<Engine, BuilderError> {
        let (host, tls) = match self.context(endpoint) {
            Some(context) => (context.host, context.tls),
            // The environment's certificates are for the environment's address only.
            None if tls.is_none() && endpoint == self.0.default.host => {
                (endpoint.to_owned(), self.0.default.tls.clone())
            }
            None => (endpoint.to_owned(), tls.cloned()),
        };
        let parsed = EngineEndpoint::parse(&host, tls).map_err(DriverError::from)?;
        Ok(Engine::new(parsed))
    }

    /// A client of the current Engine.
    pub fn current_engine(&self) -> Result<Engine, BuilderError> {
        self.engine(&self.0.current, None)
    }

    /// Proxies that the user's configuration wants in containers of that Engine.
    pub fn proxies(&self, engine: Option<&Engine>) -> ProxySettings {
        let host = engine.map_or(self.0.default.host.as_str(), |engine| {
            engine.endpoint().host.as_str()
        });
        ProxySettings {
            variables: self.0.config.proxies(host),
        }
    }

    /// Finds credentials for pulls.
    pub(crate) fn pull_auth(&self) -> Arc<dyn PullAuth> {
        Arc::new(ConfiguredAuth(self.0.config.clone()))
    }

    /// The executable that becomes the default server image.
    pub(crate) fn executable(&self) -> &Path {
        &self.0.executable
    }

    /// Checks an endpoint argument: a context's name stays, an address is completed; `default` is
    /// the address it stands for, with its certificates.
    pub(crate) fn check_endpoint(
        &self,
        endpoint: &str,
    ) -> Result<(String, Option<TlsFiles>), BuilderError> {
        if endpoint == DEFAULT_CONTEXT {
            let default = &self.0.default;
            return Ok((default.host.clone(), default.tls.clone()));
        }
        if self.context(endpoint).is_some() {
            return Ok((endpoint.to_owned(), None));
        }
        let host = normalize_host(endpoint, true).map_err(|reason| BuilderError::Config {
            context: format!("failed to parse endpoint {endpoint}"),
            reason,
        })?;
        let tls = (host == self.0.default.host)
            .then(|| self.0.default.tls.clone())
            .flatten();
        Ok((host, tls))
    }
}

struct ConfiguredAuth(DockerConfig);

#[async_trait]
impl PullAuth for ConfiguredAuth {
    async fn registry_auth(&self, registry: &str) -> Option<RegistryAuth> {
        let host = match registry {
            "docker.io" => docker_config::DOCKER_HUB_HOST,
            other => other,
        };
        let (config, host) = (self.0.clone(), host.to_owned());
        // A helper is another program and may take its time.
        let found =
            tokio::task::spawn_blocking(move || config.auth(&host).map(|auth| (auth, host)));
        let (auth, host) = found.await.ok()?.ok()?;
        if auth.is_anonymous() {
            return None;
        }
        Some(RegistryAuth {
            username: auth.username.clone(),
            password: auth.password.expose().clone(),
            identity_token: auth.identity_token.expose().clone(),
            registry_token: auth.registry_token.expose().clone(),
            server_address: host,
        })
    }
}

fn of_info(info: docker_config::ContextInfo) -> DockerContext {
    let has_tls = info.ca.is_some() || info.cert.is_some() || info.skip_tls_verify;
    DockerContext {
        name: info.name,
        host: if info.host.is_empty() {
            DEFAULT_HOST.to_owned()
        } else {
            info.host
        },
        tls: has_tls.then_some(TlsFiles {
            ca: info.ca,
            cert: info.cert,
            key: info.key,
            skip_verify: info.skip_tls_verify,
        }),
    }
}

/// The endpoint of the environment: `DOCKER_HOST`, `DOCKER_TLS`, `DOCKER_TLS_VERIFY`,
/// `DOCKER_CERT_PATH`.
fn default_context(options: &DockerOptions, config: &Path) -> Result<DockerContext, diag::Error> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let verify = options
        .tls_verify
        .unwrap_or_else(|| set("DOCKER_TLS_VERIFY").is_some());
    let wants_tls = verify || options.tls.unwrap_or_else(|| set("DOCKER_TLS").is_some());
    let host = options.host.clone().or_else(|| set("DOCKER_HOST"));
    let host = match host {
        Some(host) => normalize_host(&host, wants_tls).map_err(diag::Error::invalid)?,
        None => DEFAULT_HOST.to_owned(),
    };
    let tls = wants_tls.then(|| {
        let dir = set("DOCKER_CERT_PATH").map_or_else(|| config.to_owned(), PathBuf::from);
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        let file = |named: &Option<PathBuf>, name: &str, needed: bool| match named {
            Some(path) => Some(path.clone()),
            None => Some(dir.join(name)).filter(|path| needed || path.exists()),
        };
        TlsFiles {
            ca: file(&options.tls_ca, "ca.pem", verify),
            cert: file(&options.tls_cert, "cert.pem", false),
            key: file(&options.tls_key, "key.pem", false),
            skip_verify: !verify,
        }
    });
    Ok(DockerContext {
        name: DEFAULT_CONTEXT.to_owned(),
        host,
        tls: tls.filter(|_| host_speaks_tls(&options.host, set("DOCKER_HOST"))),
    })
}

/// A socket file has no TLS, whatever the environment says.
fn host_speaks_tls(flag: &Option<String>, env: Option<String>) -> bool {
    let host = flag.clone().or(env).unwrap_or_default();
    !host.is_empty() && !host.starts_with("unix://") && !host.starts_with("ssh://")
}

/// Completes an address as Docker does: no scheme is `tcp://`, no port is 2375, or 2376 with TLS.
fn normalize_host(host: &str, with_tls: bool) -> Result<String, String> {
    let bad = || format!("invalid bind address format: {host}");
    let text = host.trim();
    let (scheme, rest) = text.split_once("://").unwrap_or(("tcp", text));
    match scheme {
        "unix" if rest.is_empty() => Ok(DEFAULT_HOST.to_owned()),
        "unix" | "ssh" | "http" | "https" => Ok(text.to_owned()),
        "tcp" => {
            let port = if with_tls { 2376 } else { 2375 };
            if rest.is_empty() {
                return Ok(format!("tcp://localhost:{port}"));
            }
            let (authority, path) = match rest.find('/') {
                Some(at) => rest.split_at(at),
                None => (rest, ""),
            };
            let after_brackets = authority.rsplit(']').next().unwrap_or(authority);
            let has_port = after_brackets.contains(':');
            let authority = authority.trim_end_matches(':');
            if has_port && authority.len() < rest.len() && path.is_empty() && rest.ends_with(':') {
                return Ok(format!("tcp://{authority}:{port}"));
            }
            Ok(if has_port {
                format!("tcp://{authority}{path}")
            } else {
                format!("tcp://{authority}:{port}{path}")
            })
        }
        _ => Err(bad()),
    }
}

/// The executable for the server image: our own, or for tests the one that is named.
fn server_executable() -> PathBuf {
    match std::env::var_os("COOPERAGE_SERVER_EXECUTABLE") {
        Some(path) if !path.is_empty() => path.into(),
        // Stays readable when the file is replaced while we run.
        _ => "/proc/self/exe".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed_as_docker_does() {
        for (text, tls, full) in [
            ("unix://", false, "unix:///var/run/docker.sock"),
            ("unix:///x", true, "unix:///x"),
            ("tcp://h", true, "tcp://h:2376"),
            ("h", false, "tcp://h:2375"),
            ("h:1", false, "tcp://h:1"),
            ("tcp://[::1]", false, "tcp://[::1]:2375"),
            ("tcp://[::1]:7", false, "tcp://[::1]:7"),
            ("ssh://me@h", false, "ssh://me@h"),
        ] {
            assert_eq!(normalize_host(text, tls).unwrap(), full, "{text}");
        }
        assert_eq!(
            normalize_host("ftp://x", false).unwrap_err(),
            "invalid bind address format: ftp://x"
        );
    }
}
