//! Copying and removing trees on disk, descriptor by descriptor so that nothing is followed.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::{ArchiveError, Result, xattr};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes `name` in `dir` and everything in it, across permissions but never across links. What is
/// not there is no error.
pub fn remove_tree(dir: impl AsFd, name: impl rustix::path::Arg + Copy) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    // A tree may be deeper than there are descriptors or than a thread's stack allows, so the way
    // back up is by `..`: nothing moves directories while they are removed.
    let (mut here, children) = open_children(&dir, name)?;
    let mut above: Vec<(Vec<u8>, Vec<Vec<u8>>)> = Vec::new();
    let mut children = children;
    loop {
        let Some(child) = children.pop() else {
            let Some((own_name, siblings)) = above.pop() else {
                break;
            };
            here = rustix::fs::openat(&here, "..", DIRECTORY, Mode::empty())?;
            rustix::fs::unlinkat(&here, own_name.as_slice(), AtFlags::REMOVEDIR)?;
            children = siblings;
            continue;
        };
        match rustix::fs::unlinkat(&here, child.as_slice(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                let (fd, below) = open_children(&here, child.as_slice())?;
                above.push((child, std::mem::replace(&mut children, below)));
                here = fd;
            }
            Err(error) => return Err(error),
        }
    }
    rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)
}

fn open_children(
    dir: impl AsFd,
    name: impl rustix::path::Arg + Copy,
) -> rustix::io::Result<(OwnedFd, Vec<Vec<u8>>)> {
    let fd = rustix::fs::openat(dir, name, DIRECTORY, Mode::empty())?;
    let names = child_names(&fd)?;
    Ok((fd, names))
}

/// Names in an open directory, without `.` and `..`, in the directory's own order.
pub(crate) fn child_names(fd: impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Bytes of disk blocks of what lies at `root` and below, as `du` counts: files with several names
/// once, links not followed, other filesystems left out. What `skip` says is passed over with all
/// below; what cannot be read, or goes away meanwhile, counts as nothing.
pub fn allocated(root: &Path, skip: &dyn Fn(&Path) -> bool) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut total = 0;
    let mut seen = std::collections::HashSet::new();
    let Ok(first) = std::fs::symlink_metadata(root) else {
        return 0;
    };
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        if skip(&path) {
            continue;
        }
        let Ok(meta) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        let known = !meta.is_dir() && meta.nlink() > 1 && !seen.insert(meta.ino());
        if meta.dev() != first.dev() || known {
            continue;
        }
        total += meta.blocks() * 512;
        if meta.is_dir()
            && let Ok(entries) = std::fs::read_dir(&path)
        {
            open.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    total
}

/// Copies one entry that is not a directory, with its metadata. Content is shared with the source
/// where the filesystem can do that, and holes stay holes.
pub fn copy_entry(source: &Path, stat: &Stat, dest: &Path) -> Result<()> {
    let mode = Mode::from_raw_mode(stat.st_mode);
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::RegularFile => copy_content(source, dest, stat.st_size as u64)
            .map_err(ArchiveError::io("copy", source))?,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(CWD, source, Vec::new())
                .map_err(ArchiveError::io("read link", source))?;
            rustix::fs::symlinkat(target, CWD, dest)
                .map_err(ArchiveError::io("make link", dest))?;
        }
        FileType::Directory => {
            rustix::fs::mkdirat(CWD, dest, Mode::RWXU).map_err(ArchiveError::io("mkdir", dest))?;
        }
        kind => rustix::fs::mknodat(CWD, dest, kind, mode, stat.st_rdev)
            .map_err(ArchiveError::io("mknod", dest))?,
    }
    copy_metadata(source, stat, dest)
}

