//! Walking a tree in DiffCopy's order, quickly.
//!
//! Entries come parents first, the names of a directory sorted as bytes. Directories ahead of the
//! reader are listed by helper threads, in the order in which they will be needed and not further
//! than a bound; the reader lists what it needs and nobody has begun. Directories are opened below
//! the root with `openat2` and symbolic links are never followed.
//!
//! What vanishes while it is looked at is passed over, as it is by stock walkers.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use pathmatch::{FilterState, PathFilter};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use crate::error::SessionError;
use crate::mode;
use crate::packet::FileStat;

/// How a tree is walked.
#[derive(Clone, Debug, Default)]
pub struct WalkOptions {
    /// Which entries are wanted.
    pub filter: PathFilter,
    /// Whether extended attributes are read.
    pub xattrs: bool,
}

/// An entry as the walk meets it.
#[derive(Debug)]
pub struct Entry {
    /// What it is. Hard links are not marked: see [`HardLinks`].
    pub stat: FileStat,
    /// Whether the filter wants it; a directory that is not wanted is entered when something below
    /// it may be.
    pub wanted: bool,
    inode: Option<(u64, u64)>,
    child: Option<Arc<Job>>,
}

/// A walk in progress; entries come from [`Walker::next_entry`].
pub struct Walker {
    shared: Arc<Shared>,
    frames: Vec<std::vec::IntoIter<Entry>>,
    enter: Option<Arc<Job>>,
    helpers: Vec<std::thread::JoinHandle<()>>,
    helpers_max: usize,
}

/// Gives entries with several names the path of the first name that was met, and the size 0.
#[derive(Debug, Default)]
pub struct HardLinks {
    first: HashMap<(u64, u64), Vec<u8>>,
}

/// Directories waiting, above which a helper thread is worth its start.
const JOBS_PER_HELPER: usize = 4;
/// Listed entries that nobody has read yet, above which helpers rest.
const ENTRIES_AHEAD_MAX: usize = 1 << 16;

struct Shared {
    root: Arc<OwnedFd>,
    root_path: PathBuf,
    options: WalkOptions,
    no_xattrs: AtomicBool,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Directories to list; the one needed next is the last.
    jobs: Vec<Arc<Job>>,
    entries_ahead: usize,
    stop: bool,
}

#[derive(Debug)]
struct Job {
    path: Vec<u8>,
    state: FilterState,
    wanted: bool,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
enum Progress {
    Waiting,
    Taken,
    Done(Result<Vec<Entry>, SessionError>),
}

impl Walker {
    /// Starts a walk of everything below the directory; the directory itself may be reached through
    /// symbolic links.
    pub fn new(root: &Path, options: WalkOptions) -> Result<Self, SessionError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|error| SessionError::file("open", root, error))?;
        Ok(Self::below(Arc::new(fd), root, options))
    }

    /// The same of a directory that is open; `path` is what errors call it. Attributes are looked up
    /// by that path, so only where it leads to the directory may they be asked for.
    pub fn below(root: Arc<OwnedFd>, path: &Path, options: WalkOptions) -> Self {
        let shared = Arc::new(Shared {
            root,
            root_path: path.to_owned(),
            options,
            no_xattrs: AtomicBool::new(false),
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        Walker {
            shared,
            frames: Vec::new(),
            enter: Some(Arc::new(Job {
                path: Vec::new(),
                state: FilterState::default(),
                wanted: true,
                progress: Mutex::new(Progress::Waiting),
            })),
            helpers: Vec::new(),
            helpers_max: processors.saturating_sub(1).min(3),
        }
    }

    /// The next entry, or nothing at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, SessionError> {
        if let Some(job) = self.enter.take() {
            let entries = self.listing(&job)?;
            self.frames.push(entries.into_iter());
        }
        while let Some(frame) = self.frames.last_mut() {
            if let Some(mut entry) = frame.next() {
                self.enter = entry.child.take();
                return Ok(Some(entry));
            }
            self.frames.pop();
        }
        Ok(None)
    }

    /// Passes over what is below the directory that came last.
    pub fn skip_directory(&mut self) {
        if let Some(job) = self.enter.take() {
            let progress = std::mem::replace(&mut *job.progress.lock(), Progress::Taken);
            if let Progress::Done(Ok(entries)) = progress {
                self.release(entries.len());
            }
        }
    }

    /// The listing of a directory, made here if nobody has begun it.
    fn listing(&mut self, job: &Arc<Job>) -> Result<Vec<Entry>, SessionError> {
        let mut progress = job.progress.lock();
        if matches!(*progress, Progress::Waiting) {
            *progress = Progress::Taken;
            drop(progress);
            let entries = self.shared.list(job)?;
            self.offer(&entries);
            return Ok(entries);
        }
        drop(progress);
        let mut queue = self.shared.queue.lock();
        loop {
            let state = std::mem::replace(&mut *job.progress.lock(), Progress::Taken);
            if let Progress::Done(entries) = state {
                let count = entries.as_ref().map_or(0, Vec::len);
                queue.entries_ahead = queue.entries_ahead.saturating_sub(count);
                drop(queue);
                self.shared.changed.notify_all();
                return entries;
            }
            self.shared.changed.wait(&mut queue);
        }
    }

    /// Queues the directories of a listing for the helpers, and starts helpers while there is work.
    fn offer(&mut self, entries: &[Entry]) {
        let mut queue = self.shared.queue.lock();
        queue.push_children(entries);
        let wanted = (queue.jobs.len() / JOBS_PER_HELPER).min(self.helpers_max);
        drop(queue);
        self.shared.changed.notify_all();
        while self.helpers.len() < wanted {
            let shared = self.shared.clone();
            let helper = std::thread::Builder::new()
                .name("walk".into())
                .spawn(move || shared.help());
            match helper {
                Ok(helper) => self.helpers.push(helper),
                // Without a helper the walk is slower, not wrong.
                Err(_) => self.helpers_max = self.helpers.len(),
            }
        }
    }

    fn release(&self, count: usize) {
        let mut queue = self.shared.queue.lock();
        queue.entries_ahead = queue.entries_ahead.saturating_sub(count);
        drop(queue);
        self.shared.changed.notify_all();
    }
}

