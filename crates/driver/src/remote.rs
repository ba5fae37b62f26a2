//! The `remote` driver: a build server that somebody else runs.
//!
//! Endpoints: `unix://PATH`, `tcp://HOST:PORT` (with mutual TLS when certificates are named),
//! `ssh://[USER@]HOST[:PORT]` (runs `buildctl dial-stdio` there) and
//! `docker-container://NAME` (runs it in a container of the current Engine).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use engine_api::{EngineEndpoint, TlsFiles, Transport, boxed, client_config, dial_ssh};
use tokio::net::{TcpStream, UnixStream};

use crate::go_number::parse_bool;
use crate::health::dial_and_check;
use crate::{
    BootProgress, BoxedIo, Driver, DriverError, Features, NodeConfig, Removal, Status,
    features_of_own_server,
};

/// The driver's options.
pub(crate) const OPTIONS: &[&str] = &["servername", "cacert", "cert", "key", "default-load"];
/// Schemes of endpoints.
const SCHEMES: &[&str] = &[
    "docker-container",
    "kube-pod",
    "npipe",
    "ssh",
    "tcp",
    "unix",
];
/// How long booting waits for the server.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time one question may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The driver.
pub(crate) struct RemoteDriver {
    node: NodeConfig,
    tls: Option<Tls>,
    default_load: bool,
}

struct Tls {
    files: TlsFiles,
    server_name: String,
}

/// Checks that an endpoint's scheme is one of those that are dialled.
pub(crate) fn check_endpoint(endpoint: &str) -> Result<(), DriverError> {
    let scheme = endpoint.split_once("://").map_or("", |(scheme, _)| scheme);
    if SCHEMES.contains(&scheme) {
        return Ok(());
    }
    Err(DriverError::Option(format!(
        "unrecognized url scheme {scheme}"
    )))
}

impl RemoteDriver {
    pub(crate) fn new(node: NodeConfig) -> Result<Self, DriverError> {
        let refuse = |text: &str| Err(DriverError::Option(text.to_owned()));
        if !node.files.is_empty() {
            return refuse("setting config file is not supported for remote driver");
        }
        if !node.flags.is_empty() {
            return refuse("setting buildkit flags is not supported for remote driver");
        }
        let mut files = TlsFiles::default();
        let mut server_name = String::new();
        let mut wants_tls = false;
        let mut default_load = false;
        for (key, value) in &node.options {
            match key.as_str() {
                "servername" => server_name.clone_from(value),
                "cacert" => files.ca = Some(absolute(key, value)?),
                "cert" => files.cert = Some(absolute(key, value)?),
                "key" => files.key = Some(absolute(key, value)?),
                "default-load" => default_load = parse_bool(value).map_err(DriverError::Option)?,
                _ => {
                    return Err(DriverError::Option(format!(
                        "invalid driver option {key} for remote driver"
                    )));
                }
            }
            wants_tls |= key != "default-load";
        }
        let tls = if wants_tls {
            if server_name.is_empty() {
                server_name = host_of(&node.endpoint);
            }
            Some(complete_tls(files, server_name)?)
        } else {
            None
        };
        Ok(RemoteDriver {
            node,
            tls,
            default_load,
        })
    }

    fn unsupported(&self, what: &str) -> DriverError {
        DriverError::Unsupported(format!("{what} is not supported by the remote driver"))
    }

    async fn dial_tcp(&self, address: &str) -> Result<BoxedIo, DriverError> {
        let endpoint = &self.node.endpoint;
        let failed = |source| DriverError::Io {
            context: format!("dialing {endpoint}"),
            source,
        };
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let Some(tls) = &self.tls else {
            return Ok(boxed(stream));
        };
        let config = client_config(&tls.files, &["h2"])?;
        let name = rustls_pki_types::ServerName::try_from(tls.server_name.clone())
            .map_err(|e| failed(std::io::Error::other(e)))?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(failed)?;
        Ok(boxed(stream))
    }

    async fn ask(&self) -> Result<(), String> {
        dial_and_check(self.dial(), ANSWER_TIMEOUT).await
    }
}

fn absolute(key: &str, value: &str) -> Result<PathBuf, DriverError> {
    if Path::new(value).is_absolute() {
        return Ok(value.into());
    }
    Err(DriverError::Option(format!(
        "non-absolute path '{value}' provided for {key}"
    )))
}

