//! The sending end.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::{Condvar, Mutex};
use pathmatch::PathFilter;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::{CHUNK_BYTES, Progress};
use crate::codec::{Batch, Inbound};
use crate::error::SessionError;
use crate::mode;
use crate::packet::{FileStat, Packet, encode_data_from};
use crate::walk::{Entry, HardLinks, WalkOptions, Walker, open_beneath};

/// How a tree is sent.
#[derive(Clone, Default)]
pub struct SendOptions {
    /// Which entries are sent.
    pub filter: PathFilter,
    /// Whether everything is said to belong to user and group 0, as clients do with contexts.
    pub reset_owner: bool,
    /// Told of the bytes that were sent.
    pub progress: Option<Progress>,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendStats {
    /// Entries announced.
    pub entries: u64,
    /// Files whose content was asked for.
    pub files: u64,
    /// Bytes of packets.
    pub bytes: u64,
}

/// Batches of packets that wait to be sent; with [`BATCH_BYTES`] this bounds the content in memory.
pub const OUTBOUND_BATCHES: usize = 8;
/// Packets are gathered up to this size before they are handed on.
const BATCH_BYTES: usize = 128 << 10;
const BATCH_PACKETS: usize = 512;
/// Threads that read content.
const READERS: usize = 3;

/// Sends the tree below `root` to a receiver that answers on `inbound`.
///
/// `outbound` should have room for [`OUTBOUND_BATCHES`]. Dropping the future ends the work.
pub async fn send(
    root: PathBuf,
    options: SendOptions,
    mut inbound: Inbound,
    outbound: mpsc::Sender<Batch>,
) -> Result<SendStats, SessionError> {
    let sender = Arc::new(Sender::open(&root, options, outbound)?);
    let _stop = StopGuard(sender.clone());
    let mut threads = tokio::task::JoinSet::new();
    let walker = sender.clone();
    threads.spawn_blocking(move || walker.walk(&root));
    for _ in 0..READERS {
        let reader = sender.clone();
        threads.spawn_blocking(move || reader.serve_content());
    }
    let result = loop {
        tokio::select! {
            biased;
            message = inbound.next() => match sender.take(message) {
                Ok(Taken::More) => {}
                Ok(Taken::Fin) => break Ok(()),
                Err(error) => break Err(error),
            },
            Some(done) = threads.join_next() => match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => break Err(error),
                Err(_) => break Err(SessionError::Canceled),
            },
        }
    };
    sender.finish(result).await
}

struct Sender {
    root: OwnedFd,
    root_path: PathBuf,
    options: SendOptions,
    outbound: mpsc::Sender<Batch>,
    state: Mutex<State>,
    wake: Condvar,
    stop: AtomicBool,
    bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The paths of files whose content may still be asked for, by id.
    files: Vec<Option<Box<[u8]>>>,
    /// Ids asked for, in order.
    wanted: VecDeque<u32>,
    served: u64,
}

enum Taken {
    More,
    Fin,
}

/// Ends the threads when the transfer is done or dropped.
struct StopGuard(Arc<Sender>);

impl Drop for StopGuard {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Release);
        // Taken so that no thread is between looking at the flag and waiting.
        drop(self.0.state.lock());
        self.0.wake.notify_all();
    }
}

