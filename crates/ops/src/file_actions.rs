//! The actions of a file op, on roots that are mounted already.
//!
//! Messages and corner cases are those of stock: `mkdir` of what exists without `make_parents` is
//! fine, a wildcard that matches nothing is an error unless allowed, unknown owners are root.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use llb::{CopyAction, MkDirAction, MkFileAction, RmAction, SymlinkAction};
use pathmatch::PatternMatcher;
use rustix::fs::{Mode, OFlags, Timespec};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use crate::chmod::ModeChange;
use crate::copy_file::{remove_all, set_owner};
use crate::dir_entry::{list, stat_entry};
use crate::make_dirs::{NewDirs, make_dir, make_dirs, set_times_of};
use crate::owner::Owner;
use crate::root::{LastLink, Resolved, Root, is_dir};
use crate::tree_copy::{CopyOptions, copy_tree};
use crate::unpack::unpack_archive;
use crate::{OpError, clean};

/// Makes a directory.
pub fn mkdir(root: &Root, action: &MkDirAction, owner: Option<Owner>) -> Result<(), OpError> {
    let dir = resolve_clean(root, &action.path)?;
    let how = NewDirs {
        mode: action.mode & 0o777,
        owner,
        timestamp: action.timestamp.map(timespec),
    };
    if action.make_parents {
        let made = make_dirs(root, &dir, &how)?;
        // Making a directory changes the time of the one it is in.
        if let Some(time) = how.timestamp {
            for dir in made.iter().rev() {
                set_times_of(root, dir, time)?;
            }
        }
        return Ok(());
    }
    if root.stat(&dir)?.is_some() {
        return Ok(());
    }
    make_dir(root, &dir, &how)
}

/// Writes a file; what is there is overwritten and keeps nothing but its place.
pub fn mkfile(root: &Root, action: &MkFileAction, owner: Option<Owner>) -> Result<(), OpError> {
    let path = resolve_clean(root, &action.path)?;
    let failed = |call| {
        let shown = path.display();
        move |errno| OpError::path(call, shown, errno)
    };
    let parent = root
        .open_parent(&path)?
        .ok_or_else(|| failed("open")(Errno::NOENT))?;
    let name = path.name().ok_or_else(|| failed("open")(Errno::ISDIR))?;
    let existed = root.stat(&path)?.is_some();
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(action.mode & 0o777);
    let fd = rustix::fs::openat(&parent, name, flags, mode).map_err(failed("open"))?;
    let mut file = std::fs::File::from(fd);
    std::io::Write::write_all(&mut file, &action.data)
        .map_err(|error| failed("write")(crate::root::errno_of(&error)))?;
    if !existed {
        rustix::fs::fchmod(&file, mode).map_err(failed("chmod"))?;
    }
    if let Some(owner) = owner {
        set_owner(&parent, name, owner).map_err(failed("lchown"))?;
    }
    drop(file);
    match action.timestamp {
        Some(time) => set_times_of(root, &path, timespec(time)),
        None => Ok(()),
    }
}

/// Makes a symbolic link.
pub fn symlink(root: &Root, action: &SymlinkAction, owner: Option<Owner>) -> Result<(), OpError> {
    let path = resolve_clean(root, &action.newpath)?;
    let failed = |call: &'static str| {
        let shown = match call {
            "symlink" => format!("{} {}", action.oldpath, path.display()),
            _ => path.display(),
        };
        move |errno| OpError::path(call, shown, errno)
    };
    let parent = root
        .open_parent(&path)?
        .ok_or_else(|| failed("symlink")(Errno::NOENT))?;
    let name = path.name().ok_or_else(|| failed("symlink")(Errno::EXIST))?;
    rustix::fs::symlinkat(&action.oldpath, &parent, name).map_err(failed("symlink"))?;
    if let Some(owner) = owner {
        set_owner(&parent, name, owner).map_err(failed("lchown"))?;
    }
    match action.timestamp {
        Some(time) => set_times_of(root, &path, timespec(time)),
        None => Ok(()),
    }
}

