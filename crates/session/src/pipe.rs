//! Byte pipes that never make a reader wait for its own writes.
//!
//! An HTTP/2 connection answers what it reads (pings, settings, window updates). An implementation
//! that cannot write the answer stops reading until it can. When both ends of a pipe that buffers
//! little get there at once, neither ever reads again: that is a stall in which everybody is healthy.
//! It takes a pipe filled in both directions, as a session has with large contexts and exports at
//! once, or one whose two directions are copied by somebody in between, as a Docker exec is.
//!
//! The invariant here: **a write is taken at once, whatever the pipe does**. What is not yet written
//! waits in a spool. Its size is bounded by HTTP/2's own flow control (data is only written into a
//! window the peer granted) and past [`SPOOL_BYTES_MAX`] by making the writer wait after all.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use futures::Stream;
use parking_lot::Mutex;
use proto::control::BytesMessage;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::Status;

/// Spooled bytes past which a writer has to wait.
pub const SPOOL_BYTES_MAX: usize = 64 << 20;

/// Bytes that are sent as one message where a byte stream is carried in messages.
const CHUNK_BYTES: usize = 128 << 10;

/// A connection whose writes are taken at once.
///
/// Pending writes go out while it is read, flushed or shut down, which HTTP/2 connections do all the
/// time; there is no task behind it.
#[derive(Debug)]
pub struct SpooledIo<T> {
    io: T,
    spool: VecDeque<Vec<u8>>,
    written: usize,
    spooled: usize,
}

impl<T: AsyncRead + AsyncWrite + Unpin> SpooledIo<T> {
    /// Wraps a connection.
    pub fn new(io: T) -> Self {
        SpooledIo {
            io,
            spool: VecDeque::new(),
            written: 0,
            spooled: 0,
        }
    }

