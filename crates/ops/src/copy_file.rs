//! Copying one entry of a directory: its content, its metadata, and what is in its way.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dev, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::OpError;
use crate::dir_entry::{
    file_xattrs, list, open_child_dir, read_link, set_file_xattr, set_xattr, stat_entry, xattrs,
};
use crate::owner::Owner;
use crate::root::{is_dir, is_link, is_regular};
use crate::tree_copy::CopyOptions;

/// Where files with several names were put first, by device and inode of the source.
pub(crate) type Links = HashMap<(u64, u64), (OwnedFd, OsString)>;

/// Files up to this size are copied through memory.
const SMALL_BYTES: u64 = 16 << 10;

/// An entry to be copied, and where.
pub(crate) struct Place<'a> {
    /// The directory it is in, and its name there.
    pub(crate) source: &'a OwnedFd,
    pub(crate) source_name: &'a OsStr,
    pub(crate) stat: &'a Stat,
    /// The directory it is put into, and its name there.
    pub(crate) target: &'a OwnedFd,
    pub(crate) name: &'a OsStr,
    /// The path in the image, for errors.
    pub(crate) display: &'a str,
}

/// Copies a regular file with one name, which need not wait for any other.
pub(crate) fn copy_plain_file(options: &CopyOptions, place: &Place<'_>) -> Result<(), OpError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let input = rustix::fs::openat(place.source, place.source_name, flags, Mode::empty())
        .map_err(at("copy", place.display))?;
    let bits = bits(options, place.stat);
    let output = match create(place, bits) {
        // Something is there: what to do about it is another matter.
        Err(Errno::EXIST) => {
            make_way(options, place)?;
            create(place, bits)
        }
        other => other,
    };
    let output = output.map_err(at("copy", place.display))?;
    copy_bytes(&input, &output, place.stat.st_size as u64).map_err(at("copy", place.display))?;
    let owner = options.owner.unwrap_or(owner_of(place.stat));
    set_owner_and_bits(&output, owner, bits, place.display)?;
    for (key, value) in file_xattrs(&input).map_err(at("listxattr", place.display))? {
        if let Err(errno) = set_file_xattr(&output, &key, &value) {
            let path = place.display;
            tracing::debug!(path, ?key, %errno, "extended attribute not copied");
        }
    }
    rustix::fs::futimens(&output, &times(options, place.stat))
        .map_err(at("utimensat", place.display))
}

/// Copies anything but a directory. Files with several names stay one file.
pub(crate) fn copy_file(
    options: &CopyOptions,
    place: &Place<'_>,
    links: &mut Links,
) -> Result<(), OpError> {
    let Place {
        source,
        source_name,
        stat,
        target,
        name,
        display,
    } = *place;
    if is_regular(stat) && stat.st_nlink <= 1 {
        return copy_plain_file(options, place);
    }
    make_way(options, place)?;
    if is_regular(stat) {
        let inode = (stat.st_dev, stat.st_ino);
        if let Some((dir, first)) = links.get(&inode) {
            rustix::fs::linkat(dir, first, target, name, AtFlags::empty())
                .map_err(at("link", display))?;
        } else {
            copy_plain_file(options, place)?;
            let dir = duplicate(target).map_err(at("open", display))?;
            links.insert(inode, (dir, name.to_owned()));
            return Ok(());
        }
    } else if is_link(stat) {
        let link = read_link(source, source_name).map_err(at("readlink", display))?;
        rustix::fs::symlinkat(link, target, name).map_err(at("symlink", display))?;
    } else {
        make_node(target, name, stat).map_err(at("mknod", display))?;
    }
    copy_metadata(options, place)
}

