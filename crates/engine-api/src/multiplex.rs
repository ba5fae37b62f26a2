//! Docker's framing of the two output streams of a process without terminal.
//!
//! A frame is 8 bytes of header — stream (0 stdin, 1 stdout, 2 stderr, 3 error of the Engine),
//! three zeros, length big-endian — and its bytes. Reading gives stdout; stderr goes to a bounded
//! tail, for messages. Nothing here waits for the writing direction.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::sync::Notify;

/// How much of stderr is kept, in bytes.
const TAIL_BYTES_MAX: usize = 16 * 1024;

/// The last bytes that a process wrote to stderr.
#[derive(Clone, Debug, Default)]
pub struct StderrTail(Arc<Tail>);

#[derive(Debug, Default)]
struct Tail {
    bytes: Mutex<(VecDeque<u8>, bool)>,
    closed: Notify,
}

impl StderrTail {
    /// Adds bytes, forgetting the oldest.
    pub fn push(&self, bytes: &[u8]) {
        let mut guard = self.0.bytes.lock();
        guard.0.extend(bytes);
        let excess = guard.0.len().saturating_sub(TAIL_BYTES_MAX);
        guard.0.drain(..excess);
    }

    /// Says that nothing more will come.
    pub fn close(&self) {
        self.0.bytes.lock().1 = true;
        self.0.closed.notify_waiters();
    }

    /// What is kept, as text without blank ends.
    pub fn text(&self) -> String {
        let guard = self.0.bytes.lock();
        let bytes: Vec<u8> = guard.0.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// Waits until nothing more will come.
    pub async fn closed(&self) {
        let notified = self.0.closed.notified();
        if self.0.bytes.lock().1 {
            return;
        }
        notified.await;
    }
}

/// Reads the stdout part of a framed stream.
pub struct Demultiplexer<R> {
    inner: R,
    /// Bytes read ahead; `chunk[at..end]` is still to be looked at.
    chunk: Box<[u8]>,
    at: usize,
    end: usize,
    header: [u8; 8],
    header_len: usize,
    stream: u8,
    /// Bytes of the current frame that are still to come.
    left: usize,
    /// The Engine's own error text, collected from frames of stream 3.
    error: Vec<u8>,
    tail: StderrTail,
}

/// Bytes asked for in one read.
const CHUNK_BYTES: usize = 64 * 1024;

impl<R: AsyncRead + Unpin> Demultiplexer<R> {
    /// Reads frames from `inner`; stderr goes to `tail`.
    pub fn new(inner: R, tail: StderrTail) -> Self {
        Demultiplexer {
            inner,
            chunk: vec![0; CHUNK_BYTES].into_boxed_slice(),
            at: 0,
            end: 0,
            header: [0; 8],
            header_len: 0,
            stream: 1,
            left: 0,
            error: Vec::new(),
            tail,
        }
    }

