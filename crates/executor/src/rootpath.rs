//! Paths inside a root directory that somebody else wrote.
//!
//! Every path here is resolved component by component on descriptors, or by the kernel with
//! `RESOLVE_IN_ROOT`: symbolic links, absolute ones and `..` included, stay inside the root however
//! the tree is changed meanwhile.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Most symbolic links followed in one path, as the kernel has it.
const LINKS_MAX: u32 = 40;

/// What is made where nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// An empty file; the directories above it are directories.
    File,
}

/// The root directory itself, for the functions of this module.
pub(crate) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens what is at `path`, following links inside the root.
pub(crate) fn open_in_root(
    root: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
) -> io::Result<OwnedFd> {
    let path = path.as_ref();
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() {
        Path::new(".")
    } else {
        relative
    };
    Ok(rustix::fs::openat2(
        root,
        relative,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?)
}

/// `path` as an absolute path without `.`, `..` and repeated slashes, by its text alone.
pub(crate) fn clean(path: &str) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// How [`open_or_create`] makes what is missing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Creation {
    /// What the path's last component becomes.
    pub(crate) kind: Kind,
    /// Who owns what is made.
    pub(crate) owner: Option<(u32, u32)>,
    /// Whether the directory in which something is made keeps its times.
    pub(crate) keep_parent_times: bool,
}

/// Opens what is at `path` (as a location, `O_PATH`), making it and the directories above it.
pub(crate) fn open_or_create(
    root: impl AsFd,
    path: &Path,
    creation: Creation,
) -> io::Result<OwnedFd> {
    let mut walk = Walk::new(root.as_fd(), path)?;
    while let Some(name) = walk.pending.pop_front() {
        match walk.step(&name) {
            Err(Errno::NOENT) => walk.create(&name, creation)?,
            other => other?,
        }
    }
    Ok(walk.finish())
}

