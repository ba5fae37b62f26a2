//! Both ends on one machine: the tree is walked where it is, and only what differs is copied.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use oci::{Digest, DigestHasher};
use parking_lot::Mutex;
use pathmatch::PathFilter;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::dest::{Dest, NewFile};
use super::differ::{Contents, Differ, Outcome, Pending};
use super::listing::Written;
use super::receive::{ReceiveOptions, SyncStats};
use crate::error::SessionError;
use crate::mode;
use crate::packet::FileStat;
use crate::walk::{HardLinks, WalkOptions, Walker, open_beneath};

/// Threads that copy content.
const COPIERS: usize = 2;
/// Batches of files that wait to be copied.
const QUEUED_BATCHES: usize = 16;
/// Files handed to a copying thread together.
const BATCH_FILES: usize = 64;
/// Bytes copied at a time where the kernel cannot do it alone.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes the kernel is asked to copy at a time, so that a transfer can be stopped.
const RANGE_BYTES: usize = 64 << 20;
/// Files up to this size are digested while they are copied, larger ones when they are there.
const DIGESTED_BYTES: u64 = 1 << 20;

/// A tree that is read in place.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The directory.
    pub root: Arc<OwnedFd>,
    /// What errors call it.
    pub path: PathBuf,
    /// Which entries are wanted.
    pub filter: PathFilter,
}

/// Makes the directory `dest` what the tree is, as if the tree had been sent by [`super::send`] and
/// received with these options. Blocks; `stop` ends it early with an error.
pub fn mirror(
    tree: Tree,
    dest: &Path,
    options: ReceiveOptions,
    stop: &AtomicBool,
) -> Result<SyncStats, SessionError> {
    let contents = Contents::Gather {
        wanted: Vec::new(),
        attributes: attribute_reader(&tree),
    };
    let differ = Differ::new(dest, options.clone(), contents)?;
    let copying = Copying {
        tree,
        dest: Mutex::new(differ.dest.another('w')),
        options,
        failure: Mutex::new(None),
        stop,
        written: Mutex::default(),
        files: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    };
    let (queue, files) = sync_channel(QUEUED_BATCHES);
    let files = Mutex::new(files);
    let compared = std::thread::scope(|scope| {
        for number in 0..COPIERS {
            let (copying, files) = (&copying, &files);
            let dest = differ.dest.another((b'0' + number as u8) as char);
            scope.spawn(move || copying.run(dest, files));
        }
        // The queue ends with the comparison, and the threads with the queue.
        copying.compare(differ, queue)
    });
    // A thread that failed is why the comparison could not go on.
    if let Some(failure) = copying.failure.lock().take() {
        return Err(failure);
    }
    copying.complete(compared?, dest)
}