    /// Reads more when nothing is read ahead; `false` at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<bool>> {
        if self.at == self.end {
            let mut buf = ReadBuf::new(&mut self.chunk);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf))?;
            (self.at, self.end) = (0, buf.filled().len());
        }
        Poll::Ready(Ok(self.end > 0))
    }

    /// Takes a header's bytes from what is read ahead.
    fn take_header(&mut self) -> std::io::Result<()> {
        let take = (8 - self.header_len).min(self.end - self.at);
        self.header[self.header_len..self.header_len + take]
            .copy_from_slice(&self.chunk[self.at..self.at + take]);
        self.header_len += take;
        self.at += take;
        if self.header_len < 8 {
            return Ok(());
        }
        self.header_len = 0;
        let [stream, zeros @ .., a, b, c, d] = self.header;
        if stream > 3 || zeros != [0; 3] {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                format!("Unrecognized input header: {stream}"),
            ));
        }
        self.stream = stream;
        self.left = u32::from_be_bytes([a, b, c, d]) as usize;
        Ok(())
    }

    /// Takes the part of a frame that is read ahead and is not stdout.
    fn take_aside(&mut self) -> std::io::Result<()> {
        let take = self.left.min(self.end - self.at);
        let bytes = &self.chunk[self.at..self.at + take];
        if self.stream == 3 {
            self.error.extend_from_slice(bytes);
        } else {
            self.tail.push(bytes);
        }
        self.at += take;
        self.left -= take;
        if self.left == 0 && self.stream == 3 {
            let text = String::from_utf8_lossy(&self.error).into_owned();
            return Err(std::io::Error::other(format!(
                "error from daemon in stream: {text}"
            )));
        }
        Ok(())
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Demultiplexer<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        loop {
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if !ready!(this.poll_fill(cx))? {
                this.tail.close();
                let whole = this.left == 0 && this.header_len == 0;
                return Poll::Ready(if whole {
                    Ok(())
                } else {
                    Err(std::io::ErrorKind::UnexpectedEof.into())
                });
            }
            if this.left == 0 {
                this.take_header()?;
            } else if this.stream != 1 {
                this.take_aside()?;
            } else {
                let take = this.left.min(this.end - this.at).min(buf.remaining());
                buf.put_slice(&this.chunk[this.at..this.at + take]);
                this.at += take;
                this.left -= take;
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// Both outputs of a process in the order they came, each piece with its stream (1 or 2).
pub struct Output {
    /// 1 stdout, 2 stderr.
    pub stream: u8,
    /// The bytes.
    pub data: Vec<u8>,
}

/// Reads a whole framed stream, at most `max` bytes of content.
pub(crate) async fn read_all(
    mut reader: impl AsyncRead + Unpin,
    max: usize,
) -> std::io::Result<Vec<Output>> {
    let mut pieces = Vec::new();
    let mut total = 0;
    loop {
        let mut header = [0; 8];
        match reader.read_exact(&mut header).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(pieces),
            Err(error) => return Err(error),
        }
        let len = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        total += len;
        if total > max {
            return Err(std::io::Error::other(format!(
                "more than {max} bytes of output"
            )));
        }
        let mut data = vec![0; len];
        reader.read_exact(&mut data).await?;
        if header[0] == 3 {
            return Err(std::io::Error::other(
                String::from_utf8_lossy(&data).into_owned(),
            ));
        }
        pieces.push(Output {
            stream: header[0],
            data,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    fn frame(stream: u8, data: &[u8]) -> Vec<u8> {
        let mut out = vec![stream, 0, 0, 0];
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
        out
    }

    #[tokio::test]
    async fn stdout_is_read_and_stderr_is_kept_aside_however_the_bytes_arrive() {
        let mut wire = frame(1, b"hello ");
        wire.extend(frame(2, b"careful\n"));
        wire.extend(frame(1, b""));
        wire.extend(frame(1, b"world"));
        for piece in [1, 3, 7, 64] {
            let (mut near, far) = tokio::io::duplex(1024);
            let tail = StderrTail::default();
            let mut reader = Demultiplexer::new(far, tail.clone());
            for chunk in wire.chunks(piece) {
                near.write_all(chunk).await.unwrap();
            }
            drop(near);
            let mut text = String::new();
            reader.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "hello world");
            assert_eq!(tail.text(), "careful");
            tail.closed().await;
        }
    }

    #[tokio::test]
    async fn an_error_frame_and_a_cut_frame_are_errors() {
        let mut reader =
            Demultiplexer::new(&*frame(3, b"no such exec").leak(), StderrTail::default());
        let error = reader.read_u8().await.unwrap_err();
        assert!(error.to_string().contains("no such exec"));
        let cut = frame(1, b"abcdef");
        let mut reader = Demultiplexer::new(&cut[..10], StderrTail::default());
        let mut out = Vec::new();
        assert!(reader.read_to_end(&mut out).await.is_err());
        assert_eq!(out, b"ab");
    }

    #[test]
    fn a_tail_forgets_the_oldest() {
        let tail = StderrTail::default();
        for _ in 0..100 {
            tail.push(&[b'x'; 1000]);
        }
        tail.push(b"end");
        assert_eq!(tail.text().len(), TAIL_BYTES_MAX);
        assert!(tail.text().ends_with("end"));
    }
}