impl Sender {
    fn open(
        root: &Path,
        options: SendOptions,
        outbound: mpsc::Sender<Batch>,
    ) -> Result<Self, SessionError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|error| SessionError::file("open", root, error))?;
        Ok(Sender {
            root: fd,
            root_path: root.to_owned(),
            options,
            outbound,
            state: Mutex::default(),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
        })
    }

    /// Takes what the receiver said; never waits.
    fn take(&self, message: Option<Result<Bytes, tonic::Status>>) -> Result<Taken, SessionError> {
        let message = message.ok_or_else(|| {
            SessionError::Protocol("receiver went away before the transfer was done".into())
        })??;
        match Packet::decode(message)? {
            Packet::Request(id) => {
                let mut state = self.state.lock();
                if !state.files.get(id as usize).is_some_and(Option::is_some) {
                    return Err(SessionError::Protocol(format!("invalid file id {id}")));
                }
                state.wanted.push_back(id);
                drop(state);
                self.wake.notify_one();
                Ok(Taken::More)
            }
            Packet::Fin => Ok(Taken::Fin),
            Packet::Error(message) => Err(SessionError::Peer {
                role: "receiver",
                message,
            }),
            other => Err(SessionError::Protocol(format!(
                "unexpected packet from receiver: {other:?}"
            ))),
        }
    }

    async fn finish(&self, result: Result<(), SessionError>) -> Result<SendStats, SessionError> {
        let last = match &result {
            Ok(()) => Packet::Fin,
            // It is the receiver that failed, or it is gone: it need not be told.
            Err(SessionError::Peer { .. } | SessionError::Status(_)) => {
                return result.map(|()| SendStats::default());
            }
            Err(error) => Packet::Error(error.to_string()),
        };
        // A receiver that is gone needs no goodbye.
        let _ = self.outbound.send(vec![last.encode()]).await;
        result?;
        let bytes = self.bytes.load(Ordering::Relaxed);
        if let Some(progress) = &self.options.progress {
            progress(bytes, true);
        }
        let state = self.state.lock();
        Ok(SendStats {
            entries: state.files.len() as u64,
            files: state.served,
            bytes,
        })
    }

    fn push(&self, batch: &mut Batch) -> Result<(), SessionError> {
        if batch.is_empty() {
            return Ok(());
        }
        if self.stop.load(Ordering::Acquire) {
            return Err(SessionError::Canceled);
        }
        let len: usize = batch.iter().map(Bytes::len).sum();
        let bytes = self.bytes.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
        self.outbound
            .blocking_send(std::mem::take(batch))
            .map_err(|_| SessionError::Canceled)?;
        if let Some(progress) = &self.options.progress {
            progress(bytes, false);
        }
        Ok(())
    }

    /// Announces every entry.
    fn walk(&self, root: &Path) -> Result<(), SessionError> {
        let options = WalkOptions {
            filter: self.options.filter.clone(),
            xattrs: true,
        };
        let mut walker = Walker::new(root, options)?;
        let mut announce = Announce::default();
        let mut links = HardLinks::default();
        // Directories entered for what may be below them, not announced yet.
        let mut pending: Vec<FileStat> = Vec::new();
        while let Some(mut entry) = walker.next_entry()? {
            pending.retain(|dir| super::order::is_below(&entry.stat.path, &dir.path));
            if !entry.wanted {
                pending.push(entry.stat);
                continue;
            }
            links.mark(&mut entry);
            for dir in pending.drain(..) {
                self.announce(&mut announce, dir)?;
            }
            let Entry { stat, .. } = entry;
            self.announce(&mut announce, stat)?;
        }
        announce.batch.push(Packet::StatEnd.encode());
        self.flush(&mut announce)
    }

    fn announce(&self, announce: &mut Announce, mut stat: FileStat) -> Result<(), SessionError> {
        if self.options.reset_owner {
            (stat.uid, stat.gid) = (0, 0);
        }
        let packet = Packet::Stat(stat);
        let message = packet.encode();
        announce.bytes += message.len();
        announce.batch.push(message);
        if let Packet::Stat(stat) = packet {
            let path = mode::is_regular(stat.mode).then(|| stat.path.into_boxed_slice());
            announce.files.push(path);
        }
        if announce.bytes >= BATCH_BYTES || announce.batch.len() >= BATCH_PACKETS {
            self.flush(announce)?;
        }
        Ok(())
    }

    fn flush(&self, announce: &mut Announce) -> Result<(), SessionError> {
        // Known before they are announced, as the answer may come at once.
        self.state.lock().files.append(&mut announce.files);
        announce.bytes = 0;
        self.push(&mut announce.batch)
    }

    /// Reads and sends wanted files until the transfer ends.
    fn serve_content(&self) -> Result<(), SessionError> {
        let mut batch = Batch::new();
        let mut batch_bytes = 0;
        loop {
            let next = match self.next_wanted(false) {
                Some(next) => Some(next),
                None => {
                    // Nothing to do now: what was gathered should not wait for more.
                    self.push(&mut batch)?;
                    batch_bytes = 0;
                    self.next_wanted(true)
                }
            };
            let Some((id, path)) = next else {
                return Ok(());
            };
            let Some(fd) = self.open_file(&path)? else {
                batch.push(Packet::Data(id, Bytes::new()).encode());
                continue;
            };
            let size = rustix::fs::fstat(&fd).map_or(0, |stat| stat.st_size.max(0) as usize);
            let mut left = if size == 0 { usize::MAX } else { size };
            loop {
                let chunk = left.min(CHUNK_BYTES);
                let (message, len) = encode_data_from(id, chunk, |buffer| read(&fd, buffer))
                    .map_err(|error| self.failure("read", &path, error))?;
                batch_bytes += message.len();
                batch.push(message);
                left -= len;
                if len > 0 && left == 0 {
                    batch.push(Packet::Data(id, Bytes::new()).encode());
                }
                if batch_bytes >= BATCH_BYTES {
                    self.push(&mut batch)?;
                    batch_bytes = 0;
                }
                if len == 0 || left == 0 {
                    break;
                }
            }
        }
    }

    /// The next file whose content is wanted; nothing when there is none or, if it may wait, when the
    /// transfer has ended.
    fn next_wanted(&self, wait: bool) -> Option<(u32, Box<[u8]>)> {
        let mut state = self.state.lock();
        loop {
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            if let Some(id) = state.wanted.pop_front() {
                // An id asked for twice is answered once.
                if let Some(path) = state.files.get_mut(id as usize).and_then(Option::take) {
                    state.served += 1;
                    return Some((id, path));
                }
                continue;
            }
            if !wait {
                return None;
            }
            self.wake.wait(&mut state);
        }
    }

    /// Opens a file to send. One that has vanished since, or cannot have content, is sent empty.
    fn open_file(&self, path: &[u8]) -> Result<Option<OwnedFd>, SessionError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        match open_beneath(&self.root, path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(None),
            Err(error) => Err(self.failure("open", path, error.into())),
        }
    }

    fn failure(&self, op: &'static str, path: &[u8], error: std::io::Error) -> SessionError {
        use std::os::unix::ffi::OsStrExt;
        SessionError::file(
            op,
            self.root_path.join(std::ffi::OsStr::from_bytes(path)),
            error,
        )
    }
}

/// Entries that are about to be announced.
#[derive(Default)]
struct Announce {
    batch: Batch,
    bytes: usize,
    files: Vec<Option<Box<[u8]>>>,
}

fn read(fd: &OwnedFd, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match rustix::io::read(fd, &mut *buffer) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(len) => return Ok(len),
        }
    }
}