/// Removes what a path or pattern names, with everything below it.
pub fn rm(root: &Root, action: &RmAction) -> Result<(), OpError> {
    let paths = if action.allow_wildcard {
        resolve_wildcards(root, &clean_keeping_end(&action.path), false)?
    } else {
        vec![action.path.clone()]
    };
    for path in paths {
        rm_path(root, &path, action.allow_not_found)?;
    }
    Ok(())
}

/// Copies from one root into another.
pub fn copy(
    source: &Root,
    target: &Root,
    action: &CopyAction,
    owner: Option<Owner>,
    cancel: &CancellationToken,
) -> Result<(), OpError> {
    let src = clean_keeping_end(&action.src);
    let dest = clean_keeping_end(&action.dest);
    if !action.create_dest_path {
        let resolved = target.resolve(Path::new(&dest), LastLink::Follow)?;
        let parent = resolved.parent();
        if target.stat(&parent)?.is_none() {
            let what = format!("{}: lstat {}", action.dest, parent.display());
            return Err(OpError::path("failed to stat", what, Errno::NOENT));
        }
    }
    let options = copy_options(action, owner)?;
    let sources = if action.allow_wildcard {
        let found = resolve_wildcards(source, &src, action.follow_symlink)?;
        if found.is_empty() && !action.allow_empty_wildcard {
            return Err(OpError::NoMatch(src));
        }
        found
    } else {
        vec![src]
    };
    for path in sources {
        if action.attempt_unpack && unpack_archive(source, &path, target, &dest, &options, cancel)?
        {
            continue;
        }
        copy_tree(source, &path, target, &dest, &options, cancel)?;
    }
    Ok(())
}

/// The paths that a pattern stands for, sorted; what is below a match is not looked at. A path
/// without special characters stands for itself, whether it exists or not.
pub fn resolve_wildcards(
    root: &Root,
    path: &str,
    follow_links: bool,
) -> Result<Vec<String>, OpError> {
    let (fixed, pattern) = split_pattern(path);
    if pattern.is_empty() {
        return Ok(vec![path.to_owned()]);
    }
    let last = match follow_links {
        true => LastLink::Follow,
        false => LastLink::Keep,
    };
    let base = root.resolve(Path::new(&fixed), last)?;
    let mut found = Vec::new();
    match root.stat(&base)? {
        Some(stat) if is_dir(&stat) => {}
        Some(_) => return Ok(found),
        None => return Err(OpError::path("lstat", base.display(), Errno::NOENT)),
    }
    let depth = pattern.split('/').count();
    let wanted = Wanted {
        root,
        pattern: &pattern,
        depth,
    };
    wanted.walk(&base, &mut Vec::new(), &mut found)?;
    Ok(found)
}

/// Splits a clean absolute path into the directories before its first special character and the
/// pattern that begins there (empty if there is none).
pub fn split_pattern(path: &str) -> (String, String) {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let first = parts
        .iter()
        .position(|part| pathmatch::has_wildcards(part.as_bytes()));
    match first {
        None => (clean(path), String::new()),
        Some(at) => (format!("/{}", parts[..at].join("/")), parts[at..].join("/")),
    }
}

/// A clean absolute path that still says with a final `/` or `/.` what it said before.
pub fn clean_keeping_end(path: &str) -> String {
    let cleaned = clean(path);
    let slash = if cleaned == "/" { "" } else { "/" };
    if path.ends_with("/.") {
        format!("{cleaned}{slash}.")
    } else if path.ends_with('/') {
        format!("{cleaned}{slash}")
    } else {
        cleaned
    }
}

struct Wanted<'a> {
    root: &'a Root,
    pattern: &'a str,
    depth: usize,
}

