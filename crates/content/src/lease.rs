//! Protection of blobs while something uses them.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;

use oci::Digest;
use parking_lot::Mutex;

use crate::{BlobWriter, ContentError, ContentStore, Result};

/// Protects blobs from [`ContentStore::sweep`] until it and all its clones are dropped.
#[derive(Clone)]
pub struct Lease(Arc<Held>);

struct Held {
    store: ContentStore,
    digests: Mutex<HashSet<Digest>>,
}

impl Lease {
    pub(crate) fn new(store: ContentStore) -> Self {
        Lease(Arc::new(Held {
            store,
            digests: Mutex::default(),
        }))
    }

    /// Protects a blob, whether it is here already or comes later. True when it is here: then it
    /// stays at least as long as the lease.
    pub fn protect(&self, digest: Digest) -> bool {
        let mut leased = self.0.store.inner().leased.lock();
        if self.0.digests.lock().insert(digest) {
            *leased.counts.entry(digest).or_insert(0) += 1;
            leased.note(digest);
        }
        self.0.store.size(&digest).is_some()
    }

    /// The same for a blob whose size in bytes is known. One that has another size was damaged after
    /// it was stored, by a disk or a hand; it is removed, and so not here.
    pub fn protect_sized(&self, digest: Digest, size: u64) -> bool {
        if !self.protect(digest) {
            return false;
        }
        if self.0.store.size(&digest) == Some(size) {
            return true;
        }
        tracing::warn!("blob {digest} is damaged: it has not the {size} bytes it had");
        // One that cannot be removed is replaced by whoever brings it again.
        let _ = self.0.store.remove(&digest);
        false
    }

    /// Stores these bytes, protected.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        self.protect(digest);
        if self.0.store.has_whole(&digest, bytes.len() as u64) {
            return Ok(digest);
        }
        let mut writer = self.writer()?;
        writer
            .write_all(bytes)
            .map_err(ContentError::io("write", writer.path().to_owned()))?;
        Ok(writer.finish(Some(digest), None)?.0)
    }

    /// Begins a blob that will be protected from the moment it is finished.
    pub fn writer(&self) -> Result<BlobWriter> {
        BlobWriter::create(self.0.store.clone(), Some(self.clone()))
    }

    /// The store whose blobs it protects.
    pub fn store(&self) -> &ContentStore {
        &self.0.store
    }

    /// The digests protected so far, in no order.
    pub fn digests(&self) -> Vec<Digest> {
        self.0.digests.lock().iter().copied().collect()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut leased = self.store.inner().leased.lock();
        for digest in self.digests.get_mut().drain() {
            if let Some(count) = leased.counts.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    leased.counts.remove(&digest);
                }
            }
        }
    }
}
