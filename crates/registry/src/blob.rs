//! Downloads of blobs that go on where they broke off.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use oci::{Descriptor, Digest, DigestHasher, Reference, media_type};
use reqwest::header::{ACCEPT, CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::OwnedSemaphorePermit;

use crate::client::{Call, Client, Repository, Target, expect_success};
use crate::config::Endpoint;
use crate::error::RegistryError;
use crate::manifest::{accept, denied, header_size};
use crate::scope::Scopes;
use crate::transport::innermost;

/// What a blob is when nothing more is known.
const OCTET_STREAM: &str = "application/octet-stream";

/// A connection over which nothing comes for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A blob on its way, read piece by piece with [`BlobReader::chunk`].
///
/// A connection that breaks is replaced by another that starts where the first ended; only when
/// several in a row bring nothing, the download fails. If it was started at the beginning, the
/// last piece is handed out only after the digest of the whole was found right.
pub struct BlobReader {
    client: Client,
    repository: Repository,
    descriptor: Descriptor,
    position: u64,
    /// `None` if the download did not start at the beginning, or the digest is left to others.
    hasher: Option<DigestHasher>,
    response: Option<Response>,
    /// Bytes of the present response that we have already.
    skip: u64,
    failures: u32,
    done: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Client {
    /// Starts the download of a blob, at a byte offset of it (0 for the whole).
    ///
    /// Only a few downloads of a registry run at a time; further ones wait here.
    ///
    /// # Errors
    /// [`RegistryError::BlobNotFound`] if no endpoint has it.
    pub async fn fetch_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<BlobReader, RegistryError> {
        let repository = self.repository(reference).await;
        let limit = self.transport().limit(&repository.registry);
        let mut reader = BlobReader {
            client: self.clone(),
            descriptor: descriptor.clone(),
            position: offset,
            hasher: (offset == 0).then(DigestHasher::new),
            response: None,
            skip: 0,
            failures: 0,
            done: false,
            // Fails only if the semaphore is closed, which nobody does.
            _permit: limit.acquire_owned().await.ok(),
            repository,
        };
        reader.open().await?;
        Ok(reader)
    }

    /// What a digest is in the repository of a name: a blob, or else a manifest.
    ///
    /// # Errors
    /// [`RegistryError::BlobNotFound`] if no endpoint has it.
    pub async fn find_blob(
        &self,
        reference: &Reference,
        digest: Digest,
    ) -> Result<Descriptor, RegistryError> {
        let repository = self.repository(reference).await;
        let mut first: Option<RegistryError> = None;
        for (index, endpoint) in repository.endpoints.iter().enumerate() {
            let last = index + 1 == repository.endpoints.len();
            let scopes = Scopes::pull(&repository.path);
            let call = Call::new(Method::HEAD, format!("blobs/{digest}"), scopes);
            let found = match self.execute(&repository, endpoint, &call, last).await {
                Ok(response) => expect_success(&Method::HEAD, response).await,
                Err(error) => Err(error),
            };
            match found.map(|response| header_size(response.headers())) {
                Ok(Some(size)) => {
                    return Ok(Descriptor::new(OCTET_STREAM, digest, size));
                }
                Ok(None) => {}
                Err(error) => {
                    first.get_or_insert(denied(error));
                }
            }
        }
        match first {
            Some(error) if !error.is_not_found() => Err(error),
            _ => match self.resolve(&reference.clone().with_digest(digest)).await {
                Err(error) if error.is_not_found() => Err(RegistryError::BlobNotFound {
                    digest,
                    media_type: String::new(),
                }),
                found => found,
            },
        }
    }

    /// A whole blob in memory, for configurations and the like.
    pub async fn fetch_small_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        if descriptor.size > crate::manifest::MANIFEST_SIZE_MAX {
            return Err(RegistryError::ManifestTooLarge {
                name: descriptor.digest.to_string(),
                size: descriptor.size,
            });
        }
        let mut reader = self.fetch_blob(reference, descriptor, 0).await?;
        let mut bytes = Vec::with_capacity(descriptor.size as usize);
        while let Some(chunk) = reader.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }
}

impl BlobReader {
    /// Bytes read so far, counted from the start of the blob.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Leaves it to the caller to compare the digest of what comes.
    pub fn leave_digest(&mut self) {
        self.hasher = None;
    }

    /// The next piece, `None` at the end.
    ///
    /// # Errors
    /// [`RegistryError::Interrupted`] after several fruitless connections,
    /// [`RegistryError::DigestMismatch`] and [`RegistryError::SizeMismatch`] if it is not the
    /// content that was asked for. After an error there is nothing more.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.done {
                return Ok(None);
            }
            let Some(response) = &mut self.response else {
                self.open().await?;
                continue;
            };
            let cause = match tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    let pulled = &self.client.counters().pulled_bytes;
                    pulled.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    match self.take(chunk)? {
                        Some(chunk) => return Ok(Some(chunk)),
                        None => continue,
                    }
                }
                Ok(Ok(None)) if self.position == self.descriptor.size => {
                    // Only empty blobs end here: others are done with their last piece.
                    self.finish()?;
                    continue;
                }
                Ok(Ok(None)) => format!(
                    "unexpected EOF after {} of {} bytes",
                    self.position, self.descriptor.size
                ),
                Ok(Err(error)) => innermost(&error),
                Err(_) => format!("no data for {} s", SILENCE_MAX.as_secs()),
            };
            self.response = None;
            self.failures += 1;
            tracing::info!(digest = %self.descriptor.digest, at = self.position, cause, "download interrupted");
            match self.client.retry().wait(self.failures, None) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => {
                    self.done = true;
                    return Err(RegistryError::Interrupted {
                        what: self.descriptor.digest.to_string(),
                        cause,
                    });
                }
            }
        }
    }

    /// Accounts for a piece; `None` if we have it already.
    fn take(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, RegistryError> {
        if self.skip > 0 {
            let known = self.skip.min(chunk.len() as u64);
            self.skip -= known;
            chunk = chunk.slice(known as usize..);
        }
        if chunk.is_empty() {
            return Ok(None);
        }
        self.failures = 0;
        self.position += chunk.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&chunk);
        }
        if self.position > self.descriptor.size {
            self.done = true;
            return Err(RegistryError::SizeMismatch {
                expected: self.descriptor.size,
                actual: self.position,
            });
        }
        if self.position == self.descriptor.size {
            self.finish()?;
        }
        Ok(Some(chunk))
    }

    fn finish(&mut self) -> Result<(), RegistryError> {
        self.done = true;
        self.response = None;
        let Some(hasher) = self.hasher.take() else {
            return Ok(());
        };
        let actual = hasher.finish();
        if actual != self.descriptor.digest {
            return Err(RegistryError::DigestMismatch {
                expected: self.descriptor.digest,
                actual,
            });
        }
        Ok(())
    }

    /// Connects to whoever has the blob, at the present position.
    async fn open(&mut self) -> Result<(), RegistryError> {
        if self.position == self.descriptor.size && self.position > 0 {
            self.done = true;
            return Ok(());
        }
        let endpoints = self.repository.endpoints.clone();
        let mut first: Option<RegistryError> = None;
        for (endpoint, target, last) in self.targets(&endpoints) {
            let mut call = Call::new(
                Method::GET,
                String::new(),
                Scopes::pull(&self.repository.path),
            );
            call.target = target;
            call.headers
                .insert(ACCEPT, accept(&self.descriptor.media_type));
            if self.position > 0 {
                let range = format!("bytes={}-", self.position);
                if let Ok(value) = HeaderValue::from_str(&range) {
                    call.headers.insert(RANGE, value);
                }
            }
            let result = match self
                .client
                .execute(&self.repository, endpoint, &call, last)
                .await
            {
                Ok(response) => expect_success(&Method::GET, response).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(response) => return self.accept(response),
                Err(error) => {
                    first.get_or_insert(denied(error));
                }
            }
        }
        Err(match first {
            Some(error) if !error.is_not_found() => error,
            _ => RegistryError::BlobNotFound {
                digest: self.descriptor.digest,
                media_type: self.descriptor.media_type.clone(),
            },
        })
    }

    /// Everywhere the blob may be: URLs of its descriptor (foreign layers), then the endpoints.
    fn targets<'a>(&self, endpoints: &'a [Endpoint]) -> Vec<(&'a Endpoint, Target, bool)> {
        let kind = match &self.descriptor.media_type {
            name if media_type::is_index(name) || media_type::is_manifest(name) => "manifests",
            _ => "blobs",
        };
        let foreign = self.descriptor.urls.iter().filter_map(|text| {
            let url = Url::parse(text).ok()?;
            let target = Target::Url {
                url,
                authorize: false,
            };
            Some((endpoints.last()?, target, false))
        });
        let count = endpoints.len();
        let own = endpoints.iter().enumerate().map(|(index, endpoint)| {
            let target = Target::Repository(format!("{kind}/{}", self.descriptor.digest));
            (endpoint, target, index + 1 == count)
        });
        foreign.chain(own).collect()
    }

    fn accept(&mut self, response: Response) -> Result<(), RegistryError> {
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => range_start(&response).unwrap_or(self.position),
            // The server does not know ranges and sends everything.
            _ => 0,
        };
        if start > self.position {
            return Err(RegistryError::BadResponse {
                url: response.url().to_string(),
                reason: format!("asked for byte {}, got {start}", self.position),
            });
        }
        self.skip = self.position - start;
        self.response = Some(response);
        Ok(())
    }
}

/// The first byte of `Content-Range: bytes 5-9/10`.
fn range_start(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
