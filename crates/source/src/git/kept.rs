//! The repositories that are kept, for those who look at or clean up a server's disk.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use diag::Result;
use oci::Digest;

use super::{ADDRESS, GitSource, READY};

/// A repository that is kept of a remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitRepository {
    /// Names it.
    pub id: String,
    /// Where it comes from, without secrets.
    pub remote: String,
    /// What it takes of the disk, in bytes.
    pub bytes: u64,
    /// When it was made.
    pub created: SystemTime,
    /// When it was used last.
    pub used: SystemTime,
}

impl GitSource {
    /// All repositories that are kept. Reads the disk: call it from a blocking thread.
    pub fn repositories(&self) -> Result<Vec<GitRepository>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            // One that is being made or removed is none.
            let Ok(used) = path.join(READY).metadata().and_then(|meta| meta.modified()) else {
                continue;
            };
            let Some(id) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let created = path.join(ADDRESS).metadata();
            all.push(GitRepository {
                id: id.to_owned(),
                remote: std::fs::read_to_string(path.join(ADDRESS)).unwrap_or_default(),
                bytes: bytes_of(&path)?,
                created: created.and_then(|meta| meta.modified()).unwrap_or(used),
                used,
            });
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// Removes a repository; false if a build uses it now, or there is none. Commits that were
    /// checked out are not touched. Blocks on the disk.
    pub fn remove(&self, id: &str) -> Result<bool> {
        let hex = id.strip_suffix(".git").or(id.strip_suffix(".packs"));
        let key = hex.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
        let Some(key) = key else { return Ok(false) };
        let Some(_alone) = self.flights.try_enter(key) else {
            return Ok(false);
        };
        let path = self.dir.join(id);
        if !path.is_dir() {
            return Ok(false);
        }
        // Without its mark it is half made, whatever happens while it is removed.
        match std::fs::remove_file(path.join(READY)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        std::fs::remove_dir_all(path)?;
        Ok(true)
    }
}

/// What a directory takes of the disk, in bytes.
fn bytes_of(path: &Path) -> Result<u64> {
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        // It was removed meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path)? {
            bytes += bytes_of(&entry?.path())?;
        }
    }
    Ok(bytes)
}
