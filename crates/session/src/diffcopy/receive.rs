//! The receiving end.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::Progress;
use super::dest::{Dest, NewFile};
use super::order::{self, OpenDir, OrderCheck};
use crate::codec::{Batch, Inbound};
use crate::error::SessionError;
use crate::mode;
use crate::packet::{FileStat, Packet};
use crate::walk::{Entry, HardLinks, WalkOptions, Walker};

/// Whose the files are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// As the sender says.
    Keep,
    /// This user and group.
    Fixed(u32, u32),
}

/// How a tree is received.
#[derive(Clone)]
pub struct ReceiveOptions {
    /// Whether what the sender does not have stays; otherwise it is removed.
    pub merge: bool,
    /// Whether the content of every file is asked for, also of those that look the same.
    pub fetch_all: bool,
    /// Whose the files are to be.
    pub owner: Owner,
    /// Entries past which a transfer is refused.
    pub entries_max: u64,
    /// Told of the bytes that came.
    pub progress: Option<Progress>,
    /// Told of every path that changed, as soon as it is known that it will.
    pub on_change: Option<Arc<dyn Fn(Change<'_>) + Send + Sync>>,
}

impl Default for ReceiveOptions {
    fn default() -> Self {
        ReceiveOptions {
            merge: false,
            fetch_all: false,
            owner: Owner::Keep,
            entries_max: 20_000_000,
            progress: None,
            on_change: None,
        }
    }
}

/// What happens to a path.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// How.
    pub kind: ChangeKind,
    /// The path, relative.
    pub path: &'a [u8],
    /// What it becomes, unless it is removed.
    pub stat: Option<&'a FileStat>,
}

/// How a path changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// It was there and differs.
    Modified,
    /// It is there no more, with everything below.
    Removed,
}

/// What a transfer did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncStats {
    /// Entries the sender has.
    pub entries: u64,
    /// Entries that were made or changed.
    pub changed: u64,
    /// Entries that were removed; a directory counts as one.
    pub removed: u64,
    /// Files whose content came.
    pub files: u64,
    /// Bytes of content.
    pub content_bytes: u64,
    /// Bytes of packets.
    pub bytes: u64,
}

/// Messages taken from the stream at a time.
const READ_BATCH: usize = 64;
/// Batches that wait for the loops that write to disk.
const QUEUED_BATCHES: usize = 16;
/// Files a sender may have under way at once.
const OPEN_FILES_MAX: usize = 512;
/// How long a sender that was told of our failure is given to hear of it.
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(2);

/// Makes the directory `dest` what the sender on `inbound` announces; requests go to `outbound`.
///
/// Dropping the future ends the work; the directory is then between two states, and the next transfer
/// finds and repairs what is unfinished (files are given their time last).
pub async fn receive(
    dest: PathBuf,
    options: ReceiveOptions,
    inbound: Inbound,
    outbound: mpsc::UnboundedSender<Batch>,
) -> Result<SyncStats, SessionError> {
    let mut inbound = inbound.ready_chunks(READ_BATCH);
    let result = transfer(&dest, &options, &mut inbound, &outbound).await;
    match result {
        Ok(stats) => {
            drop(outbound);
            // The sender has said FIN; what follows is its status.
            while let Some(batch) = inbound.next().await {
                batch.into_iter().collect::<Result<Vec<_>, _>>()?;
            }
            if let Some(progress) = &options.progress {
                progress(stats.bytes, true);
            }
            Ok(stats)
        }
        Err(error) => {
            if !matches!(error, SessionError::Peer { .. } | SessionError::Status(_)) {
                let _ = outbound.send(vec![Packet::Error(error.to_string()).encode()]);
                drop(outbound);
                let rest = async { while inbound.next().await.is_some() {} };
                let _ = tokio::time::timeout(GOODBYE, rest).await;
            }
            Err(error)
        }
    }
}

type Chunks = futures::stream::ReadyChunks<Inbound>;

