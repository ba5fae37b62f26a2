//! A gRPC call that carries bytes both ways, as reader and writer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;

use crate::codec::{Batch, Inbound, decode_bytes_message, encode_bytes_message};

/// Bytes put in one message; under the 4 MiB that stock peers take, and enough to be cheap.
const MESSAGE_BYTES: usize = 256 << 10;
/// Messages that wait to be sent.
const QUEUED_MESSAGES: usize = 8;

/// One end of a call whose messages carry bytes.
///
/// Shutting it down says that no more is written; reading goes on until the peer says the same. The
/// peer's gRPC error comes out of reads; writes to a peer that takes no more break.
pub struct ByteStream {
    inbound: Inbound,
    current: Bytes,
    outbound: PollSender<Batch>,
    /// The peer's last word came: its error, or nothing when it ended well.
    ended: Option<Option<tonic::Status>>,
}

impl ByteStream {
    /// The stream, once the call was made of what is to be sent.
    pub(crate) fn open(call: impl FnOnce(ReceiverStream<Batch>) -> Inbound) -> Self {
        let (outbound, messages) = mpsc::channel(QUEUED_MESSAGES);
        ByteStream {
            inbound: call(ReceiverStream::new(messages)),
            current: Bytes::new(),
            outbound: PollSender::new(outbound),
            ended: None,
        }
    }

    /// The next bytes from the peer.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if let Some(ended) = &self.ended {
            return Poll::Ready(match ended {
                Some(status) => Err(io::Error::other(status.clone())),
                None => Ok(None),
            });
        }
        match ready!(self.inbound.poll_next_unpin(cx)) {
            Some(Ok(message)) => Poll::Ready(
                decode_bytes_message(message)
                    .map(Some)
                    .map_err(io::Error::other),
            ),
            Some(Err(status)) => {
                self.ended = Some(Some(status.clone()));
                Poll::Ready(Err(io::Error::other(status)))
            }
            None => {
                self.ended = Some(None);
                Poll::Ready(Ok(None))
            }
        }
    }

    /// Says that no more is written and waits until the peer ends the call.
    pub(crate) async fn finish(mut self) -> Result<(), tonic::Status> {
        self.outbound.close();
        loop {
            match std::future::poll_fn(|cx| self.poll_message(cx)).await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(error) => {
                    let text = error.to_string();
                    return Err(self
                        .ended
                        .flatten()
                        .unwrap_or_else(|| tonic::Status::internal(text)));
                }
            }
        }
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.poll_message(cx))? {
                Some(bytes) => self.current = bytes,
                None => return Poll::Ready(Ok(())),
            }
        }
        let len = self.current.len().min(buffer.remaining());
        buffer.put_slice(&self.current[..len]);
        self.current.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if ready!(self.outbound.poll_reserve(cx)).is_err() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let data = &data[..data.len().min(MESSAGE_BYTES)];
        if self
            .outbound
            .send_item(vec![encode_bytes_message(data)])
            .is_err()
        {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.close();
        Poll::Ready(Ok(()))
    }
}

/// Bytes of a reader as messages.
pub(crate) fn read_messages(
    reader: impl AsyncRead + Send + Unpin + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    tokio_util::io::ReaderStream::with_capacity(reader, MESSAGE_BYTES)
        .map(|bytes| bytes.map(|bytes| encode_bytes_message(&bytes)))
}
