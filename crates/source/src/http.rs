//! A file of a web server as a layer of its own.
//!
//! What a server sent is kept with the validator it gave: `ETag`, else `Last-Modified` if that was
//! long enough ago. The next time the server is asked whether that is still current, for an `ETag`
//! first without a body, because some servers give some but do not heed them; only a changed file
//! travels. A file whose checksum is given is not asked for at all until its content is needed.
//!
//! ```text
//! <dir>/superblock
//! <dir>/<sha256 of the request>.json   validator, digest and layer of the last answer
//! ```
//!
//! **Invariant**: a state is written only after its layer was committed.

mod names;

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use diag::{Code, Context, Error, Result, Secret};
use layers::{LayerHold, LayerNote, LayerStack, LayerStore, NewLayer};
use llb::SESSION_HOST;
use oci::{Digest, DigestHasher};
use reqwest::header::{
    AUTHORIZATION, CONTENT_DISPOSITION, DATE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
};
use reqwest::{Body, Client, Method, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use crate::file_layer::{MODE_DEFAULT, finish_file};
use crate::flights::Flights;
use crate::resolve::blocking;
use crate::state_file::{read_state, sweep, write_state};
use names::file_name;

/// Version of the directory's format.
const FORMAT: u32 = 1;

/// How long a server may be silent, before and while it sends.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// After how many seconds a file that changes gets another `Last-Modified` for sure.
///
/// Source: <https://www.rfc-editor.org/rfc/rfc9110#section-8.8.2.2>.
const MODIFIED_LONG_AGO: i64 = 60;

/// How long what is put behind a file for its checksum may be, in bytes, as stock has it.
const SUFFIX_BYTES_MAX: usize = 4 << 10;

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

/// How a file is summed up for who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
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
    /// Whether the file was not changed again within the same second as `last_modified`.
    #[serde(default)]
    modified_long_ago: bool,
    digest: Digest,
    filename: String,
    stack: LayerStack,
}

/// By what a server is asked whether something changed.
#[derive(Clone, Copy)]
enum Validator<'a> {
    ETag(&'a str),
    Modified(&'a str),
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

    /// Another checksum of the file, `algorithm:digits`, over its content and a suffix.
    ///
    /// # Errors
    /// As for [`HttpSource::fetch`], and suffixes that are too long.
    pub async fn checksum(
        &self,
        request: &HttpRequest,
        pin: &HttpPin,
        authorization: &dyn HttpAuthorization,
        algorithm: ChecksumAlgorithm,
        suffix: Vec<u8>,
    ) -> Result<String> {
        if suffix.len() > SUFFIX_BYTES_MAX {
            return Err(Error::invalid(format!(
                "http checksum request suffix exceeds max size {SUFFIX_BYTES_MAX}"
            )));
        }
        let (stack, hold) = self.fetch(request, pin, authorization).await?;
        let layers = self.layers.clone();
        blocking(move || {
            let _hold = hold;
            let files = layers.mount(&stack)?;
            // The only one; its name may be one that the server gave it.
            let mut names = std::fs::read_dir(files.path())?;
            let file = names.next().transpose()?;
            let file = file.ok_or_else(|| Error::internal("a layer without its file"))?;
            let mut file = std::fs::File::open(file.path())?;
            checksum_of(&mut file, algorithm, &suffix)
        })
        .await
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
        let etag = match (&state.etag, &state.last_modified) {
            (Some(etag), _) => etag,
            (None, Some(time)) if state.modified_long_ago => {
                let asked = Some(Validator::Modified(time));
                let response = self.send(exchange, Method::GET, asked).await?;
                return Ok(Some(match response.status() {
                    StatusCode::NOT_MODIFIED => Answer::Unchanged,
                    _ => Answer::New(response),
                }));
            }
            _ => return Ok(None),
        };
        let asked = Some(Validator::ETag(etag));
        // A server that does not answer this is asked in the usual way.
        if let Ok(response) = self.send(exchange, Method::HEAD, asked).await {
            let given = validator(&response);
            let not_modified = response.status() == StatusCode::NOT_MODIFIED;
            if given.as_ref() == Some(etag) || (given.is_none() && not_modified) {
                return Ok(Some(Answer::Unchanged));
            }
        }
        let response = self.send(exchange, Method::GET, asked).await?;
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
        asked: Option<Validator<'_>>,
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
        request = match asked {
            Some(Validator::ETag(etag)) => request.header(IF_NONE_MATCH, etag),
            Some(Validator::Modified(time)) => request.header(IF_MODIFIED_SINCE, time),
            None => request,
        };
        let failed = |cause: &str| Error::new(Code::Unknown, format!("{verb} {shown:?}: {cause}"));
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
        let date = |name| response.headers().get(name)?.to_str().ok();
        let last_modified = date(LAST_MODIFIED).filter(|text| parse_time(text).is_some());
        let modified_long_ago = match (last_modified.and_then(parse_time), date(DATE)) {
            (Some(modified), Some(now)) => {
                parse_time(now).is_some_and(|now| now - modified >= MODIFIED_LONG_AGO)
            }
            _ => false,
        };
        let last_modified = last_modified.map(str::to_owned);
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
                modified_long_ago,
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
        if let Some(escape) = bad_escape(url.path()) {
            let shown = diag::redact_url(&request.url);
            let text = format!("parse {shown:?}: invalid URL escape {escape:?}");
            return Err(Error::invalid(text));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
                headers.insert(name, value);
            }
        }
        if let Some(secret) = client.authorization().await? {
            headers.insert(AUTHORIZATION, authorization_value(&secret)?);
        }
        Ok(Exchange {
            request,
            client,
            url,
            headers,
        })
    }
}

