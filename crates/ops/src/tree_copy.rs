//! Copying a file or a tree from one root into another, as `COPY` does.
//!
//! Semantics: a directory onto an existing one merges, its own metadata staying as it was except
//! for its times; directories met below are given the source's metadata. A file replaces a file or
//! a link, never a directory. With include patterns a directory is made only when something in it
//! is copied. Hard links among the files copied stay hard links.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use pathmatch::{ParentMatches, PatternMatcher};
use rustix::fs::{Mode, Stat, Timespec};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use crate::chmod::ModeChange;
use crate::copy_file::{Links, Place, at, clear_way, copy_file, copy_metadata, set_times};
use crate::copy_pool::{Dir, Finish, Job, Pool, Shared};
use crate::dir_entry::{open_child_dir, stat_entry};
use crate::merged_dir::MergedDir;
use crate::owner::Owner;
use crate::root::{LastLink, Resolved, Root, is_dir, is_regular};
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
    let shared = Shared::new(options, cancel);
    let outcome = copy_root(&shared, (source, &from, &stat), (target, &to));
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

struct Copier<'t, 's> {
    options: &'s CopyOptions,
    shared: &'s Shared<'s>,
    pool: Pool<'t, 's>,
    links: Links,
    /// The directories between the top of the copy and where it is now.
    frames: Vec<Frame<'s>>,
}

/// A directory being copied.
struct Frame<'s> {
    /// It, open for reading.
    source: MergedDir,
    source_stat: Stat,
    /// The part of the one above that it is in.
    part: usize,
    name: OsString,
    /// Its copy, once it has been made.
    target: Option<Arc<Dir<'s>>>,
    /// Whether its metadata is given at the end, also when it was there before.
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

/// Copies the top of the tree.
fn copy_root(
    shared: &Shared<'_>,
    (source, from, stat): (&Root, &Resolved, &Stat),
    (target, to): (&Root, &Resolved),
) -> Result<(), OpError> {
    let options = shared.options;
    let missing = |path: &Resolved| OpError::path("lstat", path.display(), Errno::NOENT);
    let here = OsStr::new(".");
    let source_dir = source.open_parent(from)?.ok_or_else(|| missing(from))?;
    let target_dir = target.open_parent(to)?.ok_or_else(|| missing(to))?;
    let display = to.display();
    let place = Place {
        source: &source_dir,
        source_name: from.name().unwrap_or(here),
        stat,
        target: &target_dir,
        name: to.name().unwrap_or(here),
        display: &display,
    };
    if !is_dir(stat) {
        return copy_file(options, &place, &mut Links::default());
    }
    let existing = stat_entry(&target_dir, place.name).map_err(at("lstat", &display))?;
    clear_way(options, &place, existing.as_ref())?;
    let created = make_dir_entry(&target_dir, place.name, stat, &display)?;
    let top = Frame {
        source: source.merged_dir(from)?,
        source_stat: *stat,
        part: 0,
        name: place.name.to_owned(),
        target: Some(Arc::new(Dir {
            fd: open_child_dir(&target_dir, place.name).map_err(at("open", &display))?,
            finish: None,
        })),
        own_metadata: false,
        include: None,
        exclude: None,
    };
    let walked = std::thread::scope(|scope| {
        let mut copier = Copier {
            options,
            shared,
            pool: Pool::new(scope, shared),
            links: Links::default(),
            frames: vec![top],
        };
        copier.copy_entries(Path::new(""), to)
    });
    // What failed elsewhere is why the walk was given up, if it was.
    match shared.take_error() {
        Some(error) => return Err(error),
        None => walked?,
    }
    match created {
        true => copy_metadata(options, &place),
        false => set_times(options, &place),
    }
}

impl<'s> Copier<'_, 's> {
    /// Copies what is in the directory of the last frame.
    fn copy_entries(&mut self, below: &Path, to: &Resolved) -> Result<(), OpError> {
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let entries = frame.source.entries();
        for (name, part) in entries.map_err(at("read", &to.display()))? {
            self.shared.check()?;
            self.copy_entry((&name, part), &below.join(&name), &to.child(&name))?;
        }
        Ok(())
    }

    fn copy_entry(
        &mut self,
        (name, part): (&OsStr, usize),
        below: &Path,
        to: &Resolved,
    ) -> Result<(), OpError> {
        let selected = self.select(below);
        let may_skip =
            !selected.included && self.options.include.is_none() && !self.exclude_has_exceptions();
        if may_skip {
            return Ok(());
        }
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let stat = stat_entry(&**frame.source.part(part), name)
            .and_then(|stat| stat.ok_or(Errno::NOENT))
            .map_err(|errno| OpError::path("lstat", to.display(), errno))?;
        if is_dir(&stat) {
            return self.copy_subdirectory((name, part), stat, selected, below, to);
        }
        if !selected.included {
            return Ok(());
        }
        self.make_frames(to)?;
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let Some(target) = &frame.target else {
            return Ok(());
        };
        if is_regular(&stat) && stat.st_nlink <= 1 {
            return self.pool.copy(Job {
                source: frame.source.part(part).clone(),
                target: target.clone(),
                name: name.to_owned(),
                stat,
                display: to.display(),
            });
        }
        let place = Place {
            source: frame.source.part(part),
            source_name: name,
            stat: &stat,
            target: &target.fd,
            name,
            display: &to.display(),
        };
        copy_file(self.options, &place, &mut self.links)
    }

    fn copy_subdirectory(
        &mut self,
        (name, part): (&OsStr, usize),
        stat: Stat,
        selected: Selected,
        below: &Path,
        to: &Resolved,
    ) -> Result<(), OpError> {
        let Some(parent) = self.frames.last() else {
            return Ok(());
        };
        let opened = parent.source.child(name);
        self.frames.push(Frame {
            source: opened.map_err(|errno| OpError::path("open", to.display(), errno))?,
            source_stat: stat,
            part,
            name: name.to_owned(),
            target: None,
            own_metadata: selected.included,
            include: selected.include,
            exclude: selected.exclude,
        });
        if selected.included {
            self.make_frames(to)?;
        }
        let wholly_excluded = selected.excluded && !self.exclude_has_exceptions();
        if !wholly_excluded {
            self.copy_entries(below, to)?;
        }
        // Its metadata follows when nobody is filling it any more.
        self.frames.pop();
        Ok(())
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
            let Some(target) = &parent.target else {
                continue;
            };
            let place = Place {
                source: parent.source.part(frame.part),
                source_name: &frame.name,
                stat: &frame.source_stat,
                target: &target.fd,
                name: &frame.name,
                display: &display,
            };
            if self.options.replace {
                let existing = stat_entry(&target.fd, place.name).map_err(at("lstat", &display))?;
                clear_way(self.options, &place, existing.as_ref())?;
            }
            let created = make_dir_entry(&target.fd, place.name, place.stat, &display)?;
            let fd = open_child_dir(&target.fd, place.name).map_err(at("open", &display))?;
            // A directory that only an include pattern below it asked for keeps its metadata if it
            // was there before.
            let finish = (created || frame.own_metadata).then(|| Finish {
                shared: self.shared,
                source_parent: parent.source.part(frame.part).clone(),
                name: frame.name.clone(),
                stat: frame.source_stat,
                parent: target.clone(),
                display: display.clone(),
            });
            frame.target = Some(Arc::new(Dir { fd, finish }));
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
