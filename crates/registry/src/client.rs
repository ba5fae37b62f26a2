//! The client: requests to a repository's endpoints with authorisation and retries.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use oci::Reference;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Method, Request, Response, StatusCode, Url};

use crate::auth::{Asker, AuthCache, Authorization};
use crate::challenge::challenges;
use crate::config::{Endpoint, RegistryHosts};
use crate::credentials::{Anonymous, Credentials};
use crate::error::RegistryError;
use crate::push::{InFlightPushes, Upload};
use crate::retry::{RetryPolicy, retry_after};
use crate::scope::Scopes;
use crate::transport::{SendError, Transport, sanitized};

/// How often one request may be answered with 401 before that is the answer.
const CHALLENGES_MAX: u32 = 3;

/// Bytes of an error's body that are kept.
const ERROR_BODY_MAX: usize = 64_000;

/// Talks to registries. Cheap to clone; clones share connections, tokens and limits.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    hosts: RegistryHosts,
    credentials: Arc<dyn Credentials>,
    retry: RetryPolicy,
}

#[derive(Default)]
struct Shared {
    transport: Transport,
    auth: AuthCache,
    pushes: InFlightPushes,
    traffic: Counters,
}

/// Bytes of blobs that travelled, with all clones of a client counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From registries, whatever became of them.
    pub pulled_bytes: u64,
    /// To registries, likewise.
    pub pushed_bytes: u64,
}

/// The same as it is counted.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) pulled_bytes: AtomicU64,
    pub(crate) pushed_bytes: Arc<AtomicU64>,
}

/// A repository and where it is served.
#[derive(Clone)]
pub(crate) struct Repository {
    pub(crate) registry: String,
    pub(crate) path: String,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// Where a request goes.
#[derive(Clone)]
pub(crate) enum Target {
    /// Below the repository, such as `manifests/latest`.
    Repository(String),
    /// Anywhere; authorised only if it is still the registry's own host.
    Url { url: Url, authorize: bool },
}

/// What a request carries.
#[derive(Clone)]
pub(crate) enum Payload {
    Empty,
    Bytes(Bytes),
    Upload(Upload),
}

/// A request before it knows its endpoint.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
    pub(crate) scopes: Scopes,
}

impl Call {
    /// A request without a body.
    pub(crate) fn new(method: Method, tail: String, scopes: Scopes) -> Self {
        Call {
            method,
            target: Target::Repository(tail),
            query: Vec::new(),
            headers: HeaderMap::new(),
            payload: Payload::Empty,
            scopes,
        }
    }
}

impl Client {
    /// A client for these registries that has no credentials.
    pub fn new(hosts: RegistryHosts) -> Self {
        Client {
            shared: Arc::default(),
            hosts,
            credentials: Arc::new(Anonymous),
            retry: RetryPolicy::default(),
        }
    }

    /// The same client on behalf of somebody with credentials.
    #[must_use]
    pub fn with_credentials(&self, credentials: Arc<dyn Credentials>) -> Self {
        Client {
            credentials,
            ..self.clone()
        }
    }

    /// The same client, for which this registry may be plain HTTP or have any certificate.
    #[must_use]
    pub fn with_insecure(&self, registry: &str) -> Self {
        Client {
            hosts: self.hosts.with_insecure(registry),
            ..self.clone()
        }
    }

    /// The same client with another patience.
    #[must_use]
    pub fn with_retry(&self, retry: RetryPolicy) -> Self {
        Client {
            retry,
            ..self.clone()
        }
    }

    /// The same client, which transfers that many blobs from and to one registry at once, with
    /// connections and limits of its own.
    #[must_use]
    pub fn with_concurrency(&self, blobs: usize) -> Self {
        let shared = Shared {
            transport: Transport::with_parallel_blobs(blobs),
            ..Shared::default()
        };
        Client {
            shared: Arc::new(shared),
            ..self.clone()
        }
    }

    /// What travelled since the first of its clones was made.
    pub fn traffic(&self) -> Traffic {
        let counters = self.counters();
        Traffic {
            pulled_bytes: counters.pulled_bytes.load(Ordering::Relaxed),
            pushed_bytes: counters.pushed_bytes.load(Ordering::Relaxed),
        }
    }

    /// The configuration it was made with.
    pub fn hosts(&self) -> &RegistryHosts {
        &self.hosts
    }

    pub(crate) fn retry(&self) -> &RetryPolicy {
        &self.retry
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.traffic
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.shared.transport
    }

    pub(crate) fn pushes(&self) -> &InFlightPushes {
        &self.shared.pushes
    }

    /// The repository of a name with the endpoints for reading from it.
    pub(crate) async fn repository(&self, reference: &Reference) -> Repository {
        Repository {
            registry: reference.registry().to_owned(),
            path: reference.repository().to_owned(),
            endpoints: self.hosts.endpoints(reference.registry()).await,
        }
    }

