//! Where images come from: registries, and OCI layouts that clients serve.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use diag::Result;
use futures::StreamExt;
use oci::Digest;
use session::{RemoteContent, Session};
use source::image::{BlobStream, ContentProvider};
use source::oci_layout::{BlobStore, OciLayout};

/// Images of registries.
pub fn registry_provider(client: registry::Client) -> Arc<dyn ContentProvider> {
    Arc::new(client)
}

/// Images of an OCI layout that a client offers under that name.
pub fn layout_provider(session: &Session, store: &str) -> Result<Arc<dyn ContentProvider>> {
    let content = session.content_store(&format!("oci:{store}"))?;
    Ok(Arc::new(OciLayout::new(Arc::new(ClientBlobs(content)))))
}

/// The blobs of a client's content store.
struct ClientBlobs(RemoteContent);

#[async_trait]
impl BlobStore for ClientBlobs {
    async fn size(&self, digest: Digest) -> Result<Option<u64>> {
        Ok(self.0.size(&digest).await?)
    }

    async fn open(&self, digest: Digest) -> Result<Box<dyn BlobStream>> {
        let stream = self.0.stream(&digest, 0, None).await?;
        Ok(Box::new(ClientBlob(stream.boxed())))
    }
}

struct ClientBlob(futures::stream::BoxStream<'static, std::io::Result<Bytes>>);

#[async_trait]
impl BlobStream for ClientBlob {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.next().await.transpose()?)
    }
}
