//! Comparing what a sender announces with what is there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci::Digest;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::dest::Dest;
use super::listing::{Draft, Listing};
use super::metadata::METADATA_FILE;
use super::order::{self, OpenDir, OrderCheck};
use super::receive::{Change, ChangeKind, Owner, ReceiveOptions, SyncStats};
use super::writer::ToWriter;
use crate::codec::Batch;
use crate::error::SessionError;
use crate::mode;
use crate::packet::{FileStat, Packet};
use crate::walk::{HardLinks, WalkOptions, Walker};

/// Files whose content was asked for and has not begun to come, by id.
pub type Pendings = Arc<Mutex<HashMap<u32, Pending>>>;

/// A file whose content was asked for.
pub struct Pending {
    pub stat: FileStat,
    pub replaces: bool,
    /// The number of its entry in the listing that is made, if one is.
    pub entry: Option<u32>,
}

/// What is to be done when all content has come.
#[derive(Default)]
pub struct Outcome {
    pub requested: u64,
    pub links: Vec<FileStat>,
    pub dirs: Vec<FileStat>,
    pub stats: SyncStats,
    pub listing: Option<Draft>,
}

/// How content is got.
pub enum Contents {
    /// It is asked for, and noted until it begins to come.
    Ask {
        pending: Pendings,
        outbound: mpsc::UnboundedSender<Batch>,
        requests: Batch,
    },
    /// It is gathered for who can reach it, which is also asked for the attributes of what changes.
    Gather {
        wanted: Vec<Pending>,
        attributes: AttributeReader,
    },
}

/// Reads the extended attributes of a path.
pub type AttributeReader = Box<dyn Fn(&FileStat) -> Result<Attributes, SessionError> + Send>;
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Compares what is announced with what is there, and asks for content.
pub struct Differ {
    pub dest: Dest,
    root: PathBuf,
    options: ReceiveOptions,
    order: OrderCheck,
    contents: Contents,
    outcome: Outcome,
    is_root: bool,
}

/// What is in the destination, in order.
pub struct Present {
    source: PresentSource,
    next: Option<Existing>,
    /// Whether the notes of transfers of metadata are passed over.
    keeps_notes: bool,
}

/// How it is known what is in the destination.
enum PresentSource {
    Walked {
        walker: Box<Walker>,
        links: HardLinks,
    },
    Listed {
        listing: Arc<Listing>,
        next: usize,
    },
}

/// An entry of the destination, with the digest of its content if that is known.
struct Existing {
    stat: FileStat,
    content: Option<Digest>,
    /// Where the known listing has it.
    listed: Option<u32>,
}

impl Present {
    fn start(
        root: &Path,
        known: Option<Arc<Listing>>,
        keeps_notes: bool,
    ) -> Result<Self, SessionError> {
        let source = match known {
            Some(listing) => PresentSource::Listed { listing, next: 0 },
            None => PresentSource::Walked {
                walker: Box::new(Walker::new(root, WalkOptions::default())?),
                links: HardLinks::default(),
            },
        };
        let mut present = Present {
            source,
            next: None,
            keeps_notes,
        };
        present.advance()?;
        Ok(present)
    }

    fn advance(&mut self) -> Result<(), SessionError> {
        self.next = self.source.next()?;
        let is_notes = |entry: &Existing| {
            entry.stat.path == METADATA_FILE && mode::is_regular(entry.stat.mode)
        };
        if self.keeps_notes && self.next.as_ref().is_some_and(is_notes) {
            self.next = self.source.next()?;
        }
        Ok(())
    }
}

impl PresentSource {
    fn next(&mut self) -> Result<Option<Existing>, SessionError> {
        match self {
            PresentSource::Walked { walker, links } => {
                let Some(mut entry) = walker.next_entry()? else {
                    return Ok(None);
                };
                links.mark(&mut entry);
                Ok(Some(Existing {
                    stat: entry.stat,
                    content: None,
                    listed: None,
                }))
            }
            PresentSource::Listed { listing, next } => {
                let entry = listing.entries().get(*next);
                *next += 1;
                Ok(entry.map(|entry| Existing {
                    stat: entry.stat.clone(),
                    content: entry.content,
                    listed: Some((*next - 1) as u32),
                }))
            }
        }
    }

    /// Passes over what is below the directory that came last.
    fn skip_directory(&mut self) {
        match self {
            PresentSource::Walked { walker, .. } => walker.skip_directory(),
            PresentSource::Listed { listing, next } => {
                *next = listing.end_below(next.saturating_sub(1));
            }
        }
    }
}

impl Differ {
    pub fn new(
        root: &Path,
        options: ReceiveOptions,
        contents: Contents,
    ) -> Result<Self, SessionError> {
        let outcome = Outcome {
            listing: options
                .on_listing
                .as_ref()
                .map(|_| Draft::new(options.known.clone())),
            ..Outcome::default()
        };
        Ok(Differ {
            dest: Dest::open(root, 'd')?,
            root: root.to_owned(),
            options,
            order: OrderCheck::default(),
            contents,
            outcome,
            is_root: rustix::process::geteuid().is_root(),
        })
    }

    /// Takes entries until the empty batch, and then tells the writer what is left to be done.
    pub fn run(
        mut self,
        mut entries: mpsc::Receiver<Vec<(u32, FileStat)>>,
        writer: &mpsc::Sender<Vec<ToWriter>>,
    ) -> Result<(), SessionError> {
        let mut present = self.present()?;
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
        let outcome = self.finish(present.as_mut())?;
        let done = vec![ToWriter::EntriesDone(Box::new(outcome))];
        writer
            .blocking_send(done)
            .map_err(|_| SessionError::Canceled)
    }

