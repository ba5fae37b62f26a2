//! A file of a web server as a layer of its own.
//!
//! What a server sent is kept with the validator (`ETag`) it gave. The next time the server is asked
//! whether that is still current, first without a body, because some servers give validators but do
//! not heed them; only a changed file travels. A file whose checksum is given is not asked for at all
//! until its content is needed.
//!
//! ```text
//! <dir>/superblock
//! <dir>/<sha256 of the request>.json   validator, digest and layer of the last answer
//! ```
//!
//! **Invariant**: a state is written only after its layer was committed.

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use diag::{Code, Error, Result, Secret};
use layers::{LayerHold, LayerNote, LayerStack, LayerStore, NewLayer};
use oci::{Digest, DigestHasher};
use reqwest::header::{
    AUTHORIZATION, CONTENT_DISPOSITION, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
    LAST_MODIFIED,
};
use reqwest::{Body, Client, Method, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use crate::file_layer::{MODE_DEFAULT, finish_file, safe_name};
use crate::flights::Flights;
use crate::resolve::blocking;
use crate::state_file::{read_state, sweep, write_state};

/// Version of the directory's format.
const FORMAT: u32 = 1;

/// How long a server may be silent, before and while it sends.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// Which file, and what is made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HttpRequest {
    /// Where it is.
    pub url: String,
    /// What it is called; empty for the name that the server or the address gives it.
    pub filename: String,
    /// Permission bits; `None` is 0600.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it must be.
    #[serde(skip)]
    pub checksum: Option<Digest>,
    /// Headers to send, by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// Name of the secret with the `Authorization` header; empty if none is named.
    pub auth_secret: String,
}

/// The host of addresses that mean the client of the build.
pub const SESSION_HOST: &str = "buildkit-session";

/// What only the client knows: the `Authorization` header, asked for only when a request is really
/// made, and the files it sends itself.
#[async_trait]
pub trait HttpAuthorization: Send + Sync {
    /// The header's value, if there is one.
    async fn authorization(&self) -> Result<Option<Secret<String>>>;

    /// What the client itself sends behind that path of [`SESSION_HOST`], such as its stdin.
    async fn upload(&self, path: &str) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
        Err(Error::new(
            Code::NotFound,
            format!("no client sends {path}"),
        ))
    }
}

/// What a request stands for now.
#[derive(Clone)]
pub struct HttpPin {
    /// Digest of the content.
    pub digest: Digest,
    /// What the file is called.
    pub filename: String,
    /// When the server says that it was changed last, in the server's words.
    pub last_modified: Option<String>,
    files: Option<(LayerStack, LayerHold)>,
}

/// Takes files of web servers; clones share what is under way.
#[derive(Clone)]
pub struct HttpSource {
    dir: PathBuf,
    layers: LayerStore,
    client: Client,
    flights: Arc<Flights<Digest>>,
}

/// The last answer to a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    url: String,
    /// Without the mark of weak ones.
    etag: Option<String>,
    last_modified: Option<String>,
    digest: Digest,
    filename: String,
    stack: LayerStack,
}

/// One exchange with a server.
struct Exchange<'a> {
    request: &'a HttpRequest,
    client: &'a dyn HttpAuthorization,
    url: Url,
    headers: HeaderMap,
}

