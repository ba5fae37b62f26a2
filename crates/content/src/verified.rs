//! Which blobs are known to be what they are named by.
//!
//! **Invariant**: a digest that is known was computed by this process of the bytes that are in place.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use oci::{Digest, DigestHasher};
use parking_lot::Mutex;

/// Bytes read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// The digests known, of one store. They take 32 bytes each.
#[derive(Default)]
pub(crate) struct Verified(Mutex<HashSet<Digest>>);

impl Verified {
    /// Puts a blob in place whose digest was computed.
    pub(crate) fn place(
        &self,
        digest: Digest,
        place: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut known = self.0.lock();
        place()?;
        known.insert(digest);
        Ok(())
    }

    /// Removes a blob that was found damaged, unless it was replaced meanwhile.
    pub(crate) fn remove_damaged<E>(
        &self,
        digest: &Digest,
        remove: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let known = self.0.lock();
        match known.contains(digest) {
            true => Ok(()),
            false => remove(),
        }
    }

    /// A blob is removed.
    pub(crate) fn forget(&self, digest: &Digest) {
        self.0.lock().remove(digest);
    }

    pub(crate) fn knows(&self, digest: &Digest) -> bool {
        self.0.lock().contains(digest)
    }

    /// Whether a blob is what it is named by; it is read unless that is known. The place in the file
    /// where the next one reads stays where it is.
    pub(crate) fn check(&self, digest: &Digest, file: &File) -> io::Result<bool> {
        if self.knows(digest) {
            return Ok(true);
        }
        let whole = digest_of(file)? == *digest;
        if whole {
            self.0.lock().insert(*digest);
        }
        Ok(whole)
    }
}

fn digest_of(file: &File) -> io::Result<Digest> {
    let mut hasher = DigestHasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
