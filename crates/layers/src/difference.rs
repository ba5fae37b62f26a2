//! What one state has over another that it was not made from, found by comparing both trees.
//!
//! A file is the same if kind, owner, mode, size, time of change, portable attributes and content are; the
//! time of a directory does not count, as everything done in it changes that. What is gone becomes a
//! whiteout, so the difference laid on the lower state shows the upper one.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Stat};
use rustix::io::Errno;

use crate::handles::NewLayer;
use crate::merged::{lstat, names, whiteout};
use crate::store::LayerStore;
use crate::{LayerError, LayerHold, LayerId, LayerNote, LayerStack, Result};

/// Bytes compared at once.
const BUFFER_SIZE: usize = 64 << 10;

impl LayerStore {
    /// A layer that laid on `lower` shows `upper`; `None` if both show the same.
    ///
    /// Where `upper` was made from `lower` the layers between are the difference already: see
    /// [`LayerStack::above`]. `cancelled` is asked often.
    ///
    /// # Errors
    /// [`LayerError::Interrupted`] when `cancelled` said so; those of the filesystem.
    pub fn difference(
        &self,
        lower: &LayerStack,
        upper: &LayerStack,
        note: LayerNote,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<(LayerId, LayerHold)>> {
        let (before, after) = (self.mount(lower)?, self.mount(upper)?);
        let layer = NewLayer::begin(self)?;
        let mut comparer = Comparer {
            lower: before.path(),
            upper: after.path(),
            dest: layer.path(),
            links: HashMap::new(),
            cancelled,
        };
        let root = Path::new("");
        let (was, is) = (lstat(before.path())?, lstat(after.path())?);
        let same = same_metadata(before.path(), &was, after.path(), &is)?;
        if !comparer.directory(root, true)? && same {
            return Ok(None);
        }
        archive::copy_metadata(after.path(), &is, layer.path())?;
        layer.commit_held(note).map(Some)
    }
}

struct Comparer<'a> {
    lower: &'a Path,
    upper: &'a Path,
    dest: &'a Path,
    /// Where files with several names were put first, by inode.
    links: HashMap<u64, PathBuf>,
    cancelled: &'a dyn Fn() -> bool,
}

impl Comparer<'_> {
    /// Compares a directory that the upper tree has. Says whether anything in it differs.
    fn directory(&mut self, path: &Path, in_lower: bool) -> Result<bool> {
        if (self.cancelled)() {
            return Err(LayerError::Interrupted);
        }
        let mut touched = false;
        let mut present = names(&self.upper.join(path))?;
        present.sort();
        for name in &present {
            touched |= self.entry(&path.join(name), in_lower)?;
        }
        if !in_lower {
            return Ok(touched);
        }
        let mut gone = names(&self.lower.join(path))?;
        gone.retain(|name| present.binary_search(name).is_err());
        gone.sort();
        for name in gone {
            whiteout(&self.ensure(path)?, &name)?;
            touched = true;
        }
        Ok(touched)
    }

    fn entry(&mut self, path: &Path, in_lower: bool) -> Result<bool> {
        let (before, after) = (self.lower.join(path), self.upper.join(path));
        let is = lstat(&after)?;
        let was = match in_lower {
            true => lstat_if_there(&before)?,
            false => None,
        };
        let directory = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if directory(&is) {
            let stays = was.as_ref().is_some_and(directory);
            let same = match &was {
                Some(was) if stays => same_metadata(&before, was, &after, &is)?,
                _ => false,
            };
            if !same {
                self.ensure(path)?;
            }
            let touched = self.directory(path, stays)?;
            if touched || !same {
                archive::copy_metadata(&after, &is, &self.dest.join(path))?;
            }
            return Ok(touched || !same);
        }
        if let Some(was) = &was
            && same_file(&before, was, &after, &is)?
        {
            return Ok(false);
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        self.ensure(parent)?;
        self.put(&after, &is, &self.dest.join(path))?;
        Ok(true)
    }

    fn put(&mut self, from: &Path, stat: &Stat, to: &Path) -> Result<()> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                match rustix::fs::linkat(CWD, first, CWD, to, AtFlags::empty()) {
                    Err(Errno::MLINK) => {}
                    result => return result.map_err(LayerError::io("link", to)),
                }
            }
            self.links.insert(stat.st_ino, to.to_owned());
        }
        Ok(archive::copy_entry(from, stat, to)?)
    }

    /// Makes a directory of the layer and those it is in. Their metadata follows when they are left.
    fn ensure(&self, path: &Path) -> Result<PathBuf> {
        let dest = self.dest.join(path);
        std::fs::create_dir_all(&dest).map_err(LayerError::io("mkdir", &dest))?;
        Ok(dest)
    }
}

