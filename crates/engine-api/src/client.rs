//! Requests to an Engine: dialling, version negotiation, errors, hijacking.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OnceCell;

use crate::endpoint::Transport;
use crate::io::{BoxedIo, boxed};
use crate::multiplex::StderrTail;
use crate::ssh::{LAST_WORDS, dial_ssh};
use crate::system::ApiVersion;
use crate::{EngineEndpoint, EngineError, client_config};

/// The newest API this client was written for.
const NEWEST_API: ApiVersion = ApiVersion {
    major: 1,
    minor: 51,
};
/// What is spoken to an Engine that does not say.
const OLDEST_API: ApiVersion = ApiVersion {
    major: 1,
    minor: 24,
};
/// Longest answer that is read into memory.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Longest time a TCP connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A request's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A client of one Engine. Cheap to clone; clones share the negotiated version and idle
/// connections.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    endpoint: EngineEndpoint,
    version: OnceCell<ApiVersion>,
    idle: Mutex<Vec<SendRequest<Body>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({})", self.0.endpoint.host)
    }
}

/// One request before it is sent.
pub(crate) struct Call {
    method: Method,
    /// Path without the version, such as `/containers/create`.
    path: String,
    query: Vec<(&'static str, String)>,
    headers: HeaderMap,
    body: Body,
    /// `/_ping` is asked before a version is known.
    versioned: bool,
}

impl Call {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Call {
            method,
            path: path.into(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: bytes_body(Bytes::new()),
            versioned: true,
        }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Call::new(Method::GET, path)
    }

    pub(crate) fn post(path: impl Into<String>) -> Self {
        Call::new(Method::POST, path)
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Call::new(Method::DELETE, path)
    }

    pub(crate) fn query(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.query.push((key, value.into()));
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }

    pub(crate) fn json(mut self, value: &impl Serialize) -> Result<Self, EngineError> {
        let bytes = serde_json::to_vec(value).map_err(|e| EngineError::Answer {
            path: self.path.clone(),
            reason: e.to_string(),
        })?;
        self.body = bytes_body(Bytes::from(bytes));
        self.headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        Ok(self)
    }

    pub(crate) fn body(mut self, content_type: &'static str, body: Body) -> Self {
        self.body = body;
        self.headers
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        self
    }

    fn unversioned(mut self) -> Self {
        self.versioned = false;
        self
    }
}

/// A body of known bytes.
pub(crate) fn bytes_body(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

impl Engine {
    /// A client of the Engine there; nothing is dialled yet.
    pub fn new(endpoint: EngineEndpoint) -> Self {
        Engine(Arc::new(Inner {
            endpoint,
            version: OnceCell::new(),
            idle: Mutex::new(Vec::new()),
        }))
    }

    /// Where the Engine is.
    pub fn endpoint(&self) -> &EngineEndpoint {
        &self.0.endpoint
    }

    /// Asks whether the Engine is there and which API it speaks.
    pub async fn ping(&self) -> Result<ApiVersion, EngineError> {
        let response = self.send(Call::get("/_ping").unversioned()).await?;
        Ok(response
            .headers()
            .get("api-version")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse().ok())
            .unwrap_or(OLDEST_API))
    }

    /// The version both sides speak: `DOCKER_API_VERSION` where it is set, else the older of the
    /// Engine's and ours.
    pub async fn api_version(&self) -> Result<ApiVersion, EngineError> {
        self.0
            .version
            .get_or_try_init(|| async {
                let pinned = std::env::var("DOCKER_API_VERSION").ok();
                match pinned.and_then(|text| text.trim_start_matches('v').parse().ok()) {
                    Some(version) => Ok(version),
                    None => Ok(self.ping().await?.min(NEWEST_API)),
                }
            })
            .await
            .copied()
    }

    /// Opens a connection that is handed over whole: `POST path` with `Upgrade: protocol` and these
    /// headers. `/grpc` and `/session` (protocol `h2c`) are such paths.
    pub async fn hijack(
        &self,
        path: &str,
        protocol: &str,
        headers: &[(String, String)],
    ) -> Result<BoxedIo, EngineError> {
        let mut call = Call::post(path);
        for (name, value) in headers {
            let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
                continue;
            };
            call = call.header(name, value);
        }
        self.hijack_call(call, protocol).await
    }

