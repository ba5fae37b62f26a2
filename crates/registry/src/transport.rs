//! HTTP connections to endpoints: one pool for each kind of TLS settings, falling back to plain
//! HTTP where an endpoint allows it.

use std::collections::{HashMap, HashSet};
use std::error::Error as _;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Request, Response, Url};
use tokio::sync::Semaphore;

use crate::config::{Endpoint, Scheme, TlsSettings};
use crate::error::RegistryError;

/// Downloads and uploads of blobs at once for each host; manifests are not counted.
const PARALLEL_BLOBS: usize = 4;

/// Time to make a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Time a server may take to begin its answer to a request without a body.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A client for other web servers than registries, which trusts the same authorities.
pub fn web_client() -> Result<reqwest::Client, RegistryError> {
    Transport::default().pool_for(&TlsSettings::default(), "")
}

/// Connections shared by everything that talks to registries.
#[derive(Default)]
pub(crate) struct Transport {
    pools: Mutex<HashMap<TlsSettings, reqwest::Client>>,
    /// Hosts that turned out not to speak TLS.
    plain: Mutex<HashSet<String>>,
    limits: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Blobs transferred at once from or to one host; [`PARALLEL_BLOBS`] if not set.
    parallel_blobs: Option<usize>,
}

impl Transport {
    /// One with another number of blobs at once.
    pub(crate) fn with_parallel_blobs(parallel_blobs: usize) -> Self {
        Transport {
            // A semaphore has no use for more, and panics.
            parallel_blobs: Some(parallel_blobs.clamp(1, Semaphore::MAX_PERMITS)),
            ..Transport::default()
        }
    }

    /// The pool for these settings.
    pub(crate) fn pool(&self, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        self.pool_for(&endpoint.tls, &endpoint.host)
    }

    fn pool_for(&self, tls: &TlsSettings, host: &str) -> Result<reqwest::Client, RegistryError> {
        if let Some(client) = self.pools.lock().get(tls) {
            return Ok(client.clone());
        }
        let fail = |reason: String| RegistryError::Config {
            host: host.to_owned(),
            reason,
        };
        let config = crate::tls::client_config(tls).map_err(fail)?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(60))
            .user_agent(concat!(
                "buildkit/v0.32 cooperage/",
                env!("CARGO_PKG_VERSION")
            ))
            .build()
            .map_err(|error| fail(innermost(&error)))?;
        self.pools.lock().insert(tls.clone(), client.clone());
        Ok(client)
    }

    /// Permission to transfer a blob from or to a host.
    pub(crate) fn limit(&self, host: &str) -> Arc<Semaphore> {
        let permits = self.parallel_blobs.unwrap_or(PARALLEL_BLOBS);
        let mut limits = self.limits.lock();
        let entry = limits.entry(host.to_owned());
        Arc::clone(entry.or_insert_with(|| Arc::new(Semaphore::new(permits))))
    }

    /// `https` or `http`: what an endpoint is tried with now.
    pub(crate) fn scheme(&self, endpoint: &Endpoint) -> &'static str {
        match endpoint.scheme {
            Scheme::Https => "https",
            Scheme::Http => "http",
            Scheme::HttpsThenHttp if self.plain.lock().contains(&endpoint.host) => "http",
            Scheme::HttpsThenHttp => "https",
        }
    }

    /// Remembers, after a failure, that a host does not speak TLS; true if the request should be
    /// made again with plain HTTP.
    pub(crate) fn falls_back(
        &self,
        endpoint: &Endpoint,
        url: &Url,
        error: &reqwest::Error,
    ) -> bool {
        let may = endpoint.scheme == Scheme::HttpsThenHttp && url.scheme() == "https";
        let refused_default_port =
            url.port().is_none() && io_kind(error) == Some(ErrorKind::ConnectionRefused);
        if may && (speaks_no_tls(error) || refused_default_port) {
            self.plain.lock().insert(endpoint.host.clone());
            return true;
        }
        false
    }

    /// Sends a request; a request without a body that gets no answer in time fails.
    pub(crate) async fn send(
        &self,
        pool: &reqwest::Client,
        request: Request,
        has_body: bool,
    ) -> Result<Response, SendError> {
        let sending = pool.execute(request);
        if has_body {
            return sending.await.map_err(SendError::Request);
        }
        match tokio::time::timeout(ANSWER_TIMEOUT, sending).await {
            Ok(result) => result.map_err(SendError::Request),
            Err(_) => Err(SendError::Timeout),
        }
    }
}

/// Why no response came.
pub(crate) enum SendError {
    Request(reqwest::Error),
    Timeout,
}