/// Owner, mode, attributes and times, in the order in which none undoes another.
pub(crate) fn copy_metadata(options: &CopyOptions, place: &Place<'_>) -> Result<(), OpError> {
    let Place {
        target,
        name,
        stat,
        display,
        ..
    } = *place;
    let owner = options.owner.unwrap_or(owner_of(stat));
    set_owner(target, name, owner).map_err(at("lchown", display))?;
    if !is_link(stat) {
        rustix::fs::chmodat(target, name, bits(options, stat), AtFlags::empty())
            .map_err(at("chmod", display))?;
    }
    let attributes = xattrs(place.source, place.source_name).map_err(at("listxattr", display))?;
    for (key, value) in attributes {
        // As for stock: an attribute that the target cannot have is no reason to fail.
        if let Err(errno) = set_xattr(target, name, &key, &value) {
            let path = display;
            tracing::debug!(path, ?key, %errno, "extended attribute not copied");
        }
    }
    set_times(options, place)
}

/// Gives an entry the times it is to have.
pub(crate) fn set_times(options: &CopyOptions, place: &Place<'_>) -> Result<(), OpError> {
    let times = times(options, place.stat);
    rustix::fs::utimensat(place.target, place.name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(at("utimensat", place.display))
}

/// Gives an entry to an owner, links not followed.
pub(crate) fn set_owner(dir: impl AsFd, name: &OsStr, owner: Owner) -> Result<(), Errno> {
    let (uid, gid) = ids(owner);
    rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}

/// The ids to give; the highest number means that the owner stays, as for chown(2).
fn ids(owner: Owner) -> (Option<Uid>, Option<Gid>) {
    (
        (owner.uid != u32::MAX).then(|| Uid::from_raw(owner.uid)),
        (owner.gid != u32::MAX).then(|| Gid::from_raw(owner.gid)),
    )
}

/// Removes an entry with everything below it, whatever it is; nothing there is fine.
pub(crate) fn remove_all(dir: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let dir = dir.as_fd();
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let child = open_child_dir(dir, name)?;
    for entry in list(&child)? {
        remove_all(&child, &entry)?;
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// With `replace`: removes what is in the way of another kind.
pub(crate) fn clear_way(
    options: &CopyOptions,
    place: &Place<'_>,
    existing: Option<&Stat>,
) -> Result<(), OpError> {
    match existing {
        Some(existing) if options.replace && !(is_dir(place.stat) && is_dir(existing)) => {
            remove_all(place.target, place.name).map_err(at("unlinkat", place.display))
        }
        _ => Ok(()),
    }
}

/// Names the call that failed, and on which path.
pub(crate) fn at<'a>(call: &'static str, display: &'a str) -> impl FnOnce(Errno) -> OpError + 'a {
    move |errno| OpError::path(call, display, errno)
}

pub(crate) fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0)
}

/// Removes a file that is where another one is to be; a directory stays and is an error.
fn make_way(options: &CopyOptions, place: &Place<'_>) -> Result<(), OpError> {
    let existing = stat_entry(place.target, place.name).map_err(at("lstat", place.display))?;
    clear_way(options, place, existing.as_ref())?;
    match existing {
        Some(existing) if is_dir(&existing) && !options.replace => {
            Err(OpError::IsADirectory(place.display.to_owned()))
        }
        Some(existing) if !is_dir(&existing) => {
            match rustix::fs::unlinkat(place.target, place.name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(errno) => Err(OpError::path("unlinkat", place.display, errno)),
            }
        }
        _ => Ok(()),
    }
}

/// Makes the file, as far as that goes with the bits it is to have.
fn create(place: &Place<'_>, bits: Mode) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let plain = bits & (Mode::RWXU | Mode::RWXG | Mode::RWXO);
    rustix::fs::openat(place.target, place.name, flags, plain)
}

/// Gives a new file its owner and permission bits. Mostly it has them from the beginning, and to look
/// costs a fraction of a change.
fn set_owner_and_bits(
    file: &OwnedFd,
    owner: Owner,
    bits: Mode,
    display: &str,
) -> Result<(), OpError> {
    let made = rustix::fs::fstat(file).map_err(at("lstat", display))?;
    let is_owned = (made.st_uid, made.st_gid) == (owner.uid, owner.gid);
    if !is_owned {
        let (uid, gid) = ids(owner);
        rustix::fs::fchown(file, uid, gid).map_err(at("lchown", display))?;
    }
    // A change of owner drops bits.
    if !is_owned || made.st_mode & 0o7777 != bits.as_raw_mode() {
        rustix::fs::fchmod(file, bits).map_err(at("chmod", display))?;
    }
    Ok(())
}

fn owner_of(stat: &Stat) -> Owner {
    Owner {
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}

fn bits(options: &CopyOptions, stat: &Stat) -> Mode {
    Mode::from_raw_mode(match &options.mode {
        Some(change) => change.apply(stat.st_mode, is_dir(stat)),
        None => stat.st_mode & 0o7777,
    })
}

fn times(options: &CopyOptions, stat: &Stat) -> Timestamps {
    match options.timestamp {
        Some(time) => Timestamps {
            last_access: time,
            last_modification: time,
        },
        None => Timestamps {
            last_access: Timespec {
                tv_sec: stat.st_atime,
                tv_nsec: stat.st_atime_nsec as _,
            },
            last_modification: Timespec {
                tv_sec: stat.st_mtime,
                tv_nsec: stat.st_mtime_nsec as _,
            },
        },
    }
}

fn make_node(dir: &OwnedFd, name: &OsStr, stat: &Stat) -> Result<(), Errno> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        // A socket is of no use without its process; its name is kept by an empty file.
        FileType::Socket => FileType::RegularFile,
        kind => kind,
    };
    let device: Dev = match kind {
        FileType::CharacterDevice | FileType::BlockDevice => stat.st_rdev,
        _ => 0,
    };
    rustix::fs::mknodat(
        dir,
        name,
        kind,
        Mode::from_raw_mode(stat.st_mode & 0o7777),
        device,
    )
}

