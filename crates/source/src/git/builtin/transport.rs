//! Ways to a remote: HTTP, git's own over TCP, and ssh.
//!
//! Formats: <https://git-scm.com/docs/http-protocol>, <https://git-scm.com/docs/pack-protocol>.

use std::time::Duration;

use diag::{Code, Error, Result};
use futures::TryStreamExt;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::io::StreamReader;

use super::packet::{Stream, push_line};
use super::ssh::{Address, Limits, Ssh};
use crate::git::command::GitAccess;
use crate::http::authorization_value;

/// Some servers answer only what calls itself git.
const AGENT: &str = concat!("git/2.47.0 cooperage/", env!("CARGO_PKG_VERSION"));

/// The version of the protocol that is asked for.
pub(super) const VERSION: &str = "version=2";

/// How long a server may take to answer at all.
const ANSWER_MAX: Duration = Duration::from_secs(300);

/// How long a connection to one address of a host may take.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// The port of git's own transport.
const GIT_PORT: u16 = 9418;

/// A remote that is spoken to.
pub(super) enum Remote {
    /// Each exchange is a request of its own.
    Web(Web),
    /// Both directions of one connection.
    Tcp(TcpStream),
    /// The same inside a connection of ssh.
    Ssh(Box<Ssh>),
}

/// A repository on a web server.
pub(super) struct Web {
    client: Client,
    base: Url,
    headers: HeaderMap,
}

impl Remote {
    /// Finds the way to an address.
    ///
    /// # Errors
    /// Addresses of other kinds, and hosts that cannot be reached.
    pub(super) async fn connect(
        address: &str,
        known_hosts: &str,
        access: &GitAccess,
        client: &Client,
    ) -> Result<Remote> {
        if let Some((helper, _)) = address.split_once("::")
            && helper.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(not_allowed(helper));
        }
        if let Some(address) = Address::parse(address) {
            let address = address?;
            let ssh = Ssh::connect(&address, known_hosts, access, Limits::default());
            return Ok(Remote::Ssh(Box::new(ssh.await?)));
        }
        let shown = diag::redact_url(address);
        let url = Url::parse(address)
            .map_err(|error| Error::invalid(format!("unable to parse {shown:?}: {error}")))?;
        match url.scheme() {
            "http" | "https" => Web::new(url, access, client).map(Remote::Web),
            "git" => dial(&url).await.map(Remote::Tcp),
            scheme => Err(not_allowed(scheme)),
        }
    }

    /// The first words of the remote.
    pub(super) async fn greeting(&mut self) -> Result<Stream<'_>> {
        match self {
            Remote::Web(web) => web.greeting().await,
            Remote::Tcp(stream) => Ok(Box::new(stream)),
            Remote::Ssh(ssh) => Ok(Box::new(ssh.output())),
        }
    }

    /// Says something and gives the answer.
    pub(super) async fn exchange(&mut self, request: Vec<u8>) -> Result<Stream<'_>> {
        match self {
            Remote::Web(web) => web.exchange(request).await,
            Remote::Tcp(stream) => {
                stream.write_all(&request).await?;
                Ok(Box::new(stream))
            }
            Remote::Ssh(ssh) => {
                ssh.send(request).await?;
                Ok(Box::new(ssh.output()))
            }
        }
    }

    /// Whether what was said before is forgotten at each exchange.
    pub(super) fn is_stateless(&self) -> bool {
        matches!(self, Remote::Web(_))
    }

    /// Adds to an error what the remote says besides.
    pub(super) async fn explain(&mut self, error: Error) -> Error {
        match self {
            Remote::Ssh(ssh) => ssh.explain(error).await,
            Remote::Web(_) | Remote::Tcp(_) => error,
        }
    }
}

impl Web {
    fn new(mut url: Url, access: &GitAccess, client: &Client) -> Result<Web> {
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert("git-protocol", HeaderValue::from_static(VERSION));
        if let Some(secret) = &access.authorization {
            headers.insert(AUTHORIZATION, authorization_value(secret)?);
            // The header is meant instead of what the address says.
            let _ = url.set_username("");
            let _ = url.set_password(None);
        }
        url.set_fragment(None);
        Ok(Web {
            client: client.clone(),
            base: url,
            headers,
        })
    }

