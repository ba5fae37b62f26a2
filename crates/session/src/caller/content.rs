//! Content stores of the client, such as an OCI layout given as a build context.

use std::io;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use oci::Digest;
use proto::content::content_client::ContentClient;
use proto::content::{InfoRequest, ReadContentRequest};
use tokio::io::AsyncRead;
use tonic::{Code, Request};

use crate::codec::MESSAGE_BYTES_MAX;
use crate::connection::Connection;
use crate::error::SessionError;
use crate::headers::append;
use crate::manager::Session;

const STORE_ID: &str = "buildkit-attachable-store-id";
const READ: &str = "/containerd.services.content.v1.Content/Read";
/// The largest blob read into memory.
const SMALL_BLOB_BYTES_MAX: u64 = 32 << 20;

/// A content store of the client; blobs are not verified here.
#[derive(Clone, Debug)]
pub struct RemoteContent {
    session: Session,
    id: String,
}

impl Session {
    /// The client's content store of that id.
    pub fn content_store(&self, id: &str) -> Result<RemoteContent, SessionError> {
        self.require(READ, &format!("method {READ} not supported by the client"))?;
        Ok(RemoteContent {
            session: self.clone(),
            id: id.to_owned(),
        })
    }
}

impl RemoteContent {
    /// The size of a blob in bytes; nothing when it is not there.
    pub async fn size(&self, digest: &Digest) -> Result<Option<u64>, SessionError> {
        let request = self.request(InfoRequest {
            digest: digest.to_string(),
        })?;
        match self.session.within(self.client().info(request)).await {
            Ok(answer) => Ok(answer.info.map(|info| info.size.max(0) as u64)),
            Err(error) => self.session.none_if(error, &[Code::NotFound]),
        }
    }

    /// A blob from an offset on, to its end or for a number of bytes.
    pub async fn stream(
        &self,
        digest: &Digest,
        offset: u64,
        len: Option<u64>,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + Unpin + use<>, SessionError> {
        let request = self.request(ReadContentRequest {
            digest: digest.to_string(),
            offset: offset as i64,
            size: len.unwrap_or(0) as i64,
        })?;
        let answers = self.session.within(self.client().read(request)).await?;
        Ok(answers.map(|answer| match answer {
            Ok(answer) => Ok(Bytes::from(answer.data)),
            Err(status) => Err(io::Error::other(status)),
        }))
    }

    /// The same as a reader.
    pub async fn reader(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<impl AsyncRead + Send + Unpin + use<>, SessionError> {
        let stream = self.stream(digest, offset, None).await?;
        Ok(tokio_util::io::StreamReader::new(stream))
    }

    /// A small blob, such as a manifest.
    pub async fn read(&self, digest: &Digest) -> Result<Vec<u8>, SessionError> {
        let mut stream = self.stream(digest, 0, None).await?;
        let mut blob = Vec::new();
        while let Some(bytes) = stream.next().await {
            blob.extend_from_slice(&bytes?);
            if blob.len() as u64 > SMALL_BLOB_BYTES_MAX {
                return Err(SessionError::Limit(format!(
                    "blob {digest} is larger than {SMALL_BLOB_BYTES_MAX} bytes"
                )));
            }
        }
        Ok(blob)
    }

    fn client(&self) -> ContentClient<Connection> {
        ContentClient::with_origin(self.session.connection(), Connection::origin())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, SessionError> {
        let mut request = Request::new(message);
        append(request.metadata_mut(), STORE_ID, &self.id)?;
        Ok(request)
    }
}
