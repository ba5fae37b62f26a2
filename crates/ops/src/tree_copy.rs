//! Copying a file or a tree from one root into another, as `COPY` does.
//!
//! Semantics: a directory onto an existing one merges, its own metadata staying as it was except
//! for its times; directories met below are given the source's metadata. A file replaces a file or
//! a link, never a directory. With include patterns a directory is made only when something in it
//! is copied. Hard links among the files copied stay hard links.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pathmatch::{ParentMatches, PatternMatcher};
use rustix::fs::{AtFlags, Dev, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use crate::chmod::ModeChange;
use crate::dir_entry::{list, open_child_dir, read_link, set_xattr, stat_entry, xattrs};
use crate::owner::Owner;
use crate::root::{LastLink, Resolved, Root, is_dir, is_link, is_regular};
use crate::{OpError, make_dirs};

/// How a tree is copied.
#[derive(Debug, Default)]
pub struct CopyOptions {
    /// The owner of everything copied or made; `None` keeps the source's.
    pub owner: Option<Owner>,
    /// The permission bits of everything copied; `None` keeps the source's.
    pub mode: Option<ModeChange>,
    /// The permission bits of directories made on the way to the destination.
    pub parents_mode: u32,
    /// The modification time of everything; `None` keeps the source's.
    pub timestamp: Option<Timespec>,
    /// Whether a link that the source path ends in is followed.
    pub follow_links: bool,
    /// Whether a source directory stands for what is in it.
    pub dir_contents: bool,
    /// Only paths below the source that match, if given.
    pub include: Option<PatternMatcher>,
    /// No path below the source that matches, if given.
    pub exclude: Option<PatternMatcher>,
    /// Whether what is in the way of another kind is removed.
    pub replace: bool,
}

/// Copies `src` of one root to `dest` of another; both are clean absolute paths, and `dest` may end
/// in `/` to say that it is a directory.
pub fn copy_tree(
    source: &Root,
    src: &str,
    target: &Root,
    dest: &str,
    options: &CopyOptions,
    cancel: &CancellationToken,
) -> Result<(), OpError> {
    let last = match options.follow_links {
        true => LastLink::Follow,
        false => LastLink::Keep,
    };
    let from = source.resolve(Path::new(src), last)?;
    let stat = source
        .stat(&from)?
        .ok_or_else(|| OpError::path("lstat", from.display(), Errno::NOENT))?;
    let (to, mut made) = target_path(target, src, dest, is_dir(&stat), options)?;
    let mut copier = Copier {
        options,
        cancel,
        links: HashMap::new(),
        frames: Vec::new(),
    };
    let outcome = copier.copy_root(source, &from, &stat, target, &to);
    made.reverse();
    if let Some(time) = options.timestamp {
        for dir in &made {
            make_dirs::set_times_of(target, dir, time)?;
        }
    }
    outcome
}

/// Where exactly the source goes, with the directories that had to be made for it.
fn target_path(
    target: &Root,
    src: &str,
    dest: &str,
    src_is_dir: bool,
    options: &CopyOptions,
) -> Result<(Resolved, Vec<Resolved>), OpError> {
    let make = |dir: &Resolved| {
        let how = make_dirs::NewDirs {
            mode: options.parents_mode,
            owner: options.owner,
            timestamp: options.timestamp,
        };
        make_dirs::make_dirs(target, dir, &how)
    };
    let named_dir = match dest.rsplit_once('/') {
        Some((dir, file)) if !file.is_empty() && file != "." => dir,
        _ => dest,
    };
    let parent = target.resolve(Path::new(named_dir), LastLink::Follow)?;
    let mut made = make(&parent)?;
    let mut to = target.resolve(Path::new(dest), LastLink::Follow)?;
    let existing = target.stat(&to)?;
    let into = match &existing {
        None => false,
        Some(_) if src_is_dir => !options.dir_contents,
        Some(stat) => is_dir(stat),
    };
    if into && let Some(name) = base_name(src) {
        to = to.child(OsStr::new(name));
    }
    let contents_of_new = options.dir_contents && src_is_dir && existing.is_none();
    let needed = if contents_of_new {
        to.clone()
    } else {
        to.parent()
    };
    made.extend(make(&needed)?);
    Ok((to, made))
}

/// The last component of a path; none for the root and for a path that ends in `/.`.
fn base_name(path: &str) -> Option<&str> {
    let name = path.trim_end_matches('/').rsplit('/').next()?;
    (!name.is_empty() && name != ".").then_some(name)
}

struct Copier<'a> {
    options: &'a CopyOptions,
    cancel: &'a CancellationToken,
    /// Where a file with several names was put first.
    links: HashMap<(u64, u64), (OwnedFd, OsString)>,
    /// The directories between the top of the copy and where it is now.
    frames: Vec<Frame>,
}