/// A secret as the value of `Authorization`, which no log shows.
pub(crate) fn authorization_value(secret: &Secret<String>) -> Result<HeaderValue> {
    let value = HeaderValue::from_str(secret.expose().trim_end());
    let mut value = value.map_err(|_| {
        Error::invalid("the authorization secret is no value of a header")
            .hint("it must be one line of printable characters, such as `Bearer TOKEN`")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The first `%` of a path that no two hexadecimal digits follow, with what does.
fn bad_escape(path: &str) -> Option<&str> {
    let starts = path.match_indices('%').map(|(at, _)| at);
    starts
        .map(|at| path.get(at..at + 3).unwrap_or(&path[at..]))
        .find(|escape| {
            escape.len() < 3 || !escape[1..].bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

async fn download(request: &HttpRequest, mut response: Response, path: &Path) -> Result<Digest> {
    let shown = diag::redact_url(&request.url);
    let failed =
        |cause: &str| Error::new(Code::Unknown, format!("failed to read {shown}: {cause}"));
    let saving = || format!("failed to save {shown}");
    let opened = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE_DEFAULT)
        .open(path)
        .with_context(saving)?;
    let mut file = tokio::fs::File::from_std(opened);
    let mut hasher = DigestHasher::new();
    loop {
        let chunk = match tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| failed(&registry::innermost(&error)))?,
            Err(_) => return Err(failed("the server fell silent")),
        };
        let Some(chunk) = chunk else { break };
        hasher.update(&chunk);
        file.write_all(&chunk).await.with_context(saving)?;
    }
    file.flush().await.with_context(saving)?;
    Ok(hasher.finish())
}

fn commit(layer: NewLayer, request: &HttpRequest) -> Result<(LayerStack, LayerHold)> {
    let text = format!("http url {}", diag::redact_url(&request.url));
    let (id, hold) = layer.commit_held(LayerNote::new(text))?;
    Ok((id.into(), hold))
}

fn checksum_of(
    file: &mut impl std::io::Read,
    algorithm: ChecksumAlgorithm,
    suffix: &[u8],
) -> Result<String> {
    let (name, kind) = match algorithm {
        ChecksumAlgorithm::Sha256 => ("sha256", &ring::digest::SHA256),
        ChecksumAlgorithm::Sha384 => ("sha384", &ring::digest::SHA384),
        ChecksumAlgorithm::Sha512 => ("sha512", &ring::digest::SHA512),
    };
    let mut sum = ring::digest::Context::new(kind);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => sum.update(&buffer[..count]),
        }
    }
    sum.update(suffix);
    let digits = sum.finish();
    let digits = digits.as_ref().iter().map(|byte| format!("{byte:02x}"));
    Ok(format!("{name}:{}", digits.collect::<String>()))
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

#[cfg(test)]
mod tests;
