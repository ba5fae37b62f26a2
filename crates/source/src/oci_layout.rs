//! OCI layouts as providers of images: those that a client serves from its machine, and folders here.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use diag::{Context, Error, Result};
use oci::{Descriptor, Digest, DigestHasher, Reference};
use tokio::io::AsyncReadExt;

use crate::image::{BlobStream, ContentProvider};
use crate::resolve::detect;

/// Bytes of a manifest or configuration at most.
const SMALL_SIZE_MAX: u64 = 8 * 1024 * 1024;

/// Blobs by digest, such as a client's content store.
#[async_trait]
pub trait BlobStore: Send + Sync {
    /// Size of a blob in bytes; `None` if it is not there.
    async fn size(&self, digest: Digest) -> Result<Option<u64>>;

    /// A blob from its beginning; it need not be verified.
    async fn open(&self, digest: Digest) -> Result<Box<dyn BlobStream>>;
}

/// Serves images from a blob store. Names must have a digest: layouts are asked for contents, their
/// tags were looked up by the client.
#[derive(Clone)]
pub struct OciLayout(Arc<dyn BlobStore>);

impl OciLayout {
    /// Images whose contents are in this store.
    pub fn new(store: Arc<dyn BlobStore>) -> Self {
        OciLayout(store)
    }
}

#[async_trait]
impl ContentProvider for OciLayout {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        let Some(digest) = reference.digest() else {
            return Err(Error::invalid(format!(
                "reference \"{reference}\" must have digest"
            )));
        };
        let size = self.0.size(digest).await;
        let size = size.context("unable to get info about digest")?;
        let size = size.ok_or_else(|| missing(digest))?;
        let unknown = Descriptor::new("", digest, size);
        let bytes = self
            .small(reference, &unknown)
            .await
            .context("unable to get root manifest")?;
        let media_type = detect(&bytes).ok_or_else(|| {
            Error::invalid(format!(
                "reference \"{reference}\" contains neither an index nor a manifest"
            ))
        })?;
        Ok(Descriptor::new(media_type, digest, size))
    }

    async fn small(&self, reference: &Reference, descriptor: &Descriptor) -> Result<Bytes> {
        if descriptor.size > SMALL_SIZE_MAX {
            let text = format!("{} has {} bytes", descriptor.digest, descriptor.size);
            return Err(Error::new(diag::Code::ResourceExhausted, text));
        }
        let mut blob = self.blob(reference, descriptor).await?;
        let mut bytes = BytesMut::new();
        while let Some(chunk) = blob.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    async fn blob(
        &self,
        _reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Box<dyn BlobStream>> {
        Ok(Box::new(Verified {
            inner: self.0.open(descriptor.digest).await?,
            descriptor: descriptor.clone(),
            received: 0,
            hasher: Some(DigestHasher::new()),
        }))
    }

    async fn find(&self, _reference: &Reference, digest: Digest) -> Result<Descriptor> {
        let size = self.0.size(digest).await?.ok_or_else(|| missing(digest))?;
        Ok(Descriptor::new("", digest, size))
    }
}

/// Passes a blob on and checks it.
struct Verified {
    inner: Box<dyn BlobStream>,
    descriptor: Descriptor,
    received: u64,
    hasher: Option<DigestHasher>,
}

#[async_trait]
impl BlobStream for Verified {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let chunk = self.inner.chunk().await?;
        let wrong = |text: String| Error::new(diag::Code::DataLoss, text);
        if let Some(chunk) = &chunk {
            self.received += chunk.len() as u64;
            if let Some(hasher) = &mut self.hasher {
                hasher.update(chunk);
            }
        }
        let ended = chunk.is_none();
        let (expected, received) = (self.descriptor.size, self.received);
        if received > expected || (ended && received != expected) {
            return Err(wrong(format!(
                "unexpected commit size {received}, expected {expected}: failed precondition"
            )));
        }
        if received == expected
            && let Some(hasher) = self.hasher.take()
        {
            let actual = hasher.finish();
            if actual != self.descriptor.digest {
                return Err(wrong(format!(
                    "unexpected commit digest {actual}, expected {}: failed precondition",
                    self.descriptor.digest
                )));
            }
        }
        Ok(chunk)
    }

    fn leave_digest(&mut self) {
        self.hasher = None;
    }
}

/// A layout in a folder of this machine.
#[derive(Clone, Debug)]
pub struct LayoutDir(PathBuf);

impl LayoutDir {
    /// The folder with `blobs/sha256`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        LayoutDir(path.into())
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.0.join("blobs/sha256").join(digest.hex())
    }
}

#[async_trait]
impl BlobStore for LayoutDir {
    async fn size(&self, digest: Digest) -> Result<Option<u64>> {
        match tokio::fs::metadata(self.path(digest)).await {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn open(&self, digest: Digest) -> Result<Box<dyn BlobStream>> {
        match tokio::fs::File::open(self.path(digest)).await {
            Ok(file) => Ok(Box::new(FileStream(file))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(missing(digest)),
            Err(error) => Err(error.into()),
        }
    }
}

struct FileStream(tokio::fs::File);

#[async_trait]
impl BlobStream for FileStream {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let mut piece = BytesMut::with_capacity(256 * 1024);
        let count = self.0.read_buf(&mut piece).await?;
        Ok((count > 0).then(|| piece.freeze()))
    }
}

fn missing(digest: Digest) -> Error {
    Error::not_found(format!("content {digest}: not found"))
}
