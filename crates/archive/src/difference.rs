//! What one tree has over another, as a layer directory in overlayfs' format.
//!
//! For states that were not made from each other: those that were differ by whole layers.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, Stat};
use rustix::io::Errno;

use crate::layer::{Below, is_dir, lstat, same_entry};
use crate::{ArchiveError, Result, copy_entry, copy_metadata, make_whiteout};

/// Puts into the directory `dest` what is in `upper` and not, or not like that, in `lower`; what is
/// only in `lower` becomes a whiteout. A directory of which only the time differs counts as equal.
///
/// Stops with an error of the kind `Interrupted` when `stop` says so.
pub fn write_difference(
    lower: &Path,
    upper: &Path,
    dest: &Path,
    stop: &dyn Fn() -> bool,
) -> Result<()> {
    let mut work = Difference {
        stop,
        links: HashMap::new(),
    };
    work.directory(Some(lower), upper, dest)?;
    copy_metadata(upper, &lstat(upper)?, dest)
}

struct Difference<'a> {
    stop: &'a dyn Fn() -> bool,
    /// Where files with several names were put first.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Difference<'_> {
    /// Compares what is in two directories; the one in the layer is made when something goes into
    /// it. `lower` is `None` below what is new.
    fn directory(&mut self, lower: Option<&Path>, upper: &Path, dest: &Path) -> Result<()> {
        if (self.stop)() {
            let stopped = std::io::ErrorKind::Interrupted.into();
            return Err(ArchiveError::Stream(stopped));
        }
        let present = names(upper)?;
        for name in &present {
            let name = OsStr::from_bytes(name);
            self.entry(lower, &upper.join(name), &dest.join(name))?;
        }
        let Some(lower) = lower else {
            return Ok(());
        };
        for name in names(lower)? {
            if present.binary_search(&name).is_err() {
                let parent = self.parents(upper, dest)?;
                let fd = rustix::fs::open(parent, crate::resolve::OPEN_DIR, Mode::empty())
                    .map_err(ArchiveError::io("open", parent))?;
                make_whiteout(&fd, &name).map_err(ArchiveError::io("mknod", parent))?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, lower: Option<&Path>, upper: &Path, dest: &Path) -> Result<()> {
        let stat = lstat(upper)?;
        let below = Below::of(lower, upper)?;
        let same = match &below {
            Some(below) => same_entry(upper, &stat, below)?,
            None => false,
        };
        if !is_dir(&stat) {
            return match same {
                true => Ok(()),
                false => self.copy(upper, &stat, dest),
            };
        }
        if !same {
            self.parents(
                upper.parent().unwrap_or(upper),
                dest.parent().unwrap_or(dest),
            )?;
            copy_entry(upper, &stat, dest)?;
        }
        // A directory in the place of something else has nothing below it.
        let inner = below.filter(|below| is_dir(&below.stat));
        self.directory(
            inner.as_ref().map(|below| below.path.as_path()),
            upper,
            dest,
        )?;
        match rustix::fs::lstat(dest) {
            // What was put into it has changed its time.
            Ok(_) => copy_metadata(upper, &stat, dest),
            Err(_) => Ok(()),
        }
    }

    fn copy(&mut self, upper: &Path, stat: &Stat, dest: &Path) -> Result<()> {
        self.parents(
            upper.parent().unwrap_or(upper),
            dest.parent().unwrap_or(dest),
        )?;
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                return rustix::fs::linkat(CWD, first, CWD, dest, AtFlags::empty())
                    .map_err(ArchiveError::io("link", dest));
            }
            self.links.insert(inode, dest.to_owned());
        }
        copy_entry(upper, stat, dest)
    }

    /// Makes the directories of the layer that are missing up to `dest`, like those in `upper`.
    fn parents<'d>(&self, upper: &Path, dest: &'d Path) -> Result<&'d Path> {
        match rustix::fs::lstat(dest) {
            Ok(_) => return Ok(dest),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(ArchiveError::io("stat", dest)(error)),
        }
        if let (Some(upper), Some(dest)) = (upper.parent(), dest.parent()) {
            self.parents(upper, dest)?;
        }
        copy_entry(upper, &lstat(upper)?, dest)?;
        Ok(dest)
    }
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Result<Vec<Vec<u8>>> {
    let fd = rustix::fs::open(dir, crate::resolve::OPEN_DIR, Mode::empty())
        .map_err(ArchiveError::io("open", dir))?;
    let mut names = crate::tree::child_names(&fd).map_err(ArchiveError::io("list", dir))?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::is_whiteout;
    use std::fs;

    #[test]
    fn only_what_differs_is_in_the_layer() {
        let (lower, upper, dest) = (tempfile(), tempfile(), tempfile());
        for dir in [&lower, &upper] {
            fs::create_dir_all(dir.path().join("same/deep")).unwrap();
            fs::create_dir_all(dir.path().join("d")).unwrap();
            fs::write(dir.path().join("d/equal"), "x").unwrap();
            let time = std::time::SystemTime::UNIX_EPOCH;
            let file = fs::File::options()
                .write(true)
                .open(dir.path().join("d/equal"));
            file.unwrap().set_modified(time).unwrap();
        }
        fs::write(lower.path().join("d/gone"), "x").unwrap();
        fs::write(upper.path().join("d/new"), "x").unwrap();
        fs::hard_link(upper.path().join("d/new"), upper.path().join("link")).unwrap();
        fs::write(lower.path().join("kind"), "x").unwrap();
        fs::create_dir(upper.path().join("kind")).unwrap();
        write_difference(lower.path(), upper.path(), dest.path(), &|| false).unwrap();
        let at = |path: &str| rustix::fs::lstat(dest.path().join(path));
        assert!(at("same").is_err() && at("d/equal").is_err());
        assert!(is_whiteout(&at("d/gone").unwrap()));
        assert_eq!(at("d/new").unwrap().st_ino, at("link").unwrap().st_ino);
        assert!(is_dir(&at("kind").unwrap()));
        let stopped = write_difference(lower.path(), upper.path(), dest.path(), &|| true);
        assert!(stopped.is_err());
    }

    fn tempfile() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }
}