fn lstat_if_there(path: &Path) -> Result<Option<Stat>> {
    match rustix::fs::lstat(path) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(LayerError::io("stat", path)(error)),
    }
}

/// Whether kind, mode, owner and portable attributes are equal.
fn same_metadata(before: &Path, was: &Stat, after: &Path, is: &Stat) -> Result<bool> {
    let of = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
    Ok(of(was) == of(is) && attributes(before)? == attributes(after)?)
}

fn attributes(path: &Path) -> Result<Vec<(Vec<u8>, Option<Vec<u8>>)>> {
    let list = archive::xattr::list(path).map_err(LayerError::io("list attributes of", path))?;
    list.into_iter()
        .filter(|name| archive::xattr::is_portable(name))
        .map(|name| {
            let value = archive::xattr::get(path, &name);
            let value = value.map_err(LayerError::io("read attribute of", path))?;
            Ok((name, value))
        })
        .collect()
}

fn same_file(before: &Path, was: &Stat, after: &Path, is: &Stat) -> Result<bool> {
    let changed = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec as i64);
    let born = |stat: &Stat| (stat.st_ino, stat.st_ctime, stat.st_ctime_nsec as i64);
    let of = |stat: &Stat| (stat.st_mode, stat.st_size, stat.st_rdev, changed(stat));
    if of(was) != of(is) || !same_metadata(before, was, after, is)? {
        return Ok(false);
    }
    match FileType::from_raw_mode(is.st_mode) {
        // All layers lie on one filesystem: this is one file seen twice.
        FileType::RegularFile if born(was) == born(is) => Ok(true),
        FileType::RegularFile => same_content(before, after),
        FileType::Symlink => {
            let target = |path: &Path| {
                rustix::fs::readlinkat(CWD, path, Vec::new())
                    .map_err(LayerError::io("read link", path))
            };
            Ok(target(before)? == target(after)?)
        }
        _ => Ok(true),
    }
}