    /// Makes a request to one endpoint until there is an answer that is not to be tried again.
    /// The answer may well be an error status: see [`expect_success`].
    ///
    /// `last`: whether nobody else can be asked; only then a failing server gets more chances.
    pub(crate) async fn execute(
        &self,
        repository: &Repository,
        endpoint: &Endpoint,
        call: &Call,
        last: bool,
    ) -> Result<Response, RegistryError> {
        let asker = Asker {
            transport: self.transport(),
            endpoint,
            credentials: self.credentials.as_ref(),
        };
        let auth = &self.shared.auth;
        let authorize = match &call.target {
            Target::Repository(_) => true,
            Target::Url { authorize, .. } => *authorize,
        };
        let mut sent = match authorize {
            true => auth.known(asker, &call.scopes).await?,
            false => None,
        };
        let mut method = call.method.clone();
        let (mut failures, mut refusals) = (0, 0);
        loop {
            let attempt = self
                .attempt(repository, endpoint, call, &method, sent.as_ref())
                .await;
            let (asked, fatal) = match &attempt {
                Ok(response) => match response.status() {
                    StatusCode::UNAUTHORIZED if authorize && refusals < CHALLENGES_MAX => {
                        refusals += 1;
                        let challenges = challenges(response.headers());
                        let better = auth
                            .answer(asker, &challenges, sent.as_ref(), &call.scopes)
                            .await?;
                        if better.is_none() {
                            return attempt;
                        }
                        sent = better;
                        continue;
                    }
                    // Some registries do not know HEAD for manifests.
                    StatusCode::METHOD_NOT_ALLOWED if method == Method::HEAD => {
                        method = Method::GET;
                        continue;
                    }
                    status => (retry_after(response.headers()), !is_busy(status, last)),
                },
                Err(error) => (None, !last || !error.is_transient()),
            };
            // A broken upload begins with another request than this one.
            let is_final = fatal || call.payload.is_upload();
            failures += 1;
            match self.retry.wait(failures, asked).filter(|_| !is_final) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return attempt,
            }
        }
    }

    /// Makes a request once; twice if the first shows that the host does not speak TLS and need not.
    async fn attempt(
        &self,
        repository: &Repository,
        endpoint: &Endpoint,
        call: &Call,
        method: &Method,
        sent: Option<&Authorization>,
    ) -> Result<Response, RegistryError> {
        let transport = self.transport();
        let pool = transport.pool(endpoint)?;
        loop {
            let url = self.url(repository, endpoint, call)?;
            let mut request = Request::new(method.clone(), url.clone());
            *request.headers_mut() = call.headers.clone();
            if let Some(sent) = sent {
                let value = sent.value.clone();
                request.headers_mut().insert(AUTHORIZATION, value);
            }
            let has_body = call.payload.attach(&mut request).await?;
            tracing::debug!(%method, url = %sanitized(&url), "registry request");
            match transport.send(&pool, request, has_body).await {
                Ok(response) => return Ok(response),
                Err(SendError::Request(error)) if transport.falls_back(endpoint, &url, &error) => {}
                Err(error) => {
                    let local = call.payload.failure();
                    return Err(local.unwrap_or_else(|| error.into_error(method.as_str(), &url)));
                }
            }
        }
    }

    fn url(
        &self,
        repository: &Repository,
        endpoint: &Endpoint,
        call: &Call,
    ) -> Result<Url, RegistryError> {
        let tail = match &call.target {
            Target::Url { url, .. } => {
                let mut url = url.clone();
                if url.scheme() == "https" && self.transport().scheme(endpoint) == "http" {
                    // Fails only for schemes that are not of the web.
                    let _ = url.set_scheme("http");
                }
                return Ok(url);
            }
            Target::Repository(tail) => tail,
        };
        let text = format!(
            "{}://{}{}/{}/{tail}",
            self.transport().scheme(endpoint),
            endpoint.host,
            endpoint.path,
            repository.path,
        );
        let mut url = Url::parse(&text).map_err(|error| RegistryError::Config {
            host: endpoint.host.clone(),
            reason: format!("invalid URL {text}: {error}"),
        })?;
        for (key, value) in &call.query {
            url.query_pairs_mut().append_pair(key, value);
        }
        if endpoint.mirror && endpoint.host != repository.registry {
            url.query_pairs_mut()
                .append_pair("ns", &repository.registry);
        }
        Ok(url)
    }
}

/// The response if its status is one of success, otherwise the status as an error.
pub(crate) async fn expect_success(
    method: &Method,
    response: Response,
) -> Result<Response, RegistryError> {
    if response.status().is_success() {
        return Ok(response);
    }
    Err(status_error(method, response).await)
}

/// The status of a response, with as much of its body as is worth keeping, as an error.
pub(crate) async fn status_error(method: &Method, mut response: Response) -> RegistryError {
    let (status, url) = (response.status(), sanitized(response.url()));
    let mut body = Vec::new();
    while body.len() < ERROR_BODY_MAX {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    body.truncate(ERROR_BODY_MAX);
    RegistryError::Status {
        method: method.to_string(),
        url,
        status,
        body: body.into(),
    }
}

/// Statuses after which the same request may succeed. A server that is down is given more chances
/// only if nobody else can be asked.
fn is_busy(status: StatusCode, last: bool) -> bool {
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => true,
        StatusCode::INTERNAL_SERVER_ERROR
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => last,
        _ => false,
    }
}
