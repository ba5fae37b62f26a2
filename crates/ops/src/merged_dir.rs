//! A directory of a stack of layers, read from the layers themselves.
//!
//! To look up each of many files through an overlay costs as much as to copy them, and a mount is new
//! each time, so that the kernel remembers nothing of it. What shows through is decided here as an
//! overlay decides it: the topmost entry of a name counts, a device 0/0 hides those below, directories
//! join until one is opaque or something else is in the way.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::dir_entry::{is_opaque, open_child_dir, stat_entry};

/// A directory; in each layer that has a part of it, open for reading, the topmost first. Also a
/// directory of its own, then it has one part.
pub(crate) struct MergedDir(Vec<Arc<OwnedFd>>);

impl MergedDir {
    /// A directory of these parts.
    pub(crate) fn new(parts: Vec<OwnedFd>) -> Self {
        MergedDir(parts.into_iter().map(Arc::new).collect())
    }

    /// One of its parts.
    pub(crate) fn part(&self, number: usize) -> &Arc<OwnedFd> {
        &self.0[number]
    }

    /// The names in it, sorted by their bytes, each with the number of the part that has it.
    pub(crate) fn entries(&self) -> Result<Vec<(OsString, usize)>, Errno> {
        let mut found = BTreeMap::new();
        for (number, part) in self.0.iter().enumerate() {
            for entry in rustix::fs::Dir::read_from(&**part)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                if let Entry::Vacant(place) = found.entry(OsString::from_vec(name.to_vec())) {
                    let hides = is_whiteout(part, place.key(), entry.file_type())?;
                    place.insert((!hides).then_some(number));
                }
            }
        }
        let shown = found.into_iter();
        Ok(shown
            .filter_map(|(name, number)| Some((name, number?)))
            .collect())
    }

    /// A directory in it.
    ///
    /// # Errors
    /// `ENOENT` and `ENOTDIR`, and those of the disk.
    pub(crate) fn child(&self, name: &OsStr) -> Result<MergedDir, Errno> {
        let mut parts = Vec::new();
        for (number, part) in self.0.iter().enumerate() {
            let opened = match open_child_dir(&**part, name) {
                Ok(opened) => opened,
                Err(Errno::NOENT) => continue,
                // Something else, which hides what is below, or is all there is.
                Err(Errno::NOTDIR | Errno::LOOP) if !parts.is_empty() => break,
                Err(errno) => return Err(errno),
            };
            let is_last = number + 1 == self.0.len() || is_opaque(&opened, OsStr::new("."))?;
            parts.push(Arc::new(opened));
            if is_last {
                break;
            }
        }
        match parts.is_empty() {
            true => Err(Errno::NOENT),
            false => Ok(MergedDir(parts)),
        }
    }
}

fn is_whiteout(dir: &OwnedFd, name: &OsStr, kind: FileType) -> Result<bool, Errno> {
    if !matches!(kind, FileType::CharacterDevice | FileType::Unknown) {
        return Ok(false);
    }
    let stat = stat_entry(dir, name)?;
    Ok(stat.is_some_and(|stat| archive::is_whiteout(&stat)))
}
