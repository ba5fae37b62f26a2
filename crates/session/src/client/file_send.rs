//! Where results go.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Request, Status, Streaming};

use super::raw_service::{Answers, StreamMethod, with_result};
use crate::codec::{decode_bytes_message, flat};
use crate::diffcopy::{self, Owner, Progress, ReceiveOptions};
use crate::error::{SessionError, io_text};
use crate::headers::first;

/// What a file that comes is written to. It is complete when it was shut down; one that is dropped
/// before is not.
pub type ExportWriter = Pin<Box<dyn AsyncWrite + Send>>;

type OpenWriter = dyn Fn(BTreeMap<String, String>) -> BoxFuture<'static, io::Result<Option<ExportWriter>>>
    + Send
    + Sync;

/// Where the result of an exporter goes.
#[derive(Clone)]
pub enum ExportTarget {
    /// Into a directory, beside what is there.
    Dir {
        /// The directory; made if it is not there.
        path: PathBuf,
        /// Whether it becomes a mirror: what is not in the result is removed.
        mirror: bool,
        /// Told of the bytes that came.
        progress: Option<Progress>,
    },
    /// Into a writer that is opened with the exporter's metadata when the result comes.
    Writer(Arc<OpenWriter>),
}

impl ExportTarget {
    /// A directory, whose other content stays.
    pub fn dir(path: impl Into<PathBuf>) -> Self {
        ExportTarget::Dir {
            path: path.into(),
            mirror: false,
            progress: None,
        }
    }

    /// What a function opens, given the exporter's metadata (such as `containerimage.digest`). It
    /// gives nothing when the result is there already.
    pub fn writer<F, R>(open: F) -> Self
    where
        F: Fn(BTreeMap<String, String>) -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<Option<ExportWriter>>> + Send + 'static,
    {
        ExportTarget::Writer(Arc::new(move |metadata| Box::pin(open(metadata))))
    }

    /// A file, which appears when it is complete; a device or pipe is written to as it comes.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self::writer(move |_| {
            let path = path.clone();
            async move {
                let blocking = tokio::task::spawn_blocking(move || open_file(&path));
                blocking.await.map_err(io::Error::other)?.map(Some)
            }
        })
    }
}

fn open_file(path: &Path) -> io::Result<ExportWriter> {
    let special = std::fs::metadata(path).is_ok_and(|found| !found.is_file());
    if special {
        let file = std::fs::OpenOptions::new().write(true).open(path)?;
        return Ok(Box::pin(tokio::fs::File::from_std(file)));
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let temp = tempfile::Builder::new()
        .prefix(".tmp-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .tempfile_in(dir.unwrap_or(Path::new(".")))?;
    let (file, temp) = temp.into_parts();
    Ok(Box::pin(FileWriter {
        file: tokio::fs::File::from_std(file),
        temp: Some(temp),
        path: path.to_owned(),
    }))
}

/// A file that gets its name when it is shut down.
struct FileWriter {
    file: tokio::fs::File,
    temp: Option<tempfile::TempPath>,
    path: PathBuf,
}

impl FileWriter {
    /// The error with the file it is about.
    fn named(&self, error: io::Error) -> io::Error {
        let text = io_text(&error);
        io::Error::new(
            error.kind(),
            format!("write {}: {text}", self.path.display()),
        )
    }
}

impl AsyncWrite for FileWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.file).poll_write(cx, data);
        written.map_err(|error| self.named(error))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.file).poll_flush(cx);
        flushed.map_err(|error| self.named(error))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.as_mut().poll_flush(cx))?;
        if let Some(temp) = self.temp.take() {
            let persisted = temp.persist(&self.path).map_err(|error| error.error);
            persisted.map_err(|error| self.named(error))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// `moby.filesync.v1.FileSend`.
#[derive(Clone)]
pub struct FileSendService {
    targets: Arc<BTreeMap<usize, ExportTarget>>,
}

impl FileSendService {
    pub const METHODS: [&'static str; 1] = ["/moby.filesync.v1.FileSend/DiffCopy"];

    pub fn new(targets: BTreeMap<usize, ExportTarget>) -> Self {
        FileSendService {
            targets: Arc::new(targets),
        }
    }
}

impl StreamMethod for FileSendService {
    const SERVICE: &'static str = "moby.filesync.v1.FileSend";
    const METHOD: &'static str = "DiffCopy";

    async fn answer(self, request: Request<Streaming<Bytes>>) -> Result<Answers, Status> {
        let (metadata, _, inbound) = request.into_parts();
        // Servers from before there could be several exporters name none.
        let id = first(&metadata, "buildkit-attachable-exporter-id")
            .parse()
            .unwrap_or(0);
        let target = self.targets.get(&id).cloned();
        match target.ok_or_else(|| Status::not_found(format!("exporter {id} not found")))? {
            ExportTarget::Dir {
                path,
                mirror,
                progress,
            } => {
                let all = first(&metadata, "buildkit-exporter-multi-platform") == "1";
                if mirror && !all {
                    return Err(Status::failed_precondition(
                        "local exporter mode=delete requires a BuildKit daemon with multi-platform local export support",
                    ));
                }
                let options = ReceiveOptions {
                    merge: !mirror,
                    fetch_all: mirror,
                    owner: own(),
                    progress,
                    ..ReceiveOptions::default()
                };
                let (requests, outbound) = mpsc::unbounded_channel();
                let receiving = async move {
                    make_dir(&path).await?;
                    diffcopy::receive(path, options, inbound.boxed(), requests).await
                };
                Ok(with_result(
                    flat(UnboundedReceiverStream::new(outbound)),
                    receiving,
                ))
            }
            ExportTarget::Writer(open) => {
                let writer = open(exporter_metadata(&metadata))
                    .await
                    .map_err(|error| Status::from(SessionError::from(error)))?;
                let writer =
                    writer.ok_or_else(|| Status::already_exists("target already exists"))?;
                Ok(with_result(
                    futures::stream::empty(),
                    write_all(inbound, writer),
                ))
            }
        }
    }
}

async fn make_dir(path: &Path) -> Result<(), SessionError> {
    let mut builder = tokio::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path).await;
    made.map_err(|error| SessionError::file("mkdir", path, error))
}

/// Ourselves: results are the user's whoever they belonged to in the image.
fn own() -> Owner {
    Owner::Fixed(
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    )
}

async fn write_all(
    mut inbound: Streaming<Bytes>,
    mut writer: ExportWriter,
) -> Result<(), SessionError> {
    while let Some(message) = inbound.next().await {
        writer.write_all(&decode_bytes_message(message?)?).await?;
    }
    writer.shutdown().await?;
    Ok(())
}

fn exporter_metadata(metadata: &MetadataMap) -> BTreeMap<String, String> {
    let mut found = BTreeMap::<String, String>::new();
    for pair in metadata.iter() {
        let KeyAndValueRef::Ascii(key, value) = pair else {
            continue;
        };
        let Some(key) = key.as_str().strip_prefix("exporter-md-") else {
            continue;
        };
        let value = String::from_utf8_lossy(value.as_bytes());
        let joined = found.entry(key.to_owned()).or_default();
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(&value);
    }
    found
}