    pub(crate) async fn hijack_call(
        &self,
        call: Call,
        protocol: &str,
    ) -> Result<BoxedIo, EngineError> {
        let call = call
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, protocol);
        let broken = Failure::of(&call);
        let sender = self.connect().await?;
        let (response, _sender) = self.send_on(sender, call).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            check(response).await?;
            return Err(broken.of_reason(format!("unable to upgrade to {protocol}: {status}")));
        }
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|e| broken.of_reason(e.to_string()))?;
        Ok(boxed(TokioIo::new(upgraded)))
    }

    /// Sends a call and gives the answer's head and its body still to be read.
    pub(crate) async fn send(&self, call: Call) -> Result<Response<Incoming>, EngineError> {
        let sender = self.connect().await?;
        let (response, _sender) = self.send_on(sender, call).await?;
        check(response).await
    }

    /// Sends a call and reads the whole answer.
    pub(crate) async fn call(&self, call: Call) -> Result<Bytes, EngineError> {
        let failure = Failure::of(&call);
        let idle = self.0.idle.lock().pop();
        let sender = match idle {
            Some(sender) if sender.is_ready() => sender,
            _ => self.connect().await?,
        };
        let (response, sender) = self.send_on(sender, call).await?;
        let response = check(response).await?;
        let bytes = collect(response, &failure).await?;
        self.keep(sender);
        Ok(bytes)
    }

    /// Sends a call and reads its answer as JSON.
    pub(crate) async fn call_json<T: DeserializeOwned>(
        &self,
        call: Call,
    ) -> Result<T, EngineError> {
        let path = call.path.clone();
        let bytes = self.call(call).await?;
        serde_json::from_slice(&bytes).map_err(|e| EngineError::Answer {
            path,
            reason: e.to_string(),
        })
    }

    /// Opens a byte stream to the Engine.
    async fn dial(&self) -> Result<(BoxedIo, Option<StderrTail>), EngineError> {
        let endpoint = &self.0.endpoint;
        let failed = |error: std::io::Error| EngineError::Connect {
            host: endpoint.host.clone(),
            denied: error.kind() == std::io::ErrorKind::PermissionDenied,
            reason: error.to_string(),
        };
        match &endpoint.transport {
            Transport::Unix(path) => {
                let stream = dial_unix(path).await.map_err(failed)?;
                Ok((boxed(stream), None))
            }
            Transport::Tcp { host, port } => {
                let stream = dial_tcp(host, *port).await.map_err(failed)?;
                let Some(files) = &endpoint.tls else {
                    return Ok((boxed(stream), None));
                };
                let config = client_config(files, &["http/1.1"])?;
                let name = rustls_pki_types::ServerName::try_from(host.clone())
                    .map_err(|e| failed(std::io::Error::other(e)))?;
                let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
                    .connect(name, stream)
                    .await
                    .map_err(failed)?;
                Ok((boxed(stream), None))
            }
            Transport::Ssh {
                destination,
                port,
                socket,
            } => {
                let host = socket.as_ref().map(|path| format!("unix://{path}"));
                let mut remote = vec!["docker"];
                if let Some(host) = &host {
                    remote.extend(["--host", host.as_str()]);
                }
                remote.extend(["system", "dial-stdio"]);
                let (io, tail) = dial_ssh(destination, *port, &remote)
                    .await
                    .map_err(failed)?;
                Ok((io, Some(tail)))
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Body>, EngineError> {
        let (io, tail) = self.dial().await?;
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .handshake::<_, Body>(TokioIo::new(io))
            .await
            .map_err(|error| EngineError::Connect {
                host: self.0.endpoint.host.clone(),
                reason: error.to_string(),
                denied: false,
            })?;
        // The task ends with the connection, which ends when its sender and body are dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to the Engine ended");
            }
        });
        if let Some(tail) = tail {
            // A first request tells whether ssh and the program there work, and if not, why.
            return self.try_ssh(sender, tail).await;
        }
        Ok(sender)
    }

    async fn try_ssh(
        &self,
        sender: SendRequest<Body>,
        tail: StderrTail,
    ) -> Result<SendRequest<Body>, EngineError> {
        let ping = Call::get("/_ping").unversioned();
        match self.send_on(sender, ping).await {
            Ok((response, mut sender)) => {
                let _ = response.into_body().collect().await;
                sender
                    .ready()
                    .await
                    .map_err(|e| self.ssh_failure(e.to_string()))?;
                Ok(sender)
            }
            Err(error) => {
                let _ = tokio::time::timeout(LAST_WORDS, tail.closed()).await;
                let text = tail.text();
                let reason = if text.is_empty() {
                    error.to_string()
                } else {
                    text
                };
                Err(self.ssh_failure(reason))
            }
        }
    }

    fn ssh_failure(&self, reason: String) -> EngineError {
        EngineError::Connect {
            host: self.0.endpoint.host.clone(),
            reason: format!("ssh: {reason}"),
            denied: false,
        }
    }

    async fn send_on(
        &self,
        mut sender: SendRequest<Body>,
        call: Call,
    ) -> Result<(Response<Incoming>, SendRequest<Body>), EngineError> {
        let failure = Failure::of(&call);
        let mut uri = String::new();
        if call.versioned {
            // Boxed because negotiation itself sends a call.
            let version = Box::pin(self.api_version()).await?;
            uri.push_str(&format!("/v{version}"));
        }
        uri.push_str(&call.path);
        for (index, (key, value)) in call.query.iter().enumerate() {
            uri.push(if index == 0 { '?' } else { '&' });
            uri.push_str(key);
            uri.push('=');
            uri.push_str(&percent_encode(value));
        }
        let mut request = Request::builder()
            .method(call.method)
            .uri(uri)
            .header(header::HOST, "docker")
            .header(
                header::USER_AGENT,
                concat!("cooperage/", env!("CARGO_PKG_VERSION")),
            )
            .body(call.body)
            .map_err(|e| failure.of_reason(e.to_string()))?;
        request.headers_mut().extend(call.headers);
        sender
            .ready()
            .await
            .map_err(|e| failure.of_reason(e.to_string()))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| failure.of_reason(describe(&e)))?;
        Ok((response, sender))
    }

    fn keep(&self, sender: SendRequest<Body>) {
        if !sender.is_closed() {
            let mut idle = self.0.idle.lock();
            if idle.len() < 4 {
                idle.push(sender);
            }
        }
    }
}