    /// What is there to compare with; nothing when what is not announced is to stay.
    pub fn present(&self) -> Result<Option<Present>, SessionError> {
        match self.options.merge {
            true => Ok(None),
            false => {
                let keeps_notes = self.options.metadata_only.is_some();
                let known = self.options.known.clone();
                Present::start(&self.root, known, keeps_notes).map(Some)
            }
        }
    }

    /// No more entries come: gives what is left to be done.
    pub fn finish(mut self, present: Option<&mut Present>) -> Result<Outcome, SessionError> {
        if let Some(present) = present {
            self.remove_until(present, None)?;
        }
        let rest = self.order.finish();
        self.note_dirs(rest)?;
        Ok(self.outcome)
    }

    /// The files whose content was found wanted since this was last called.
    pub fn take_wanted(&mut self) -> Vec<Pending> {
        match &mut self.contents {
            Contents::Ask { .. } => Vec::new(),
            Contents::Gather { wanted, .. } => std::mem::take(wanted),
        }
    }

    /// Compares an entry and makes it what it is to be, but for its content.
    pub fn entry(
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
        self.note_dirs(done)?;
        self.outcome.stats.entries += 1;
        let existing = match present {
            None => self.dest.lstat(&stat.path)?.map(|stat| Existing {
                stat,
                content: None,
                listed: None,
            }),
            Some(present) => self.matching(present, &stat)?,
        };
        self.apply(id, stat, existing)
    }

    /// What is there under the path; what is there before it is not announced, and goes.
    fn matching(
        &mut self,
        present: &mut Present,
        stat: &FileStat,
    ) -> Result<Option<Existing>, SessionError> {
        self.remove_until(present, Some(&stat.path))?;
        if present
            .next
            .as_ref()
            .is_none_or(|next| next.stat.path != stat.path)
        {
            return Ok(None);
        }
        let Some(entry) = present.next.take() else {
            return Ok(None);
        };
        if entry.stat.is_dir() && !stat.is_dir() {
            present.source.skip_directory();
        }
        present.advance()?;
        Ok(Some(entry))
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
                present.source.skip_directory();
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
        mut stat: FileStat,
        existing: Option<Existing>,
    ) -> Result<(), SessionError> {
        let existing = match existing {
            Some(existing) if stat.is_dir() && existing.stat.is_dir() => {
                return self.keep_dir(stat, existing);
            }
            Some(existing) if self.is_same(&stat, &existing.stat) => {
                match (&mut self.outcome.listing, existing.listed) {
                    (Some(draft), Some(at)) => draft.keep(at),
                    (Some(draft), None) => {
                        draft.stay(stat, existing.stat.xattrs, existing.content);
                    }
                    (None, _) => {}
                }
                return Ok(());
            }
            existing => existing.map(|existing| existing.stat),
        };
        let kind = match existing {
            Some(_) => ChangeKind::Modified,
            None => ChangeKind::Added,
        };
        self.outcome.stats.changed += 1;
        self.tell(kind, &stat.path, Some(&stat));
        self.order.touch_parent(&stat.path);
        let is_file = |stat: &FileStat| mode::is_regular(stat.mode);
        if is_file(&stat) && !stat.is_hard_link() {
            self.read_attributes(&mut stat)?;
        }
        let number = self.outcome.listing.as_mut().map(|draft| {
            let number = draft.next();
            draft.make(stat.clone());
            number
        });
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
            let file = Pending {
                stat,
                replaces: replaces_file,
                entry: number,
            };
            self.request(id, file);
        }
        Ok(())
    }

    fn keep_dir(&mut self, stat: FileStat, existing: Existing) -> Result<(), SessionError> {
        let Existing {
            stat: existing,
            listed,
            ..
        } = existing;
        let same = same_metadata(&stat, &existing);
        if !same {
            self.outcome.stats.changed += 1;
            self.tell(ChangeKind::Modified, &stat.path, Some(&stat));
        }
        let locked = !self.is_root && existing.mode & 0o700 != 0o700;
        if locked {
            self.dest.unlock_dir(&stat)?;
        }
        let as_it_was = same && stat.mod_time == existing.mod_time;
        if locked || !as_it_was {
            self.order.touch_last();
        }
        match (&mut self.outcome.listing, listed) {
            (Some(draft), Some(at)) if as_it_was => draft.keep(at),
            (Some(draft), _) => draft.stay(stat, existing.xattrs, None),
            (None, _) => {}
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

    fn request(&mut self, id: u32, file: Pending) {
        self.outcome.requested += 1;
        match &mut self.contents {
            Contents::Ask {
                pending, requests, ..
            } => {
                requests.push(Packet::Request(id).encode());
                pending.lock().insert(id, file);
            }
            Contents::Gather { wanted, .. } => wanted.push(file),
        }
    }

    fn send_requests(&mut self) {
        if let Contents::Ask {
            outbound, requests, ..
        } = &mut self.contents
            && !requests.is_empty()
        {
            // Without a sender the transfer is about to be dropped.
            let _ = outbound.send(std::mem::take(requests));
        }
    }

    /// Entries that came over the wire have their attributes with them.
    fn read_attributes(&self, stat: &mut FileStat) -> Result<(), SessionError> {
        if let Contents::Gather { attributes, .. } = &self.contents {
            stat.xattrs = attributes(stat)?;
        }
        Ok(())
    }

    fn note_dirs(&mut self, done: Vec<OpenDir>) -> Result<(), SessionError> {
        for mut dir in done.into_iter().filter(|dir| dir.touched) {
            self.read_attributes(&mut dir.stat)?;
            if let Some(draft) = self.outcome.listing.as_mut()
                && !dir.stat.xattrs.is_empty()
            {
                draft.set_attributes(&dir.stat.path);
            }
            self.outcome.dirs.push(dir.stat);
        }
        Ok(())
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
