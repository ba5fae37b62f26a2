//! Directories of a client on this machine, read where they are.
//!
//! The client says in the headers of its session where its directories are ([`SharedDir`]); the
//! server opens those that it may trust ([`OpenDir`]) and reads them without asking the client. The
//! result is that of a transfer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pathmatch::LinkTree;
use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::caller::SyncRequest;
use crate::diffcopy::{Progress, ReceiveOptions, SyncStats, Tree, mirror};
use crate::error::SessionError;
use crate::filter::transfer_filter;
use crate::walk::open_beneath;

/// A directory as a client names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedDir {
    /// Where it is, absolute and without symbolic links.
    pub path: PathBuf,
    /// The number of its device, by which it is known again.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

/// A directory that a server has opened.
#[derive(Clone, Debug)]
pub struct OpenDir {
    /// The directory.
    pub fd: Arc<OwnedFd>,
    /// What the client calls it.
    pub path: PathBuf,
}

impl SharedDir {
    /// The directory at a path.
    pub fn of(path: &Path) -> io::Result<Self> {
        let path = std::fs::canonicalize(path)?;
        let found = std::fs::metadata(&path)?;
        Ok(SharedDir {
            path,
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// Brings a directory to the state of one that is open. Dropping the future ends the work.
pub(crate) async fn sync(
    dir: OpenDir,
    request: SyncRequest,
    progress: Option<Progress>,
) -> Result<SyncStats, SessionError> {
    let stop = Arc::new(AtomicBool::new(false));
    let _stop = StopGuard(stop.clone());
    tracing::debug!(
        "{} is read in place: {}",
        request.dir_name,
        dir.path.display()
    );
    let work = tokio::task::spawn_blocking(move || {
        let links = BeneathTree { root: &dir.fd };
        let filter = transfer_filter(
            &links,
            request.include,
            &request.exclude,
            &request.follow_paths,
        )?;
        let options = ReceiveOptions {
            owner: request.owner,
            progress,
            on_change: request.on_change,
            fetch_all: request.fetch_all,
            known: request.known,
            on_listing: request.on_listing,
            ..ReceiveOptions::default()
        };
        let tree = Tree {
            root: dir.fd,
            path: dir.path,
            filter,
        };
        mirror(tree, &request.dest, options, &stop)
    });
    work.await.unwrap_or(Err(SessionError::Canceled))
}

struct StopGuard(Arc<AtomicBool>);

impl Drop for StopGuard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The links of a directory, none of which leads out of it.
struct BeneathTree<'a> {
    root: &'a OwnedFd,
}

impl BeneathTree<'_> {
    /// Opens what is at a path; nothing when there is nothing, or a link is on the way.
    fn open(&self, path: &str, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let path = match path.trim_matches('/') {
            "" => ".",
            path => path,
        };
        match open_beneath(self.root, path.as_bytes(), flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl LinkTree for BeneathTree<'_> {
    fn read_link(&self, path: &str) -> io::Result<Option<String>> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let Some(parent) = self.open(parent, OFlags::PATH | OFlags::DIRECTORY)? else {
            return Ok(None);
        };
        match rustix::fs::readlinkat(parent, name, Vec::new()) {
            Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn read_dir(&self, path: &str) -> io::Result<Option<Vec<String>>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let Some(dir) = self.open(path, flags)? else {
            return Ok(None);
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(dir.as_fd())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(Some(names))
    }
}
