//! The stream by which an exporter's archive reaches an Engine.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use diag::Error;
use driver::engine::Engine;
use progress_ui::Progress;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;

use super::load_image;

/// Pieces of an archive that wait for the Engine.
const PIECES_MAX: usize = 16;

/// Writes an archive into an Engine. Shutting it down waits until the Engine has loaded it; dropping
/// it before breaks the load off.
pub(super) struct EngineWriter {
    sender: Option<PollSender<io::Result<Bytes>>>,
    task: JoinHandle<Result<(), Error>>,
    ended: bool,
}

impl EngineWriter {
    pub(super) fn start(engine: Engine, progress: Progress) -> Self {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let archive = ReceiverStream::new(receiver);
        EngineWriter {
            sender: Some(PollSender::new(sender)),
            task: tokio::spawn(load_image(engine, archive, progress)),
            ended: false,
        }
    }

    /// How the load ended.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        let result = ready!(Pin::new(&mut self.task).poll(cx));
        self.ended = true;
        Poll::Ready(match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(io::Error::other(error.to_string())),
            Err(error) => Err(io::Error::other(error)),
        })
    }
}

impl AsyncWrite for EngineWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(sender) = &mut this.sender else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let sent = match ready!(sender.poll_reserve(cx)) {
            Ok(()) => sender.send_item(Ok(Bytes::copy_from_slice(data))),
            Err(closed) => Err(closed),
        };
        if sent.is_ok() {
            return Poll::Ready(Ok(data.len()));
        }
        // The Engine does not read on: how the load ended says why.
        let end = ready!(this.poll_end(cx));
        Poll::Ready(end.and(Err(io::ErrorKind::BrokenPipe.into())))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sender = None;
        self.poll_end(cx)
    }
}

impl Drop for EngineWriter {
    fn drop(&mut self) {
        if !self.ended {
            self.task.abort();
        }
    }
}