/// Names a call in errors after the call itself is gone.
struct Failure {
    method: String,
    path: String,
}

impl Failure {
    fn of(call: &Call) -> Self {
        Failure {
            method: call.method.to_string(),
            path: call.path.clone(),
        }
    }

    fn of_reason(&self, reason: String) -> EngineError {
        EngineError::Broken {
            method: self.method.clone(),
            path: self.path.clone(),
            reason,
        }
    }
}

/// Connects to a socket file.
async fn dial_unix(path: &Path) -> std::io::Result<UnixStream> {
    UnixStream::connect(path).await
}

async fn dial_tcp(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port)))
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A hyper error with what caused it, because its own text is only a class.
fn describe(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

async fn collect(response: Response<Incoming>, failure: &Failure) -> Result<Bytes, EngineError> {
    http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map(|collected| collected.to_bytes())
        .map_err(|e| failure.of_reason(e.to_string()))
}

/// Turns an answer of failure into the Engine's own text.
async fn check(response: Response<Incoming>) -> Result<Response<Incoming>, EngineError> {
    let status = response.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    if status == StatusCode::NOT_MODIFIED {
        // Already started or already stopped: what was asked for holds.
        return Ok(response);
    }
    let bytes = http_body_util::Limited::new(response.into_body(), 1 << 20)
        .collect()
        .await
        .map(|collected| collected.to_bytes())
        .unwrap_or_default();
    #[derive(serde::Deserialize)]
    struct Message {
        message: String,
    }
    let message = serde_json::from_slice::<Message>(&bytes)
        .map(|m| m.message)
        .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned());
    let message = match message.trim() {
        "" => status.to_string(),
        text => text.to_owned(),
    };
    Err(EngineError::Api {
        status: status.as_u16(),
        message,
    })
}

/// Percent-encodes everything but unreserved characters.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char);
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests;
