//! What a directory holds, written down, so that nobody has to walk it to know.
//!
//! A receiver that has the listing of its directory compares what is announced with that, and gives
//! the listing of what it made of it: content is digested as it comes. It is for whoever keeps the
//! listing to see to it that nobody changes the directory in between.
//!
//! **Invariant**: entries are in the order of a transfer, every regular file has the digest of its
//! content, and every further name of a file that of an earlier entry. A listing of which that
//! cannot be said is not given.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use oci::{Digest, DigestHasher};
use parking_lot::Mutex;

use super::order;
use crate::error::SessionError;
use crate::mode;
use crate::packet::FileStat;
use crate::walk::{HardLinks, WalkOptions, Walker, list_attributes};

/// All entries of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    entries: Vec<Listed>,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What it is, as in a transfer: of further names of a file, size 0 and the first name.
    pub stat: FileStat,
    /// The digest of the content of a regular file, but for further names of one.
    pub content: Option<Digest>,
}

/// Bytes of content read at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// What follows the fixed part of an encoded entry.
const HAS_CONTENT: u8 = 1;
const HAS_LINK: u8 = 2;
const HAS_DEVICE: u8 = 4;
const HAS_XATTRS: u8 = 8;

impl Listing {
    /// Walks a directory and reads all files in it, by as many threads as there are processors.
    pub fn of(root: &Path) -> Result<Self, SessionError> {
        let options = WalkOptions {
            xattrs: true,
            ..WalkOptions::default()
        };
        let mut walker = Walker::new(root, options)?;
        let (mut links, mut entries) = (HardLinks::default(), Vec::new());
        while let Some(mut entry) = walker.next_entry()? {
            links.mark(&mut entry);
            let mut stat = entry.stat;
            stat.xattrs.retain(|(name, _)| !is_of_overlay(name));
            entries.push(Listed {
                stat,
                content: None,
            });
        }
        let has_content =
            |entry: &&Listed| mode::is_regular(entry.stat.mode) && !entry.stat.is_hard_link();
        let files: Vec<&Listed> = entries.iter().filter(has_content).collect();
        let digests = digest_all(root, &files)?;
        for (entry, digest) in entries
            .iter_mut()
            .filter(|entry| has_content(&&**entry))
            .zip(digests)
        {
            entry.content = Some(digest);
        }
        Ok(Listing { entries })
    }

    /// The entries, in the order of a transfer.
    pub fn entries(&self) -> &[Listed] {
        &self.entries
    }

    /// Where the entry of a path is.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        find(&self.entries, path)
    }

    /// Where the entries end that are below this one.
    pub fn end_below(&self, at: usize) -> usize {
        let Some(entry) = self.entries.get(at) else {
            return self.entries.len();
        };
        let after = &self.entries[at + 1..];
        let is_below = |other: &Listed| order::is_below(&other.stat.path, &entry.stat.path);
        // Of a file, and of a folder that is empty, nothing: that need not be searched.
        match after.first().is_some_and(is_below) {
            true => at + 1 + after.partition_point(is_below),
            false => at + 1,
        }
    }

    /// The entry that says what a file is: of a further name of a file, that of the first.
    pub fn file(&self, at: usize) -> Option<&Listed> {
        first_name(&self.entries, self.entries.get(at)?)
    }

    /// A digest of names, kinds, permission bits, owners, attributes, link targets, device numbers and
    /// contents. Times do not count, nor how many names a file has.
    pub fn digest(&self) -> Digest {
        let mut hasher = DigestHasher::new();
        for entry in &self.entries {
            hasher.field(&entry.stat.path);
            let file = first_name(&self.entries, entry).unwrap_or(entry);
            let stat = &file.stat;
            for number in [stat.mode, stat.uid, stat.gid] {
                hasher.update(&number.to_le_bytes());
            }
            for (name, value) in stat.xattrs.iter().filter(|(name, _)| counts(name)) {
                hasher.field(name);
                hasher.field(value);
            }
            if let Some(content) = &file.content {
                hasher.field(content.as_bytes());
            } else if mode::is_symlink(stat.mode) {
                hasher.field(&stat.linkname);
            } else if stat.mode & mode::DEVICE != 0 {
                hasher.update(&stat.devmajor.to_le_bytes());
                hasher.update(&stat.devminor.to_le_bytes());
            }
        }
        hasher.finish()
    }

    /// The listing as bytes, without a checksum.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.entries.len() * 80);
        let mut last: &[u8] = b"";
        for Listed { stat, content } in &self.entries {
            let shared = stat
                .path
                .iter()
                .zip(last)
                .take_while(|(a, b)| a == b)
                .count();
            put_count(shared, &mut out);
            put_bytes(&stat.path[shared..], &mut out);
            last = &stat.path;
            let has = [
                (HAS_CONTENT, content.is_some()),
                (HAS_LINK, !stat.linkname.is_empty()),
                (HAS_DEVICE, stat.devmajor != 0 || stat.devminor != 0),
                (HAS_XATTRS, !stat.xattrs.is_empty()),
            ];
            out.push(has.iter().filter(|(_, has)| *has).map(|(bit, _)| bit).sum());
            for number in [stat.mode, stat.uid, stat.gid] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&stat.size.to_le_bytes());
            out.extend_from_slice(&stat.mod_time.to_le_bytes());
            if let Some(content) = content {
                out.extend_from_slice(content.as_bytes());
            }
            if !stat.linkname.is_empty() {
                put_bytes(&stat.linkname, &mut out);
            }
            if stat.devmajor != 0 || stat.devminor != 0 {
                out.extend_from_slice(&stat.devmajor.to_le_bytes());
                out.extend_from_slice(&stat.devminor.to_le_bytes());
            }
            if !stat.xattrs.is_empty() {
                put_count(stat.xattrs.len(), &mut out);
                for (name, value) in &stat.xattrs {
                    put_bytes(name, &mut out);
                    put_bytes(value, &mut out);
                }
            }
        }
        out
    }

    /// The listing of bytes that [`Listing::encode`] gave; `None` of any others.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        let mut entries: Vec<Listed> = Vec::with_capacity(bytes.len() / 80);
        while !rest.0.is_empty() {
            let last = entries.last().map_or(&[][..], |entry| &entry.stat.path);
            let entry = rest.entry(last)?;
            entries.push(entry);
        }
        Some(Listing { entries })
    }
}

