//! The digest of a tree of files, kept entry by entry so that a change costs as much as it changes.
//!
//! What of an entry counts: path, kind, permission bits, owner, group, extended attributes, device
//! number, link target, content. What does not: times, and how many names a file has.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use diag::{Error, Result};
use layers::LayerStack;
use oci::{Digest, DigestHasher};
use parking_lot::Mutex;
use rustix::fs::{CWD, FileType};

use crate::flatten::names;
use crate::local::PathChange;

const MAGIC: &[u8; 8] = b"sums\0\0\0\x01";

/// Digests of all entries of a tree by their relative paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TreeSums(BTreeMap<Vec<u8>, Digest>);

impl TreeSums {
    /// All entries below a folder, which itself does not count. Files are read by as many threads as
    /// there are processors.
    pub(crate) fn of(root: &Path) -> Result<Self> {
        let mut paths = Vec::new();
        walk(root, Vec::new(), &mut paths)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::with_capacity(paths.len()));
        std::thread::scope(|scope| {
            for _ in 0..threads.min(paths.len()) {
                scope.spawn(|| {
                    let mut own = Vec::new();
                    while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                        own.push(entry_digest(root, path).map(|digest| (path.clone(), digest)));
                    }
                    results.lock().extend(own);
                });
            }
        });
        let sums: Result<_> = results.into_inner().into_iter().collect();
        Ok(TreeSums(sums?))
    }

    /// Makes them the digests of the tree after these changes.
    pub(crate) fn apply(&mut self, root: &Path, changes: &[PathChange]) -> Result<()> {
        for change in changes {
            if change.removed {
                self.remove(&change.path);
                continue;
            }
            // It may have been a folder before.
            let is_dir = std::fs::symlink_metadata(join(root, &change.path))?.is_dir();
            if !is_dir {
                self.remove(&change.path);
            }
            let digest = entry_digest(root, &change.path)?;
            self.0.insert(change.path.clone(), digest);
        }
        Ok(())
    }

    fn remove(&mut self, path: &[u8]) {
        self.0.remove(path);
        let below = [path, b"/"].concat();
        let gone: Vec<Vec<u8>> = self
            .0
            .range(below.clone()..)
            .take_while(|(known, _)| known.starts_with(&below))
            .map(|(known, _)| known.clone())
            .collect();
        for known in gone {
            self.0.remove(&known);
        }
    }

    /// The digest of the whole.
    pub(crate) fn digest(&self) -> Digest {
        let mut hasher = DigestHasher::new();
        for (path, digest) in &self.0 {
            hasher.field(path);
            hasher.update(digest.as_bytes());
        }
        hasher.finish()
    }

    /// Writes them down as those of a stack. The file is a cache: it is checked when it is read.
    pub(crate) fn write(&self, path: &Path, stack: &LayerStack) -> Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(stack_name(stack).as_bytes());
        for (path, digest) in &self.0 {
            bytes.extend_from_slice(&(path.len() as u32).to_le_bytes());
            bytes.extend_from_slice(path);
            bytes.extend_from_slice(digest.as_bytes());
        }
        let check = Digest::of(&bytes);
        bytes.extend_from_slice(check.as_bytes());
        let temporary = path.with_extension("sums.new");
        File::create(&temporary)?.write_all(&bytes)?;
        std::fs::rename(&temporary, path)?;
        Ok(())
    }

    /// Reads those of a stack; `None` if they are not there, not of that stack, or damaged.
    pub(crate) fn read(path: &Path, stack: &LayerStack) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if Digest::of(body).as_bytes() != check {
            return None;
        }
        let rest = body.strip_prefix(MAGIC)?;
        let mut rest = rest.strip_prefix(stack_name(stack).as_bytes())?;
        let mut sums = BTreeMap::new();
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let (path, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            let (digest, after) = after.split_first_chunk::<32>()?;
            sums.insert(path.to_vec(), Digest::from_bytes(*digest));
            rest = after;
        }
        Some(TreeSums(sums))
    }
}

/// Names a stack in 32 bytes.
fn stack_name(stack: &LayerStack) -> Digest {
    let mut hasher = DigestHasher::new();
    for id in stack.iter() {
        hasher.field(id.to_string().as_bytes());
    }
    hasher.finish()
}

fn join(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}

fn walk(root: &Path, folder: Vec<u8>, out: &mut Vec<Vec<u8>>) -> Result<()> {
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for name in names(&join(root, &folder))? {
            let path = match folder.is_empty() {
                true => name,
                false => [folder.as_slice(), b"/", &name].concat(),
            };
            if std::fs::symlink_metadata(join(root, &path))?.is_dir() {
                folders.push(path.clone());
            }
            out.push(path);
        }
    }
    Ok(())
}

fn entry_digest(root: &Path, path: &[u8]) -> Result<Digest> {
    let full = join(root, path);
    let fail = |error: std::io::Error| Error::from(error).context(full.display().to_string());
    let stat = rustix::fs::lstat(&full).map_err(|error| fail(error.into()))?;
    let mut hasher = DigestHasher::new();
    for number in [stat.st_mode, stat.st_uid, stat.st_gid] {
        hasher.update(&number.to_le_bytes());
    }
    let attributes = archive::xattr::list(&full).map_err(|error| fail(error.into()))?;
    let mut portable: Vec<_> = attributes
        .iter()
        .filter(|name| archive::xattr::is_portable(name))
        .collect();
    portable.sort();
    for name in portable {
        let value = archive::xattr::get(&full, name).map_err(|error| fail(error.into()))?;
        hasher.field(name);
        hasher.field(&value.unwrap_or_default());
    }
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let mut content = DigestHasher::new();
            let mut file = File::open(&full).map_err(fail)?;
            let mut buffer = vec![0; (stat.st_size as usize).clamp(1, 256 * 1024)];
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => content.update(&buffer[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(fail(error)),
                }
            }
            hasher.field(content.finish().as_bytes());
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(CWD, &full, Vec::new());
            hasher.field(target.map_err(|error| fail(error.into()))?.to_bytes());
        }
        FileType::CharacterDevice | FileType::BlockDevice => {
            hasher.update(&stat.st_rdev.to_le_bytes());
        }
        _ => {}
    }
    Ok(hasher.finish())
}
