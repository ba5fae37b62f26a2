//! The receiving end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::Progress;
use super::differ::{Contents, Differ, Pendings};
use super::listing::Listing;
use super::metadata::{METADATA_FILE, Metadata, Wanted};
use super::writer::{ToWriter, Writer};
use crate::codec::{Batch, Inbound};
use crate::error::SessionError;
use crate::packet::{FileStat, Packet};

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
    /// Whether only what the entries are is noted down, and which of them come themselves.
    pub metadata_only: Option<Wanted>,
    /// Whose the files are to be.
    pub owner: Owner,
    /// Entries past which a transfer is refused.
    pub entries_max: u64,
    /// Told of the bytes that came.
    pub progress: Option<Progress>,
    /// Told of every path that changed, as soon as it is known that it will.
    pub on_change: Option<Arc<dyn Fn(Change<'_>) + Send + Sync>>,
    /// What the directory holds, if that is known for sure; else it is walked.
    pub known: Option<Arc<Listing>>,
    /// Told what the directory holds when all is done, if that is not what was known and can be said
    /// without walking it.
    pub on_listing: Option<OnListing>,
}

/// Is given the listing of a directory.
pub type OnListing = Arc<dyn Fn(Listing) + Send + Sync>;

impl Default for ReceiveOptions {
    fn default() -> Self {
        ReceiveOptions {
            merge: false,
            fetch_all: false,
            metadata_only: None,
            owner: Owner::Keep,
            entries_max: 20_000_000,
            progress: None,
            on_change: None,
            known: None,
            on_listing: None,
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
    /// What it becomes, if a sender announced that.
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
    let pending = Pendings::default();
    let (entries, entries_in) = mpsc::channel(QUEUED_BATCHES);
    let (content, content_in) = mpsc::channel(QUEUED_BATCHES);
    let contents = Contents::Ask {
        pending: pending.clone(),
        outbound: outbound.clone(),
        requests: Batch::new(),
    };
    let differ = Differ::new(dest, options.clone(), contents)?;
    let ended = (options.on_listing.clone(), dest.to_owned());
    let writer = Writer::new(differ.dest.another('w'), pending, outbound.clone(), ended);
    let to_writer = content.clone();
    let mut differ = tokio::task::spawn_blocking(move || differ.run(entries_in, &to_writer));
    let mut writer = tokio::task::spawn_blocking(move || writer.run(content_in));
    let mut open = Some(Distribute {
        entries: Some(entries),
        content,
        metadata: options.metadata_only.clone().map(Metadata::new),
        next_id: 0,
        bytes: 0,
        options,
    });
    let (mut bytes, mut metadata) = (0, None);
    let (mut differed, mut written) = (None, None);
    let failed = loop {
        tokio::select! {
            done = &mut differ, if differed.is_none() => differed = Some(joined(done)),
            done = &mut writer, if written.is_none() => written = Some(joined(done)),
            batch = inbound.next(), if open.is_some() => {
                let Some(distribute) = &mut open else { continue };
                match distribute.take(batch).await {
                    // The loops end when their queues do: at once if the sender was right to say
                    // that it is done, else with an error.
                    Ok(true) => {
                        bytes = distribute.bytes;
                        metadata = distribute.metadata.take();
                        open = None;
                    }
                    Ok(false) => {}
                    Err(error) => break error,
                }
            }
        }
        match (&differed, &written) {
            (Some(Ok(())), Some(Ok(stats))) if open.is_none() => {
                let stats = SyncStats { bytes, ..*stats };
                return note_metadata(dest, options, metadata.take(), stats).await;
            }
            (Some(Err(_)), _) | (_, Some(Err(_))) if open.is_none() => {
                break SessionError::Protocol("sender ended before the transfer was done".into());
            }
            (Some(Err(_)), _) | (_, Some(Err(_))) => break SessionError::Canceled,
            _ => {}
        }
    };
    // When it was one of the loops that failed, its reason is the one to give, not that the others
    // were cut off.
    drop(open);
    let differed = match differed {
        Some(result) => result,
        None => joined(differ.await),
    };
    let written = match written {
        Some(result) => result.map(drop),
        None => joined(writer.await).map(drop),
    };
    let reasons = [differed, written, Err(failed)]
        .into_iter()
        .filter_map(Result::err);
    let mut reasons = reasons.filter(|error| !matches!(error, SessionError::Canceled));
    Err(reasons.next().unwrap_or(SessionError::Canceled))
}

/// Writes down what the entries are, if that is what is wanted.
async fn note_metadata(
    dest: &Path,
    options: &ReceiveOptions,
    metadata: Option<Metadata>,
    mut stats: SyncStats,
) -> Result<SyncStats, SessionError> {
    let Some(metadata) = metadata else {
        return Ok(stats);
    };
    let dest = dest.to_owned();
    let write = tokio::task::spawn_blocking(move || metadata.write(&dest));
    if joined(write.await)? {
        stats.changed += 1;
        if let Some(on_change) = &options.on_change {
            on_change(Change {
                kind: ChangeKind::Modified,
                path: METADATA_FILE,
                stat: None,
            });
        }
    }
    Ok(stats)
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
    metadata: Option<Metadata>,
    next_id: u32,
    bytes: u64,
    options: &'a ReceiveOptions,
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
                    match &mut self.metadata {
                        Some(metadata) => metadata.take(self.next_id, stat, &mut entries)?,
                        None => entries.push((self.next_id, stat)),
                    }
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
