//! One layer out of a stack, sharing files with the lowest layer.
//!
//! Layers never change, so a file may have names in several of them: what still is the lowest layer's
//! own file becomes another link to it, which costs no reading and no space.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use diag::Result;
use layers::{LayerHold, LayerNote, LayerStack, LayerStore};
use rustix::fs::{CWD, FileType, Mode, RawDir, Stat};

/// Makes a single layer that shows what the stack shows.
pub(crate) fn flatten(
    layers: &LayerStore,
    stack: &LayerStack,
    note: LayerNote,
) -> Result<(LayerStack, LayerHold)> {
    let merged = layers.mount(stack)?;
    let bottom = layers.mount(&stack.prefix(1))?;
    let layer = layers.new_layer()?;
    let mut copier = Copier {
        from: merged.path().to_owned(),
        bottom: bottom.path().to_owned(),
        to: layer.path().to_owned(),
        links: HashMap::new(),
    };
    copier.directory(Path::new(""))?;
    let (id, hold) = layer.commit_held(note)?;
    Ok((id.into(), hold))
}

struct Copier {
    from: PathBuf,
    bottom: PathBuf,
    to: PathBuf,
    /// First copy of every file with several names, by its inode.
    links: HashMap<u64, PathBuf>,
}

impl Copier {
    fn directory(&mut self, path: &Path) -> Result<()> {
        let from = self.from.join(path);
        for name in names(&from)? {
            let child = path.join(OsStr::from_bytes(&name));
            let stat = rustix::fs::lstat(self.from.join(&child)).map_err(std::io::Error::from)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                std::fs::create_dir(self.to.join(&child))?;
                self.directory(&child)?;
            } else {
                self.file(&child, &stat)?;
            }
        }
        // Last, because filling a directory changes its time.
        let stat = rustix::fs::lstat(&from).map_err(std::io::Error::from)?;
        archive::copy_metadata(&from, &stat, &self.to.join(path))?;
        Ok(())
    }

    fn file(&mut self, path: &Path, stat: &Stat) -> Result<()> {
        let to = self.to.join(path);
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&stat.st_ino)
            && std::fs::hard_link(first, &to).is_ok()
        {
            return Ok(());
        }
        let own = self.bottom.join(path);
        let shared = rustix::fs::lstat(&own).is_ok_and(|of_bottom| same(stat, &of_bottom));
        // It may have too many links, or be on another filesystem.
        if !shared || std::fs::hard_link(&own, &to).is_err() {
            archive::copy_entry(&self.from.join(path), stat, &to)?;
        }
        if stat.st_nlink > 1 {
            self.links.insert(stat.st_ino, to);
        }
        Ok(())
    }
}

/// True for two views of one file: overlayfs shows the inode numbers of the layers.
fn same(a: &Stat, b: &Stat) -> bool {
    a.st_ino == b.st_ino
        && a.st_mode == b.st_mode
        && a.st_size == b.st_size
        && (a.st_mtime, a.st_mtime_nsec) == (b.st_mtime, b.st_mtime_nsec)
        && (a.st_ctime, a.st_ctime_nsec) == (b.st_ctime, b.st_ctime_nsec)
        && (a.st_uid, a.st_gid) == (b.st_uid, b.st_gid)
}

/// Names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Result<Vec<Vec<u8>>> {
    let flags = rustix::fs::OFlags::RDONLY
        | rustix::fs::OFlags::DIRECTORY
        | rustix::fs::OFlags::NOFOLLOW
        | rustix::fs::OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, dir, flags, Mode::empty()).map_err(std::io::Error::from)?;
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(std::io::Error::from)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}