async fn transfer(
    dest: &Path,
    options: &ReceiveOptions,
    inbound: &mut Chunks,
    outbound: &mpsc::UnboundedSender<Batch>,
) -> Result<SyncStats, SessionError> {
    let pending = Arc::<Mutex<HashMap<u32, Pending>>>::default();
    let (entries, entries_in) = mpsc::channel(QUEUED_BATCHES);
    let (content, content_in) = mpsc::channel(QUEUED_BATCHES);
    let differ = Differ::new(dest, options.clone(), pending.clone(), outbound.clone())?;
    let writer = Writer {
        dest: differ.dest.another('w'),
        pending,
        open: HashMap::new(),
        stats: SyncStats::default(),
        outcome: None,
        outbound: outbound.clone(),
    };
    let to_writer = content.clone();
    let mut differ = tokio::task::spawn_blocking(move || differ.run(entries_in, &to_writer));
    let mut writer = tokio::task::spawn_blocking(move || writer.run(content_in));
    let mut distribute = Distribute {
        entries: Some(entries),
        content,
        next_id: 0,
        bytes: 0,
        options,
    };
    let (mut differed, mut written, mut fin) = (None, None, false);
    let failed = loop {
        tokio::select! {
            done = &mut differ, if differed.is_none() => differed = Some(joined(done)),
            done = &mut writer, if written.is_none() => written = Some(joined(done)),
            batch = inbound.next(), if !fin => match distribute.take(batch).await {
                Ok(done) => fin = done,
                Err(error) => break error,
            },
        }
        match (&differed, &written) {
            (Some(Ok(())), Some(Ok(stats))) if fin => {
                return Ok(SyncStats {
                    bytes: distribute.bytes,
                    ..*stats
                });
            }
            (Some(Err(_)), _) | (_, Some(Err(_))) => break SessionError::Canceled,
            _ => {}
        }
    };
    // The loops end when their queues do. When it was one of them that failed, its reason is the one
    // to give, not that the others were cut off.
    drop(distribute);
    let differed = match differed {
        Some(result) => result,
        None => joined(differ.await),
    };
    let written = match written {
        Some(result) => result.map(drop),
        None => joined(writer.await).map(drop),
    };
    let reasons = [Err(failed), differed, written]
        .into_iter()
        .filter_map(Result::err);
    let mut reasons = reasons.filter(|error| !matches!(error, SessionError::Canceled));
    Err(reasons.next().unwrap_or(SessionError::Canceled))
}

fn joined<T>(
    result: Result<Result<T, SessionError>, tokio::task::JoinError>,
) -> Result<T, SessionError> {
    result.unwrap_or(Err(SessionError::Canceled))
}

/// Hands packets to the loop they concern.
struct Distribute<'a> {
    entries: Option<mpsc::Sender<Vec<(u32, FileStat)>>>,
    content: mpsc::Sender<Vec<ToWriter>>,
    next_id: u32,
    bytes: u64,
    options: &'a ReceiveOptions,
}

enum ToWriter {
    Data(u32, Bytes),
    /// All entries are known and looked at.
    EntriesDone(Box<Outcome>),
}

impl Distribute<'_> {
    /// True when the sender has said that it is done.
    async fn take(
        &mut self,
        batch: Option<Vec<Result<Bytes, tonic::Status>>>,
    ) -> Result<bool, SessionError> {
        let batch = batch.ok_or_else(|| {
            SessionError::Protocol("sender went away before the transfer was done".into())
        })?;
        let (mut entries, mut content, mut ended, mut fin) = (Vec::new(), Vec::new(), false, false);
        for message in batch {
            let message = message?;
            self.bytes += message.len() as u64;
            match Packet::decode(message)? {
                Packet::Stat(stat) => {
                    if u64::from(self.next_id) >= self.options.entries_max {
                        return Err(SessionError::Limit(format!(
                            "more than {} files in one transfer",
                            self.options.entries_max
                        )));
                    }
                    entries.push((self.next_id, stat));
                    self.next_id += 1;
                }
                Packet::StatEnd => ended = true,
                Packet::Data(id, data) => content.push(ToWriter::Data(id, data)),
                Packet::Fin => fin = true,
                Packet::Error(message) => {
                    return Err(SessionError::Peer {
                        role: "sender",
                        message,
                    });
                }
                Packet::Request(_) => {
                    return Err(SessionError::Protocol("request from a sender".into()));
                }
            }
        }
        if let Some(progress) = &self.options.progress {
            progress(self.bytes, false);
        }
        if !entries.is_empty() {
            let queue = self
                .entries
                .as_ref()
                .ok_or_else(|| SessionError::Protocol("entry after the last entry".into()))?;
            queue
                .send(entries)
                .await
                .map_err(|_| SessionError::Canceled)?;
        }
        if ended {
            // An empty batch is the end; the channel's own end is a transfer that was dropped.
            if let Some(queue) = self.entries.take() {
                queue
                    .send(Vec::new())
                    .await
                    .map_err(|_| SessionError::Canceled)?;
            }
        }
        if !content.is_empty() {
            self.content
                .send(content)
                .await
                .map_err(|_| SessionError::Canceled)?;
        }
        Ok(fin)
    }
}

