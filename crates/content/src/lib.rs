//! A store of blobs named by the sha256 of their bytes.
//!
//! A blob appears whole and verified or not at all: it is written to a temporary name, synced and
//! renamed. Leases keep blobs that a running build or export uses from [`ContentStore::sweep`];
//! which other blobs are wanted (the roots) is the caller's knowledge, not this crate's. Leases
//! live in memory: after a restart nothing runs that could hold one.
//!
//! What a disk or a hand did to a blob while no process had the store open is found when the blob is
//! first opened: its bytes are then compared with its name, once in the life of a store. A blob that is
//! damaged is removed, so that it counts as one that is not here and is made or brought again.
//!
//! ```text
//! <dir>/superblock            {"format":1}
//! <dir>/blobs/sha256/<hex>    the blobs, mode 0644, never changed
//! <dir>/ingest/<random>       blobs being written; emptied when the store is opened
//! ```
//!
//! **Invariant**: a file in `blobs/sha256` has the digest that it is named by.

mod error;
mod lease;
mod superblock;
mod verified;
mod writer;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use oci::Digest;
use parking_lot::Mutex;

use verified::Verified;

pub use error::ContentError;
pub use lease::Lease;
pub use superblock::check_superblock;
pub use writer::BlobWriter;

/// A result of this crate.
pub type Result<T, E = ContentError> = std::result::Result<T, E>;

/// The most bytes [`ContentStore::read`] takes into memory; manifests, indexes and configurations
/// are far below.
pub const READ_SIZE_BYTES_MAX: u64 = 64 << 20;

const FORMAT: u32 = 1;

/// A content store; clones share it.
#[derive(Clone)]
pub struct ContentStore(Arc<Inner>);

pub(crate) struct Inner {
    blobs: PathBuf,
    ingest: PathBuf,
    /// Held while a blob is removed or put in place, so that a blob cannot be swept between being
    /// found and being protected.
    leased: Mutex<Leased>,
    /// One sweep at a time.
    sweeping: Mutex<()>,
    /// Blobs that are what they are named by.
    pub(crate) verified: Verified,
}

/// Which blobs a sweep spares whatever the roots are.
#[derive(Default)]
pub(crate) struct Leased {
    /// How many leases protect a digest.
    pub(crate) counts: HashMap<Digest, usize>,
    /// While a sweep runs: what was leased or put since it began.
    spared: Option<HashSet<Digest>>,
}

impl Leased {
    /// Notes that somebody relies on a blob.
    pub(crate) fn note(&mut self, digest: Digest) {
        if let Some(spared) = &mut self.spared {
            spared.insert(digest);
        }
    }

    fn watch(&mut self) {
        self.spared = Some(self.counts.keys().copied().collect());
    }

    fn protects(&self, digest: &Digest) -> bool {
        let spared = self.spared.as_ref();
        self.counts.contains_key(digest) || spared.is_some_and(|spared| spared.contains(digest))
    }
}

/// A blob as [`ContentStore::list`] gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of disk blocks it occupies.
    pub allocated: u64,
    /// When it was put into the store.
    pub created: Timestamp,
}

