//! containerd's content service over the server's blobs, to be read only: clients take from it what
//! build records name (`history inspect attachment`, `history export`).

use content::{BlobInfo, ContentStore};
use futures::StreamExt;
use oci::Digest;
use ops::work::blocking;
use proto::content::{
    Content, Info, InfoRequest, InfoResponse, ListContentRequest, ListContentResponse,
    ReadContentRequest, ReadContentResponse,
};
use proto::grpc::Answers;
use proto::prost_types;
use session::{blob_info, read_blob};
use tonic::{Request, Response, Status};

use crate::errors::to_status;
use crate::filters::Filters;

/// Blobs listed in one message.
const LIST_CHUNK: usize = 128;

/// The service.
pub(crate) struct ContentService(pub(crate) ContentStore);

#[tonic::async_trait]
impl Content for ContentService {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let text = request.into_inner().digest;
        let digest = parse(&text)?;
        let file = self.open(digest).await?;
        let found = file.metadata().await?;
        Ok(Response::new(blob_info(text, &found)))
    }

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Answers<ReadContentResponse>>, Status> {
        let request = request.into_inner();
        let file = self.open(parse(&request.digest)?).await?;
        let offset = u64::try_from(request.offset)
            .map_err(|_| Status::invalid_argument("negative offset"))?;
        Ok(Response::new(read_blob(file, offset, request.size).await?))
    }

    async fn list(
        &self,
        request: Request<ListContentRequest>,
    ) -> Result<Response<Answers<ListContentResponse>>, Status> {
        let (content, filters) = (self.0.clone(), request.into_inner().filters);
        let blobs = blocking(move || {
            let filters = Filters::parse(&filters)?;
            let mut blobs = content.list()?;
            blobs.retain(|blob| {
                filters.matches(|path| match path {
                    ["digest"] => Some(blob.digest.to_string()),
                    ["size"] => Some(blob.size.to_string()),
                    _ => None,
                })
            });
            Ok(blobs)
        });
        let blobs = blobs.await.map_err(|error| to_status(&error))?;
        let messages: Vec<_> = blobs
            .chunks(LIST_CHUNK)
            .map(|chunk| {
                Ok(ListContentResponse {
                    info: chunk.iter().map(info).collect(),
                })
            })
            .collect();
        Ok(Response::new(futures::stream::iter(messages).boxed()))
    }
}

impl ContentService {
    async fn open(&self, digest: Digest) -> Result<tokio::fs::File, Status> {
        let content = self.0.clone();
        let file = blocking(move || Ok(content.open_blob(&digest)));
        match file.await.map_err(|error| to_status(&error))? {
            Ok(file) => Ok(file.into()),
            // In containerd's words, which clients know it by.
            Err(content::ContentError::NotFound(digest)) => {
                Err(Status::not_found(format!("content {digest}: not found")))
            }
            Err(error) => Err(to_status(&error.into())),
        }
    }
}

fn parse(digest: &str) -> Result<Digest, Status> {
    digest
        .parse()
        .map_err(|error| Status::invalid_argument(format!("{digest:?}: {error}")))
}

fn info(blob: &BlobInfo) -> Info {
    let time = prost_types::Timestamp {
        seconds: blob.created.as_second(),
        nanos: blob.created.subsec_nanosecond(),
    };
    Info {
        digest: blob.digest.to_string(),
        size: blob.size as i64,
        created_at: Some(time),
        updated_at: Some(time),
        ..Info::default()
    }
}
