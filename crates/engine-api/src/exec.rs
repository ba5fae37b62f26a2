//! Processes in running containers.

use std::pin::Pin;
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf,
};
use tokio_util::task::AbortOnDropHandle;

use crate::client::{Call, percent_encode};
use crate::io::BoxedIo;
use crate::multiplex::{Demultiplexer, StderrTail};
use crate::{Engine, EngineError};

/// What a finished process left.
#[derive(Clone, Debug, Default)]
pub struct ExecOutput {
    /// Its stdout.
    pub stdout: Vec<u8>,
    /// The end of its stderr, as text.
    pub stderr: String,
    /// Its exit code.
    pub exit_code: i64,
}

/// Bytes that may wait to be written. More than HTTP/2's connection window, so that the peer's
/// flow control stops a writer before this pipe does.
const WRITE_BYTES_MAX: usize = 32 << 20;

/// The standard streams of a process in a container, as one connection: reading gives its stdout,
/// writing goes to its stdin, shutting down closes its stdin.
///
/// The Engine's pipes to a process are small, and when a process writes much while it is written
/// much to, both ends of a protocol such as HTTP/2 come to wait for the other to read: each reads
/// nothing because it cannot write. So what is written is taken at once into a queue that a task
/// empties, and reading never depends on it.
pub struct ExecStream {
    id: String,
    reader: Demultiplexer<ReadHalf<BoxedIo>>,
    writer: DuplexStream,
    tail: StderrTail,
    _pump: AbortOnDropHandle<()>,
}

impl ExecStream {
    fn new(id: String, io: BoxedIo) -> Self {
        let (read, mut write) = tokio::io::split(io);
        let tail = StderrTail::default();
        let (writer, mut queue) = tokio::io::duplex(WRITE_BYTES_MAX);
        let pump = tokio::spawn(async move {
            let mut chunk = vec![0; 64 * 1024];
            loop {
                let read = match queue.read(&mut chunk).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => read,
                };
                if write.write_all(&chunk[..read]).await.is_err() {
                    return;
                }
            }
            let _ = write.shutdown().await;
        });
        ExecStream {
            id,
            reader: Demultiplexer::new(read, tail.clone()),
            writer,
            tail,
            _pump: AbortOnDropHandle::new(pump),
        }
    }

    /// The Engine's ID of this process.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the process says on stderr.
    pub fn stderr(&self) -> StderrTail {
        self.tail.clone()
    }
}

impl AsyncRead for ExecStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for ExecStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ExecCreate<'a> {
    cmd: &'a [&'a str],
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ExecCreated {
    id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ExecStart {
    detach: bool,
    tty: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct ExecInspect {
    running: bool,
    exit_code: Option<i64>,
}

impl Engine {
    /// Starts a process in a running container and gives its standard streams.
    pub async fn exec(&self, container: &str, command: &[&str]) -> Result<ExecStream, EngineError> {
        let create = ExecCreate {
            cmd: command,
            attach_stdin: true,
            attach_stdout: true,
            attach_stderr: true,
        };
        let path = format!("/containers/{}/exec", percent_encode(container));
        let created: ExecCreated = self.call_json(Call::post(path).json(&create)?).await?;
        let start = Call::post(format!("/exec/{}/start", created.id)).json(&ExecStart {
            detach: false,
            tty: false,
        })?;
        let io = self.hijack_call(start, "tcp").await?;
        Ok(ExecStream::new(created.id, io))
    }

    /// Runs a process in a running container to its end, with an empty stdin.
    pub async fn exec_output(
        &self,
        container: &str,
        command: &[&str],
    ) -> Result<ExecOutput, EngineError> {
        let mut stream = self.exec(container, command).await?;
        stream.shutdown().await?;
        let mut stdout = Vec::new();
        stream.read_to_end(&mut stdout).await?;
        Ok(ExecOutput {
            stdout,
            stderr: stream.stderr().text(),
            exit_code: self.exec_exit_code(stream.id()).await?.unwrap_or(-1),
        })
    }

    /// The exit code of a process that was started here; `None` while it runs.
    pub async fn exec_exit_code(&self, id: &str) -> Result<Option<i64>, EngineError> {
        let inspect: ExecInspect = self
            .call_json(Call::get(format!("/exec/{id}/json")))
            .await?;
        Ok(if inspect.running {
            None
        } else {
            inspect.exit_code
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::boxed;

    #[tokio::test]
    async fn reading_does_not_wait_for_a_process_that_does_not_read() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut stream = ExecStream::new("id".to_owned(), boxed(near));
        // Much more than the pipe holds, and nobody reads it yet.
        let sent = vec![7; 4 << 20];
        stream.write_all(&sent).await.unwrap();
        far.write_all(&[1, 0, 0, 0, 0, 0, 0, 2]).await.unwrap();
        far.write_all(b"ok").await.unwrap();
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ok");
        let mut arrived = vec![0; sent.len()];
        far.read_exact(&mut arrived).await.unwrap();
        assert_eq!(arrived, sent);
        stream.shutdown().await.unwrap();
        assert_eq!(far.read(&mut answer).await.unwrap(), 0);
    }
}