/// A file whose content was asked for.
struct Pending {
    stat: FileStat,
    replaces: bool,
}

/// What is to be done when all content has come.
#[derive(Default)]
struct Outcome {
    requested: u64,
    links: Vec<FileStat>,
    dirs: Vec<FileStat>,
    stats: SyncStats,
}

/// Compares what is announced with what is there, and asks for content.
struct Differ {
    dest: Dest,
    root: PathBuf,
    options: ReceiveOptions,
    order: OrderCheck,
    pending: Arc<Mutex<HashMap<u32, Pending>>>,
    outbound: mpsc::UnboundedSender<Batch>,
    requests: Batch,
    outcome: Outcome,
    is_root: bool,
}

/// What is in the destination, in order.
struct Present {
    walker: Walker,
    links: HardLinks,
    next: Option<Entry>,
}

impl Present {
    fn advance(&mut self) -> Result<(), SessionError> {
        self.next = self.walker.next_entry()?;
        if let Some(entry) = &mut self.next {
            self.links.mark(entry);
        }
        Ok(())
    }
}

impl Differ {
    fn new(
        root: &Path,
        options: ReceiveOptions,
        pending: Arc<Mutex<HashMap<u32, Pending>>>,
        outbound: mpsc::UnboundedSender<Batch>,
    ) -> Result<Self, SessionError> {
        Ok(Differ {
            dest: Dest::open(root, 'd')?,
            root: root.to_owned(),
            options,
            order: OrderCheck::default(),
            pending,
            outbound,
            requests: Batch::new(),
            outcome: Outcome::default(),
            is_root: rustix::process::geteuid().is_root(),
        })
    }

    fn run(
        mut self,
        mut entries: mpsc::Receiver<Vec<(u32, FileStat)>>,
        writer: &mpsc::Sender<Vec<ToWriter>>,
    ) -> Result<(), SessionError> {
        let mut present = None;
        if !self.options.merge {
            let walker = Walker::new(&self.root, WalkOptions::default())?;
            let mut start = Present {
                walker,
                links: HardLinks::default(),
                next: None,
            };
            start.advance()?;
            present = Some(start);
        }
        loop {
            let batch = entries.blocking_recv().ok_or(SessionError::Canceled)?;
            if batch.is_empty() {
                break;
            }
            for (id, stat) in batch {
                self.entry(id, stat, present.as_mut())?;
            }
            self.send_requests();
        }
        if let Some(present) = &mut present {
            self.remove_until(present, None)?;
        }
        let rest = self.order.finish();
        self.note_dirs(rest);
        let done = vec![ToWriter::EntriesDone(Box::new(self.outcome))];
        writer
            .blocking_send(done)
            .map_err(|_| SessionError::Canceled)
    }

    fn entry(
        &mut self,
        id: u32,
        mut stat: FileStat,
        present: Option<&mut Present>,
    ) -> Result<(), SessionError> {
        if let Owner::Fixed(uid, gid) = self.options.owner {
            (stat.uid, stat.gid) = (uid, gid);
        }
        if stat.uid == u32::MAX || stat.gid == u32::MAX {
            return Err(SessionError::Protocol("invalid owner".into()));
        }
        let done = self.order.next(&stat)?;
        self.note_dirs(done);
        self.outcome.stats.entries += 1;
        let existing = match present {
            None => self.dest.lstat(&stat.path)?,
            Some(present) => self.matching(present, &stat)?,
        };
        self.apply(id, stat, existing)
    }

