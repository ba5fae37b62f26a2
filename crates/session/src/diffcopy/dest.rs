//! The directory that is written to.
//!
//! Every path comes from a peer. It is opened below the root with `openat2`, which neither leaves the
//! root nor follows a symbolic link, and the last name is only used relative to the directory opened
//! so.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, StatxFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::order;
use crate::error::SessionError;
use crate::mode;
use crate::packet::FileStat;
use crate::walk::{file_stat, open_beneath};

/// A view of the destination, cheap to make, one for each thread.
pub struct Dest {
    root: Arc<OwnedFd>,
    root_path: PathBuf,
    /// The directory used last, as entries of one come together.
    parent: Option<(Vec<u8>, Arc<OwnedFd>)>,
    temp_next: u64,
    temp_tag: char,
}

/// A regular file that is being written.
pub struct NewFile {
    fd: OwnedFd,
    parent: Arc<OwnedFd>,
    /// The name it has now, when that is not its own.
    temp: Option<Vec<u8>>,
}

impl NewFile {
    /// What is written to.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.fd
    }
}

impl Dest {
    /// Opens the directory. `temp_tag` keeps the temporary names of several views apart.
    pub fn open(path: &Path, temp_tag: char) -> Result<Self, SessionError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| SessionError::file("open", path, error))?;
        Ok(Dest {
            root: Arc::new(root),
            root_path: path.to_owned(),
            parent: None,
            temp_next: 0,
            temp_tag,
        })
    }

    /// Another view of the same directory.
    pub fn another(&self, temp_tag: char) -> Self {
        Dest {
            root: self.root.clone(),
            root_path: self.root_path.clone(),
            parent: None,
            temp_next: 0,
            temp_tag,
        }
    }

    /// What is at the path, if anything.
    pub fn lstat(&mut self, path: &[u8]) -> Result<Option<FileStat>, SessionError> {
        let (parent, name) = self.locate(path)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let mut stat = match rustix::fs::statx(&*parent, name, flags, StatxFlags::BASIC_STATS) {
            Ok(found) => file_stat(&found),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.failure("lstat", path, error)),
        };
        if mode::is_symlink(stat.mode) {
            let target = rustix::fs::readlinkat(&*parent, name, Vec::new())
                .map_err(|error| self.failure("readlink", path, error))?;
            stat.linkname = target.into_bytes();
        }
        stat.path = path.to_vec();
        Ok(Some(stat))
    }

    /// Removes whatever is at the path, with everything below it.
    pub fn remove(&mut self, path: &[u8], is_dir: bool) -> Result<(), SessionError> {
        // The cached directory may be the one that goes.
        let (parent, name) = self.locate(path)?;
        let result = if is_dir {
            self.parent = None;
            remove_dir(&parent, name)
        } else {
            rustix::fs::unlinkat(&*parent, name, AtFlags::empty())
        };
        match result {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failure("remove", path, error)),
        }
    }

    /// Makes a directory one can write into; its own mode comes with [`Dest::finish_dir`].
    pub fn make_dir(&mut self, stat: &FileStat) -> Result<(), SessionError> {
        let (parent, name) = self.locate(&stat.path)?;
        rustix::fs::mkdirat(&*parent, name, Mode::RWXU)
            .map_err(|error| self.failure("mkdir", &stat.path, error))
    }

    /// Sets what a directory is to be, after the last change in it.
    pub fn finish_dir(&mut self, stat: &FileStat) -> Result<(), SessionError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = open_beneath(&self.root, &stat.path, flags, Mode::empty())
            .map_err(|error| self.failure("open", &stat.path, error))?;
        self.set_metadata(&fd, stat)
    }

    /// Makes a directory usable that is there and lacks permissions we need.
    pub fn unlock_dir(&mut self, stat: &FileStat) -> Result<(), SessionError> {
        let (parent, name) = self.locate(&stat.path)?;
        rustix::fs::chmodat(&*parent, name, Mode::RWXU, AtFlags::empty())
            .map_err(|error| self.failure("chmod", &stat.path, error))
    }

    /// Makes a symbolic link.
    pub fn make_symlink(&mut self, stat: &FileStat) -> Result<(), SessionError> {
        let (parent, name) = self.locate(&stat.path)?;
        rustix::fs::symlinkat(&stat.linkname[..], &*parent, name)
            .map_err(|error| self.failure("symlink", &stat.path, error))?;
        self.set_special_metadata(&parent, name, stat)
    }

    /// Makes a device or a named pipe.
    pub fn make_special(&mut self, stat: &FileStat) -> Result<(), SessionError> {
        let (parent, name) = self.locate(&stat.path)?;
        let kind = if stat.mode & mode::CHAR_DEVICE != 0 {
            FileType::CharacterDevice
        } else if stat.mode & mode::NAMED_PIPE != 0 {
            FileType::Fifo
        } else {
            FileType::BlockDevice
        };
        let device = rustix::fs::makedev(stat.devmajor as u32, stat.devminor as u32);
        let permissions = Mode::from_raw_mode(mode::permissions(stat.mode));
        rustix::fs::mknodat(&*parent, name, kind, permissions, device)
            .map_err(|error| self.failure("mknod", &stat.path, error))?;
        self.set_special_metadata(&parent, name, stat)?;
        rustix::fs::chmodat(&*parent, name, permissions, AtFlags::empty())
            .map_err(|error| self.failure("chmod", &stat.path, error))?;
        self.set_times(&parent, name, stat)
    }

    /// Makes the path another name of a file that is there; what was at the path goes.
    pub fn make_hard_link(&mut self, stat: &FileStat) -> Result<(), SessionError> {
        order::check_path(&stat.linkname)?;
        let (from_dir, from) = order::split(&stat.linkname);
        let (from_dir, from) = (from_dir.to_vec(), from.to_vec());
        let from_fd = self.open_dir(&from_dir, &stat.linkname)?;
        let (parent, name) = self.locate(&stat.path)?;
        match rustix::fs::unlinkat(&*parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(self.failure("remove", &stat.path, error)),
        }
        rustix::fs::linkat(&*from_fd, &from[..], &*parent, name, AtFlags::empty())
            .map_err(|error| self.failure("link", &stat.path, error))
    }

    /// Begins a regular file. One that replaces another gets its name when it is finished.
    pub fn create(&mut self, stat: &FileStat, replaces: bool) -> Result<NewFile, SessionError> {
        let temp = replaces.then(|| {
            self.temp_next += 1;
            let process = std::process::id();
            format!(".tmp.{process}{}{}", self.temp_tag, self.temp_next).into_bytes()
        });
        let (parent, name) = self.locate(&stat.path)?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = temp.as_deref().unwrap_or(name);
        let permissions = Mode::from_raw_mode(mode::permissions(stat.mode) & 0o777);
        let fd = rustix::fs::openat(&*parent, name, flags, permissions)
            .map_err(|error| self.failure("create", &stat.path, error))?;
        Ok(NewFile { fd, parent, temp })
    }

    /// Writes the next bytes of a file.
    pub fn write(
        &self,
        file: &NewFile,
        stat: &FileStat,
        mut data: &[u8],
    ) -> Result<(), SessionError> {
        while !data.is_empty() {
            match rustix::io::write(&file.fd, data) {
                Ok(0) => return Err(self.failure("write", &stat.path, Errno::IO)),
                Ok(some) => data = &data[some..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failure("write", &stat.path, error)),
            }
        }
        Ok(())
    }

    /// Ends a file: owner, mode, attributes, time, and its name.
    pub fn finish(&self, file: NewFile, stat: &FileStat) -> Result<(), SessionError> {
        self.set_metadata(&file.fd, stat)?;
        if let Some(temp) = &file.temp {
            let (_, name) = order::split(&stat.path);
            rustix::fs::renameat(&*file.parent, &temp[..], &*file.parent, name)
                .map_err(|error| self.failure("rename", &stat.path, error))?;
        }
        Ok(())
    }

    /// Removes a file that will not be finished.
    pub fn abandon(&self, file: NewFile, stat: &FileStat) {
        let (_, name) = order::split(&stat.path);
        let name = file.temp.as_deref().unwrap_or(name);
        // The error that led here is the one to report.
        let _ = rustix::fs::unlinkat(&*file.parent, name, AtFlags::empty());
    }

    fn set_metadata(&self, fd: &OwnedFd, stat: &FileStat) -> Result<(), SessionError> {
        // Mostly it has both from the beginning, and to look costs a fraction of a change.
        let made =
            rustix::fs::fstat(fd).map_err(|error| self.failure("lstat", &stat.path, error))?;
        let is_owned = (made.st_uid, made.st_gid) == (stat.uid, stat.gid);
        if !is_owned {
            let (uid, gid) = owner(stat);
            rustix::fs::fchown(fd, Some(uid), Some(gid))
                .map_err(|error| self.failure("chown", &stat.path, error))?;
        }
        let permissions = mode::permissions(stat.mode);
        // A change of owner drops bits.
        if !is_owned || made.st_mode & 0o7777 != permissions {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(permissions))
                .map_err(|error| self.failure("chmod", &stat.path, error))?;
        }
        for (name, value) in &stat.xattrs {
            // After the change of owner, which drops file capabilities. What a file system does not
            // keep is left out, as by stock receivers.
            let _ = rustix::fs::fsetxattr(fd, &name[..], value, rustix::fs::XattrFlags::empty());
        }
        rustix::fs::futimens(fd, &times(stat))
            .map_err(|error| self.failure("chtimes", &stat.path, error))
    }

    fn set_special_metadata(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        stat: &FileStat,
    ) -> Result<(), SessionError> {
        let (uid, gid) = owner(stat);
        rustix::fs::chownat(
            parent,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|error| self.failure("lchown", &stat.path, error))?;
        self.set_times(parent, name, stat)
    }

    fn set_times(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        stat: &FileStat,
    ) -> Result<(), SessionError> {
        rustix::fs::utimensat(parent, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.failure("chtimes", &stat.path, error))
    }

    /// The directory a path is in, opened, and its last name.
    fn locate<'p>(&mut self, path: &'p [u8]) -> Result<(Arc<OwnedFd>, &'p [u8]), SessionError> {
        let (dir, name) = order::split(path);
        Ok((self.open_dir(dir, path)?, name))
    }

    fn open_dir(&mut self, dir: &[u8], path: &[u8]) -> Result<Arc<OwnedFd>, SessionError> {
        if dir.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some((cached, fd)) = &self.parent
            && cached == dir
        {
            return Ok(fd.clone());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = open_beneath(&self.root, dir, flags, Mode::empty())
            .map_err(|error| self.failure("open", path, error))?;
        let fd = Arc::new(fd);
        self.parent = Some((dir.to_vec(), fd.clone()));
        Ok(fd)
    }

    fn failure(&self, op: &'static str, path: &[u8], error: Errno) -> SessionError {
        use std::os::unix::ffi::OsStrExt;
        let full = self.root_path.join(std::ffi::OsStr::from_bytes(path));
        SessionError::file(op, full, io::Error::from(error))
    }
}

