//! Content stores of the client, such as an OCI layout given as a build context or exported into.

use std::io::{self, SeekFrom};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use oci::Digest;
use proto::content::{
    ContentClient, InfoRequest, ReadContentRequest, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming};

use crate::codec::MESSAGE_BYTES_MAX;
use crate::connection::Connection;
use crate::error::SessionError;
use crate::headers::append;
use crate::manager::Session;

const STORE_ID: &str = "buildkit-attachable-store-id";
const READ: &str = "/containerd.services.content.v1.Content/Read";
const WRITE: &str = "/containerd.services.content.v1.Content/Write";
/// The store that takes what is exported as content.
pub const EXPORT_STORE: &str = "export";
/// Bytes of a blob in one message when it is written.
const WRITE_BYTES: usize = 1 << 20;
/// Messages of a write that wait to be sent.
const QUEUED_WRITES: usize = 4;
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

    /// Writes a blob of that size, read from a file, unless it is there already.
    ///
    /// # Errors
    /// Clients whose store is only for reading; what the client says of a blob that is not what its
    /// digest says.
    pub async fn write(
        &self,
        digest: &Digest,
        size: u64,
        file: std::fs::File,
    ) -> Result<(), SessionError> {
        self.session.require(
            WRITE,
            &format!("method {WRITE} not supported by the client"),
        )?;
        let (sender, messages) = mpsc::channel(QUEUED_WRITES);
        let message = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: format!("export-{digest}"),
            total: size as i64,
            expected: digest.to_string(),
            ..WriteContentRequest::default()
        };
        let _ = sender.send(message.clone()).await;
        let request = self.request(ReceiverStream::new(messages))?;
        let opening = async {
            let mut answers = self.client().write(request).await?.into_inner();
            let first = answers.message().await?;
            let first = first.ok_or_else(|| tonic::Status::unknown("no answer to a write"))?;
            Ok(tonic::Response::new((answers, first)))
        };
        let (answers, first) = match self.session.within(opening).await {
            Ok(opened) => opened,
            Err(error) => {
                let there = self.session.none_if::<()>(error, &[Code::AlreadyExists]);
                return there.map(|_| ());
            }
        };
        let sending = async {
            match send(file, first.offset.max(0) as u64, message, sender).await {
                Ok(()) => std::future::pending().await,
                Err(error) => SessionError::from(error),
            }
        };
        tokio::select! {
            committed = until_committed(answers) => {
                committed.map_err(|status| self.session.failure(status))
            }
            error = sending => Err(error),
        }
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

/// Sends a blob from an offset on, where an earlier attempt had ended, and has it committed.
async fn send(
    file: std::fs::File,
    mut offset: u64,
    message: WriteContentRequest,
    sender: mpsc::Sender<WriteContentRequest>,
) -> io::Result<()> {
    let mut file = tokio::fs::File::from_std(file);
    file.set_max_buf_size(WRITE_BYTES);
    file.seek(SeekFrom::Start(offset)).await?;
    loop {
        let mut data = Vec::with_capacity(WRITE_BYTES);
        (&mut file)
            .take(WRITE_BYTES as u64)
            .read_to_end(&mut data)
            .await?;
        let action = match data.is_empty() {
            true => WriteAction::Commit,
            false => WriteAction::Write,
        };
        let length = data.len() as u64;
        let piece = WriteContentRequest {
            action: action.into(),
            offset: offset as i64,
            data,
            ..message.clone()
        };
        // Who no longer listens has said why.
        if sender.send(piece).await.is_err() || action == WriteAction::Commit {
            return Ok(());
        }
        offset += length;
    }
}

async fn until_committed(
    mut answers: Streaming<WriteContentResponse>,
) -> Result<(), tonic::Status> {
    while let Some(answer) = answers.message().await? {
        if answer.action == i32::from(WriteAction::Commit) {
            return Ok(());
        }
    }
    Err(tonic::Status::unknown("a write ended without its commit"))
}