impl SendError {
    /// The error for users.
    pub(crate) fn into_error(self, method: &str, url: &Url) -> RegistryError {
        let (cause, transient) = match &self {
            SendError::Request(error) => (innermost(error), is_transient(error)),
            SendError::Timeout => ("timeout awaiting response headers".to_owned(), true),
        };
        RegistryError::Transport {
            method: go_method(method),
            url: sanitized(url),
            cause,
            transient,
        }
    }
}

/// The URL without user, password and the values of its query (which may be signatures), except
/// for the namespace that mirrors get.
pub(crate) fn sanitized(url: &Url) -> String {
    let mut clean = url.clone();
    // Both fail only for URLs that cannot have a user.
    let _ = clean.set_username("");
    let _ = clean.set_password(None);
    if url.query().is_some() {
        let pairs: Vec<(String, String)> = url
            .query_pairs()
            .map(|(key, value)| match key.as_ref() {
                "ns" => (key.into_owned(), value.into_owned()),
                _ => (key.into_owned(), "REDACTED".to_owned()),
            })
            .collect();
        clean.query_pairs_mut().clear().extend_pairs(pairs);
    }
    clean.to_string()
}

/// The text of the innermost cause, which says what happened in the fewest words; those of the
/// system as Go's programs print them (`connect: connection refused`).
pub fn innermost(error: &dyn std::error::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    let mut connecting = false;
    while let Some(source) = last.source() {
        connecting |= last.to_string() == "tcp connect error";
        last = source;
    }
    let text = last.to_string();
    if let Some((said, _)) = text.split_once(" (os error ") {
        let said = said.to_lowercase();
        return match connecting {
            true => format!("connect: {said}"),
            false => said,
        };
    }
    // What the resolver says tells its own inside, and not that names are what it is about.
    match text.as_str() {
        "no connections available" => "no name server can be reached".to_owned(),
        said if said.starts_with("no records found for ") => "no such host".to_owned(),
        _ => text,
    }
}

/// True for connections that broke or timed out; refused ones and unknown hosts are final.
pub(crate) fn is_transient(error: &reqwest::Error) -> bool {
    if error.is_timeout() {
        return true;
    }
    match io_kind(error) {
        Some(
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
            | ErrorKind::TimedOut
            | ErrorKind::NotConnected,
        ) => true,
        Some(_) => false,
        // The HTTP library's own "connection closed before message completed".
        None => !error.is_connect() && !error.is_builder() && !error.is_redirect(),
    }
}

/// `Head` for `HEAD`: Go's clients print it so.
fn go_method(method: &str) -> String {
    let lower = method.to_ascii_lowercase();
    let mut chars = lower.chars();
    chars
        .next()
        .map(|first| first.to_ascii_uppercase().to_string() + chars.as_str())
        .unwrap_or_default()
}

/// Walks the causes of an error.
fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| next_cause(*error))
}

fn next_cause<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a (dyn std::error::Error + 'static)> {
    // An io::Error hides the error it wraps from `source`.
    let wrapped = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref)
        .map(|inner| inner as &(dyn std::error::Error + 'static));
    match wrapped {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

fn io_kind(error: &reqwest::Error) -> Option<ErrorKind> {
    causes(error.source()?)
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind)
        .last()
}

fn speaks_no_tls(error: &reqwest::Error) -> bool {
    let Some(source) = error.source() else {
        return false;
    };
    causes(source).any(|cause| {
        matches!(
            cause.downcast_ref::<rustls::Error>(),
            Some(rustls::Error::InvalidMessage(_))
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_in_urls_are_hidden_and_namespaces_are_not() {
        let url = Url::parse("https://u:p@h/v2/a?ns=docker.io&sig=abc").unwrap();
        assert_eq!(sanitized(&url), "https://h/v2/a?ns=docker.io&sig=REDACTED");
        assert_eq!(go_method("HEAD"), "Head");
    }

    #[test]
    fn the_resolvers_words_are_said_in_the_users() {
        for (said, told) in [
            ("no connections available", "no name server can be reached"),
            ("no records found for Query { name: x }", "no such host"),
            ("connection refused", "connection refused"),
        ] {
            let error = std::io::Error::other(said);
            assert_eq!(innermost(&error), told);
        }
    }

    #[test]
    fn the_systems_words_are_said_as_gos_programs_say_them() {
        let error = std::io::Error::from_raw_os_error(111);
        assert_eq!(innermost(&error), "connection refused");
    }

    #[tokio::test]
    async fn a_refused_connection_says_what_was_tried() {
        let config = crate::tls::client_config(&TlsSettings::default()).unwrap();
        let client = reqwest::Client::builder().tls_backend_preconfigured(config);
        // A port that nobody listens at.
        let get = client.build().unwrap().get("http://127.0.0.1:1/");
        let error = get.send().await.unwrap_err();
        assert_eq!(innermost(&error), "connect: connection refused");
    }
}
