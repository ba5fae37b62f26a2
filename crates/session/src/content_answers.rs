//! How containerd's content service answers for a blob in a file. Which blob that is, and who may have
//! it, is the service's own matter: the client's of its layouts, the server's of its store.

use std::fs::Metadata;
use std::io::SeekFrom;

use futures::StreamExt;
use proto::content::{Info, InfoResponse, ReadContentResponse};
use proto::grpc::Answers;
use proto::prost_types;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tonic::Status;

/// Bytes of a blob that travel in one message.
const CHUNK_BYTES: usize = 512 << 10;

/// What is told of the blob of that digest.
pub fn blob_info(digest: String, found: &Metadata) -> InfoResponse {
    let time = found.modified().ok().map(prost_types::Timestamp::from);
    let info = Info {
        digest,
        size: found.len() as i64,
        created_at: time,
        updated_at: time,
        ..Info::default()
    };
    InfoResponse { info: Some(info) }
}

/// The bytes of a blob from `offset` on: `size` of them, or all if that is not positive.
///
/// # Errors
/// `OutOfRange` for an offset past the end; those of the file.
pub async fn read_blob(
    mut file: File,
    offset: u64,
    size: i64,
) -> Result<Answers<ReadContentResponse>, Status> {
    let length = file.metadata().await?.len();
    if offset > length {
        return Err(Status::out_of_range(format!(
            "read past object length {length} bytes"
        )));
    }
    let rest = length - offset;
    let wanted = match u64::try_from(size) {
        Ok(size) if size > 0 => rest.min(size),
        _ => rest,
    };
    file.seek(SeekFrom::Start(offset)).await?;
    let stream = tokio_util::io::ReaderStream::with_capacity(file.take(wanted), CHUNK_BYTES);
    let answers = stream.scan(offset as i64, |offset, data| {
        let answer = data.map_err(Status::from).map(|data| ReadContentResponse {
            offset: *offset,
            data: data.into(),
        });
        *offset += answer.as_ref().map_or(0, |answer| answer.data.len() as i64);
        std::future::ready(Some(answer))
    });
    Ok(answers.boxed())
}