/// A directory being copied.
struct Frame {
    /// It, open for reading.
    source: OwnedFd,
    source_stat: Stat,
    /// Where it is and what it is called in there, for its attributes.
    source_parent: OwnedFd,
    source_name: OsString,
    /// Its copy, once it has been made.
    target: Option<OwnedFd>,
    target_name: OsString,
    /// Whether its metadata is given at the end.
    own_metadata: bool,
    include: Option<ParentMatches>,
    exclude: Option<ParentMatches>,
}

/// What the patterns say of an entry.
struct Selected {
    included: bool,
    /// Excluded by a pattern, not merely left out by the include patterns.
    excluded: bool,
    include: Option<ParentMatches>,
    exclude: Option<ParentMatches>,
}

impl Copier<'_> {
    /// Copies the top of the tree.
    fn copy_root(
        &mut self,
        source: &Root,
        from: &Resolved,
        stat: &Stat,
        target: &Root,
        to: &Resolved,
    ) -> Result<(), OpError> {
        let here = OsStr::new(".");
        let source_dir = source
            .open_parent(from)?
            .ok_or_else(|| OpError::path("lstat", from.display(), Errno::NOENT))?;
        let target_dir = target
            .open_parent(to)?
            .ok_or_else(|| OpError::path("lstat", to.display(), Errno::NOENT))?;
        let source_name = from.name().unwrap_or(here);
        let target_name = to.name().unwrap_or(here);
        let display = to.display();
        if !is_dir(stat) {
            return self.copy_file(
                &source_dir,
                source_name,
                stat,
                &target_dir,
                target_name,
                &display,
            );
        }
        let existing = stat_entry(&target_dir, target_name).map_err(at("lstat", &display))?;
        self.clear_way(&target_dir, target_name, stat, existing.as_ref(), &display)?;
        let created = make_dir_entry(&target_dir, target_name, stat, &display)?;
        let frame = Frame {
            source: open_child_dir(&source_dir, source_name).map_err(at("open", &display))?,
            source_stat: *stat,
            source_parent: source_dir,
            source_name: source_name.to_owned(),
            target: Some(open_child_dir(&target_dir, target_name).map_err(at("open", &display))?),
            target_name: target_name.to_owned(),
            own_metadata: created,
            include: None,
            exclude: None,
        };
        self.frames.push(frame);
        self.copy_entries(Path::new(""), to)?;
        let Some(frame) = self.frames.pop() else {
            return Ok(());
        };
        if created {
            self.copy_metadata(
                &frame.source_parent,
                &frame.source_name,
                stat,
                &target_dir,
                target_name,
                &display,
            )
        } else {
            self.set_times(stat, &target_dir, target_name, &display)
        }
    }

    /// Copies what is in the directory of the last frame.
    fn copy_entries(&mut self, below: &Path, to: &Resolved) -> Result<(), OpError> {
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let names = list(&frame.source).map_err(at("read", &to.display()))?;
        for name in names {
            if self.cancel.is_cancelled() {
                return Err(OpError::Canceled);
            }
            self.copy_entry(&name, &below.join(&name), &to.child(&name))?;
        }
        Ok(())
    }

    fn copy_entry(&mut self, name: &OsStr, below: &Path, to: &Resolved) -> Result<(), OpError> {
        let selected = self.select(below);
        let may_skip =
            !selected.included && self.options.include.is_none() && !self.exclude_has_exceptions();
        if may_skip {
            return Ok(());
        }
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let display = || to.display();
        let stat = stat_entry(&frame.source, name)
            .and_then(|stat| stat.ok_or(Errno::NOENT))
            .map_err(at("lstat", &display()))?;
        if is_dir(&stat) {
            return self.copy_subdirectory(name, stat, selected, below, to);
        }
        if !selected.included {
            return Ok(());
        }
        self.make_frames(to)?;
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let (source, target) = duplicate_pair(frame).map_err(at("open", &display()))?;
        self.copy_file(&source, name, &stat, &target, name, &display())
    }

    fn copy_subdirectory(
        &mut self,
        name: &OsStr,
        stat: Stat,
        selected: Selected,
        below: &Path,
        to: &Resolved,
    ) -> Result<(), OpError> {
        let Some(parent) = self.frames.last() else {
            return Ok(());
        };
        let display = to.display();
        self.frames.push(Frame {
            source: open_child_dir(&parent.source, name).map_err(at("open", &display))?,
            source_stat: stat,
            source_parent: duplicate(&parent.source).map_err(at("open", &display))?,
            source_name: name.to_owned(),
            target: None,
            target_name: name.to_owned(),
            own_metadata: false,
            include: selected.include,
            exclude: selected.exclude,
        });
        if selected.included {
            self.make_frames(to)?;
            if let Some(frame) = self.frames.last_mut() {
                frame.own_metadata = true;
            }
        }
        let wholly_excluded = selected.excluded && !self.exclude_has_exceptions();
        if !wholly_excluded {
            self.copy_entries(below, to)?;
        }
        let Some(frame) = self.frames.pop() else {
            return Ok(());
        };
        let Some(parent) = self.frames.last() else {
            return Ok(());
        };
        match &parent.target {
            Some(target) if frame.own_metadata => self.copy_metadata(
                &frame.source_parent,
                &frame.source_name,
                &frame.source_stat,
                target,
                &frame.target_name,
                &display,
            ),
            _ => Ok(()),
        }
    }

    /// Makes the directories of all frames that do not exist yet.
    fn make_frames(&mut self, to: &Resolved) -> Result<(), OpError> {
        let display = to.display();
        for at_frame in 1..self.frames.len() {
            let (above, below) = self.frames.split_at_mut(at_frame);
            let (Some(parent), Some(frame)) = (above.last(), below.first_mut()) else {
                continue;
            };
            if frame.target.is_some() {
                continue;
            }
            let Some(parent) = &parent.target else {
                continue;
            };
            let stat = frame.source_stat;
            if self.options.replace {
                let existing =
                    stat_entry(parent, &frame.target_name).map_err(at("lstat", &display))?;
                remove_other_kind(parent, &frame.target_name, &stat, existing.as_ref())
                    .map_err(at("unlinkat", &display))?;
            }
            let created = make_dir_entry(parent, &frame.target_name, &stat, &display)?;
            // A directory that only an include pattern below it asked for keeps its metadata if it
            // was there before.
            frame.own_metadata |= created;
            let opened = open_child_dir(parent, &frame.target_name);
            frame.target = Some(opened.map_err(at("open", &display))?);
        }
        Ok(())
    }

    fn select(&self, below: &Path) -> Selected {
        let path = below.as_os_str().as_bytes();
        let (mut include, mut exclude) = (None, None);
        let parent = self.frames.last();
        let top = self.frames.len() <= 1;
        let mut included = true;
        if let Some(matcher) = &self.options.include {
            let known = parent.and_then(|frame| frame.include.as_ref());
            let (hit, info) = matcher.matches_below(path, if top { None } else { known });
            included = hit;
            include = Some(info);
        }
        let mut excluded = false;
        if let Some(matcher) = &self.options.exclude {
            let known = parent.and_then(|frame| frame.exclude.as_ref());
            let (hit, info) = matcher.matches_below(path, if top { None } else { known });
            excluded = hit;
            exclude = Some(info);
        }
        Selected {
            included: included && !excluded,
            excluded,
            include,
            exclude,
        }
    }

    fn exclude_has_exceptions(&self) -> bool {
        self.options
            .exclude
            .as_ref()
            .is_some_and(PatternMatcher::has_exceptions)
    }

    /// With `replace`: removes what is in the way of another kind.
    fn clear_way(
        &self,
        target: &OwnedFd,
        name: &OsStr,
        stat: &Stat,
        existing: Option<&Stat>,
        display: &str,
    ) -> Result<(), OpError> {
        if !self.options.replace {
            return Ok(());
        }
        remove_other_kind(target, name, stat, existing).map_err(at("unlinkat", display))
    }

    /// Copies anything but a directory.
    fn copy_file(
        &mut self,
        source: &OwnedFd,
        source_name: &OsStr,
        stat: &Stat,
        target: &OwnedFd,
        name: &OsStr,
        display: &str,
    ) -> Result<(), OpError> {
        let existing = stat_entry(target, name).map_err(at("lstat", display))?;
        self.clear_way(target, name, stat, existing.as_ref(), display)?;
        match existing {
            Some(existing) if is_dir(&existing) && !self.options.replace => {
                return Err(OpError::IsADirectory(display.to_owned()));
            }
            Some(existing) if !is_dir(&existing) => {
                match rustix::fs::unlinkat(target, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(OpError::path("unlinkat", display, errno)),
                }
            }
            _ => {}
        }
        if is_regular(stat) && stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some((dir, first)) = self.links.get(&inode) {
                rustix::fs::linkat(dir, first, target, name, AtFlags::empty())
                    .map_err(at("link", display))?;
            } else {
                copy_content(source, source_name, target, name).map_err(at("copy", display))?;
                let dir = duplicate(target).map_err(at("open", display))?;
                self.links.insert(inode, (dir, name.to_owned()));
            }
        } else if is_regular(stat) {
            copy_content(source, source_name, target, name).map_err(at("copy", display))?;
        } else if is_link(stat) {
            let link = read_link(source, source_name).map_err(at("readlink", display))?;
            rustix::fs::symlinkat(link, target, name).map_err(at("symlink", display))?;
        } else {
            make_node(target, name, stat).map_err(at("mknod", display))?;
        }
        self.copy_metadata(source, source_name, stat, target, name, display)
    }

    /// Owner, mode, attributes and times, in the order in which none undoes another.
    fn copy_metadata(
        &self,
        source: &OwnedFd,
        source_name: &OsStr,
        stat: &Stat,
        target: &OwnedFd,
        name: &OsStr,
        display: &str,
    ) -> Result<(), OpError> {
        let owner = self.options.owner.unwrap_or(Owner {
            uid: stat.st_uid,
            gid: stat.st_gid,
        });
        set_owner(target, name, owner).map_err(at("lchown", display))?;
        if !is_link(stat) {
            let bits = match &self.options.mode {
                Some(change) => change.apply(stat.st_mode, is_dir(stat)),
                None => stat.st_mode & 0o7777,
            };
            rustix::fs::chmodat(target, name, Mode::from_raw_mode(bits), AtFlags::empty())
                .map_err(at("chmod", display))?;
        }
        for (key, value) in xattrs(source, source_name).map_err(at("listxattr", display))? {
            // As for stock: an attribute that the target cannot have is no reason to fail.
            if let Err(errno) = set_xattr(target, name, &key, &value) {
                let path = display;
                tracing::debug!(path, ?key, %errno, "extended attribute not copied");
            }
        }
        self.set_times(stat, target, name, display)
    }

    fn set_times(
        &self,
        stat: &Stat,
        target: &OwnedFd,
        name: &OsStr,
        display: &str,
    ) -> Result<(), OpError> {
        let times = match self.options.timestamp {
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
        };
        rustix::fs::utimensat(target, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("utimensat", display))
    }
}