impl HttpSource {
    /// Opens the directory of states, making it if needed; states without layers are removed.
    pub fn open(dir: impl Into<PathBuf>, layers: LayerStore) -> Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir)?;
        content::check_superblock(&dir, FORMAT)?;
        sweep(&dir, |path| {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => {
                    read_state::<State>(path).is_some_and(|state| layers.contains(&state.stack))
                }
                Some("new") => false,
                _ => true,
            }
        })?;
        Ok(HttpSource {
            dir,
            layers,
            client: registry::web_client()?,
            flights: Arc::default(),
        })
    }

    /// Finds out what a request stands for: its checksum if it has one, else the server is asked.
    ///
    /// # Errors
    /// Those of the network and the stores, and answers that are no success.
    pub async fn pin(
        &self,
        request: &HttpRequest,
        authorization: &dyn HttpAuthorization,
    ) -> Result<HttpPin> {
        if let Some(digest) = request.checksum {
            return Ok(HttpPin {
                digest,
                filename: file_name(request, None),
                last_modified: None,
                files: None,
            });
        }
        let _alone = self.flights.enter(request.key()).await;
        let exchange = Exchange::new(request, authorization).await?;
        let known = self.known(request).await?;
        let revalidated = match &known {
            Some((state, _)) => self.unchanged(&exchange, state).await?,
            None => None,
        };
        let (state, hold) = match (known, revalidated) {
            (Some(known), Some(Answer::Unchanged)) => known,
            (_, Some(Answer::New(response))) => self.save(request, response, None).await?,
            _ => {
                let response = self.send(&exchange, Method::GET, None).await?;
                self.save(request, response, None).await?
            }
        };
        Ok(HttpPin {
            digest: state.digest,
            filename: state.filename,
            last_modified: state.last_modified,
            files: Some((state.stack, hold)),
        })
    }

    /// The file as a layer.
    ///
    /// # Errors
    /// As for [`HttpSource::pin`], and content that is not what was pinned.
    pub async fn fetch(
        &self,
        request: &HttpRequest,
        pin: &HttpPin,
        authorization: &dyn HttpAuthorization,
    ) -> Result<(LayerStack, LayerHold)> {
        if let Some(files) = &pin.files {
            return Ok(files.clone());
        }
        let _alone = self.flights.enter(request.key()).await;
        if let Some((state, hold)) = self.known(request).await?
            && state.digest == pin.digest
        {
            return Ok((state.stack, hold));
        }
        let exchange = Exchange::new(request, authorization).await?;
        let response = self.send(&exchange, Method::GET, None).await?;
        let (state, hold) = self.save(request, response, Some(pin.digest)).await?;
        Ok((state.stack, hold))
    }

    /// The last answer, if its layer is still there.
    async fn known(&self, request: &HttpRequest) -> Result<Option<(State, LayerHold)>> {
        let (layers, path) = (self.layers.clone(), self.state_path(request));
        blocking(move || {
            let Some(state) = read_state::<State>(&path) else {
                return Ok(None);
            };
            let Ok(hold) = layers.try_hold(&state.stack) else {
                return Ok(None);
            };
            layers.touch(&state.stack)?;
            Ok(Some((state, hold)))
        })
        .await
    }

    /// Asks whether the last answer still holds; `None` if the server cannot be asked that.
    async fn unchanged(&self, exchange: &Exchange<'_>, state: &State) -> Result<Option<Answer>> {
        let Some(etag) = &state.etag else {
            return Ok(None);
        };
        // A server that does not answer this is asked in the usual way.
        if let Ok(response) = self.send(exchange, Method::HEAD, Some(etag)).await {
            let given = validator(&response);
            let not_modified = response.status() == StatusCode::NOT_MODIFIED;
            if given.as_ref() == Some(etag) || (given.is_none() && not_modified) {
                return Ok(Some(Answer::Unchanged));
            }
        }
        let response = self.send(exchange, Method::GET, Some(etag)).await?;
        if response.status() != StatusCode::NOT_MODIFIED {
            return Ok(Some(Answer::New(response)));
        }
        match validator(&response) {
            Some(given) if given != *etag => Err(Error::new(
                Code::Unknown,
                format!("invalid not-modified ETag: {given}"),
            )),
            _ => Ok(Some(Answer::Unchanged)),
        }
    }

    async fn send(
        &self,
        exchange: &Exchange<'_>,
        method: Method,
        etag: Option<&str>,
    ) -> Result<Response> {
        if exchange.url.host_str() == Some(SESSION_HOST) {
            let stream = ReaderStream::new(exchange.client.upload(exchange.url.path()).await?);
            return Ok(http::Response::new(Body::wrap_stream(stream)).into());
        }
        let shown = diag::redact_url(&exchange.request.url);
        let verb = if method == Method::HEAD {
            "Head"
        } else {
            "Get"
        };
        let mut request = self
            .client
            .request(method, exchange.url.clone())
            .headers(exchange.headers.clone());
        if let Some(etag) = etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let failed =
            |cause: &str| Error::new(Code::Unavailable, format!("{verb} {shown:?}: {cause}"));
        let response = match tokio::time::timeout(SILENCE_MAX, request.send()).await {
            Ok(response) => response.map_err(|error| failed(&registry::innermost(&error)))?,
            Err(_) => return Err(failed("timeout awaiting response headers")),
        };
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            let code = match status {
                StatusCode::NOT_FOUND => Code::NotFound,
                StatusCode::UNAUTHORIZED => Code::Unauthenticated,
                StatusCode::FORBIDDEN => Code::PermissionDenied,
                _ => Code::Unknown,
            };
            let text = format!("invalid response status {}", status.as_u16());
            return Err(Error::new(code, text).context(shown));
        }
        Ok(response)
    }

    /// Makes a layer of an answer and notes it down.
    async fn save(
        &self,
        request: &HttpRequest,
        response: Response,
        expected: Option<Digest>,
    ) -> Result<(State, LayerHold)> {
        let filename = file_name(request, response.headers().get(CONTENT_DISPOSITION));
        let etag = validator(&response);
        let last_modified = response
            .headers()
            .get(LAST_MODIFIED)
            .and_then(|value| value.to_str().ok())
            .filter(|text| parse_time(text).is_some())
            .map(str::to_owned);
        let layers = self.layers.clone();
        let layer = blocking(move || Ok(layers.new_layer()?)).await?;
        let path = layer.path().join(&filename);
        let digest = download(request, response, &path).await?;
        if let Some(expected) = expected
            && digest != expected
        {
            return Err(Error::new(
                Code::Unknown,
                format!("digest mismatch {digest}: {expected}"),
            ));
        }
        let state_path = self.state_path(request);
        let request = request.clone();
        blocking(move || {
            let modified = last_modified.as_deref().and_then(parse_time);
            let owner = (request.uid, request.gid);
            finish_file(&path, request.mode, owner, modified.unwrap_or(0))?;
            let (stack, hold) = commit(layer, &request)?;
            let state = State {
                url: diag::redact_url(&request.url),
                etag,
                last_modified,
                digest,
                filename,
                stack,
            };
            write_state(&state_path, &state)?;
            Ok((state, hold))
        })
        .await
    }

    fn state_path(&self, request: &HttpRequest) -> PathBuf {
        self.dir.join(format!("{}.json", request.key().hex()))
    }
}