    /// What is there under the path; what is there before it is not announced, and goes.
    fn matching(
        &mut self,
        present: &mut Present,
        stat: &FileStat,
    ) -> Result<Option<FileStat>, SessionError> {
        self.remove_until(present, Some(&stat.path))?;
        if !present
            .next
            .as_ref()
            .is_some_and(|next| next.stat.path == stat.path)
        {
            return Ok(None);
        }
        let Some(entry) = present.next.take() else {
            return Ok(None);
        };
        if entry.stat.is_dir() && !stat.is_dir() {
            present.walker.skip_directory();
        }
        present.advance()?;
        Ok(Some(entry.stat))
    }

    fn remove_until(
        &mut self,
        present: &mut Present,
        path: Option<&[u8]>,
    ) -> Result<(), SessionError> {
        while let Some(next) = &present.next {
            if path.is_some_and(|path| order::compare(&next.stat.path, path).is_ge()) {
                break;
            }
            let is_dir = next.stat.is_dir();
            if is_dir {
                present.walker.skip_directory();
            }
            self.dest.remove(&next.stat.path, is_dir)?;
            self.order.touch_parent(&next.stat.path);
            self.outcome.stats.removed += 1;
            self.tell(ChangeKind::Removed, &next.stat.path, None);
            present.advance()?;
        }
        Ok(())
    }

    fn apply(
        &mut self,
        id: u32,
        stat: FileStat,
        existing: Option<FileStat>,
    ) -> Result<(), SessionError> {
        if stat.is_dir()
            && let Some(existing) = existing.as_ref().filter(|existing| existing.is_dir())
        {
            return self.keep_dir(&stat, existing);
        }
        if existing
            .as_ref()
            .is_some_and(|existing| self.is_same(&stat, existing))
        {
            return Ok(());
        }
        let kind = match existing {
            Some(_) => ChangeKind::Modified,
            None => ChangeKind::Added,
        };
        self.outcome.stats.changed += 1;
        self.tell(kind, &stat.path, Some(&stat));
        self.order.touch_parent(&stat.path);
        let is_file = |stat: &FileStat| mode::is_regular(stat.mode);
        let replaces_file = existing.as_ref().is_some_and(is_file) && is_file(&stat);
        if let Some(existing) = &existing
            && !replaces_file
        {
            self.dest.remove(&stat.path, existing.is_dir())?;
        }
        if stat.is_dir() {
            self.dest.make_dir(&stat)?;
            self.order.touch_last();
        } else if mode::is_symlink(stat.mode) {
            self.dest.make_symlink(&stat)?;
        } else if stat.mode & (mode::DEVICE | mode::NAMED_PIPE) != 0 {
            self.dest.make_special(&stat)?;
        } else if stat.is_hard_link() {
            self.outcome.links.push(stat);
        } else if !is_file(&stat) {
            return Err(SessionError::Protocol(format!(
                "unknown file mode {:#o}",
                stat.mode
            )));
        } else if stat.size == 0 {
            let file = self.dest.create(&stat, replaces_file)?;
            self.dest.finish(file, &stat)?;
        } else {
            self.request(id, stat, replaces_file);
        }
        Ok(())
    }

    fn keep_dir(&mut self, stat: &FileStat, existing: &FileStat) -> Result<(), SessionError> {
        let same = same_metadata(stat, existing);
        if !same {
            self.outcome.stats.changed += 1;
            self.tell(ChangeKind::Modified, &stat.path, Some(stat));
        }
        let locked = !self.is_root && existing.mode & 0o700 != 0o700;
        if locked {
            self.dest.unlock_dir(stat)?;
        }
        if !same || locked || stat.mod_time != existing.mod_time {
            self.order.touch_last();
        }
        Ok(())
    }

    /// Whether what is there need not be touched: as for stock receivers, the content of a file is
    /// taken to be the same when size, time, mode and owner are.
    fn is_same(&self, stat: &FileStat, existing: &FileStat) -> bool {
        if self.options.fetch_all && mode::is_regular(stat.mode) {
            return false;
        }
        if self.options.merge && stat.is_hard_link() {
            return false;
        }
        stat.size == existing.size
            && stat.mod_time == existing.mod_time
            && same_metadata(stat, existing)
    }