struct Copying<'a> {
    tree: Tree,
    /// For what is done when all content is there.
    dest: Mutex<Dest>,
    options: ReceiveOptions,
    failure: Mutex<Option<SessionError>>,
    stop: &'a AtomicBool,
    /// Content of entries of the listing that is made.
    written: Mutex<Vec<Written>>,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Copying<'_> {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Walks the tree and compares; files to copy go to the queue.
    fn compare(
        &self,
        mut differ: Differ,
        queue: SyncSender<Vec<Pending>>,
    ) -> Result<Outcome, SessionError> {
        let options = WalkOptions {
            filter: self.tree.filter.clone(),
            xattrs: false,
        };
        let mut walker = Walker::below(self.tree.root.clone(), &self.tree.path, options);
        let mut present = differ.present()?;
        let mut links = HardLinks::default();
        // Directories entered for what may be below them, not taken yet.
        let mut pending: Vec<FileStat> = Vec::new();
        let mut batch = Vec::new();
        let mut count = 0;
        while let Some(mut entry) = walker.next_entry().map_err(of_source)? {
            if self.is_stopped() {
                return Err(SessionError::Canceled);
            }
            pending.retain(|dir| super::order::is_below(&entry.stat.path, &dir.path));
            if !entry.wanted {
                pending.push(entry.stat);
                continue;
            }
            links.mark(&mut entry);
            for stat in pending.drain(..).chain([entry.stat]) {
                count += 1;
                if count > self.options.entries_max {
                    let most = self.options.entries_max;
                    let text = format!("more than {most} files in one transfer");
                    return Err(SessionError::Limit(text));
                }
                differ.entry(0, stat, present.as_mut())?;
            }
            batch.append(&mut differ.take_wanted());
            if batch.len() >= BATCH_FILES {
                let files = std::mem::take(&mut batch);
                queue.send(files).map_err(|_| SessionError::Canceled)?;
            }
        }
        if !batch.is_empty() {
            queue.send(batch).map_err(|_| SessionError::Canceled)?;
        }
        differ.finish(present.as_mut())
    }

    /// Copies files until there are no more.
    fn run(&self, mut dest: Dest, files: &Mutex<Receiver<Vec<Pending>>>) {
        loop {
            let batch = files.lock().recv();
            let Ok(batch) = batch else { return };
            for file in batch {
                // After a failure the queue is emptied, so that nobody waits for room in it.
                if self.is_stopped() || self.failure.lock().is_some() {
                    break;
                }
                if let Err(error) = self.copy(&mut dest, &file) {
                    self.failure.lock().get_or_insert(error);
                }
            }
        }
    }

    fn copy(&self, dest: &mut Dest, file: &Pending) -> Result<(), SessionError> {
        let source = self.open(&file.stat.path)?;
        let target = dest.create(&file.stat, file.replaces)?;
        let digested = file.entry.is_some();
        let copied = match &source {
            Some(source) => self.copy_content(source, &target, &file.stat, digested),
            // As for senders: what has vanished since, or has no content, is empty.
            None => Ok((0, digested.then(|| Digest::of(b"")))),
        };
        match copied {
            Ok((bytes, content)) => {
                dest.finish(target, &file.stat)?;
                if let (Some(entry), Some(content)) = (file.entry, content) {
                    self.written.lock().push(Written {
                        entry,
                        content,
                        bytes,
                    });
                }
                self.files.fetch_add(1, Ordering::Relaxed);
                let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
                if let Some(progress) = &self.options.progress {
                    progress(bytes, false);
                }
                Ok(())
            }
            Err(error) => {
                dest.abandon(target, &file.stat);
                Err(error)
            }
        }
    }

    fn open(&self, path: &[u8]) -> Result<Option<OwnedFd>, SessionError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        match open_beneath(&self.tree.root, path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(None),
            Err(error) => Err(of_source(self.failed("open", path, error.into()))),
        }
    }

    /// Gives the number of bytes, and their digest if it is wanted.
    fn copy_content(
        &self,
        source: &OwnedFd,
        target: &NewFile,
        stat: &FileStat,
        digested: bool,
    ) -> Result<(u64, Option<Digest>), SessionError> {
        let found = rustix::fs::fstat(source)
            .map_err(|error| of_source(self.failed("stat", &stat.path, error.into())))?;
        let size = found.st_size.max(0) as u64;
        let failed = |error| self.failed("copy", &stat.path, error);
        if digested && size <= DIGESTED_BYTES {
            let mut hasher = DigestHasher::new();
            let copied = self.copy_by_hand(source, target, size, 0, Some(&mut hasher));
            return Ok((copied.map_err(failed)?, Some(hasher.finish())));
        }
        let copied = self.copy_whole(source, target, size).map_err(failed)?;
        // What was written counts, which is what the source had at that moment.
        let content = digested.then(|| self.digest(target)).transpose();
        let content = content.map_err(failed)?;
        Ok((copied, content))
    }

    fn copy_whole(&self, source: &OwnedFd, target: &NewFile, size: u64) -> io::Result<u64> {
        // Shared blocks where the file system has them: no byte is copied.
        if size > 0 && rustix::fs::ioctl_ficlone(target.descriptor(), source).is_ok() {
            return Ok(rustix::fs::fstat(target.descriptor())?.st_size.max(0) as u64);
        }
        let done = self.copy_by_kernel(source, target, size)?;
        if size > 0 && done == size {
            return Ok(done);
        }
        self.copy_by_hand(source, target, size, done, None)
    }

    /// The digest of what was written to a file.
    fn digest(&self, target: &NewFile) -> io::Result<Digest> {
        let mut hasher = DigestHasher::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut done = 0;
        loop {
            if self.is_stopped() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            match rustix::io::pread(target.descriptor(), &mut chunk, done) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(read) => {
                    hasher.update(&chunk[..read]);
                    done += read as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// As much as the kernel copies by itself: nothing between file systems that cannot.
    fn copy_by_kernel(&self, source: &OwnedFd, target: &NewFile, size: u64) -> io::Result<u64> {
        let mut done = 0;
        while done < size && !self.is_stopped() {
            let wanted = usize::try_from(size - done).unwrap_or(RANGE_BYTES);
            let wanted = wanted.min(RANGE_BYTES);
            match rustix::fs::copy_file_range(source, None, target.descriptor(), None, wanted) {
                Ok(0) => break,
                Ok(some) => done += some as u64,
                Err(Errno::INTR) => {}
                Err(Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::FBIG) if done > 0 => break,
                Err(error @ (Errno::NOSPC | Errno::DQUOT)) => return Err(error.into()),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// The rest. A file is as long as it was when it was opened; one that says it is empty, as those
    /// that the kernel makes up, is read to its end.
    fn copy_by_hand(
        &self,
        source: &OwnedFd,
        target: &NewFile,
        size: u64,
        mut done: u64,
        mut hasher: Option<&mut DigestHasher>,
    ) -> io::Result<u64> {
        let mut chunk = vec![0; CHUNK_BYTES.min(size.max(4096) as usize)];
        while (size == 0 || done < size) && !self.is_stopped() {
            let left = if size == 0 { u64::MAX } else { size - done };
            let wanted = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match rustix::io::read(source, &mut chunk[..wanted]) {
                Ok(0) => break,
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut rest = &chunk[..read];
            if let Some(hasher) = &mut hasher {
                hasher.update(rest);
            }
            while !rest.is_empty() {
                match rustix::io::write(target.descriptor(), rest) {
                    Ok(0) => return Err(Errno::IO.into()),
                    Ok(some) => rest = &rest[some..],
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            done += read as u64;
        }
        match self.is_stopped() {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Ok(done),
        }
    }

    /// All content is there: links, then directories from the deepest up.
    fn complete(&self, outcome: Outcome, root: &Path) -> Result<SyncStats, SessionError> {
        if self.is_stopped() {
            return Err(SessionError::Canceled);
        }
        let mut dest = self.dest.lock();
        for link in &outcome.links {
            dest.make_hard_link(link)?;
        }
        for dir in &outcome.dirs {
            dest.finish_dir(dir)?;
        }
        if let (Some(on_listing), Some(mut draft)) = (&self.options.on_listing, outcome.listing) {
            for written in self.written.lock().iter() {
                draft.set_content(written);
            }
            if let Some(listing) = draft.finish(root) {
                on_listing(listing);
            }
        }
        let bytes = self.bytes.load(Ordering::Relaxed);
        if let Some(progress) = &self.options.progress {
            progress(bytes, true);
        }
        Ok(SyncStats {
            files: self.files.load(Ordering::Relaxed),
            content_bytes: bytes,
            bytes,
            ..outcome.stats
        })
    }

    fn failed(&self, op: &'static str, path: &[u8], source: io::Error) -> SessionError {
        failed(&self.tree.path, op, path, source)
    }
}

fn failed(root: &Path, op: &'static str, path: &[u8], source: io::Error) -> SessionError {
    use std::os::unix::ffi::OsStrExt;
    SessionError::file(op, root.join(std::ffi::OsStr::from_bytes(path)), source)
}

/// A failure at the client's files, in the words it has when the client reads them.
fn of_source(error: SessionError) -> SessionError {
    SessionError::Peer {
        role: "sender",
        message: error.to_string(),
    }
}

/// Reads attributes through the open directory, without following links.
fn attribute_reader(tree: &Tree) -> super::differ::AttributeReader {
    let (root, shown) = (tree.root.clone(), tree.path.clone());
    let unsupported = AtomicBool::new(false);
    Box::new(move |stat| {
        if unsupported.load(Ordering::Relaxed) || mode::is_symlink(stat.mode) {
            return Ok(Vec::new());
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let fd = match open_beneath(&root, &stat.path, flags, Mode::empty()) {
            Ok(fd) => fd,
            // What vanished has no attributes; that it is gone is found out when it is copied.
            Err(_) => return Ok(Vec::new()),
        };
        let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
        match crate::walk::list_attributes(Path::new(&path)) {
            Ok(attributes) => Ok(attributes),
            Err(Errno::NOTSUP) => {
                unsupported.store(true, Ordering::Relaxed);
                Ok(Vec::new())
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::PERM) => Ok(Vec::new()),
            Err(error) => {
                let error = failed(&shown, "listxattr", &stat.path, error.into());
                Err(of_source(error))
            }
        }
    })
}
