//! An Engine of another machine, through the `ssh` program and `docker system dial-stdio` there.
//!
//! ssh never asks anything (BatchMode), so an unknown host key or a missing key is an error within
//! the connect timeout and not a hang; what ssh says is part of that error.

use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::io::{BoxedIo, boxed};
use crate::multiplex::StderrTail;

/// Longest time ssh may take to connect, in seconds.
const CONNECT_TIMEOUT_SECS: u64 = 30;

/// Runs `ssh` with a remote command and gives its standard streams; `arguments` are what is run
/// there. The tail collects what ssh says.
pub async fn dial_ssh(
    destination: &str,
    port: Option<u16>,
    arguments: &[&str],
) -> std::io::Result<(BoxedIo, StderrTail)> {
    let mut command = Command::new("ssh");
    command
        .arg("-o")
        .arg("BatchMode=yes")
        .arg("-o")
        .arg(format!("ConnectTimeout={CONNECT_TIMEOUT_SECS}"))
        .arg("-T");
    if let Some(port) = port {
        command.arg("-p").arg(port.to_string());
    }
    command.arg("--").arg(destination).args(arguments);
    spawn(command)
}

/// Starts a program whose standard streams are a connection.
pub(crate) fn spawn(mut command: Command) -> std::io::Result<(BoxedIo, StderrTail)> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    let missing = || std::io::Error::other("the program has no standard streams");
    let stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let tail = StderrTail::default();
    let collected = tail.clone();
    tokio::spawn(async move {
        let mut lines = BufReader::new(stderr).split(b'\n');
        while let Ok(Some(mut line)) = lines.next_segment().await {
            line.push(b'\n');
            collected.push(&line);
        }
        collected.close();
    });
    let io = ChildIo {
        _child: child,
        stdin: Some(stdin),
        stdout,
    };
    Ok((boxed(io), tail))
}

/// How long to wait for the last words of a program that has closed its output.
pub(crate) const LAST_WORDS: Duration = Duration::from_millis(500);

struct ChildIo {
    /// Killed when dropped.
    _child: Child,
    /// Closed by shutting down.
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
}

impl AsyncRead for ChildIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(cx, buf)
    }
}

impl AsyncWrite for ChildIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match &mut self.stdin {
            Some(stdin) => Pin::new(stdin).poll_write(cx, data),
            None => Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.stdin {
            Some(stdin) => Pin::new(stdin).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if let Some(stdin) = &mut self.stdin {
            std::task::ready!(Pin::new(stdin).poll_flush(cx))?;
        }
        self.stdin = None;
        Poll::Ready(Ok(()))
    }
}