impl ContentStore {
    /// Opens the store in `dir`, making it if needed, and removes what a killed process left half
    /// written. Only one process may have a store open.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let blobs = dir.join("blobs/sha256");
        let ingest = dir.join("ingest");
        fs::create_dir_all(&blobs).map_err(ContentError::io("create", &blobs))?;
        check_superblock(dir, FORMAT)?;
        match fs::remove_dir_all(&ingest) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ContentError::io("remove", &ingest)(error));
            }
            _ => {}
        }
        fs::create_dir_all(&ingest).map_err(ContentError::io("create", &ingest))?;
        Ok(ContentStore(Arc::new(Inner {
            blobs,
            ingest,
            leased: Mutex::default(),
            sweeping: Mutex::new(()),
            verified: Verified::default(),
        })))
    }

    /// The size of a blob in bytes, or `None` if it is not here.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        let metadata = fs::metadata(self.path(digest)).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// Where a blob is or would be. It must not be written to.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.0.blobs.join(digest.hex())
    }

    /// The bytes of a small blob (at most [`READ_SIZE_BYTES_MAX`]).
    ///
    /// # Errors
    /// Those of [`ContentStore::open_blob`], and blobs that are too large.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let file = self.open_blob(digest)?;
        let path = self.path(digest);
        let size = file
            .metadata()
            .map_err(ContentError::io("stat", &path))?
            .len();
        if size > READ_SIZE_BYTES_MAX {
            return Err(ContentError::TooLarge {
                digest: *digest,
                size,
                limit: READ_SIZE_BYTES_MAX,
            });
        }
        let mut bytes = Vec::with_capacity(size as usize);
        file.take(size)
            .read_to_end(&mut bytes)
            .map_err(ContentError::io("read", path))?;
        Ok(bytes)
    }

    /// A blob opened for reading. It stays readable also when it is removed meanwhile. The first time
    /// that takes as long as reading it, see the top of this module. Blocks on the disk.
    ///
    /// # Errors
    /// Blobs that are not here, and [`ContentError::Damaged`].
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.path(digest);
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ContentError::NotFound(*digest),
            _ => ContentError::io("open", &path)(error),
        })?;
        if self
            .0
            .verified
            .check(digest, &file)
            .map_err(ContentError::io("read", path))?
        {
            return Ok(file);
        }
        let remove = || self.remove_file(digest);
        self.0.verified.remove_damaged(digest, remove)?;
        let error = ContentError::Damaged(*digest);
        tracing::warn!("{error}");
        Err(error)
    }

    /// Stores these bytes. Nothing protects them from a sweep; see [`Lease::put`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        self.0.leased.lock().note(digest);
        if self.has_whole(&digest, bytes.len() as u64) {
            return Ok(digest);
        }
        let mut writer = self.writer()?;
        io::Write::write_all(&mut writer, bytes)
            .map_err(ContentError::io("write", writer.path().to_owned()))?;
        Ok(writer.finish(Some(digest), None)?.0)
    }

    /// Begins a blob. Nothing protects it from a sweep once finished; see [`Lease::writer`].
    pub fn writer(&self) -> Result<BlobWriter> {
        BlobWriter::create(self.clone(), None)
    }

    /// Removes a blob, leased or not; one that is not here is no error.
    pub fn remove(&self, digest: &Digest) -> Result<()> {
        self.0.verified.forget(digest);
        self.remove_file(digest)
    }

    fn remove_file(&self, digest: &Digest) -> Result<()> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ContentError::io("remove", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// All blobs, in order of their digests.
    pub fn list(&self) -> Result<Vec<BlobInfo>> {
        let dir = &self.0.blobs;
        let mut blobs = Vec::new();
        for entry in fs::read_dir(dir).map_err(ContentError::io("list", dir))? {
            let entry = entry.map_err(ContentError::io("list", dir))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            let (Ok(digest), Ok(metadata)) = (format!("sha256:{name}").parse(), entry.metadata())
            else {
                continue;
            };
            let created = metadata.modified().ok().and_then(|t| t.try_into().ok());
            blobs.push(BlobInfo {
                digest,
                size: metadata.len(),
                allocated: metadata.blocks() * 512,
                created: created.unwrap_or(Timestamp::UNIX_EPOCH),
            });
        }
        blobs.sort_by_key(|blob| blob.digest);
        Ok(blobs)
    }

    /// A new lease that protects nothing yet.
    pub fn lease(&self) -> Lease {
        Lease::new(self.clone())
    }

    /// Removes every blob that is neither among the roots nor leased; says how many bytes that freed.
    ///
    /// `roots` is called once the store watches what is put and leased, so that a blob which gets its
    /// root while roots are being gathered is spared.
    ///
    /// # Errors
    /// Those of `roots`, and of the filesystem.
    pub fn sweep<E: From<ContentError>>(
        &self,
        roots: impl FnOnce() -> Result<HashSet<Digest>, E>,
    ) -> Result<u64, E> {
        let _alone = self.0.sweeping.lock();
        self.0.leased.lock().watch();
        let swept = roots().and_then(|roots| Ok(self.remove_others(&roots)?));
        self.0.leased.lock().spared = None;
        swept
    }

    fn remove_others(&self, roots: &HashSet<Digest>) -> Result<u64> {
        let mut freed = 0;
        for blob in self.list()? {
            if roots.contains(&blob.digest) {
                continue;
            }
            let leased = self.0.leased.lock();
            if !leased.protects(&blob.digest) {
                self.remove(&blob.digest)?;
                freed += blob.allocated;
            }
        }
        Ok(freed)
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    /// Whether a blob is here that has this size in bytes and is known to be what it is named by: for
    /// who has its bytes and would rather write them again than read what is there.
    pub(crate) fn has_whole(&self, digest: &Digest, size: u64) -> bool {
        self.0.verified.knows(digest) && self.size(digest) == Some(size)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn store() -> (tempfile::TempDir, ContentStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = ContentStore::open(dir.path()).unwrap();
        (dir, store)
    }

    #[test]
    fn a_blob_that_was_cut_off_is_not_here_and_comes_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = ContentStore::open(dir.path()).unwrap();
        let digest = store.put(b"all of it").unwrap();
        let lease = store.lease();
        assert!(lease.protect_sized(digest, 9));
        fs::write(store.path(&digest), b"all").unwrap();
        assert!(!lease.protect_sized(digest, 9));
        assert_eq!(store.size(&digest), None);
        fs::write(store.path(&digest), b"all").unwrap();
        assert_eq!(lease.put(b"all of it").unwrap(), digest);
        assert_eq!(store.read(&digest).unwrap(), b"all of it");
    }

    #[test]
    fn a_blob_that_was_damaged_between_two_starts_is_not_given_out_and_comes_again() {
        let (dir, store) = store();
        let digest = store.put(b"all of it").unwrap();
        let flip = || fs::write(store.path(&digest), b"all Of it").unwrap();
        flip();
        let again = ContentStore::open(dir.path()).unwrap();
        let error = again.read(&digest).unwrap_err();
        assert!(matches!(error, ContentError::Damaged(damaged) if damaged == digest));
        assert_eq!(
            again.size(&digest),
            None,
            "it counts as one that is not here"
        );
        again.put(b"all of it").unwrap();
        assert_eq!(again.read(&digest).unwrap(), b"all of it");
        // Who brings the bytes replaces what is there, whatever that is.
        for leased in [false, true] {
            flip();
            let again = ContentStore::open(dir.path()).unwrap();
            let lease = again.lease();
            match leased {
                true => lease.put(b"all of it"),
                false => again.put(b"all of it"),
            }
            .unwrap();
            assert_eq!(again.read(&digest).unwrap(), b"all of it");
        }
    }

    #[test]
    fn what_is_put_is_read_back_and_listed() {
        let (_dir, store) = store();
        let digest = store.put(b"hello").unwrap();
        assert_eq!(store.put(b"hello").unwrap(), digest);
        assert_eq!(store.size(&digest), Some(5));
        assert_eq!(store.read(&digest).unwrap(), b"hello");
        let list = store.list().unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].digest, list[0].size), (digest, 5));
        store.remove(&digest).unwrap();
        store.remove(&digest).unwrap();
        assert!(matches!(
            store.read(&digest),
            Err(ContentError::NotFound(_))
        ));
    }

    #[test]
    fn a_blob_of_the_wrong_digest_or_size_never_appears() {
        let (dir, store) = store();
        let mut writer = store.writer().unwrap();
        writer.write_all(b"evil").unwrap();
        let error = writer.finish(Some(Digest::of(b"good")), None).unwrap_err();
        assert!(matches!(error, ContentError::DigestMismatch { .. }));
        let mut writer = store.writer().unwrap();
        writer.write_all(b"long").unwrap();
        let error = writer.finish(None, Some(3)).unwrap_err();
        assert!(matches!(error, ContentError::SizeMismatch { .. }));
        let mut dropped = store.writer().unwrap();
        dropped.write_all(b"half").unwrap();
        assert_eq!(dropped.digest_so_far(), Digest::of(b"half"));
        drop(dropped);
        assert!(store.list().unwrap().is_empty());
        let left = fs::read_dir(dir.path().join("ingest")).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn a_sweep_spares_roots_and_leased_blobs() {
        let (_dir, store) = store();
        let root = store.put(b"root").unwrap();
        let leased = store.put(b"leased").unwrap();
        let garbage = store.put(b"garbage").unwrap();
        let lease = store.lease();
        assert!(lease.protect(leased));
        let second = lease.clone();
        drop(lease);
        let sweep = || store.sweep(|| Ok::<_, ContentError>(HashSet::from([root])));
        assert!(sweep().unwrap() > 0);
        assert_eq!(store.size(&garbage), None);
        assert!(store.size(&root).is_some() && store.size(&leased).is_some());
        drop(second);
        sweep().unwrap();
        assert_eq!(store.size(&leased), None);
    }

    #[test]
    fn what_comes_while_roots_are_gathered_is_spared() {
        let (_dir, store) = store();
        let known = store.put(b"known").unwrap();
        let (mut put, mut leased) = (None, None);
        let swept = store.sweep(|| {
            put = Some(store.put(b"put")?);
            leased = Some(store.lease().put(b"leased")?);
            store.lease().protect(known);
            Ok::<_, ContentError>(HashSet::new())
        });
        assert_eq!(swept.unwrap(), 0);
        for digest in [Some(known), put, leased] {
            assert!(store.size(&digest.unwrap()).is_some());
        }
        assert!(
            store
                .sweep(|| Ok::<_, ContentError>(HashSet::new()))
                .unwrap()
                > 0
        );
        assert!(store.list().unwrap().is_empty());
    }

    #[test]
    fn a_blob_written_under_a_lease_is_protected_at_once() {
        let (_dir, store) = store();
        let lease = store.lease();
        let mut writer = lease.writer().unwrap();
        writer.write_all(b"blob").unwrap();
        let (digest, size) = writer.finish(None, Some(4)).unwrap();
        let put = lease.put(b"other").unwrap();
        assert_eq!(size, 4);
        assert_eq!(
            store
                .sweep(|| Ok::<_, ContentError>(HashSet::new()))
                .unwrap(),
            0
        );
        assert!(store.size(&digest).is_some() && store.size(&put).is_some());
    }

    #[test]
    fn opening_sweeps_what_was_half_written_and_keeps_blobs() {
        let (dir, store) = store();
        let digest = store.put(b"kept").unwrap();
        let mut writer = store.writer().unwrap();
        writer.write_all(b"lost").unwrap();
        std::mem::forget(writer);
        drop(store);
        let store = ContentStore::open(dir.path()).unwrap();
        assert_eq!(store.read(&digest).unwrap(), b"kept");
        let left = fs::read_dir(dir.path().join("ingest")).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn a_store_of_another_format_is_refused() {
        let (dir, store) = store();
        drop(store);
        fs::write(dir.path().join("superblock"), br#"{"format":999}"#).unwrap();
        let error = ContentStore::open(dir.path()).err().unwrap();
        assert!(matches!(error, ContentError::Format { found: 999, .. }));
        fs::write(dir.path().join("superblock"), "").unwrap();
        let error = ContentStore::open(dir.path()).err().unwrap();
        assert!(matches!(error, ContentError::Superblock(_)), "{error}");
    }
}
