//! Files from the client and results to it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::metadata::MetadataMap;

use crate::byte_stream::ByteStream;
use crate::codec::open_stream;
use crate::diffcopy::{
    self, Change, Listing, OnListing, Owner, Progress, ReceiveOptions, SendOptions, SendStats,
    SyncStats,
};
use crate::error::SessionError;
use crate::headers::{append, append_list};
use crate::in_place;
use crate::manager::Session;

const SYNC: &str = "/moby.filesync.v1.FileSync/DiffCopy";
const SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";
const EXPORTER_ID: &str = "buildkit-attachable-exporter-id";
const EXPORTER_MULTI_PLATFORM: &str = "buildkit-exporter-multi-platform";
const EXPORTER_METADATA: &str = "exporter-md-";

/// Which files of a client are wanted, and where.
#[derive(Clone)]
pub struct SyncRequest {
    /// The client's name for the directory, such as `context` or `dockerfile`.
    pub dir_name: String,
    /// What is included; nothing means everything.
    pub include: Vec<String>,
    /// What is excluded.
    pub exclude: Vec<String>,
    /// Paths whose symbolic links are followed and whose targets are included.
    pub follow_paths: Vec<String>,
    /// Whether the content of every file is asked for, also of those that look the same.
    pub fetch_all: bool,
    /// Whether only what the entries are is noted down, and which of them come themselves.
    pub metadata_only: Option<diffcopy::Wanted>,
    /// The directory that becomes what the client has.
    pub dest: PathBuf,
    /// Whose the files are to be; root's unless there is a reason.
    pub owner: Owner,
    /// Told of every change.
    pub on_change: Option<Arc<dyn Fn(Change<'_>) + Send + Sync>>,
    /// What the directory `dest` holds, if that is known for sure; else it is walked.
    pub known: Option<Arc<Listing>>,
    /// Told what `dest` holds in the end, if that is not what was known and can be said without walking
    /// it.
    pub on_listing: Option<OnListing>,
}

impl SyncRequest {
    /// Everything in a directory of the client, as root's.
    pub fn new(dir_name: impl Into<String>, dest: impl Into<PathBuf>) -> Self {
        SyncRequest {
            dir_name: dir_name.into(),
            include: Vec::new(),
            exclude: Vec::new(),
            follow_paths: Vec::new(),
            fetch_all: false,
            metadata_only: None,
            dest: dest.into(),
            owner: Owner::Fixed(0, 0),
            on_change: None,
            known: None,
            on_listing: None,
        }
    }
}

/// A directory for the client.
#[derive(Clone, Default)]
pub struct SendDirRequest {
    /// What is sent.
    pub root: PathBuf,
    /// Which of the client's exporters gets it.
    pub exporter: usize,
    /// Whether this one transfer holds the results of all platforms; clients that mirror a directory
    /// insist on it.
    pub all_platforms: bool,
    /// Told of the bytes that were sent.
    pub progress: Option<Progress>,
}

impl Session {
    /// Brings a directory to the state of the client's; only what differs is transferred.
    pub async fn sync_dir(
        &self,
        request: SyncRequest,
        progress: Option<Progress>,
    ) -> Result<SyncStats, SessionError> {
        self.require(SYNC, "no local sources enabled")?;
        // Notes of what files are hold all that a client says of them.
        let in_place = self.dir_in_place(&request.dir_name);
        if let Some(dir) = in_place.filter(|_| request.metadata_only.is_none()) {
            return in_place::sync(dir.clone(), request, progress).await;
        }
        let mut metadata = MetadataMap::new();
        append_list(&mut metadata, "dir-name", &[&request.dir_name])?;
        append_list(&mut metadata, "include-patterns", &request.include)?;
        append_list(&mut metadata, "exclude-patterns", &request.exclude)?;
        append_list(&mut metadata, "followpaths", &request.follow_paths)?;
        let options = ReceiveOptions {
            owner: request.owner,
            progress,
            on_change: request.on_change,
            known: request.known,
            on_listing: request.on_listing,
            fetch_all: request.fetch_all,
            metadata_only: request.metadata_only,
            ..ReceiveOptions::default()
        };
        let (requests, outbound) = mpsc::unbounded_channel();
        let outbound = UnboundedReceiverStream::new(outbound);
        let inbound = open_stream(self.connection(), SYNC, metadata, outbound);
        diffcopy::receive(request.dest, options, inbound, requests)
            .await
            .map_err(|error| self.transfer_failure(error))
    }

