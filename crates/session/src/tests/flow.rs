//! Much data in both directions at once, over pipes that take little.
//!
//! These tests fail by not ending: whoever runs them sees which one.

use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Opened, open_over};
use crate::{ClientSession, ExportTarget, LocalDir, SendDirRequest, SyncRequest};

/// Makes a tree of that many files in directories of 100, sizes from nothing to three times the mean.
fn make_tree(root: &Path, files: usize, mean_bytes: usize) -> u64 {
    let content = vec![0x5a; mean_bytes * 3];
    let mut total = 0;
    for at in 0..files {
        let dir = root.join(format!("d{:03}/sub", at / 100));
        if at % 100 == 0 {
            fs::create_dir_all(&dir).unwrap();
        }
        let len = match at % 4 {
            0 => 0,
            1 => mean_bytes / 2,
            2 => mean_bytes / 2 * 5,
            _ => mean_bytes,
        };
        fs::write(dir.join(format!("f{at}")), &content[..len]).unwrap();
        total += len as u64;
    }
    total
}

fn tree_bytes(root: &Path) -> (u64, u64) {
    let mut walker = crate::walk::Walker::new(root, Default::default()).unwrap();
    let (mut files, mut bytes) = (0, 0);
    while let Some(entry) = walker.next_entry().unwrap() {
        if !entry.stat.is_dir() {
            files += 1;
            bytes += entry.stat.size as u64;
        }
    }
    (files, bytes)
}

/// Sends a tree each way at the same time and checks that both arrived.
async fn exchange<C, S>(client_io: C, server_io: S, files: usize, mean_bytes: usize)
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["context", "synced", "result", "exported"] {
        fs::create_dir(at(name)).unwrap();
    }
    let bytes = make_tree(&at("context"), files, mean_bytes);
    make_tree(&at("result"), files, mean_bytes);
    let client = ClientSession::builder()
        .local_dirs([("context".to_owned(), LocalDir::new(at("context")))].into())
        .file_target(0, ExportTarget::dir(at("exported")))
        .build();
    let Opened {
        session,
        handle: _handle,
        _server,
        ..
    } = open_over(client, client_io, server_io).await;
    let sync = session.sync_dir(SyncRequest::new("context", at("synced")), None);
    let send = session.send_dir(SendDirRequest {
        root: at("result"),
        ..Default::default()
    });
    let (synced, sent) = tokio::join!(sync, send);
    assert_eq!(synced.unwrap().content_bytes, bytes);
    assert_eq!(sent.unwrap().files, files as u64 / 4 * 3);
    assert_eq!(tree_bytes(&at("synced")), (files as u64, bytes));
    assert_eq!(tree_bytes(&at("exported")), (files as u64, bytes));
}

/// 20,000 files and 300 MB each way, the size at which stock was seen to stand still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_pass_each_other_on_a_pipe_of_four_kilobytes() {
    let (a, b) = tokio::io::duplex(4 << 10);
    exchange(a, b, 20_000, 15_000).await;
}

#[tokio::test]
async fn trees_pass_each_other_on_one_thread() {
    let (a, b) = tokio::io::duplex(512);
    exchange(a, b, 1_000, 10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_pass_each_other_when_one_direction_is_slow() {
    let (a, b) = tokio::net::UnixStream::pair().unwrap();
    let (a, b) = (Halting::new(a, true), Halting::new(b, false));
    exchange(a, b, 4_000, 15_000).await;
}

/// Copies both directions by one hand, which writes out what it read before it reads the next from
/// either side, as a relay does that serves its two directions in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_pass_each_other_through_a_relay_with_one_hand() {
    let (client, near) = tokio::io::duplex(4 << 10);
    let (far, server) = tokio::io::duplex(4 << 10);
    tokio::spawn(relay(near, far));
    exchange(client, server, 4_000, 15_000).await;
}

async fn relay(mut a: tokio::io::DuplexStream, mut b: tokio::io::DuplexStream) -> io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut from_a, mut from_b) = (vec![0; 8 << 10], vec![0; 8 << 10]);
    loop {
        tokio::select! {
            len = a.read(&mut from_a) => match len? {
                0 => return b.shutdown().await,
                len => b.write_all(&from_a[..len]).await?,
            },
            len = b.read(&mut from_b) => match len? {
                0 => return a.shutdown().await,
                len => a.write_all(&from_b[..len]).await?,
            },
        }
    }
}

/// A connection that reads little at a time and lets others run first, before every read.
struct Halting<T> {
    io: T,
    slow: bool,
    ready: bool,
}

impl<T> Halting<T> {
    fn new(io: T, slow: bool) -> Self {
        Halting {
            io,
            slow,
            ready: false,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Halting<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.slow {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        if !std::mem::replace(&mut self.ready, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut little = [0; 1024];
        let len = little.len().min(buffer.remaining());
        let mut part = ReadBuf::new(&mut little[..len]);
        let result = Pin::new(&mut self.io).poll_read(cx, &mut part);
        if result.is_ready() {
            self.ready = false;
            buffer.put_slice(part.filled());
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Halting<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