    fn request(&mut self, id: u32, stat: FileStat, replaces: bool) {
        self.outcome.requested += 1;
        self.requests.push(Packet::Request(id).encode());
        self.pending.lock().insert(id, Pending { stat, replaces });
    }

    fn send_requests(&mut self) {
        if !self.requests.is_empty() {
            // Without a sender the transfer is about to be dropped.
            let _ = self.outbound.send(std::mem::take(&mut self.requests));
        }
    }

    fn note_dirs(&mut self, done: Vec<OpenDir>) {
        let touched = done.into_iter().filter(|dir| dir.touched);
        self.outcome.dirs.extend(touched.map(|dir| dir.stat));
    }

    fn tell(&self, kind: ChangeKind, path: &[u8], stat: Option<&FileStat>) {
        if let Some(on_change) = &self.options.on_change {
            on_change(Change { kind, path, stat });
        }
    }
}

fn same_metadata(a: &FileStat, b: &FileStat) -> bool {
    a.mode == b.mode
        && a.uid == b.uid
        && a.gid == b.gid
        && a.devmajor == b.devmajor
        && a.devminor == b.devminor
        && a.linkname == b.linkname
}

/// Writes content as it comes, and what waits for all content.
struct Writer {
    dest: Dest,
    pending: Arc<Mutex<HashMap<u32, Pending>>>,
    open: HashMap<u32, (NewFile, FileStat)>,
    stats: SyncStats,
    outcome: Option<Box<Outcome>>,
    outbound: mpsc::UnboundedSender<Batch>,
}

impl Writer {
    fn run(
        mut self,
        mut content: mpsc::Receiver<Vec<ToWriter>>,
    ) -> Result<SyncStats, SessionError> {
        let result = self.write_all(&mut content);
        for (_, (file, stat)) in self.open.drain() {
            self.dest.abandon(file, &stat);
        }
        result
    }

    fn write_all(
        &mut self,
        content: &mut mpsc::Receiver<Vec<ToWriter>>,
    ) -> Result<SyncStats, SessionError> {
        loop {
            let batch = content.blocking_recv().ok_or(SessionError::Canceled)?;
            for message in batch {
                match message {
                    ToWriter::Data(id, data) => self.data(id, &data)?,
                    ToWriter::EntriesDone(outcome) => self.outcome = Some(outcome),
                }
            }
            let done = |outcome: &Box<Outcome>| outcome.requested == self.stats.files;
            if let Some(outcome) = self.outcome.take_if(|outcome| done(outcome)) {
                return self.complete(*outcome);
            }
        }
    }

    fn data(&mut self, id: u32, data: &[u8]) -> Result<(), SessionError> {
        if !self.open.contains_key(&id) {
            let Pending { stat, replaces } = self
                .pending
                .lock()
                .remove(&id)
                .ok_or_else(|| SessionError::Protocol(format!("invalid file request {id}")))?;
            if self.open.len() >= OPEN_FILES_MAX {
                return Err(SessionError::Limit(format!(
                    "sender has more than {OPEN_FILES_MAX} files under way"
                )));
            }
            let file = self.dest.create(&stat, replaces)?;
            self.open.insert(id, (file, stat));
        }
        if data.is_empty() {
            if let Some((file, stat)) = self.open.remove(&id) {
                self.dest.finish(file, &stat)?;
                self.stats.files += 1;
            }
        } else if let Some((file, stat)) = self.open.get(&id) {
            self.dest.write(file, stat, data)?;
            self.stats.content_bytes += data.len() as u64;
        }
        Ok(())
    }

    /// All content is there: links, then directories from the deepest up, then the sender is told.
    fn complete(&mut self, outcome: Outcome) -> Result<SyncStats, SessionError> {
        for link in &outcome.links {
            self.dest.make_hard_link(link)?;
        }
        for dir in &outcome.dirs {
            self.dest.finish_dir(dir)?;
        }
        let _ = self.outbound.send(vec![Packet::Fin.encode()]);
        Ok(SyncStats {
            entries: outcome.stats.entries,
            changed: outcome.stats.changed,
            removed: outcome.stats.removed,
            ..self.stats
        })
    }
}