impl Listed {
    /// What kind of file it is and its permission bits, as unix has them.
    pub fn unix_mode(&self) -> u32 {
        let mode = self.stat.mode;
        let kind = if mode::is_dir(mode) {
            libc::S_IFDIR
        } else if mode::is_symlink(mode) {
            libc::S_IFLNK
        } else if mode & mode::CHAR_DEVICE != 0 {
            libc::S_IFCHR
        } else if mode & mode::NAMED_PIPE != 0 {
            libc::S_IFIFO
        } else if mode & mode::DEVICE != 0 {
            libc::S_IFBLK
        } else {
            libc::S_IFREG
        };
        kind | mode::permissions(mode)
    }
}

/// A listing while a directory becomes what it says.
#[derive(Debug, Default)]
pub struct Draft {
    /// What the directory held before.
    known: Option<Arc<Listing>>,
    entries: Vec<Drafted>,
    /// Paths whose attributes were set: which of them the file system took is to be looked at.
    attributes: Vec<Vec<u8>>,
}

/// An entry of a draft; most are as they were.
#[derive(Debug)]
enum Drafted {
    /// What the known listing has at that place.
    Known(u32),
    Made(Box<Listed>),
}

impl Draft {
    /// The draft for a directory that holds what is known of it.
    pub fn new(known: Option<Arc<Listing>>) -> Self {
        Draft {
            known,
            ..Draft::default()
        }
    }

    /// The number of the next entry.
    pub fn next(&self) -> u32 {
        self.entries.len() as u32
    }

    /// An entry that is what the known listing has at that place.
    pub fn keep(&mut self, at: u32) {
        self.entries.push(Drafted::Known(at));
    }

    /// An entry of which content and attributes stay.
    pub fn stay(
        &mut self,
        mut stat: FileStat,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
        content: Option<Digest>,
    ) {
        stat.xattrs = xattrs;
        self.push(Listed { stat, content });
    }

    /// An entry that is made; its content follows with [`Draft::set_content`] unless it is empty.
    pub fn make(&mut self, mut stat: FileStat) {
        let is_file = mode::is_regular(stat.mode) && !stat.is_hard_link();
        if !is_file && !stat.is_dir() {
            stat.xattrs.clear();
        } else if !stat.xattrs.is_empty() {
            self.attributes.push(stat.path.clone());
        }
        let content = (is_file && stat.size == 0).then(|| Digest::of(b""));
        self.push(Listed { stat, content });
    }

    /// A directory was given attributes.
    pub fn set_attributes(&mut self, path: &[u8]) {
        self.attributes.push(path.to_vec());
    }

    /// What the content of an entry was, and how long.
    pub fn set_content(&mut self, written: &Written) {
        if let Some(Drafted::Made(entry)) = self.entries.get_mut(written.entry as usize) {
            entry.content = Some(written.content);
            entry.stat.size = written.bytes as i64;
        }
    }

