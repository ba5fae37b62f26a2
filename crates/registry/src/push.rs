//! Pushing blobs: mounted from another repository where the registry has them, otherwise uploaded
//! in one piece straight from where they are kept.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use oci::{Descriptor, Digest, Reference};
use parking_lot::Mutex;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Method, Request, Response, StatusCode, Url};
use tokio::io::{AsyncRead, ReadBuf};

use crate::client::{Call, Client, Payload, Repository, Target, expect_success, status_error};
use crate::config::Endpoint;
use crate::error::RegistryError;
use crate::manifest::{accept, confirmed, push_denied, with_body};
use crate::scope::Scopes;

/// Bytes read from a blob at a time.
const PIECE_SIZE: usize = 256 * 1024;

/// Where a blob that is to be pushed can be read, as often as an upload has to begin again.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// The blob from its beginning.
    async fn open(&self) -> std::io::Result<Pin<Box<dyn AsyncRead + Send + Sync>>>;
}

/// A blob in a file.
#[derive(Clone, Debug)]
pub struct FileBlob(pub PathBuf);

#[async_trait]
impl BlobSource for FileBlob {
    async fn open(&self) -> std::io::Result<Pin<Box<dyn AsyncRead + Send + Sync>>> {
        Ok(Box::pin(tokio::fs::File::open(&self.0).await?))
    }
}

/// A blob in memory.
#[derive(Clone, Debug)]
pub struct BytesBlob(pub Bytes);

#[async_trait]
impl BlobSource for BytesBlob {
    async fn open(&self) -> std::io::Result<Pin<Box<dyn AsyncRead + Send + Sync>>> {
        Ok(Box::pin(std::io::Cursor::new(self.0.clone())))
    }
}

/// How a blob came to be in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    /// It was there.
    Exists,
    /// The registry had it in this other repository.
    Mounted(String),
    /// It was uploaded.
    Uploaded,
}

/// Pushes under way, so that no two send the same blob to the same place at once.
#[derive(Default)]
pub(crate) struct InFlightPushes(Mutex<HashMap<(String, String, Digest), Weak<PushLock>>>);

type PushLock = tokio::sync::Mutex<()>;

impl InFlightPushes {
    fn lock(&self, repository: &Repository, digest: Digest) -> Arc<PushLock> {
        let key = (repository.registry.clone(), repository.path.clone(), digest);
        let mut all = self.0.lock();
        if let Some(lock) = all.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        all.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(PushLock::default());
        all.insert(key, Arc::downgrade(&lock));
        lock
    }
}

/// A blob as the body of a request.
#[derive(Clone)]
pub(crate) struct Upload {
    source: Arc<dyn BlobSource>,
    digest: Digest,
    size: u64,
    progress: Arc<dyn Fn(u64) + Send + Sync>,
    /// Counts what was sent by all uploads of a client.
    pushed_bytes: Arc<AtomicU64>,
    /// Why reading it failed, if that is what broke the request.
    failure: Arc<Mutex<Option<String>>>,
}

impl Payload {
    /// Puts the body into a request; true if there is one.
    pub(crate) async fn attach(&self, request: &mut Request) -> Result<bool, RegistryError> {
        let body = match self {
            Payload::Empty => {
                if request.method() == Method::POST {
                    request
                        .headers_mut()
                        .insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
                }
                return Ok(false);
            }
            Payload::Bytes(bytes) => reqwest::Body::from(bytes.clone()),
            Payload::Upload(upload) => {
                let reader = upload.source.open().await;
                let reader = reader.map_err(|error| RegistryError::Local {
                    digest: upload.digest,
                    cause: error.to_string(),
                })?;
                *upload.failure.lock() = None;
                reqwest::Body::wrap(UploadBody {
                    upload: upload.clone(),
                    reader,
                    sent: 0,
                    buffer: BytesMut::new(),
                })
            }
        };
        *request.body_mut() = Some(body);
        Ok(true)
    }

    pub(crate) fn is_upload(&self) -> bool {
        matches!(self, Payload::Upload(_))
    }

    /// The local reason why a request broke, if there is one.
    pub(crate) fn failure(&self) -> Option<RegistryError> {
        let Payload::Upload(upload) = self else {
            return None;
        };
        let cause = upload.failure.lock().take()?;
        Some(RegistryError::Local {
            digest: upload.digest,
            cause,
        })
    }
}

