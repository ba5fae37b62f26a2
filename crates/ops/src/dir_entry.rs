//! One entry of an open directory: its metadata, listing, and extended attributes.
//!
//! Everything is done relative to an open directory and without following links.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

/// The metadata of an entry; `None` if there is none of that name.
pub fn stat_entry(dir: impl AsFd, name: &OsStr) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory entry that is a directory, for listing and for changes in it.
pub fn open_child_dir(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// The names in a directory that is open for reading, sorted by their bytes.
pub fn list(dir: impl AsFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    Ok(names)
}

/// The target of a symbolic link.
pub fn read_link(dir: impl AsFd, name: &OsStr) -> Result<CString, Errno> {
    rustix::fs::readlinkat(dir, name, Vec::new())
}

/// The extended attributes of an entry, sorted by name; those with which an overlay marks its own
/// layers are not among them. File systems without attributes have none.
pub fn xattrs(dir: impl AsFd, name: &OsStr) -> Result<Vec<(CString, Vec<u8>)>, Errno> {
    let path = proc_path(dir, name);
    let names = read_sized(|buffer| rustix::fs::llistxattr(&path, buffer));
    values(names, |key, buffer| {
        rustix::fs::lgetxattr(&path, key, buffer)
    })
}

/// The same of an open file.
pub fn file_xattrs(file: impl AsFd) -> Result<Vec<(CString, Vec<u8>)>, Errno> {
    let file = file.as_fd();
    let names = read_sized(|buffer| rustix::fs::flistxattr(file, buffer));
    values(names, |key, buffer| {
        rustix::fs::fgetxattr(file, key, buffer)
    })
}

/// Sets one extended attribute of an open file.
pub fn set_file_xattr(file: impl AsFd, key: &CStr, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::fsetxattr(file, key, value, XattrFlags::empty())
}

fn values(
    names: Result<Vec<u8>, Errno>,
    read: impl Fn(&CStr, &mut [u8]) -> Result<usize, Errno>,
) -> Result<Vec<(CString, Vec<u8>)>, Errno> {
    let names = match names {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for key in names.split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
        if key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.") {
            continue;
        }
        let Ok(key) = CString::new(key) else { continue };
        match read_sized(|buffer| read(&key, buffer)) {
            Ok(value) => found.push((key, value)),
            // Gone in between, or of a kind that this process may list but not read.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Sets one extended attribute of an entry.
pub fn set_xattr(dir: impl AsFd, name: &OsStr, key: &CStr, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::lsetxattr(proc_path(dir, name), key, value, XattrFlags::empty())
}

/// A path by which calls without an `at` form reach an entry of an open directory.
fn proc_path(dir: impl AsFd, name: &OsStr) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()));
    path.push(name);
    path
}

/// Calls with growing buffers until the answer fits.
fn read_sized(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            // The kernel limits lists and values to 64 KiB each.
            Err(Errno::RANGE) if buffer.len() < 1 << 17 => {
                let len = buffer.len() * 8;
                buffer.resize(len, 0);
            }
            Err(errno) => return Err(errno),
        }
    }
}

/// One extended attribute of an entry; `None` if it is not set.
pub fn raw_xattr(dir: impl AsFd, name: &OsStr, key: &str) -> Result<Option<Vec<u8>>, Errno> {
    let path = proc_path(dir, name);
    match read_sized(|buffer| rustix::fs::lgetxattr(&path, key, buffer)) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether a directory of a layer hides those of its name below it.
pub fn is_opaque(dir: impl AsFd, name: &OsStr) -> Result<bool, Errno> {
    for key in [archive::xattr::OPAQUE, archive::OPAQUE_STAND_IN] {
        if raw_xattr(&dir, name, key)?.as_deref() == Some(b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}
