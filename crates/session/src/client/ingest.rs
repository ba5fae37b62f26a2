//! One blob on its way into a directory: `Write` of containerd's content service.
//!
//! A blob appears under its name only when it is whole and has the digest that was expected. What is
//! half made lies in `ingest/` and goes when the call ends.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use futures::{Stream, StreamExt};
use oci::{Digest, DigestHasher};
use proto::content::{WriteAction, WriteContentRequest, WriteContentResponse};
use proto::grpc::Answers;
use tempfile::TempPath;
use tokio::io::AsyncWriteExt;
use tonic::Status;

use super::content::blob_path;

/// Takes the blob that the messages carry; the first says which it is.
///
/// # Errors
/// `AlreadyExists` when the blob is there.
pub(super) async fn take<S>(
    directory: PathBuf,
    mut messages: S,
) -> Result<Answers<WriteContentResponse>, Status>
where
    S: Stream<Item = Result<WriteContentRequest, Status>> + Send + Unpin + 'static,
{
    let first = messages
        .next()
        .await
        .ok_or_else(|| Status::invalid_argument("write without a message"))??;
    if first.r#ref.is_empty() {
        return Err(Status::invalid_argument(
            "first message must have a reference",
        ));
    }
    let ingest = Ingest::start(directory, &first).await?;
    let pending = futures::stream::once(std::future::ready(Ok(first))).chain(messages);
    let answers =
        futures::stream::try_unfold((ingest, pending), |(mut ingest, mut pending)| async {
            let Some(message) = pending.next().await else {
                return Ok(None);
            };
            let answer = ingest.answer(message?).await?;
            Ok(Some((answer, (ingest, pending))))
        });
    Ok(answers.boxed())
}

/// A blob while it is written.
struct Ingest {
    directory: PathBuf,
    /// The file until it has its name.
    file: Option<(tokio::fs::File, TempPath)>,
    hasher: DigestHasher,
    offset: u64,
    /// Its length, once somebody said it.
    total: Option<u64>,
    expected: Option<Digest>,
    started: prost_types::Timestamp,
}

impl Ingest {
    async fn start(directory: PathBuf, first: &WriteContentRequest) -> Result<Self, Status> {
        let expected = expected_digest(first)?;
        let target = directory.clone();
        let opening = tokio::task::spawn_blocking(move || {
            if let Some(digest) = expected
                && blob_path(&target, &digest).exists()
            {
                return Err(Status::already_exists(format!(
                    "content {digest}: already exists"
                )));
            }
            let ingest = target.join("ingest");
            std::fs::create_dir_all(&ingest)?;
            std::fs::create_dir_all(target.join("blobs/sha256"))?;
            let file = tempfile::Builder::new()
                .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o444))
                .tempfile_in(&ingest)?;
            let (file, path) = file.into_parts();
            Ok((tokio::fs::File::from_std(file), path))
        });
        let opened = opening
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Ingest {
            directory,
            file: Some(opened?),
            hasher: DigestHasher::new(),
            offset: 0,
            total: length(first.total)?,
            expected,
            started: std::time::SystemTime::now().into(),
        })
    }

    async fn answer(
        &mut self,
        message: WriteContentRequest,
    ) -> Result<WriteContentResponse, Status> {
        let action = WriteAction::try_from(message.action)
            .map_err(|_| Status::invalid_argument(format!("unknown action {}", message.action)))?;
        if let Some(total) = length(message.total)? {
            if self.total.is_some_and(|known| known != total) {
                return Err(Status::invalid_argument("the length of the blob changed"));
            }
            self.total = Some(total);
        }
        if let Some(digest) = expected_digest(&message)? {
            if self.expected.is_some_and(|known| known != digest) {
                return Err(Status::invalid_argument("the digest of the blob changed"));
            }
            self.expected = Some(digest);
        }
        if action != WriteAction::Stat {
            self.write(&message).await?;
        }
        let mut digest = String::new();
        if action == WriteAction::Commit {
            digest = self.commit().await?.to_string();
        }
        Ok(WriteContentResponse {
            action: action.into(),
            started_at: Some(self.started),
            updated_at: Some(std::time::SystemTime::now().into()),
            offset: self.offset as i64,
            total: self.total.unwrap_or(0) as i64,
            digest,
        })
    }

    async fn write(&mut self, message: &WriteContentRequest) -> Result<(), Status> {
        if message.data.is_empty() {
            return Ok(());
        }
        if message.offset as u64 != self.offset {
            return Err(Status::out_of_range(format!(
                "write at {} where {} is expected",
                message.offset, self.offset
            )));
        }
        let (file, _) = self.file.as_mut().ok_or_else(committed)?;
        file.write_all(&message.data).await?;
        self.hasher.update(&message.data);
        self.offset += message.data.len() as u64;
        Ok(())
    }

    async fn commit(&mut self) -> Result<Digest, Status> {
        let (mut file, temporary) = self.file.take().ok_or_else(committed)?;
        let digest = std::mem::take(&mut self.hasher).finish();
        if let Some(total) = self.total.filter(|total| *total != self.offset) {
            return Err(Status::failed_precondition(format!(
                "unexpected commit size {}, expected {total}",
                self.offset
            )));
        }
        if let Some(expected) = self.expected.filter(|expected| *expected != digest) {
            return Err(Status::failed_precondition(format!(
                "unexpected commit digest {digest}, expected {expected}"
            )));
        }
        file.flush().await?;
        let path = blob_path(&self.directory, &digest);
        let ingest = self.directory.join("ingest");
        let naming = tokio::task::spawn_blocking(move || -> io::Result<()> {
            temporary.persist(&path).map_err(|error| error.error)?;
            // Others may be at work there.
            match std::fs::remove_dir(&ingest) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound
                    ) =>
                {
                    Err(error)
                }
                _ => Ok(()),
            }
        });
        let named = naming
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        named?;
        Ok(digest)
    }
}

