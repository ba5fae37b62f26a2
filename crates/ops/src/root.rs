//! A directory that paths of an image are resolved in.
//!
//! Invariant: no path, however it is written and whatever symbolic links it meets, leads out of the
//! root. Links are followed here, one component at a time, so that a path whose end does not exist
//! yet can be resolved too; what is opened afterwards is opened with `RESOLVE_BENEATH` and without
//! following links, so a link that appears in between is an error and never an escape.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::OpError;
use crate::merged_dir::MergedDir;

/// The most links one path may pass, as in the kernel's own limit with room for nested images.
const LINKS_MAX: usize = 255;

/// A directory that paths are resolved in.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    /// The directories of the layers that it is made of, topmost first, if they are known.
    layers: Vec<OwnedFd>,
}

/// A path within a root without links, `.` and `..`; its end need not exist. Empty is the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved(PathBuf);

impl Resolved {
    /// The path relative to the root.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// True for the root itself.
    pub fn is_root(&self) -> bool {
        self.0.as_os_str().is_empty()
    }

    /// The directory it is in; the root's is the root.
    pub fn parent(&self) -> Resolved {
        Resolved(self.0.parent().map(Path::to_owned).unwrap_or_default())
    }

    /// Its last component.
    pub fn name(&self) -> Option<&OsStr> {
        self.0.file_name()
    }

    /// The entry of that name in it. The name must be a single component.
    pub fn child(&self, name: &OsStr) -> Resolved {
        Resolved(self.0.join(name))
    }

    /// As users see it: from `/`.
    pub fn display(&self) -> String {
        format!("/{}", self.0.to_string_lossy())
    }
}

/// Whether a link at the end of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLink {
    /// Yes.
    Follow,
    /// No: the path names the link itself.
    Keep,
}

impl Root {
    /// Opens a directory of the host as a root.
    pub fn open(path: &Path) -> Result<Self, OpError> {
        Ok(Root {
            fd: open_root(path, OFlags::PATH)?,
            layers: Vec::new(),
        })
    }

    /// Opens a directory of the host as a root that shows these layers, the bottom one first.
    pub fn of_layers(path: &Path, layers: &[PathBuf]) -> Result<Self, OpError> {
        let opened = layers.iter().rev();
        let opened = opened.map(|layer| open_root(layer, OFlags::RDONLY));
        Ok(Root {
            layers: opened.collect::<Result<_, _>>()?,
            ..Root::open(path)?
        })
    }

    /// A directory at a resolved path, read from the layers if they are known.
    pub(crate) fn merged_dir(&self, path: &Resolved) -> Result<MergedDir, OpError> {
        if self.layers.is_empty() {
            return Ok(MergedDir::new(vec![self.open_dir(path)?]));
        }
        let failed = |errno| OpError::path("open", path.display(), errno);
        let parts: Result<_, _> = self.layers.iter().map(rustix::io::dup).collect();
        let mut dir = MergedDir::new(parts.map_err(failed)?);
        for name in path.as_path() {
            dir = dir.child(name).map_err(failed)?;
        }
        Ok(dir)
    }