impl Wanted<'_> {
    /// Collects matches below `dir`, whose path from the fixed part is `below`. A pattern of n
    /// components matches only paths of n components, so nothing deeper is listed.
    fn walk(
        &self,
        dir: &Resolved,
        below: &mut Vec<u8>,
        found: &mut Vec<String>,
    ) -> Result<(), OpError> {
        let failed = |errno| OpError::path("read", dir.display(), errno);
        let fd = self.root.open_dir(dir)?;
        for name in list(&fd).map_err(failed)? {
            let length = below.len();
            if length > 0 {
                below.push(b'/');
            }
            below.extend_from_slice(name.as_bytes());
            let child = dir.child(&name);
            let depth = below.iter().filter(|byte| **byte == b'/').count() + 1;
            if pathmatch::glob_match(self.pattern, below).unwrap_or(false) {
                found.push(child.display());
            } else if depth < self.depth
                && stat_entry(&fd, &name)
                    .map_err(failed)?
                    .is_some_and(|s| is_dir(&s))
            {
                self.walk(&child, below, found)?;
            }
            below.truncate(length);
        }
        Ok(())
    }
}

fn copy_options(action: &CopyAction, owner: Option<Owner>) -> Result<CopyOptions, OpError> {
    let matcher = |what: &str, patterns: &[String]| {
        if patterns.is_empty() {
            return Ok(None);
        }
        PatternMatcher::new(patterns)
            .map(Some)
            .map_err(|e| OpError::Invalid(format!("invalid {what}: [{}]: {e}", patterns.join(" "))))
    };
    let mode = if !action.mode_str.is_empty() {
        let parsed = ModeChange::parse(&action.mode_str);
        Some(parsed.map_err(|e| OpError::Invalid(format!("{:?}: {e}", action.mode_str)))?)
    } else {
        action.mode.map(ModeChange::absolute)
    };
    let numeric = action.mode.filter(|_| action.mode_str.is_empty());
    Ok(CopyOptions {
        owner,
        mode,
        parents_mode: numeric.map_or(0o755, |mode| mode & 0o777),
        timestamp: action.timestamp.map(timespec),
        follow_links: action.follow_symlink,
        dir_contents: action.dir_copy_contents,
        include: matcher("includepatterns", &action.include_patterns)?,
        exclude: matcher("excludepatterns", &action.exclude_patterns)?,
        replace: action.always_replace_existing_dest_paths,
    })
}

fn rm_path(root: &Root, path: &str, allow_not_found: bool) -> Result<(), OpError> {
    let path = clean(path);
    let Some((dir, name)) = path.rsplit_once('/').filter(|(_, name)| !name.is_empty()) else {
        return Err(OpError::Invalid("rmPath: invalid empty path".into()));
    };
    let dir = root.resolve(
        Path::new(if dir.is_empty() { "/" } else { dir }),
        LastLink::Follow,
    )?;
    let entry = dir.child(OsStr::new(name));
    let failed = |errno| OpError::path("unlinkat", path.clone(), errno);
    if !allow_not_found {
        // Through a link, as stock asks: a link to nothing counts as absent.
        let end = root.resolve(entry.as_path(), LastLink::Follow)?;
        if let Ok(None) = root.stat(&end) {
            return Err(OpError::path("stat", path.clone(), Errno::NOENT));
        }
    }
    match root.open_parent(&entry) {
        Ok(Some(parent)) => remove_all(&parent, OsStr::new(name)).map_err(failed),
        Ok(None) => Ok(()),
        Err(OpError::Path { errno, .. }) => Err(failed(errno)),
        Err(error) => Err(error),
    }
}

/// Nanoseconds since 1970 as the kernel takes them.
fn timespec(nanoseconds: i64) -> Timespec {
    Timespec {
        tv_sec: nanoseconds.div_euclid(1_000_000_000),
        tv_nsec: nanoseconds.rem_euclid(1_000_000_000) as _,
    }
}

/// Where a path leads to. As in stock `..` takes away what is written before it, also where that is a link.
fn resolve_clean(root: &Root, path: &str) -> Result<Resolved, OpError> {
    root.resolve(Path::new(&clean(path)), LastLink::Follow)
}