/// Copies the bytes of a regular file into a new one: shared blocks where the file system can, else
/// within the kernel, else through memory. `size` is what the source should have: nothing changes
/// it, so nobody asks once more whether there is more.
fn copy_bytes(input: &OwnedFd, output: &OwnedFd, size: u64) -> Result<(), Errno> {
    if size <= SMALL_BYTES {
        return copy_small(input, output, size as usize);
    }
    let mut left = size;
    while left > 0 {
        let piece = left.min(1 << 30) as usize;
        match rustix::fs::copy_file_range(input, None, output, None, piece) {
            Ok(0) => return Ok(()),
            Ok(copied) => left = left.saturating_sub(copied as u64),
            Err(Errno::INTR) => {}
            Err(errno) if left < size => return Err(errno),
            Err(
                Errno::NOSYS
                | Errno::XDEV
                | Errno::PERM
                | Errno::IO
                | Errno::OPNOTSUPP
                | Errno::INVAL,
            ) => return copy_through_memory(input, output),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Copies a small file: the kernel's ways have more to prepare than there is to copy.
fn copy_small(input: &OwnedFd, output: &OwnedFd, size: usize) -> Result<(), Errno> {
    let mut buffer = [0; SMALL_BYTES as usize];
    let mut left = size;
    while left > 0 {
        let read = match rustix::io::read(input, &mut buffer[..left]) {
            Ok(0) => break,
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            match rustix::io::write(output, rest) {
                Ok(0) => return Err(Errno::IO),
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        left -= read;
    }
    Ok(())
}

fn copy_through_memory(input: &OwnedFd, output: &OwnedFd) -> Result<(), Errno> {
    let mut input = std::fs::File::from(duplicate(input)?);
    let mut output = std::fs::File::from(duplicate(output)?);
    std::io::copy(&mut input, &mut output)
        .map(|_| ())
        .map_err(|error| crate::root::errno_of(&error))
}
