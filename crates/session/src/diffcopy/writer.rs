//! Writing content as it comes.

use std::collections::HashMap;
use std::path::PathBuf;

use bytes::Bytes;
use oci::DigestHasher;
use tokio::sync::mpsc;

use super::dest::{Dest, NewFile};
use super::differ::{Outcome, Pending, Pendings};
use super::listing::Written;
use super::receive::{OnListing, SyncStats};
use crate::codec::Batch;
use crate::error::SessionError;
use crate::packet::{FileStat, Packet};

/// Files a sender may have under way at once.
const OPEN_FILES_MAX: usize = 512;

/// What the writer is told.
pub enum ToWriter {
    /// A piece of the content of that id; empty at its end.
    Data(u32, Bytes),
    /// All entries are known and looked at.
    EntriesDone(Box<Outcome>),
}

/// Writes content as it comes, and what waits for all content.
pub struct Writer {
    dest: Dest,
    pending: Pendings,
    open: HashMap<u32, OpenFile>,
    written: Vec<Written>,
    stats: SyncStats,
    outcome: Option<Box<Outcome>>,
    outbound: mpsc::UnboundedSender<Batch>,
    /// Who is told what the directory holds in the end, and where it is.
    ended: (Option<OnListing>, PathBuf),
}

/// A file whose content is coming.
struct OpenFile {
    file: NewFile,
    stat: FileStat,
    /// The number of the entry, and the digest of what came, if a listing is made.
    listed: Option<(u32, DigestHasher)>,
    bytes: u64,
}

impl Writer {
    /// A writer to a view of the destination.
    pub fn new(
        dest: Dest,
        pending: Pendings,
        outbound: mpsc::UnboundedSender<Batch>,
        ended: (Option<OnListing>, PathBuf),
    ) -> Self {
        Writer {
            dest,
            pending,
            open: HashMap::new(),
            written: Vec::new(),
            stats: SyncStats::default(),
            outcome: None,
            outbound,
            ended,
        }
    }

    /// Takes content until all that was asked for has come; then ends the transfer.
    pub fn run(
        mut self,
        mut content: mpsc::Receiver<Vec<ToWriter>>,
    ) -> Result<SyncStats, SessionError> {
        let result = self.write_all(&mut content);
        for (_, open) in self.open.drain() {
            self.dest.abandon(open.file, &open.stat);
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
            let files = self.stats.files;
            if let Some(outcome) = self.outcome.take_if(|outcome| outcome.requested == files) {
                return self.complete(*outcome);
            }
        }
    }

    fn data(&mut self, id: u32, data: &[u8]) -> Result<(), SessionError> {
        if !self.open.contains_key(&id) {
            let Pending {
                stat,
                replaces,
                entry,
            } = self
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
            let open = OpenFile {
                file,
                stat,
                listed: entry.map(|entry| (entry, DigestHasher::new())),
                bytes: 0,
            };
            self.open.insert(id, open);
        }
        if data.is_empty() {
            if let Some(open) = self.open.remove(&id) {
                self.dest.finish(open.file, &open.stat)?;
                self.stats.files += 1;
                if let Some((entry, hasher)) = open.listed {
                    self.written.push(Written {
                        entry,
                        content: hasher.finish(),
                        bytes: open.bytes,
                    });
                }
            }
        } else if let Some(open) = self.open.get_mut(&id) {
            self.dest.write(&open.file, &open.stat, data)?;
            open.bytes += data.len() as u64;
            if let Some((_, hasher)) = &mut open.listed {
                hasher.update(data);
            }
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
        if let ((Some(on_listing), root), Some(mut draft)) = (&self.ended, outcome.listing) {
            for written in &self.written {
                draft.set_content(written);
            }
            if let Some(listing) = draft.finish(root) {
                on_listing(listing);
            }
        }
        Ok(SyncStats {
            entries: outcome.stats.entries,
            changed: outcome.stats.changed,
            removed: outcome.stats.removed,
            ..self.stats
        })
    }
}