fn committed() -> Status {
    Status::failed_precondition("the blob is committed")
}

fn expected_digest(message: &WriteContentRequest) -> Result<Option<Digest>, Status> {
    if message.expected.is_empty() {
        return Ok(None);
    }
    let parsed = message.expected.parse();
    parsed
        .map(Some)
        .map_err(|error| Status::invalid_argument(format!("{:?}: {error}", message.expected)))
}

fn length(total: i64) -> Result<Option<u64>, Status> {
    match total {
        0 => Ok(None),
        total => u64::try_from(total)
            .map(Some)
            .map_err(|_| Status::invalid_argument(format!("a blob of {total} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(
        action: WriteAction,
        offset: usize,
        data: &[u8],
        expected: &str,
    ) -> WriteContentRequest {
        WriteContentRequest {
            action: action.into(),
            r#ref: "blob".into(),
            expected: expected.into(),
            offset: offset as i64,
            data: data.to_vec(),
            ..WriteContentRequest::default()
        }
    }

    async fn put(
        directory: &std::path::Path,
        messages: Vec<WriteContentRequest>,
    ) -> Result<Vec<WriteContentResponse>, Status> {
        let messages = futures::stream::iter(messages.into_iter().map(Ok));
        let answers = take(directory.to_owned(), messages).await?;
        answers.collect::<Vec<_>>().await.into_iter().collect()
    }

    fn files(directory: &std::path::Path) -> usize {
        walk(directory).len()
    }

    fn walk(directory: &std::path::Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => found.extend(walk(&entry.path())),
                false => found.push(entry.path()),
            }
        }
        found
    }

    #[tokio::test]
    async fn a_blob_appears_when_it_is_whole() {
        use WriteAction::{Commit, Stat, Write};
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of("whole");
        let name = digest.to_string();
        let answers = put(
            dir.path(),
            vec![
                message(Stat, 0, b"", &name),
                message(Write, 0, b"who", ""),
                message(Write, 3, b"le", ""),
                message(Commit, 5, b"", &name),
            ],
        )
        .await
        .unwrap();
        let offsets: Vec<i64> = answers.iter().map(|answer| answer.offset).collect();
        assert_eq!(offsets, [0, 3, 5, 5]);
        assert_eq!(answers[3].digest, name);
        assert_eq!(
            std::fs::read(blob_path(dir.path(), &digest)).unwrap(),
            b"whole"
        );
        assert!(!dir.path().join("ingest").exists());
        let again = put(dir.path(), vec![message(Stat, 0, b"", &name)]).await;
        assert_eq!(again.unwrap_err().code(), tonic::Code::AlreadyExists);
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_blob_that_is_broken_or_other_than_expected() {
        use WriteAction::{Commit, Write};
        let dir = tempfile::tempdir().unwrap();
        let name = Digest::of("whole").to_string();
        put(dir.path(), vec![message(Write, 0, b"who", &name)])
            .await
            .unwrap();
        let messages = vec![
            message(Write, 0, b"other", &name),
            message(Commit, 5, b"", &name),
        ];
        let other = put(dir.path(), messages).await.unwrap_err();
        assert_eq!(other.code(), tonic::Code::FailedPrecondition);
        let gap = put(dir.path(), vec![message(Write, 7, b"x", "")]).await;
        assert_eq!(gap.unwrap_err().code(), tonic::Code::OutOfRange);
        assert_eq!(files(dir.path()), 0);
    }
}