/// Gives an entry to an owner, links not followed.
pub(crate) fn set_owner(dir: impl AsFd, name: &OsStr, owner: Owner) -> Result<(), Errno> {
    rustix::fs::chownat(
        dir,
        name,
        // The highest number means that the owner stays, as for chown(2).
        (owner.uid != u32::MAX).then(|| Uid::from_raw(owner.uid)),
        (owner.gid != u32::MAX).then(|| Gid::from_raw(owner.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
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

fn at<'a>(call: &'static str, display: &'a str) -> impl FnOnce(Errno) -> OpError + 'a {
    move |errno| OpError::path(call, display, errno)
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0)
}

fn duplicate_pair(frame: &Frame) -> Result<(OwnedFd, OwnedFd), Errno> {
    let target = frame.target.as_ref().ok_or(Errno::NOENT)?;
    Ok((duplicate(&frame.source)?, duplicate(target)?))
}

fn remove_other_kind(
    dir: &OwnedFd,
    name: &OsStr,
    stat: &Stat,
    existing: Option<&Stat>,
) -> Result<(), Errno> {
    match existing {
        Some(existing) if !(is_dir(stat) && is_dir(existing)) => remove_all(dir, name),
        _ => Ok(()),
    }
}

/// Makes a directory unless there is one; says whether it was made.
fn make_dir_entry(
    dir: &OwnedFd,
    name: &OsStr,
    stat: &Stat,
    display: &str,
) -> Result<bool, OpError> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(stat.st_mode & 0o7777)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => match stat_entry(dir, name).map_err(at("lstat", display))? {
            Some(existing) if is_dir(&existing) => Ok(false),
            _ => Err(OpError::NotADirectory(display.to_owned())),
        },
        Err(errno) => Err(OpError::path("mkdir", display, errno)),
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
/// within the kernel, else through memory.
fn copy_content(
    source: &OwnedFd,
    source_name: &OsStr,
    target: &OwnedFd,
    name: &OsStr,
) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let input = rustix::fs::openat(source, source_name, flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let output = rustix::fs::openat(target, name, flags, Mode::from_raw_mode(0o600))?;
    let mut copied_any = false;
    loop {
        match rustix::fs::copy_file_range(&input, None, &output, None, 1 << 30) {
            Ok(0) => return Ok(()),
            Ok(_) => copied_any = true,
            Err(Errno::INTR) => {}
            Err(errno) if copied_any => return Err(errno),
            Err(
                Errno::NOSYS
                | Errno::XDEV
                | Errno::PERM
                | Errno::IO
                | Errno::OPNOTSUPP
                | Errno::INVAL,
            ) => break,
            Err(errno) => return Err(errno),
        }
    }
    let (mut input, mut output) = (std::fs::File::from(input), std::fs::File::from(output));
    std::io::copy(&mut input, &mut output)
        .map(|_| ())
        .map_err(|error| crate::root::errno_of(&error))
}