struct UploadBody {
    upload: Upload,
    reader: Pin<Box<dyn AsyncRead + Send + Sync>>,
    sent: u64,
    buffer: BytesMut,
}

impl UploadBody {
    fn fail(&self, error: std::io::Error) -> std::io::Error {
        *self.upload.failure.lock() = Some(error.to_string());
        error
    }
}

impl http_body::Body for UploadBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let this = &mut *self;
        if this.sent == this.upload.size {
            return Poll::Ready(None);
        }
        let wanted = (this.upload.size - this.sent).min(PIECE_SIZE as u64) as usize;
        this.buffer.resize(wanted, 0);
        let mut piece = ReadBuf::new(&mut this.buffer);
        match this.reader.as_mut().poll_read(cx, &mut piece) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(this.fail(error)))),
            Poll::Ready(Ok(())) => {}
        }
        let count = piece.filled().len();
        if count == 0 {
            let text = format!("{} of {} bytes", this.sent, this.upload.size);
            let error = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text);
            return Poll::Ready(Some(Err(this.fail(error))));
        }
        let bytes = this.buffer.split_to(count).freeze();
        this.sent += count as u64;
        let pushed = &this.upload.pushed_bytes;
        pushed.fetch_add(count as u64, Ordering::Relaxed);
        (this.upload.progress)(this.sent);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent == self.upload.size
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.upload.size - self.sent)
    }
}

/// Where an attempt to push a blob failed.
enum PushFailure {
    /// At a request, which was already made as often as the policy says.
    Request(RegistryError),
    /// At the upload itself, which has to begin again from the start.
    Upload(RegistryError),
}

impl From<RegistryError> for PushFailure {
    fn from(error: RegistryError) -> Self {
        PushFailure::Request(error)
    }
}

