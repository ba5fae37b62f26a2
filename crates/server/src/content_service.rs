//! The content store as clients may read it: containerd's content service on the control socket.
//!
//! Clients read with it what builds leave in the store: the image that an exporter announces, in
//! order to take of it only what they lack. Nothing can be written or listed.

use content::ContentStore;
use futures::StreamExt;
use oci::Digest;
use ops::work::blocking;
use proto::content::content_server::{Answers, Content, ContentServer};
use proto::content::{Info, InfoRequest, InfoResponse, ReadContentRequest, ReadContentResponse};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tonic::{Request, Response, Status};

use crate::errors::to_status;

/// Bytes of a blob that travel in one message.
const CHUNK_BYTES: usize = 512 << 10;

/// The service.
pub struct ContentService(ContentStore);

impl ContentService {
    /// The service over a store.
    pub fn server(store: ContentStore) -> ContentServer<Self> {
        ContentServer::new(ContentService(store))
    }

    async fn open(&self, digest: &str) -> Result<(tokio::fs::File, std::fs::Metadata), Status> {
        let parsed: Digest = digest
            .parse()
            .map_err(|error| Status::invalid_argument(format!("{digest:?}: {error}")))?;
        if self.0.size(&parsed).is_none() {
            return Err(Status::not_found(format!("content {digest}: not found")));
        }
        let store = self.0.clone();
        let opened = blocking(move || {
            let file = store.open_blob(&parsed)?;
            let metadata = file.metadata()?;
            Ok((tokio::fs::File::from_std(file), metadata))
        });
        opened.await.map_err(|error| to_status(&error))
    }
}

#[tonic::async_trait]
impl Content for ContentService {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let digest = request.into_inner().digest;
        let (_, metadata) = self.open(&digest).await?;
        let time = metadata.modified().ok().map(prost_types::Timestamp::from);
        let info = Info {
            digest,
            size: metadata.len() as i64,
            created_at: time,
            updated_at: time,
            ..Info::default()
        };
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Answers<ReadContentResponse>>, Status> {
        let request = request.into_inner();
        let (mut file, metadata) = self.open(&request.digest).await?;
        let offset = request.offset.max(0) as u64;
        let rest = metadata.len().checked_sub(offset).ok_or_else(|| {
            Status::out_of_range(format!("read past object length {} bytes", metadata.len()))
        })?;
        let length = match request.size {
            size if size > 0 => rest.min(size as u64),
            _ => rest,
        };
        file.set_max_buf_size(CHUNK_BYTES);
        file.seek(std::io::SeekFrom::Start(offset)).await?;
        let pieces = tokio_util::io::ReaderStream::with_capacity(file.take(length), CHUNK_BYTES);
        let answers = pieces.scan(offset as i64, |offset, data| {
            let answer = data.map_err(Status::from).map(|data| ReadContentResponse {
                offset: *offset,
                data: data.into(),
            });
            *offset += answer.as_ref().map_or(0, |answer| answer.data.len() as i64);
            std::future::ready(Some(answer))
        });
        Ok(Response::new(answers.boxed()))
    }
}