/// Where `path` leads inside the root when the components that do not exist are taken literally,
/// and how many of the last components of that do not exist.
pub(crate) fn survey(root: impl AsFd, path: &Path) -> io::Result<(PathBuf, usize)> {
    let mut walk = Walk::new(root.as_fd(), path)?;
    while let Some(name) = walk.pending.pop_front() {
        match walk.step(&name) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let mut missing = vec![name];
                for rest in walk.pending.drain(..) {
                    match rest.as_bytes() {
                        b"." => {}
                        b".." => {
                            missing.pop();
                        }
                        _ => missing.push(rest),
                    }
                }
                let mut resolved = walk.path();
                resolved.extend(&missing);
                return Ok((resolved, missing.len()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok((walk.path(), 0))
}

/// A position below the root, and what is still to be walked.
struct Walk {
    root: OwnedFd,
    /// The directories from the root down to the position, with their names.
    stack: Vec<(OsString, OwnedFd)>,
    pending: VecDeque<OsString>,
    links: u32,
}

impl Walk {
    fn new(root: BorrowedFd<'_>, path: &Path) -> io::Result<Self> {
        let mut walk = Walk {
            root: root.try_clone_to_owned()?,
            stack: Vec::new(),
            pending: VecDeque::new(),
            links: 0,
        };
        walk.push_front(path.as_os_str());
        Ok(walk)
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.stack
            .last()
            .map_or(self.root.as_fd(), |(_, fd)| fd.as_fd())
    }

    fn path(&self) -> PathBuf {
        let mut path = PathBuf::from("/");
        path.extend(self.stack.iter().map(|(name, _)| name));
        path
    }

    fn finish(mut self) -> OwnedFd {
        self.stack.pop().map_or(self.root, |(_, fd)| fd)
    }

    /// Puts a path before what is still to be walked.
    fn push_front(&mut self, path: &OsStr) {
        let bytes = path.as_bytes();
        if bytes.first() == Some(&b'/') {
            self.stack.clear();
        }
        for part in bytes.split(|b| *b == b'/').rev() {
            if !part.is_empty() {
                self.pending
                    .push_front(OsStr::from_bytes(part).to_os_string());
            }
        }
    }

    /// Goes one component on.
    fn step(&mut self, name: &OsStr) -> Result<(), Errno> {
        match name.as_bytes() {
            b"." => return Ok(()),
            b".." => {
                self.stack.pop();
                return Ok(());
            }
            _ => {}
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.here(), name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            self.stack.push((name.to_os_string(), fd));
            return Ok(());
        }
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Errno::LOOP);
        }
        let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
        self.push_front(&OsString::from_vec(target.into_bytes()));
        Ok(())
    }

    /// Makes the component that [`Walk::step`] did not find, and goes there.
    fn create(&mut self, name: &OsStr, creation: Creation) -> io::Result<()> {
        let times = if creation.keep_parent_times {
            Some(rustix::fs::fstat(self.here())?)
        } else {
            None
        };
        let file = self.pending.is_empty() && creation.kind == Kind::File;
        let made = if file {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(self.here(), name, flags, Mode::from_raw_mode(0o755)).map(drop)
        } else {
            rustix::fs::mkdirat(self.here(), name, Mode::from_raw_mode(0o755))
        };
        match made {
            Ok(()) => {
                if let Some((uid, gid)) = creation.owner {
                    rustix::fs::chownat(
                        self.here(),
                        name,
                        Some(rustix::fs::Uid::from_raw(uid)),
                        Some(rustix::fs::Gid::from_raw(gid)),
                        AtFlags::SYMLINK_NOFOLLOW,
                    )?;
                }
                if let Some(stat) = times {
                    set_times(self.here(), &stat)?;
                }
            }
            // Somebody else, such as a step that shares the mount, made it just now.
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.step(name)?)
    }
}

/// Gives a directory the access and modification times of `stat`.
pub(crate) fn set_times(dir: impl AsFd, stat: &rustix::fs::Stat) -> io::Result<()> {
    let dir = rustix::fs::openat(
        dir,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: rustix::fs::Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    };
    rustix::fs::futimens(&dir, &times)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const MOUNT_POINT: Creation = Creation {
        kind: Kind::Directory,
        owner: None,
        keep_parent_times: true,
    };

    #[test]
    fn creating_through_hostile_links_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("abs")).unwrap();
        symlink("../../../../../..", dir.path().join("up")).unwrap();
        let root = open_root(dir.path()).unwrap();
        open_or_create(&root, Path::new("/abs/x"), MOUNT_POINT).unwrap();
        open_or_create(&root, Path::new("/up/y/../z"), MOUNT_POINT).unwrap();
        assert!(!outside.path().join("x").exists());
        let inside = outside.path().strip_prefix("/").unwrap();
        assert!(dir.path().join(inside).join("x").is_dir());
        assert!(dir.path().join("z").is_dir());
    }

    #[test]
    fn a_link_to_itself_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let root = open_root(dir.path()).unwrap();
        let error = open_or_create(&root, Path::new("/loop"), MOUNT_POINT).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_directory_keeps_its_times_when_a_mount_point_is_made_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = open_root(dir.path()).unwrap();
        let before = std::fs::metadata(dir.path()).unwrap().modified().unwrap();
        open_or_create(&root, Path::new("/a"), MOUNT_POINT).unwrap();
        let after = std::fs::metadata(dir.path()).unwrap().modified().unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn a_survey_counts_what_is_missing_behind_links() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("real/etc")).unwrap();
        symlink("/real/etc", dir.path().join("etc")).unwrap();
        symlink(
            "../run/x/resolv.conf",
            dir.path().join("real/etc/resolv.conf"),
        )
        .unwrap();
        let root = open_root(dir.path()).unwrap();
        let look = |path: &str| survey(&root, Path::new(path)).unwrap();
        assert_eq!(look("/etc"), ("/real/etc".into(), 0));
        assert_eq!(look("/etc/hosts"), ("/real/etc/hosts".into(), 1));
        assert_eq!(
            look("/etc/resolv.conf"),
            ("/real/run/x/resolv.conf".into(), 3)
        );
        assert_eq!(look("/a/b/../c"), ("/a/c".into(), 2));
    }

    #[test]
    fn paths_are_cleaned_by_their_text() {
        assert_eq!(clean("a//b/./../c"), PathBuf::from("/a/c"));
        assert_eq!(clean("../../x"), PathBuf::from("/x"));
        assert_eq!(clean(""), PathBuf::from("/"));
    }
}
