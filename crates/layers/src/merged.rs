//! Joining layer directories into one ordinary tree, as overlayfs would show them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::{LayerError, Result};

/// How files get from a layer into the joined tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// As files of their own; the tree may be written to.
    Copy,
    /// As further names of the layer's files; the tree must never be written to.
    Link,
}

/// Lays `layers`, bottom first, over each other into the directory `dest`, which is empty.
pub(crate) fn materialise(layers: &[PathBuf], dest: &Path, transfer: Transfer) -> Result<()> {
    for layer in layers {
        let mut joiner = Joiner {
            transfer,
            links: HashMap::new(),
        };
        joiner.directory(layer, dest)?;
        archive::copy_metadata(layer, &lstat(layer)?, dest)?;
    }
    Ok(())
}

struct Joiner {
    transfer: Transfer,
    /// Where files with several names were put first.
    links: HashMap<u64, PathBuf>,
}

impl Joiner {
    fn directory(&mut self, source: &Path, dest: &Path) -> Result<()> {
        for name in names(source)? {
            let (from, to) = (source.join(&name), dest.join(&name));
            let stat = lstat(&from)?;
            if archive::is_whiteout(&stat) {
                remove(&to)?;
                continue;
            }
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                remove(&to)?;
                self.file(&from, &stat, &to)?;
                continue;
            }
            let fail = LayerError::io("read attribute of", &from);
            if archive::is_opaque(&from).map_err(fail)? || !is_directory(&to) {
                remove(&to)?;
                rustix::fs::mkdirat(CWD, &to, Mode::RWXU).map_err(LayerError::io("mkdir", &to))?;
            }
            self.directory(&from, &to)?;
            archive::copy_metadata(&from, &stat, &to)?;
        }
        Ok(())
    }

    fn file(&mut self, from: &Path, stat: &Stat, to: &Path) -> Result<()> {
        let first = match self.transfer {
            Transfer::Link => Some(from.to_owned()),
            Transfer::Copy if stat.st_nlink > 1 => {
                let known = self.links.get(&stat.st_ino).cloned();
                self.links
                    .entry(stat.st_ino)
                    .or_insert_with(|| to.to_owned());
                known
            }
            Transfer::Copy => None,
        };
        if let Some(first) = first {
            match rustix::fs::linkat(CWD, &first, CWD, to, AtFlags::empty()) {
                // Too many names, or another filesystem.
                Err(Errno::MLINK | Errno::XDEV | Errno::PERM) => {}
                result => return result.map_err(LayerError::io("link", to)),
            }
        }
        Ok(archive::copy_entry(from, stat, to)?)
    }
}

pub(crate) fn lstat(path: &Path) -> Result<Stat> {
    rustix::fs::lstat(path).map_err(LayerError::io("stat", path))
}

/// Names in a directory, in no order.
pub(crate) fn names(dir: &Path) -> Result<Vec<OsString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let read = || -> rustix::io::Result<Vec<OsString>> {
        let fd = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::new(fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        Ok(names)
    };
    read().map_err(LayerError::io("list", dir))
}

/// Marks a name as gone in a directory of a layer.
pub(crate) fn whiteout(dir: &Path, name: &OsStr) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd =
        rustix::fs::openat(CWD, dir, flags, Mode::empty()).map_err(LayerError::io("open", dir))?;
    archive::make_whiteout(&fd, name.as_bytes()).map_err(LayerError::io("make whiteout in", dir))
}

fn is_directory(path: &Path) -> bool {
    rustix::fs::lstat(path)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn remove(path: &Path) -> Result<()> {
    archive::remove_tree(CWD, path).map_err(LayerError::io("remove", path))
}
