//! OCI layout directories the server may read blobs of, or write blobs into.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use oci::Digest;
use proto::content::{
    Content, ContentServer, InfoRequest, InfoResponse, ReadContentRequest, ReadContentResponse,
    WriteContentRequest, WriteContentResponse,
};
use proto::grpc::Answers;
use tokio::sync::OnceCell;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::ingest;
use crate::content_answers::{blob_info, read_blob};
use crate::headers::first;

/// Brings the blobs of a store that are not there yet; called at most once.
pub type FillStore = Arc<dyn Fn() -> BoxFuture<'static, std::io::Result<()>> + Send + Sync>;

/// A directory of blobs.
#[derive(Clone)]
pub struct Store {
    directory: PathBuf,
    writable: bool,
    fill: Option<(FillStore, Arc<OnceCell<()>>)>,
}

impl Store {
    /// One that is only read.
    pub fn to_read(directory: PathBuf) -> Self {
        Store {
            directory,
            writable: false,
            fill: None,
        }
    }

    /// The same; when a blob is missed, more of them are brought.
    pub fn to_fill(directory: PathBuf, fill: FillStore) -> Self {
        Store {
            fill: Some((fill, Arc::default())),
            ..Self::to_read(directory)
        }
    }

    /// The open blob. A missing one may come by filling the store.
    async fn open(&self, digest: &Digest) -> std::io::Result<tokio::fs::File> {
        let path = blob_path(&self.directory, digest);
        match (tokio::fs::File::open(&path).await, &self.fill) {
            (Err(error), Some((fill, filled))) if error.kind() == ErrorKind::NotFound => {
                filled.get_or_try_init(|| fill()).await?;
                tokio::fs::File::open(&path).await
            }
            (opened, _) => opened,
        }
    }

    /// One that also takes blobs.
    pub fn to_write(directory: PathBuf) -> Self {
        Store {
            writable: true,
            ..Self::to_read(directory)
        }
    }
}

pub struct ContentService {
    stores: BTreeMap<String, Store>,
}

impl ContentService {
    pub const METHODS: [&'static str; 9] = [
        "/containerd.services.content.v1.Content/Abort",
        "/containerd.services.content.v1.Content/Delete",
        "/containerd.services.content.v1.Content/Info",
        "/containerd.services.content.v1.Content/List",
        "/containerd.services.content.v1.Content/ListStatuses",
        "/containerd.services.content.v1.Content/Read",
        "/containerd.services.content.v1.Content/Status",
        "/containerd.services.content.v1.Content/Update",
        "/containerd.services.content.v1.Content/Write",
    ];

    pub fn server(stores: BTreeMap<String, Store>) -> ContentServer<Self> {
        ContentServer::new(ContentService { stores })
    }

    /// The store that a call names.
    fn store(&self, metadata: &MetadataMap) -> Result<&Store, Status> {
        let id = first(metadata, "buildkit-attachable-store-id");
        if id.is_empty() {
            return Err(Status::invalid_argument(
                "request lacks metadata \"buildkit-attachable-store-id\"",
            ));
        }
        let store = self.stores.get(&id);
        store.ok_or_else(|| Status::not_found(format!("unknown store {id}")))
    }

    /// The open blob and its size.
    async fn open(
        &self,
        metadata: &MetadataMap,
        digest: &str,
    ) -> Result<(tokio::fs::File, std::fs::Metadata), Status> {
        let store = self.store(metadata)?;
        let parsed: Digest = digest
            .parse()
            .map_err(|error| Status::invalid_argument(format!("{digest:?}: {error}")))?;
        let missing = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => Status::not_found(format!("content {digest}: not found")),
            _ => Status::from(error),
        };
        let file = store.open(&parsed).await.map_err(missing)?;
        let found = file.metadata().await.map_err(missing)?;
        Ok((file, found))
    }
}

#[async_trait::async_trait]
impl Content for ContentService {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let (_, found) = self.open(&metadata, &request.digest).await?;
        Ok(Response::new(blob_info(request.digest, &found)))
    }

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Answers<ReadContentResponse>>, Status> {
        let (metadata, _, request) = request.into_parts();
        let (file, _) = self.open(&metadata, &request.digest).await?;
        let offset = request.offset.max(0) as u64;
        Ok(Response::new(read_blob(file, offset, request.size).await?))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Answers<WriteContentResponse>>, Status> {
        let (metadata, _, messages) = request.into_parts();
        let store = self.store(&metadata)?;
        if !store.writable {
            return Err(Status::failed_precondition("the store is only for reading"));
        }
        let answers = ingest::take(store.directory.clone(), messages).await?;
        Ok(Response::new(answers))
    }
}

/// Where a blob is.
pub(super) fn blob_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join("blobs/sha256").join(digest.hex())
}