impl Client {
    /// True if the repository has the blob.
    pub async fn blob_exists(
        &self,
        reference: &Reference,
        digest: Digest,
    ) -> Result<bool, RegistryError> {
        let repository = self.repository(reference).await;
        let Some(endpoint) = repository.endpoints.last() else {
            return Ok(false);
        };
        let scopes = Scopes::pull(&repository.path);
        let call = Call::new(Method::HEAD, format!("blobs/{digest}"), scopes);
        let response = self.execute(&repository, endpoint, &call, true).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            _ => expect_success(&Method::HEAD, response).await.map(|_| true),
        }
    }

    /// Makes sure that the repository of a name has a blob.
    ///
    /// `mount_from`: repositories of the same registry that may have it. `progress` gets the bytes
    /// sent so far; they start again from 0 when an upload has to.
    ///
    /// # Errors
    /// [`RegistryError::PushDenied`] if we may not; [`RegistryError::Local`] if the blob cannot be
    /// read here; statuses of the registry.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        source: Arc<dyn BlobSource>,
        mount_from: &[String],
        progress: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<PushOutcome, RegistryError> {
        let repository = self.repository(reference).await;
        let Some(endpoint) = repository.endpoints.last() else {
            return Err(RegistryError::NotFound(reference.to_string()));
        };
        let lock = self.pushes().lock(&repository, descriptor.digest);
        let _alone = lock.lock().await;
        let limit = self.transport().limit(&repository.registry);
        // Fails only if the semaphore is closed, which nobody does.
        let _permit = limit.acquire_owned().await.ok();
        if self.has_blob(&repository, endpoint, descriptor).await? {
            return Ok(PushOutcome::Exists);
        }
        let upload = Upload {
            source,
            digest: descriptor.digest,
            size: descriptor.size,
            progress,
            pushed_bytes: self.counters().pushed_bytes.clone(),
            failure: Arc::default(),
        };
        let mut failures = 0;
        loop {
            let attempt = self.push_once(&repository, endpoint, &upload, mount_from);
            let error = match attempt.await {
                Ok(outcome) => return Ok(outcome),
                Err(PushFailure::Request(error)) => return Err(error),
                Err(PushFailure::Upload(error)) => error,
            };
            failures += 1;
            match self.retry().wait(failures, None) {
                Some(wait) if error.is_transient() => {
                    tracing::info!(digest = %descriptor.digest, %error, "upload failed, again in {wait:?}");
                    tokio::time::sleep(wait).await;
                }
                _ => return Err(error),
            }
        }
    }

    async fn has_blob(
        &self,
        repository: &Repository,
        endpoint: &Endpoint,
        descriptor: &Descriptor,
    ) -> Result<bool, RegistryError> {
        let scopes = Scopes::push(&repository.path);
        let mut call = Call::new(Method::HEAD, format!("blobs/{}", descriptor.digest), scopes);
        call.headers.insert(ACCEPT, accept(&descriptor.media_type));
        match self.execute(repository, endpoint, &call, true).await {
            Ok(response) => match response.status() {
                status if status.is_success() => Ok(true),
                StatusCode::NOT_FOUND => Ok(false),
                StatusCode::FORBIDDEN => {
                    let error = status_error(&Method::HEAD, response).await;
                    let body = self.forbidden_body(repository, endpoint, &call).await;
                    Err(with_body(error, body))
                }
                _ => Err(status_error(&Method::HEAD, response).await),
            },
            // The push itself will tell.
            Err(error) if error.is_invalid_authorization() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn push_once(
        &self,
        repository: &Repository,
        endpoint: &Endpoint,
        upload: &Upload,
        mount_from: &[String],
    ) -> Result<PushOutcome, PushFailure> {
        let mut begun = None;
        for from in mount_from.iter().filter(|from| **from != repository.path) {
            match self.begin(repository, endpoint, upload, Some(from)).await {
                Ok(response) if response.status() == StatusCode::CREATED => {
                    return Ok(PushOutcome::Mounted(from.clone()));
                }
                // Not there: the registry has begun an upload instead.
                Ok(response) if response.status().is_success() => {
                    begun = Some(response);
                    break;
                }
                // That repository is not ours to read; the blob can still be uploaded.
                Ok(response)
                    if matches!(
                        response.status(),
                        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
                    ) => {}
                Ok(response) => return Err(status_error(&Method::POST, response).await.into()),
                Err(error) if error.is_invalid_authorization() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let begun = match begun {
            Some(response) => response,
            None => self
                .begin(repository, endpoint, upload, None)
                .await
                .map_err(push_denied)?,
        };
        let begun = expect_success(&Method::POST, begun).await?;
        if begun.status() == StatusCode::CREATED {
            return Ok(PushOutcome::Exists);
        }
        let target = upload_target(&begun, upload.digest)?;
        let mut call = Call::new(Method::PUT, String::new(), Scopes::push(&repository.path));
        call.target = target;
        call.headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        call.payload = Payload::Upload(upload.clone());
        let sent = self.execute(repository, endpoint, &call, true).await;
        let response = sent.map_err(PushFailure::Upload)?;
        let response = expect_success(&Method::PUT, response)
            .await
            .map_err(PushFailure::Upload)?;
        confirmed(&response, upload.digest)?;
        Ok(PushOutcome::Uploaded)
    }

    /// Asks for a mount, or for a place to upload to.
    async fn begin(
        &self,
        repository: &Repository,
        endpoint: &Endpoint,
        upload: &Upload,
        mount_from: Option<&str>,
    ) -> Result<Response, RegistryError> {
        let mut scopes = Scopes::push(&repository.path);
        let mut call = Call::new(Method::POST, "blobs/uploads/".to_owned(), scopes.clone());
        if let Some(from) = mount_from {
            scopes = scopes.and(&Scopes::pull(from));
            call.query = vec![
                ("mount", upload.digest.to_string()),
                ("from", from.to_owned()),
            ];
        }
        call.scopes = scopes;
        self.execute(repository, endpoint, &call, true).await
    }
}

/// Where the registry wants the blob. Another host gets no credentials of ours.
fn upload_target(begun: &Response, digest: Digest) -> Result<Target, RegistryError> {
    let bad = |reason: String| RegistryError::BadResponse {
        url: begun.url().to_string(),
        reason,
    };
    let location = begun
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| bad("no location to upload to".to_owned()))?;
    let mut url: Url = begun
        .url()
        .join(location)
        .map_err(|error| bad(format!("unable to parse location {location}: {error}")))?;
    url.query_pairs_mut()
        .append_pair("digest", &digest.to_string());
    let authorize = url.origin() == begun.url().origin();
    Ok(Target::Url { url, authorize })
}
