//! Making a directory with its missing parents.

use std::ffi::OsStr;

use rustix::fs::{AtFlags, Mode, Timespec, Timestamps};
use rustix::io::Errno;

use crate::OpError;
use crate::copy_file::set_owner;
use crate::owner::Owner;
use crate::root::{Resolved, Root, is_dir};

/// What new directories are like.
#[derive(Clone, Copy, Debug)]
pub struct NewDirs {
    /// Permission bits.
    pub mode: u32,
    /// Owner; `None` is root.
    pub owner: Option<Owner>,
    /// Modification time; `None` is now.
    pub timestamp: Option<Timespec>,
}

/// Makes `dir` and the parents it lacks; returns those made, outermost first. Directories that are
/// there stay as they are.
pub fn make_dirs(root: &Root, dir: &Resolved, how: &NewDirs) -> Result<Vec<Resolved>, OpError> {
    match root.stat(dir)? {
        Some(stat) if is_dir(&stat) => return Ok(Vec::new()),
        Some(_) => return Err(OpError::path("mkdir", dir.display(), Errno::NOTDIR)),
        None => {}
    }
    let mut made = make_dirs(root, &dir.parent(), how)?;
    make_dir(root, dir, how)?;
    made.push(dir.clone());
    Ok(made)
}

/// Makes one directory whose parent exists.
pub fn make_dir(root: &Root, dir: &Resolved, how: &NewDirs) -> Result<(), OpError> {
    let failed = |call| move |errno| OpError::path(call, dir.display(), errno);
    let parent = root
        .open_parent(dir)?
        .ok_or_else(|| failed("mkdir")(Errno::NOENT))?;
    let name = dir.name().ok_or_else(|| failed("mkdir")(Errno::EXIST))?;
    let mode = Mode::from_raw_mode(how.mode & 0o7777);
    rustix::fs::mkdirat(&parent, name, mode).map_err(failed("mkdir"))?;
    // The process's umask must not show in an image; a group that is passed on from above must.
    let made = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW);
    let made = Mode::from_raw_mode(made.map_err(failed("stat"))?.st_mode);
    let mode = mode | (made & Mode::SGID);
    rustix::fs::chmodat(&parent, name, mode, AtFlags::empty()).map_err(failed("chmod"))?;
    if let Some(owner) = how.owner {
        set_owner(&parent, name, owner).map_err(failed("lchown"))?;
    }
    if let Some(time) = how.timestamp {
        set_times(&parent, name, time).map_err(failed("utimensat"))?;
    }
    Ok(())
}

/// Sets both times of a resolved path.
pub fn set_times_of(root: &Root, path: &Resolved, time: Timespec) -> Result<(), OpError> {
    let failed = |errno| OpError::path("utimensat", path.display(), errno);
    let parent = root
        .open_parent(path)?
        .ok_or_else(|| failed(Errno::NOENT))?;
    set_times(&parent, path.name().unwrap_or(OsStr::new(".")), time).map_err(failed)
}

fn set_times(dir: &std::os::fd::OwnedFd, name: &OsStr, time: Timespec) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}