    /// Sends a directory to one of the client's exporters.
    pub async fn send_dir(&self, request: SendDirRequest) -> Result<SendStats, SessionError> {
        self.require(SEND, &unsupported_send())?;
        let mut metadata = exporter_metadata(request.exporter)?;
        if request.all_platforms {
            append(&mut metadata, EXPORTER_MULTI_PLATFORM, "1")?;
        }
        let options = SendOptions {
            progress: request.progress,
            ..SendOptions::default()
        };
        let (packets, outbound) = mpsc::channel(diffcopy::OUTBOUND_BATCHES);
        let inbound = open_stream(
            self.connection(),
            SEND,
            metadata,
            ReceiverStream::new(outbound),
        );
        diffcopy::send(request.root, options, inbound, packets)
            .await
            .map_err(|error| self.transfer_failure(error))
    }

    /// Sends one file (a tar archive) to one of the client's exporters, which learns of `metadata`
    /// before the first byte.
    ///
    /// The file is complete for the client only when the sink was shut down without an error.
    pub async fn send_file(
        &self,
        exporter: usize,
        metadata: &BTreeMap<String, String>,
    ) -> Result<FileSink, SessionError> {
        self.require(SEND, &unsupported_send())?;
        let mut headers = exporter_metadata(exporter)?;
        for (name, value) in metadata {
            append(
                &mut headers,
                &format!("{EXPORTER_METADATA}{}", name.to_lowercase()),
                value,
            )?;
        }
        let connection = self.connection();
        let stream = ByteStream::open(|outbound| open_stream(connection, SEND, headers, outbound));
        Ok(FileSink {
            state: SinkState::Open(Box::new(stream)),
        })
    }

    fn transfer_failure(&self, error: SessionError) -> SessionError {
        match error {
            SessionError::Status(status) => self.failure(*status),
            SessionError::Protocol(_) if self.is_closed() => SessionError::Closed,
            error => error,
        }
    }
}

/// A file that goes to the client; see [`Session::send_file`].
pub struct FileSink {
    state: SinkState,
}

enum SinkState {
    Open(Box<ByteStream>),
    Closing(BoxFuture<'static, Result<(), tonic::Status>>),
    Done,
}

impl FileSink {
    /// Waits for the client's last word, which is why it takes no more or that it has everything.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let SinkState::Open(_) = self.state
            && let SinkState::Open(stream) = std::mem::replace(&mut self.state, SinkState::Done)
        {
            self.state = SinkState::Closing(Box::pin(stream.finish()));
        }
        let SinkState::Closing(finish) = &mut self.state else {
            return Poll::Ready(Ok(()));
        };
        let result = ready!(finish.as_mut().poll(cx));
        self.state = SinkState::Done;
        Poll::Ready(result.map_err(|status| {
            let kind = match status.code() {
                tonic::Code::AlreadyExists => io::ErrorKind::AlreadyExists,
                tonic::Code::ResourceExhausted => io::ErrorKind::StorageFull,
                _ => io::ErrorKind::Other,
            };
            io::Error::new(kind, status.message().to_owned())
        }))
    }
}

impl AsyncWrite for FileSink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let SinkState::Open(stream) = &mut self.state
            && let Ok(len) = ready!(Pin::new(stream).poll_write(cx, data))
        {
            return Poll::Ready(Ok(len));
        }
        ready!(self.poll_finish(cx))?;
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_finish(cx)
    }
}

fn exporter_metadata(exporter: usize) -> Result<MetadataMap, SessionError> {
    let mut metadata = MetadataMap::new();
    append(&mut metadata, EXPORTER_ID, &exporter.to_string())?;
    Ok(metadata)
}

fn unsupported_send() -> String {
    format!("method {SEND} not supported by the client")
}