    /// Resolves a path: links are followed within the root, `..` does not leave it, and components
    /// after the first that does not exist are taken as they are.
    pub fn resolve(&self, path: &Path, last: LastLink) -> Result<Resolved, OpError> {
        let mut pending: Vec<std::ffi::OsString> = Vec::new();
        push_components(&mut pending, path);
        let mut current = PathBuf::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                current.pop();
                continue;
            }
            let candidate = current.join(&name);
            if pending.is_empty() && last == LastLink::Keep {
                return Ok(Resolved(candidate));
            }
            match self.read_link(&candidate)? {
                Some(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(OpError::path("open", display(path), Errno::LOOP));
                    }
                    if target.is_absolute() {
                        current.clear();
                    }
                    push_components(&mut pending, &target);
                }
                None => current = candidate,
            }
        }
        Ok(Resolved(current))
    }

    /// The metadata of a resolved path without following a link; `None` if it does not exist.
    pub fn stat(&self, path: &Resolved) -> Result<Option<Stat>, OpError> {
        let found = match path.name() {
            None => rustix::fs::fstat(&self.fd).map_err(|errno| stat_error(path, errno))?,
            Some(name) => {
                let Some(parent) = self.open_parent(path)? else {
                    return Ok(None);
                };
                match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT) => return Ok(None),
                    Err(errno) => return Err(stat_error(path, errno)),
                }
            }
        };
        Ok(Some(found))
    }

    /// Opens a resolved path that exists, never following a link.
    pub fn open_at(&self, path: &Resolved, flags: OFlags) -> Result<OwnedFd, OpError> {
        self.raw_open(path.as_path(), flags)
            .map_err(|errno| OpError::path("open", path.display(), errno))
    }

    /// Opens a resolved directory for reading and for making entries in it.
    pub fn open_dir(&self, path: &Resolved) -> Result<OwnedFd, OpError> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// The whole file at a path, links followed; `None` if there is no such regular file.
    /// Longer files than `size_bytes_max` are an error.
    pub fn read_file(&self, path: &Path, size_bytes_max: u64) -> Result<Option<Vec<u8>>, OpError> {
        use std::io::Read;
        let resolved = match self.resolve(path, LastLink::Follow) {
            Ok(resolved) => resolved,
            Err(OpError::Path {
                errno: Errno::NOTDIR | Errno::NOENT,
                ..
            }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match self.stat(&resolved)? {
            Some(stat) if is_regular(&stat) => {}
            _ => return Ok(None),
        }
        let fd = self.open_at(&resolved, OFlags::RDONLY)?;
        let mut data = Vec::new();
        std::fs::File::from(fd)
            .take(size_bytes_max + 1)
            .read_to_end(&mut data)
            .map_err(|error| OpError::path("read", resolved.display(), errno_of(&error)))?;
        if data.len() as u64 > size_bytes_max {
            let text = format!("{} exceeds {size_bytes_max} bytes", resolved.display());
            return Err(OpError::Invalid(text));
        }
        Ok(Some(data))
    }

    /// The directory that holds a resolved path, or `None` if it does not exist.
    pub fn open_parent(&self, path: &Resolved) -> Result<Option<OwnedFd>, OpError> {
        let parent = path.parent();
        match self.raw_open(parent.as_path(), OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(stat_error(path, errno)),
        }
    }

    /// The root itself.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn raw_open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        rustix::fs::openat2(
            &self.fd,
            path,
            flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
    }

    /// The target of the link at a path; `None` for anything else and for what does not exist.
    fn read_link(&self, path: &Path) -> Result<Option<PathBuf>, OpError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // `NO_SYMLINKS` would refuse the link itself, so only `BENEATH` guards this open; every
        // component before the last was found to be no link.
        let opened = rustix::fs::openat2(
            &self.fd,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        );
        let fd = match opened {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(OpError::path("lstat", display(path), errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|e| OpError::path("lstat", display(path), e))?;
        if !is_link(&stat) {
            return Ok(None);
        }
        let target = rustix::fs::readlinkat(&fd, "", Vec::new())
            .map_err(|e| OpError::path("readlink", display(path), e))?;
        Ok(Some(PathBuf::from(std::ffi::OsString::from_vec(
            target.into_bytes(),
        ))))
    }
}

/// True for a directory.
pub fn is_dir(stat: &Stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// True for a regular file.
pub fn is_regular(stat: &Stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

/// True for a symbolic link.
pub fn is_link(stat: &Stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFLNK
}

/// An absolute path without `.`, `..` and doubled slashes, as Go's `path.Clean("/" + path)`.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn open_root(path: &Path, how: OFlags) -> Result<OwnedFd, OpError> {
    let flags = how | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| OpError::path("open", "/", errno))
}

pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn stat_error(path: &Resolved, errno: Errno) -> OpError {
    OpError::path("lstat", path.display(), errno)
}

fn display(path: &Path) -> String {
    format!("/{}", path.to_string_lossy().trim_start_matches('/'))
}

/// Puts the components of a path on a stack, the first one on top.
fn push_components(pending: &mut Vec<std::ffi::OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => pending.push(name.to_owned()),
            Component::ParentDir => pending.push("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn resolve(root: &Root, path: &str) -> String {
        root.resolve(Path::new(path), LastLink::Follow)
            .unwrap()
            .display()
    }

    #[test]
    fn links_are_followed_inside_the_root_and_never_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("usr/share")).unwrap();
        symlink("/usr/share", dir.path().join("short")).unwrap();
        symlink("../../../../etc", dir.path().join("usr/out")).unwrap();
        symlink("/not/yet", dir.path().join("pending")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(resolve(&root, "/short/x"), "/usr/share/x");
        assert_eq!(resolve(&root, "/usr/out/passwd"), "/etc/passwd");
        assert_eq!(resolve(&root, "/pending/z"), "/not/yet/z");
        assert_eq!(resolve(&root, "/../../a/../b"), "/b");
        assert_eq!(resolve(&root, "/"), "/");
        let kept = root.resolve(Path::new("/short"), LastLink::Keep).unwrap();
        assert_eq!(kept.display(), "/short");
        assert!(root.resolve(Path::new("/loop"), LastLink::Follow).is_err());
    }

    #[test]
    fn a_file_as_directory_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        let root = Root::open(dir.path()).unwrap();
        let error = root.resolve(Path::new("/f/x/y"), LastLink::Follow);
        assert_eq!(
            error.unwrap_err().to_string(),
            "lstat /f/x: not a directory"
        );
        assert_eq!(root.read_file(Path::new("/f"), 10).unwrap().unwrap(), b"x");
        assert!(root.read_file(Path::new("/g"), 10).unwrap().is_none());
    }
}