/// Gives `dest` the owner, mode, portable attributes and times of `source`. A directory loses the
/// portable attributes that `source` does not have; anything else is taken to have been made just now.
pub fn copy_metadata(source: &Path, stat: &Stat, dest: &Path) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(CWD, dest, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(ArchiveError::io("chown", dest))?;
    let names = xattr::list(source).map_err(ArchiveError::io("list attributes of", source))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let old = xattr::list(dest).map_err(ArchiveError::io("list attributes of", dest))?;
        for name in old.iter().filter(|name| xattr::is_portable(name)) {
            if names.binary_search(name).is_err() {
                rustix::fs::lremovexattr(dest, name.as_slice())
                    .map_err(ArchiveError::io("remove attribute of", dest))?;
            }
        }
    }
    for name in names.iter().filter(|name| xattr::is_portable(name)) {
        let value = xattr::get(source, name).map_err(ArchiveError::io("read attribute", source))?;
        if let Some(value) = value {
            xattr::set(dest, name, &value).map_err(ArchiveError::io("set attribute", dest))?;
        }
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode);
        rustix::fs::chmodat(CWD, dest, mode, AtFlags::empty())
            .map_err(ArchiveError::io("chmod", dest))?;
    }
    rustix::fs::utimensat(CWD, dest, &times_of(stat), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(ArchiveError::io("set times of", dest))
}

/// The times that give a copy the modification time of the original.
fn times_of(stat: &Stat) -> Timestamps {
    let time = Timespec {
        tv_sec: stat.st_mtime as _,
        tv_nsec: stat.st_mtime_nsec as _,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn copy_content(source: &Path, dest: &Path, size: u64) -> io::Result<()> {
    let from = File::open(source)?;
    let to = File::options().write(true).create_new(true).open(dest)?;
    if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    to.set_len(size)?;
    let mut offset = 0;
    while offset < size {
        let data = match rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(()),
            Err(Errno::INVAL) => offset,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&from, rustix::fs::SeekFrom::Hole(data)).unwrap_or(size);
        copy_range(&from, &to, data, end)?;
        offset = end;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (mut at_from, mut at_to) = (start, start);
    while at_from < end {
        let length = (end - at_from).min(1 << 30) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut at_from), to, Some(&mut at_to), length) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mut buffer = vec![0; 128 << 10];
    while at_from < end {
        let want = buffer.len().min((end - at_from) as usize);
        let read = from.read_at(&mut buffer[..want], at_from)?;
        if read == 0 {
            break;
        }
        to.write_all_at(&buffer[..read], at_from)?;
        at_from += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn removing_a_tree_is_not_stopped_by_depth_or_links() {
        let dir = tempfile::tempdir().unwrap();
        let keep = dir.path().join("keep");
        fs::create_dir(&keep).unwrap();
        fs::write(keep.join("file"), "x").unwrap();
        let mut fd: OwnedFd = File::open(dir.path()).unwrap().into();
        for name in std::iter::once("tree").chain(std::iter::repeat_n("d", 3000)) {
            rustix::fs::mkdirat(&fd, name, Mode::RWXU).unwrap();
            fd = rustix::fs::openat(&fd, name, DIRECTORY, Mode::empty()).unwrap();
            rustix::fs::symlinkat(&keep, &fd, "link").unwrap();
        }
        remove_tree(CWD, &dir.path().join("tree")).unwrap();
        remove_tree(CWD, &dir.path().join("tree")).unwrap();
        assert!(!dir.path().join("tree").exists());
        assert!(keep.join("file").exists());
    }

    #[test]
    fn a_copied_file_keeps_metadata_and_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let file = File::create(&a).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"end", 8 << 20).unwrap();
        xattr::set(&a, b"user.k", b"v").unwrap();
        rustix::fs::chmodat(CWD, &a, Mode::from_raw_mode(0o4711), AtFlags::empty()).unwrap();
        let stat = rustix::fs::lstat(&a).unwrap();
        copy_entry(&a, &stat, &b).unwrap();
        let (x, y) = (fs::metadata(&a).unwrap(), fs::metadata(&b).unwrap());
        assert_eq!(
            (x.mode(), x.mtime_nsec(), x.len()),
            (y.mode(), y.mtime_nsec(), y.len())
        );
        assert!(y.blocks() < 100);
        assert_eq!(xattr::get(&b, b"user.k").unwrap().unwrap(), b"v");
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    }
}