impl Drop for Walker {
    fn drop(&mut self) {
        self.shared.queue.lock().stop = true;
        self.shared.changed.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper that panicked has left its directory as taken; nobody waits for it now.
            let _ = helper.join();
        }
    }
}

impl HardLinks {
    /// Marks the entry when an earlier one was the same file.
    pub fn mark(&mut self, entry: &mut Entry) {
        let Some(inode) = entry.inode else { return };
        match self.first.get(&inode) {
            Some(first) => {
                entry.stat.linkname.clone_from(first);
                entry.stat.size = 0;
            }
            None => {
                self.first.insert(inode, entry.stat.path.clone());
            }
        }
    }
}

impl Queue {
    fn push_children(&mut self, entries: &[Entry]) {
        let children = entries.iter().rev().filter_map(|entry| entry.child.clone());
        self.jobs.extend(children);
    }
}

impl Shared {
    /// What a helper thread does until the walk ends.
    fn help(&self) {
        while let Some(job) = self.next_job() {
            let result = self.list(&job);
            let mut queue = self.queue.lock();
            if let Ok(entries) = &result {
                queue.push_children(entries);
                queue.entries_ahead += entries.len();
            }
            *job.progress.lock() = Progress::Done(result);
            drop(queue);
            self.changed.notify_all();
        }
    }

    /// The next directory nobody has begun, marked as taken.
    fn next_job(&self) -> Option<Arc<Job>> {
        let mut queue = self.queue.lock();
        loop {
            if queue.stop {
                return None;
            }
            if queue.entries_ahead < ENTRIES_AHEAD_MAX {
                while let Some(job) = queue.jobs.pop() {
                    let mut progress = job.progress.lock();
                    if matches!(*progress, Progress::Waiting) {
                        *progress = Progress::Taken;
                        drop(progress);
                        return Some(job);
                    }
                }
            }
            self.changed.wait(&mut queue);
        }
    }

    fn list(&self, job: &Job) -> Result<Vec<Entry>, SessionError> {
        let fail = |op, error: Errno| SessionError::file(op, self.full_path(&job.path), error);
        let dir = match self.open_dir(&job.path) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
            // What is not wanted need not be readable.
            Err(Errno::ACCESS) if !job.wanted => return Ok(Vec::new()),
            Err(error) => return Err(fail("open", error)),
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir).map_err(|error| fail("readdir", error))? {
            let entry = entry.map_err(|error| fail("readdir", error))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut entries = Vec::with_capacity(names.len());
        for (name, kind) in names {
            entries.extend(self.entry(&dir, job, name, kind)?);
        }
        Ok(entries)
    }

    fn open_dir(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        open_beneath(&self.root, path, flags, Mode::empty())
    }