fn same_content(before: &Path, after: &Path) -> Result<bool> {
    let open = |path: &Path| File::open(path).map_err(LayerError::io("open", path));
    let (mut one, mut two) = (open(before)?, open(after)?);
    let (mut left, mut right) = (vec![0; BUFFER_SIZE], vec![0; BUFFER_SIZE]);
    loop {
        let count = fill(&mut one, &mut left).map_err(LayerError::io("read", before))?;
        let other = fill(&mut two, &mut right).map_err(LayerError::io("read", after))?;
        if left[..count] != right[..other] {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::Backend;

    /// Every name with kind, mode, size, time and content; a directory's time is left out.
    fn show(root: &Path) -> BTreeMap<PathBuf, String> {
        let mut shown = BTreeMap::new();
        let mut open = vec![root.to_owned()];
        while let Some(dir) = open.pop() {
            for name in names(&dir).unwrap() {
                let path = dir.join(name);
                let meta = fs::symlink_metadata(&path).unwrap();
                let what = if meta.is_dir() {
                    open.push(path.clone());
                    String::new()
                } else if meta.is_symlink() {
                    format!("{:?}", fs::read_link(&path).unwrap())
                } else {
                    format!("{:?} {}", fs::read(&path).unwrap(), meta.mtime_nsec())
                };
                let key = path.strip_prefix(root).unwrap().to_owned();
                shown.insert(key, format!("{:o} {what}", meta.mode()));
            }
        }
        shown
    }

    fn step(store: &LayerStore, base: &LayerStack, change: impl FnOnce(&Path)) -> LayerStack {
        let writable = store.writable(base).unwrap();
        change(&writable.path());
        writable.commit(LayerNote::new("step")).unwrap()
    }

    fn difference(store: &LayerStore, one: &LayerStack, two: &LayerStack) -> Option<LayerId> {
        let note = LayerNote::new("difference");
        let made = store.difference(one, two, note, &|| false).unwrap();
        made.map(|(id, _)| id)
    }

    /// Does things to a tree of few names, so that they meet.
    fn scramble(root: &Path, random: &mut StdRng) {
        for _ in 0..random.random_range(3..12) {
            let name = |random: &mut StdRng| ["a", "b", "c"][random.random_range(0..3)];
            let mut path = root.join(name(random));
            if random.random_bool(0.6) {
                path = path.join(name(random));
            }
            if !path.parent().unwrap().is_dir() {
                let _ = fs::remove_file(path.parent().unwrap());
                let _ = fs::create_dir_all(path.parent().unwrap());
            }
            match random.random_range(0..6) {
                0 => drop(fs::remove_dir_all(&path)),
                1 => drop(fs::remove_file(&path)),
                2 => drop(fs::create_dir(&path)),
                3 => drop(symlink("x", &path)),
                4 => drop(fs::hard_link(root.join("a"), &path)),
                _ => drop(fs::write(&path, [random.random_range(b'0'..=b'9')])),
            }
        }
    }

    #[test]
    fn the_difference_laid_on_the_one_shows_the_other() {
        for backend in [Backend::Overlay, Backend::Copy] {
            let dir = tempfile::tempdir().unwrap();
            let store = LayerStore::open(dir.path(), backend).unwrap();
            for seed in 0..25 {
                let mut random = StdRng::seed_from_u64(seed);
                let base = step(&store, &LayerStack::empty(), |root| {
                    scramble(root, &mut random)
                });
                let one = step(&store, &base, |root| scramble(root, &mut random));
                let two = step(&store, &base, |root| scramble(root, &mut random));
                let laid = match difference(&store, &one, &two) {
                    Some(layer) => one.with(layer),
                    None => one.clone(),
                };
                let shown = |stack| show(store.mount(stack).unwrap().path());
                assert_eq!(shown(&laid), shown(&two), "{backend:?}, seed {seed}");
            }
        }
    }

    #[test]
    fn equal_states_have_no_difference_and_only_what_differs_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayerStore::open(dir.path(), Backend::Auto).unwrap();
        let write = |root: &Path, last: &str| {
            fs::create_dir(root.join("d")).unwrap();
            fs::write(root.join("d/same"), "same").unwrap();
            fs::write(root.join("d/other"), last).unwrap();
            for name in ["d/same", "d/other"] {
                let file = File::options().write(true).open(root.join(name)).unwrap();
                file.set_modified(std::time::SystemTime::UNIX_EPOCH)
                    .unwrap();
            }
        };
        let empty = LayerStack::empty();
        let one = step(&store, &empty, |root| write(root, "1"));
        let two = step(&store, &empty, |root| write(root, "2"));
        let same = step(&store, &empty, |root| write(root, "1"));
        assert_eq!(difference(&store, &one, &same), None);
        // Equal size and time: content decides.
        let layer = difference(&store, &one, &two).unwrap();
        let shown = show(&store.layer_path(layer));
        let names: Vec<_> = shown
            .keys()
            .map(|path| path.display().to_string())
            .collect();
        assert_eq!(names, ["d", "d/other"]);
        let gone = difference(&store, &one, &empty).unwrap();
        let shown = show(store.mount(&one.with(gone)).unwrap().path());
        assert!(shown.is_empty(), "{shown:?}");
        let stopped = store.difference(&one, &two, LayerNote::new("x"), &|| true);
        assert!(matches!(stopped, Err(LayerError::Interrupted)));
    }
}
