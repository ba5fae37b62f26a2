//! What changed in a tree since it was joined: the copying backend's way to a layer.
//!
//! The kernel moves a file's change time forward at every change, of content or of metadata. When a
//! tree has been joined, its names and inodes are noted and the clock is waited for until it stands
//! past every change time in it; whatever has a later one afterwards, or another inode, has changed.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};

use crate::merged::{lstat, names, whiteout};
use crate::{LayerError, Result};

type ChangeTime = (i64, i64);

/// What a tree looked like.
pub(crate) struct TreeIndex {
    root: PathBuf,
    newest: ChangeTime,
    tree: Directory,
}

#[derive(Default)]
struct Directory(HashMap<OsString, Known>);

struct Known {
    inode: u64,
    directory: Option<Directory>,
}

impl TreeIndex {
    /// Notes the tree at `root`. `beside` is a directory on the same filesystem.
    pub(crate) fn of(root: &Path, beside: &Path) -> Result<Self> {
        let mut newest = change_time(&lstat(root)?);
        let tree = note(root, &mut newest)?;
        wait_past(newest, beside)?;
        Ok(TreeIndex {
            root: root.to_owned(),
            newest,
            tree,
        })
    }

    /// Moves what has changed into the directory `dest`, which becomes a layer directory. The tree is
    /// of no use afterwards.
    pub(crate) fn extract(self, dest: &Path) -> Result<()> {
        let stat = lstat(&self.root)?;
        let differ = Differ {
            root: &self.root,
            dest,
            newest: self.newest,
        };
        differ.directory(Path::new(""), Some(&self.tree))?;
        Ok(archive::copy_metadata(&self.root, &stat, dest)?)
    }
}

struct Differ<'a> {
    root: &'a Path,
    dest: &'a Path,
    newest: ChangeTime,
}

impl Differ<'_> {
    /// `known` is what the directory had; nothing if it is new. Says whether anything of it went
    /// into the layer.
    fn directory(&self, path: &Path, known: Option<&Directory>) -> Result<bool> {
        let source = self.root.join(path);
        let mut touched = false;
        let mut present = names(&source)?;
        present.sort();
        for name in &present {
            let before = known.and_then(|known| known.0.get(name));
            touched |= self.child(path, name, before)?;
        }
        let mut gone: Vec<&OsString> = known
            .iter()
            .flat_map(|known| known.0.keys())
            .filter(|name| present.binary_search(name).is_err())
            .collect();
        gone.sort();
        for name in gone {
            whiteout(&self.ensure(path)?, name)?;
            touched = true;
        }
        Ok(touched)
    }

    fn child(&self, parent: &Path, name: &OsStr, before: Option<&Known>) -> Result<bool> {
        let path = parent.join(name);
        let source = self.root.join(&path);
        let stat = lstat(&source)?;
        let same_inode = before.is_some_and(|known| known.inode == stat.st_ino);
        let changed = !same_inode || change_time(&stat) > self.newest;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            if changed {
                self.ensure(parent)?;
                let dest = self.dest.join(&path);
                std::fs::rename(&source, &dest).map_err(LayerError::io("move", &source))?;
            }
            return Ok(changed);
        }
        let old = before.and_then(|known| known.directory.as_ref());
        if changed {
            self.ensure(&path)?;
        }
        if old.is_some() && !same_inode {
            // Another directory of the same name: nothing of the old one shows through.
            let dest = self.dest.join(&path);
            archive::make_opaque(&dest).map_err(LayerError::io("set attribute of", &dest))?;
        }
        let touched = self.directory(&path, old.filter(|_| same_inode))?;
        if changed || touched {
            archive::copy_metadata(&source, &stat, &self.dest.join(&path))?;
        }
        Ok(changed || touched)
    }

    /// Makes a directory of the layer and those it is in. Their metadata follows when they are left.
    fn ensure(&self, path: &Path) -> Result<PathBuf> {
        let dest = self.dest.join(path);
        std::fs::create_dir_all(&dest).map_err(LayerError::io("mkdir", &dest))?;
        Ok(dest)
    }
}

fn change_time(stat: &Stat) -> ChangeTime {
    (stat.st_ctime, stat.st_ctime_nsec as i64)
}

fn note(dir: &Path, newest: &mut ChangeTime) -> Result<Directory> {
    let mut directory = Directory::default();
    for name in names(dir)? {
        let path = dir.join(&name);
        let stat = lstat(&path)?;
        *newest = change_time(&stat).max(*newest);
        let inner = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Some(note(&path, newest)?),
            _ => None,
        };
        let known = Known {
            inode: stat.st_ino,
            directory: inner,
        };
        directory.0.insert(name, known);
    }
    Ok(directory)
}

/// Waits until a change made now gets a change time later than `newest`; clocks of filesystems tick
/// a few hundred times a second.
fn wait_past(newest: ChangeTime, beside: &Path) -> Result<()> {
    let probe = beside.join("clock");
    loop {
        std::fs::write(&probe, b"").map_err(LayerError::io("write", &probe))?;
        let now = change_time(&lstat(&probe)?);
        std::fs::remove_file(&probe).map_err(LayerError::io("remove", &probe))?;
        if now > newest {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