/// Removes a directory with everything in it, by descriptors.
fn remove_dir(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::empty());
    let fd = match open() {
        Ok(fd) => fd,
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            open()?
        }
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return rustix::fs::unlinkat(parent, name, AtFlags::empty());
        }
        Err(error) => return Err(error),
    };
    let mut unlocked = false;
    let entries: Vec<_> = rustix::fs::Dir::read_from(&fd)?.collect::<Result<_, _>>()?;
    for entry in entries {
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let mut result = rustix::fs::unlinkat(&fd, name, AtFlags::empty());
        if result == Err(Errno::ACCESS) && !unlocked {
            unlocked = true;
            rustix::fs::fchmod(fd.as_fd(), Mode::RWXU)?;
            result = rustix::fs::unlinkat(&fd, name, AtFlags::empty());
        }
        match result {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => remove_dir(&fd, name)?,
            Err(error) => return Err(error),
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn owner(stat: &FileStat) -> (Uid, Gid) {
    (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid))
}

fn times(stat: &FileStat) -> Timestamps {
    let time = Timespec {
        tv_sec: stat.mod_time.div_euclid(1_000_000_000),
        tv_nsec: stat.mod_time.rem_euclid(1_000_000_000),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn stat(path: &str) -> FileStat {
        FileStat {
            path: path.into(),
            mode: 0o640,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            mod_time: -1,
            ..FileStat::default()
        }
    }

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("l")).unwrap();
        let mut dest = Dest::open(dir.path(), 'a').unwrap();
        assert!(dest.create(&stat("l/x"), false).is_err());
        assert!(dest.remove(b"l/x", false).is_err());
        assert!(dest.make_dir(&stat("../x")).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_gets_mode_and_time_and_replaces_the_old_one() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "old").unwrap();
        let mut dest = Dest::open(dir.path(), 'a').unwrap();
        let stat = stat("f");
        let file = dest.create(&stat, true).unwrap();
        dest.write(&file, &stat, b"new").unwrap();
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"old");
        dest.finish(file, &stat).unwrap();
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"new");
        let found = fs::metadata(dir.path().join("f")).unwrap();
        assert_eq!(
            (found.mode() & 0o7777, found.mtime(), found.mtime_nsec()),
            (0o640, -1, 999_999_999)
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn trees_are_removed_whole() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        fs::write(dir.path().join("a/b/f"), "x").unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("a/l")).unwrap();
        let mut dest = Dest::open(dir.path(), 'a').unwrap();
        dest.remove(b"a", true).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
