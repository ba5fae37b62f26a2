//! Writing one blob.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use oci::{Digest, DigestHasher};

use crate::{ContentError, ContentStore, Lease, Result};

/// A blob being written; dropped unfinished it leaves nothing behind.
pub struct BlobWriter {
    store: ContentStore,
    lease: Option<Lease>,
    file: File,
    /// Emptied when the temporary file is no longer there.
    path: Option<PathBuf>,
    hasher: DigestHasher,
    size: u64,
}

impl BlobWriter {
    pub(crate) fn create(store: ContentStore, lease: Option<Lease>) -> Result<Self> {
        let name = format!("{:032x}", rand::random::<u128>());
        let path = store.inner().ingest.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .map_err(ContentError::io("create", &path))?;
        Ok(BlobWriter {
            store,
            lease,
            file,
            path: Some(path),
            hasher: DigestHasher::new(),
            size: 0,
        })
    }

    /// The digest of the bytes written so far.
    pub(crate) fn digest_so_far(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Puts the blob in place after checking it against what is expected of it; returns its digest
    /// and size in bytes. A blob that the store is known to have already is not written twice.
    pub fn finish(mut self, expected: Option<Digest>, size: Option<u64>) -> Result<(Digest, u64)> {
        if let Some(expected) = size
            && expected != self.size
        {
            let actual = self.size;
            return Err(ContentError::SizeMismatch { expected, actual });
        }
        let actual = self.digest_so_far();
        if let Some(expected) = expected
            && expected != actual
        {
            return Err(ContentError::DigestMismatch { expected, actual });
        }
        let target = self.store.path(&actual);
        // Protected first: no sweep can come between the rename and the protection.
        if let Some(lease) = &self.lease {
            lease.protect(actual);
        }
        if !self.store.has_whole(&actual, self.size) {
            let io = |action| ContentError::io(action, target.clone());
            self.file.sync_all().map_err(io("sync"))?;
            if let Some(path) = self.path.take() {
                let verified = &self.store.inner().verified;
                if let Err(error) = verified.place(actual, || fs::rename(&path, &target)) {
                    self.path = Some(path);
                    return Err(io("rename to")(error));
                }
            }
        }
        Ok((actual, self.size))
    }

    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(&self.store.inner().ingest)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}