    /// One name of a directory; nothing when it has vanished or nothing at it is wanted.
    fn entry(
        &self,
        dir: &OwnedFd,
        job: &Job,
        name: CString,
        kind: FileType,
    ) -> Result<Option<Entry>, SessionError> {
        let mut path = Vec::with_capacity(job.path.len() + name.as_bytes().len() + 1);
        if !job.path.is_empty() {
            path.extend_from_slice(&job.path);
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        let mut found = None;
        let mut is_dir = kind == FileType::Directory;
        if kind == FileType::Unknown {
            found = self.statx(dir, &name, &path)?;
            let Some(found) = &found else { return Ok(None) };
            is_dir = u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
        }
        let verdict = self.options.filter.check(&path, is_dir, &job.state);
        if !verdict.wanted && !verdict.descend {
            return Ok(None);
        }
        let found = match found {
            Some(found) => found,
            None => match self.statx(dir, &name, &path)? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        let mut stat = file_stat(&found);
        if mode::is_symlink(stat.mode) {
            match rustix::fs::readlinkat(dir, &name, Vec::new()) {
                Ok(target) => stat.linkname = target.into_bytes(),
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(error) => return Err(self.failure("readlink", &path, error)),
            }
        }
        if self.options.xattrs && verdict.wanted && !mode::is_symlink(stat.mode) {
            stat.xattrs = self.xattrs(&path)?;
        }
        let shares_inode = !stat.is_dir() && !mode::is_symlink(stat.mode) && found.stx_nlink > 1;
        let device = rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor);
        let child = (verdict.descend && stat.is_dir()).then(|| {
            Arc::new(Job {
                path: path.clone(),
                state: verdict.state,
                wanted: verdict.wanted,
                progress: Mutex::new(Progress::Waiting),
            })
        });
        stat.path = path;
        Ok(Some(Entry {
            stat,
            wanted: verdict.wanted,
            inode: shares_inode.then_some((device, found.stx_ino)),
            child,
        }))
    }

    fn statx(
        &self,
        dir: &OwnedFd,
        name: &CString,
        path: &[u8],
    ) -> Result<Option<Statx>, SessionError> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        match rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(self.failure("lstat", path, error)),
        }
    }

    fn xattrs(&self, path: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>, SessionError> {
        if self.no_xattrs.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        match list_attributes(&self.full_path(path)) {
            Ok(attributes) => Ok(attributes),
            Err(Errno::NOTSUP) => {
                self.no_xattrs.store(true, Ordering::Relaxed);
                Ok(Vec::new())
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::PERM) => Ok(Vec::new()),
            Err(error) => Err(self.failure("listxattr", path, error)),
        }
    }

    fn failure(&self, op: &'static str, path: &[u8], error: Errno) -> SessionError {
        SessionError::file(op, self.full_path(path), error)
    }

    fn full_path(&self, path: &[u8]) -> PathBuf {
        self.root_path.join(std::ffi::OsStr::from_bytes(path))
    }
}

/// Opens a path below a directory without following any symbolic link on the way.
pub(crate) fn open_beneath(
    root: &OwnedFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            // The kernel asks for another try when names change under it.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The extended attributes of what is at a path, sorted; a link at its end is followed only where it
/// is one of `/proc`.
pub(crate) fn list_attributes(path: &Path) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // A link below /proc/self/fd stands for the open file itself.
    let is_descriptor = path.starts_with("/proc/self/fd");
    let list = |names: &mut [u8]| match is_descriptor {
        true => rustix::fs::listxattr(path, names),
        false => rustix::fs::llistxattr(path, names),
    };
    let get = |name: &[u8], value: &mut [u8]| match is_descriptor {
        true => rustix::fs::getxattr(path, name, value),
        false => rustix::fs::lgetxattr(path, name, value),
    };
    let mut names = vec![0; 1024];
    let len = loop {
        match list(&mut names) {
            Ok(len) => break len,
            Err(Errno::RANGE) if names.len() < 1 << 20 => names.resize(names.len() * 4, 0),
            Err(error) => return Err(error),
        }
    };
    let mut xattrs = Vec::new();
    for name in names[..len].split(|&byte| byte == 0) {
        if name.is_empty() || name.starts_with(b"com.apple.") {
            continue;
        }
        let mut value = vec![0; 1 << 16];
        // An attribute that may not be read is not there, as for stock senders.
        if let Ok(len) = get(name, &mut value) {
            value.truncate(len);
            xattrs.push((name.to_vec(), value));
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

/// What `statx` tells as DiffCopy has it, without path and link target.
pub(crate) fn file_stat(found: &Statx) -> FileStat {
    let go_mode = mode::from_unix(u32::from(found.stx_mode));
    let is_device = go_mode & mode::DEVICE != 0;
    let seconds = found.stx_mtime.tv_sec;
    FileStat {
        // Receivers know nothing of sockets; without the bit they are empty files.
        mode: go_mode & !mode::SOCKET,
        uid: found.stx_uid,
        gid: found.stx_gid,
        size: if mode::is_dir(go_mode) {
            0
        } else {
            found.stx_size as i64
        },
        mod_time: seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::from(found.stx_mtime.tv_nsec)),
        devmajor: if is_device {
            i64::from(found.stx_rdev_major)
        } else {
            0
        },
        devminor: if is_device {
            i64::from(found.stx_rdev_minor)
        } else {
            0
        },
        ..FileStat::default()
    }
}

#[cfg(test)]
mod tests;