    /// The listing, now that the directory is what it is to be; `None` if nothing changed, or if it
    /// cannot be said.
    pub fn finish(self, root: &Path) -> Option<Listing> {
        let known = self.known.as_ref().map_or(&[][..], |known| &known.entries);
        let stayed = |entry: &Drafted| matches!(entry, Drafted::Known(_));
        if self.known.is_some()
            && self.entries.len() == known.len()
            && self.entries.iter().all(stayed)
        {
            return None;
        }
        let entry = |entry: Drafted| match entry {
            Drafted::Known(at) => known.get(at as usize).cloned(),
            Drafted::Made(entry) => Some(*entry),
        };
        let mut entries: Vec<Listed> =
            self.entries.into_iter().map(entry).collect::<Option<_>>()?;
        for path in &self.attributes {
            let at = find(&entries, path)?;
            let found = list_attributes(&join(root, path)).ok()?;
            let entry = entries.get_mut(at)?;
            entry.stat.xattrs = found;
            entry.stat.xattrs.retain(|(name, _)| !is_of_overlay(name));
        }
        let is_whole = |entry: &Listed| {
            !mode::is_regular(entry.stat.mode)
                || first_name(&entries, entry).is_some_and(|file| file.content.is_some())
        };
        let whole = entries.iter().all(is_whole);
        whole.then_some(Listing { entries })
    }

    fn push(&mut self, entry: Listed) {
        self.entries.push(Drafted::Made(Box::new(entry)));
    }
}

/// Content that was written.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// The number of the entry in the draft.
    pub entry: u32,
    /// Its digest.
    pub content: Digest,
    /// Its length.
    pub bytes: u64,
}

fn join(root: &Path, path: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path))
}

fn find(entries: &[Listed], path: &[u8]) -> Option<usize> {
    let by_path = |entry: &Listed| order::compare(&entry.stat.path, path);
    entries.binary_search_by(by_path).ok()
}

/// The entry of a file's first name.
fn first_name<'e>(entries: &'e [Listed], entry: &'e Listed) -> Option<&'e Listed> {
    if !entry.stat.is_hard_link() {
        return Some(entry);
    }
    let first = entries.get(find(entries, &entry.stat.linkname)?)?;
    // A peer that names a further name as the first is not followed.
    let is_first = mode::is_regular(first.stat.mode) && !first.stat.is_hard_link();
    is_first.then_some(first)
}

fn is_of_overlay(attribute: &[u8]) -> bool {
    attribute.starts_with(b"trusted.overlay.") || attribute.starts_with(b"user.overlay.")
}

/// Whether an attribute is part of what a file is, and not of the machine that it is on.
fn counts(attribute: &[u8]) -> bool {
    attribute == b"security.capability"
        || !(attribute.starts_with(b"security.") || attribute.starts_with(b"system."))
}

fn digest_all(root: &Path, files: &[&Listed]) -> Result<Vec<Digest>, SessionError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(files.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(files.len()) {
            scope.spawn(|| {
                let mut own = Vec::new();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(file) = files.get(at) else { break };
                    let path = join(root, &file.stat.path);
                    let digest = digest_file(&path, file.stat.size);
                    let failed = |error| SessionError::file("read", &path, error);
                    own.push((at, digest.map_err(failed)));
                }
                results.lock().extend(own);
            });
        }
    });
    let mut results = results.into_inner();
    results.sort_unstable_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, digest)| digest).collect()
}

fn digest_file(path: &Path, size: i64) -> std::io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = DigestHasher::new();
    let mut buffer = vec![0; CHUNK_BYTES.min(size.max(0) as usize + 1)];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Lengths and counts, none of which comes near four gigabytes.
fn put_count(count: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&(count as u32).to_le_bytes());
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_count(bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// Takes encoded values off the front.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn count(&mut self) -> Option<usize> {
        self.array().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn bytes(&mut self) -> Option<&'b [u8]> {
        let count = self.count()?;
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn entry(&mut self, last: &[u8]) -> Option<Listed> {
        let shared = last.get(..self.count()?)?;
        let path = [shared, self.bytes()?].concat();
        let [has] = self.array()?;
        let mut stat = FileStat {
            path,
            mode: u32::from_le_bytes(self.array()?),
            uid: u32::from_le_bytes(self.array()?),
            gid: u32::from_le_bytes(self.array()?),
            size: i64::from_le_bytes(self.array()?),
            mod_time: i64::from_le_bytes(self.array()?),
            ..FileStat::default()
        };
        let content = match has & HAS_CONTENT != 0 {
            true => Some(Digest::from_bytes(self.array()?)),
            false => None,
        };
        if has & HAS_LINK != 0 {
            stat.linkname = self.bytes()?.to_vec();
        }
        if has & HAS_DEVICE != 0 {
            stat.devmajor = i64::from_le_bytes(self.array()?);
            stat.devminor = i64::from_le_bytes(self.array()?);
        }
        if has & HAS_XATTRS != 0 {
            for _ in 0..self.count()? {
                let (name, value) = (self.bytes()?.to_vec(), self.bytes()?.to_vec());
                stat.xattrs.push((name, value));
            }
        }
        Some(Listed { stat, content })
    }
}