/// What a server said about the last answer.
enum Answer {
    Unchanged,
    New(Response),
}

impl HttpRequest {
    /// What tells requests apart whose layers differ; the checksum only says which is wanted.
    fn key(&self) -> Digest {
        // A struct of texts and numbers always has a JSON form.
        Digest::of(serde_json::to_vec(self).unwrap_or_default())
    }
}

impl<'a> Exchange<'a> {
    async fn new(
        request: &'a HttpRequest,
        client: &'a dyn HttpAuthorization,
    ) -> Result<Exchange<'a>> {
        let url = Url::parse(&request.url).map_err(|error| {
            let shown = diag::redact_url(&request.url);
            Error::invalid(format!("parse {shown:?}: {error}"))
        })?;
        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
                headers.insert(name, value);
            }
        }
        if let Some(secret) = client.authorization().await? {
            let value = HeaderValue::from_str(secret.expose().trim_end());
            let mut value =
                value.map_err(|_| Error::invalid("the authorization secret is no header value"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(Exchange {
            request,
            client,
            url,
            headers,
        })
    }
}

async fn download(request: &HttpRequest, mut response: Response, path: &Path) -> Result<Digest> {
    let shown = diag::redact_url(&request.url);
    let failed = |cause: &str| {
        Error::new(
            Code::Unavailable,
            format!("failed to read {shown}: {cause}"),
        )
    };
    let opened = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE_DEFAULT)
        .open(path)?;
    let mut file = tokio::fs::File::from_std(opened);
    let mut hasher = DigestHasher::new();
    loop {
        let chunk = match tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| failed(&registry::innermost(&error)))?,
            Err(_) => return Err(failed("the server fell silent")),
        };
        let Some(chunk) = chunk else { break };
        hasher.update(&chunk);
        file.write_all(&chunk).await?;
    }
    file.flush().await?;
    Ok(hasher.finish())
}

fn commit(layer: NewLayer, request: &HttpRequest) -> Result<(LayerStack, LayerHold)> {
    let text = format!("http url {}", diag::redact_url(&request.url));
    let (id, hold) = layer.commit_held(LayerNote::new(text))?;
    Ok((id.into(), hold))
}

fn validator(response: &Response) -> Option<String> {
    let value = response.headers().get(ETAG)?.to_str().ok()?;
    let value = value.strip_prefix("W/").unwrap_or(value);
    (!value.is_empty()).then(|| value.to_owned())
}

/// A date of HTTP as seconds since 1970.
fn parse_time(text: &str) -> Option<i64> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim());
    Some(time.ok()?.as_second())
}

/// What a file is called: as asked, as the server says, or as the last part of its address.
fn file_name(request: &HttpRequest, disposition: Option<&HeaderValue>) -> String {
    if !request.filename.is_empty() {
        return safe_name(&request.filename);
    }
    if let Some(name) = disposition
        .and_then(|value| value.to_str().ok())
        .and_then(disposition_name)
        && !name.ends_with('/')
    {
        return safe_name(&name);
    }
    let url = Url::parse(&request.url).ok();
    let path = url.as_ref().map_or("", |url| url.path());
    let last = path.trim_end_matches('/').rsplit('/').next();
    safe_name(&percent_decoded(last.unwrap_or_default()))
}

/// The `filename` of a `Content-Disposition`; the extended form with a character set comes first.
fn disposition_name(value: &str) -> Option<String> {
    let mut plain = None;
    for parameter in split_parameters(value).into_iter().skip(1) {
        let Some((key, value)) = parameter.split_once('=') else {
            continue;
        };
        let value = unquoted(value.trim());
        match key.trim().to_ascii_lowercase().as_str() {
            "filename*" => {
                let mut parts = value.splitn(3, '\'');
                let (set, _, text) = (parts.next()?, parts.next()?, parts.next()?);
                if set.eq_ignore_ascii_case("utf-8") || set.eq_ignore_ascii_case("us-ascii") {
                    return Some(percent_decoded(text));
                }
            }
            "filename" => plain = Some(value),
            _ => {}
        }
    }
    plain.filter(|name| !name.is_empty())
}

/// Splits at semicolons outside of quotes.
fn split_parameters(value: &str) -> Vec<String> {
    let (mut parts, mut quoted, mut escaped) = (vec![String::new()], false, false);
    for c in value.chars() {
        if c == ';' && !quoted {
            parts.push(String::new());
            continue;
        }
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && c == '\\' && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

fn unquoted(text: &str) -> String {
    let Some(inner) = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
    else {
        return text.to_owned();
    };
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests;