fn complete_tls(files: TlsFiles, server_name: String) -> Result<Tls, DriverError> {
    let mut missing = Vec::new();
    if files.ca.is_none() {
        missing.push("cacert");
    }
    if files.cert.is_some() && files.key.is_none() {
        missing.push("key");
    }
    if files.key.is_some() && files.cert.is_none() {
        missing.push("cert");
    }
    if !missing.is_empty() {
        return Err(DriverError::Option(format!(
            "tls enabled, but missing keys {}",
            missing.join(", ")
        )));
    }
    Ok(Tls { files, server_name })
}

/// `host[:port]` of an endpoint.
fn authority_of(endpoint: &str) -> &str {
    let rest = endpoint.split_once("://").map_or("", |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or_default()
}

/// The host of an endpoint without port and brackets.
fn host_of(endpoint: &str) -> String {
    let authority = authority_of(endpoint);
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default().to_owned();
    }
    authority.split(':').next().unwrap_or_default().to_owned()
}

#[async_trait]
impl Driver for RemoteDriver {
    fn name(&self) -> &'static str {
        "remote"
    }

    fn node(&self) -> &NodeConfig {
        &self.node
    }

    async fn bootstrap(&self, progress: &BootProgress) -> Result<(), DriverError> {
        progress
            .vertex("[internal] waiting for connection", |_| async {
                let started = Instant::now();
                loop {
                    let reason = match self.ask().await {
                        Ok(()) => return Ok(()),
                        Err(reason) => reason,
                    };
                    if started.elapsed() > WAIT_TIMEOUT {
                        return Err(DriverError::Boot {
                            reason: format!(
                                "no build server answers at {}: {reason}",
                                self.node.endpoint
                            ),
                            hint: None,
                        });
                    }
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            })
            .await
    }

    async fn status(&self) -> Result<Status, DriverError> {
        Ok(match self.ask().await {
            Ok(()) => Status::Running,
            Err(_) => Status::Inactive,
        })
    }

    async fn version(&self) -> Result<String, DriverError> {
        Ok(String::new())
    }

    async fn dial(&self) -> Result<BoxedIo, DriverError> {
        let endpoint = &self.node.endpoint;
        let failed = |source| DriverError::Io {
            context: format!("dialing {endpoint}"),
            source,
        };
        let (scheme, rest) = endpoint
            .split_once("://")
            .ok_or_else(|| DriverError::Option(format!("invalid endpoint address: {endpoint}")))?;
        match scheme {
            "unix" => Ok(boxed(UnixStream::connect(rest).await.map_err(failed)?)),
            "tcp" => self.dial_tcp(authority_of(endpoint)).await,
            "ssh" => {
                let parsed = EngineEndpoint::parse(endpoint, None)?;
                let Transport::Ssh {
                    destination, port, ..
                } = parsed.transport
                else {
                    return Err(DriverError::Option(format!(
                        "invalid endpoint address: {endpoint}"
                    )));
                };
                let command = ["buildctl", "dial-stdio"];
                let (io, _) = dial_ssh(&destination, port, &command)
                    .await
                    .map_err(failed)?;
                Ok(io)
            }
            "docker-container" => {
                let Some(engine) = &self.node.engine else {
                    return Err(DriverError::Option(
                        "docker-container:// endpoints require docker API access".to_owned(),
                    ));
                };
                let stream = engine
                    .exec(authority_of(endpoint), &["buildctl", "dial-stdio"])
                    .await?;
                Ok(boxed(stream))
            }
            _ => Err(self.unsupported(&format!("the scheme {scheme}"))),
        }
    }

    fn authority(&self) -> String {
        match &self.tls {
            Some(tls) => tls.server_name.clone(),
            None => match authority_of(&self.node.endpoint) {
                "" => "localhost".to_owned(),
                authority => authority.to_owned(),
            },
        }
    }

    async fn stop(&self) -> Result<(), DriverError> {
        Ok(())
    }

    async fn remove(&self, _what: Removal) -> Result<Vec<String>, DriverError> {
        Ok(Vec::new())
    }

    async fn features(&self) -> Features {
        features_of_own_server(self.default_load)
    }

    async fn host_gateway(&self) -> Result<IpAddr, DriverError> {
        Err(self.unsupported("host-gateway"))
    }
}