    /// Writes as much of the spool as the connection takes.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(chunk) = self.spool.front() {
            let some = ready!(Pin::new(&mut self.io).poll_write(cx, &chunk[self.written..]))?;
            if some == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += some;
            self.spooled -= some;
            if self.written == chunk.len() {
                self.spool.pop_front();
                self.written = 0;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for SpooledIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.drain(cx)?.is_ready() {
            // Nothing is lost if this stays unfinished: the next read or flush repeats it.
            let _ = Pin::new(&mut self.io).poll_flush(cx)?;
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for SpooledIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.drain(cx)?.is_ready() {
            if let Poll::Ready(some) = Pin::new(&mut self.io).poll_write(cx, data)? {
                return Poll::Ready(Ok(some));
            }
        } else if self.spooled >= SPOOL_BYTES_MAX {
            return Poll::Pending;
        }
        append(&mut self.spool, data);
        self.spooled += data.len();
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A flush that waited would make a reader wait for its writes, see the module's text.
        if self.drain(cx)?.is_ready() {
            let _ = Pin::new(&mut self.io).poll_flush(cx)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A byte stream carried in the messages of `Control.Session`, in one of its two ends.
pub struct MessageIo {
    inbound: Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>,
    current: Bytes,
    spool: Arc<Mutex<Spool>>,
}

/// The messages a [`MessageIo`] wants sent; ends when that is shut down or dropped.
pub struct MessageStream {
    spool: Arc<Mutex<Spool>>,
}

#[derive(Default)]
struct Spool {
    chunks: VecDeque<Vec<u8>>,
    bytes: usize,
    /// No more is written.
    ended: bool,
    /// Nobody takes what is written.
    abandoned: bool,
    taker: Option<Waker>,
    writer: Option<Waker>,
}

impl MessageIo {
    /// The byte stream and the messages to send for it.
    pub fn new(
        inbound: impl Stream<Item = Result<BytesMessage, Status>> + Send + 'static,
    ) -> (Self, MessageStream) {
        let spool = Arc::<Mutex<Spool>>::default();
        let io = MessageIo {
            inbound: Box::pin(inbound),
            current: Bytes::new(),
            spool: spool.clone(),
        };
        (io, MessageStream { spool })
    }

    /// Ends what is sent, because the peer has gone. What waits is not sent any more: stock clients take
    /// what comes after their end for a broken connection and complain on their user's terminal.
    fn cut(&self) {
        let mut spool = self.spool.lock();
        spool.chunks.clear();
        spool.bytes = 0;
        drop(spool);
        self.end();
    }

    fn end(&self) {
        let mut spool = self.spool.lock();
        spool.ended = true;
        if let Some(taker) = spool.taker.take() {
            taker.wake();
        }
    }
}

impl AsyncRead for MessageIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.inbound.as_mut().poll_next(cx)) {
                Some(Ok(message)) => self.current = message.data.into(),
                Some(Err(status)) => return Poll::Ready(Err(io::Error::other(status))),
                None => {
                    self.cut();
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let len = self.current.len().min(buffer.remaining());
        buffer.put_slice(&self.current[..len]);
        self.current.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MessageIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut spool = self.spool.lock();
        if spool.abandoned || spool.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if spool.bytes >= SPOOL_BYTES_MAX {
            spool.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        append(&mut spool.chunks, data);
        spool.bytes += data.len();
        if let Some(taker) = spool.taker.take() {
            taker.wake();
        }
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for MessageIo {
    fn drop(&mut self) {
        self.end();
    }
}

impl Stream for MessageStream {
    type Item = BytesMessage;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BytesMessage>> {
        let mut spool = self.spool.lock();
        if let Some(data) = spool.chunks.pop_front() {
            spool.bytes -= data.len();
            if let Some(writer) = spool.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Some(BytesMessage { data }));
        }
        if spool.ended {
            return Poll::Ready(None);
        }
        spool.taker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for MessageStream {
    fn drop(&mut self) {
        let mut spool = self.spool.lock();
        spool.abandoned = true;
        spool.chunks.clear();
        if let Some(writer) = spool.writer.take() {
            writer.wake();
        }
    }
}

/// Adds bytes at the end, small pieces joined.
fn append(chunks: &mut VecDeque<Vec<u8>>, data: &[u8]) {
    match chunks.back_mut() {
        Some(last) if last.len() + data.len() <= CHUNK_BYTES => last.extend_from_slice(data),
        _ => chunks.push_back(data.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn both_ends_write_much_before_they_read_and_none_waits() {
        let (a, b) = tokio::io::duplex(64);
        let (mut a, mut b) = (SpooledIo::new(a), SpooledIo::new(b));
        let data = vec![7u8; 1 << 20];
        a.write_all(&data).await.unwrap();
        b.write_all(&data).await.unwrap();
        let (mut from_a, mut from_b) = (vec![0; data.len()], vec![0; data.len()]);
        let (x, y) = tokio::join!(b.read_exact(&mut from_a), a.read_exact(&mut from_b));
        // The end that is done first stops writing: only the flush of the other moves the rest.
        x.unwrap();
        y.unwrap();
        assert!(from_a == data && from_b == data);
    }

    #[tokio::test]
    async fn messages_carry_the_bytes_and_the_end() {
        let (mut a, from_a) = MessageIo::new(futures::stream::pending());
        let (mut b, _) = MessageIo::new(from_a.map(Ok));
        a.write_all(b"one").await.unwrap();
        a.write_all(b" two").await.unwrap();
        a.shutdown().await.unwrap();
        let mut text = String::new();
        b.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "one two");
        assert!(a.write_all(b"x").await.is_err());
    }

    #[tokio::test]
    async fn nothing_is_sent_after_the_peers_end() {
        let (mut io, mut messages) = MessageIo::new(futures::stream::empty());
        io.write_all(b"before").await.unwrap();
        assert_eq!(io.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(io.write_all(b"after").await.is_err());
        assert!(messages.next().await.is_none());
    }

    #[tokio::test]
    async fn writing_to_nobody_fails() {
        let (mut io, messages) = MessageIo::new(futures::stream::pending());
        drop(messages);
        assert!(io.write_all(b"x").await.is_err());
    }
}