    async fn greeting(&mut self) -> Result<Stream<'static>> {
        let mut url = self.address("info/refs");
        url.query_pairs_mut()
            .append_pair("service", "git-upload-pack");
        let response = self.send(self.client.get(url)).await?;
        let kind = response.headers().get(CONTENT_TYPE);
        if kind.is_none_or(|kind| kind != "application/x-git-upload-pack-advertisement") {
            let shown = diag::redact_url(self.base.as_str());
            return Err(Error::new(
                Code::Unimplemented,
                format!("{shown} is served as plain files"),
            )
            .hint("the server has no `git` program; its own one needs git's smart HTTP protocol"));
        }
        self.follow(response.url());
        Ok(body(response))
    }

    async fn exchange(&self, request: Vec<u8>) -> Result<Stream<'static>> {
        let request = self
            .client
            .post(self.address("git-upload-pack"))
            .header(CONTENT_TYPE, "application/x-git-upload-pack-request")
            .header(ACCEPT, "application/x-git-upload-pack-result")
            .body(request);
        Ok(body(self.send(request).await?))
    }

    /// Goes on where the first request was led to; what was meant for one host is not for another.
    fn follow(&mut self, reached: &Url) {
        let Some(path) = reached.path().strip_suffix("/info/refs") else {
            return;
        };
        if self.base.origin() != reached.origin() {
            self.headers.remove(AUTHORIZATION);
        } else if reached.path() == self.address("info/refs").path() {
            return;
        }
        let path = path.to_owned();
        let mut base = reached.clone();
        base.set_query(None);
        base.set_path(&path);
        if self.base.origin() == reached.origin() {
            let _ = base.set_username(self.base.username());
            let _ = base.set_password(self.base.password());
        }
        self.base = base;
    }

    fn address(&self, service: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{service}", url.path().trim_end_matches('/')));
        url
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let shown = diag::redact_url(self.base.as_str());
        let unreachable = |cause: &str| {
            Error::new(
                Code::Unavailable,
                format!("unable to access '{shown}': {cause}"),
            )
        };
        let sent = request.headers(self.headers.clone()).send();
        let response = match tokio::time::timeout(ANSWER_MAX, sent).await {
            Ok(response) => response.map_err(|error| unreachable(&registry::innermost(&error)))?,
            Err(_) => return Err(unreachable("timeout awaiting response headers")),
        };
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => {
                Err(Error::not_found(format!("repository '{shown}' not found")))
            }
            StatusCode::UNAUTHORIZED if self.headers.contains_key(AUTHORIZATION) => {
                Err(Error::new(
                    Code::Unauthenticated,
                    format!("Authentication failed for '{shown}'"),
                ))
            }
            StatusCode::UNAUTHORIZED => Err(Error::new(
                Code::Unauthenticated,
                format!(
                    "could not read Username for '{}': terminal prompts disabled",
                    self.base.origin().ascii_serialization()
                ),
            )
            .hint("give the build a token with `--secret id=GIT_AUTH_TOKEN`")),
            status => Err(unreachable(&format!(
                "The requested URL returned error: {}",
                status.as_u16()
            ))),
        }
    }
}

/// Connects to a host, by one of its addresses after the other; tells why none of them answers.
pub(super) async fn connect_tcp(host: &str, port: u16) -> std::result::Result<TcpStream, String> {
    let timed_out = |_| "timed out".to_owned();
    let found = tokio::time::timeout(CONNECT_MAX, tokio::net::lookup_host((host, port)));
    let found = found.await.map_err(timed_out)?;
    let mut cause = "no address is known of it".to_owned();
    for address in found.map_err(|error| error.to_string())? {
        let connecting = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(address));
        match connecting.await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => cause = error.to_string(),
            Err(elapsed) => cause = timed_out(elapsed),
        }
    }
    Err(cause)
}

async fn dial(url: &Url) -> Result<TcpStream> {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().unwrap_or(GIT_PORT);
    // The form of an IPv6 address in a URL has brackets.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let reached = connect_tcp(name, port).await;
    let mut stream = reached.map_err(|cause| {
        let text = format!("unable to connect to {host}: {cause}");
        Error::new(Code::Unavailable, text)
    })?;
    let mut request = Vec::new();
    let path = url.path();
    let host = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    push_line(
        &mut request,
        &format!("git-upload-pack {path}\0host={host}\0\0{VERSION}\0"),
    );
    stream.write_all(&request).await?;
    Ok(stream)
}

fn body(response: Response) -> Stream<'static> {
    let bytes = response.bytes_stream();
    let bytes = bytes.map_err(|error| std::io::Error::other(registry::innermost(&error)));
    Box::new(StreamReader::new(Box::pin(bytes)))
}

fn not_allowed(transport: &str) -> Error {
    let text = format!("transport '{transport}' not allowed");
    Error::new(Code::FailedPrecondition, text)
        .hint("the server has no `git` program; its own one speaks http, https, git and ssh")
}

#[cfg(test)]
mod tests {
    use super::*;
    use diag::Secret;

    #[test]
    fn a_header_does_not_follow_to_another_host() {
        let access = GitAccess {
            authorization: Some(Secret::new("basic abc".into())),
            ..GitAccess::default()
        };
        let client = registry::web_client().unwrap();
        let to = |reached: &str| {
            let url = Url::parse("https://u:p@h/r.git").unwrap();
            let mut web = Web::new(url, &access, &client).unwrap();
            web.follow(&Url::parse(reached).unwrap());
            let sent = web.headers.contains_key(AUTHORIZATION);
            (web.address("git-upload-pack").to_string(), sent)
        };
        assert_eq!(
            to("https://h/r.git/info/refs?service=x"),
            ("https://h/r.git/git-upload-pack".into(), true)
        );
        assert_eq!(
            to("https://h/other/info/refs?service=x"),
            ("https://h/other/git-upload-pack".into(), true)
        );
        assert_eq!(
            to("https://evil/r.git/info/refs"),
            ("https://evil/r.git/git-upload-pack".into(), false)
        );
    }
}
