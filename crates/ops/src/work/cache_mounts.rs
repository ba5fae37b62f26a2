//! Persistent directories for `RUN --mount=type=cache`.
//!
//! ```text
//! <dir>/superblock
//! <dir>/<sha256 of name and base>/<n>/fs     a directory; n > 0 only where private ones are in use at once
//! <dir>/<sha256 of name and base>/<n>/note   its name, for people
//! ```
//! A directory may be lost at any time without harm: steps see an empty one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use diag::{Context, Error, Result};
use llb::CacheSharing;
use oci::DigestHasher;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::sync::CancellationToken;

use super::parts::blocking;
use crate::Root;
use crate::file_actions;

/// Version of the directory's format.
const FORMAT: u32 = 1;

/// How long the size of a mount is believed while it is used.
const SIZE_AGE_MAX: Duration = Duration::from_secs(60);

/// The cache mounts of a server; clones share them.
#[derive(Clone)]
pub struct CacheMounts(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    /// Directories in use, with how many users each has.
    used: Mutex<HashMap<PathBuf, usize>>,
    /// Sizes of directories. Locked after `used` by who needs both.
    sizes: Mutex<HashMap<PathBuf, Size>>,
    /// One lock a name, for those that are used one after the other.
    locks: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    /// One lock a name, for making and removing its directories.
    making: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

/// What is known of the size of a directory.
#[derive(Clone, Copy, Default)]
struct Size {
    /// Bytes, and when they were measured.
    known: Option<(u64, Instant)>,
    /// How many uses have ended: a measurement during which one did is worth nothing afterwards.
    ended_uses: u64,
}

/// A cache mount in use; dropping it ends the use.
pub struct CacheMount {
    mounts: CacheMounts,
    dir: PathBuf,
    _lock: Option<tokio::sync::OwnedMutexGuard<()>>,
}

/// A cache mount as it is listed.
#[derive(Clone, Debug)]
pub struct CacheMountInfo {
    /// Its identity for removal.
    pub id: String,
    /// The name the Dockerfile gives it.
    pub name: String,
    /// Bytes of disk blocks it occupies.
    pub size_bytes: u64,
    /// When it was made.
    pub created: SystemTime,
    /// When it was used last.
    pub last_used: SystemTime,
    /// How often it was used.
    pub usage_count: u64,
    /// Whether a step uses it now.
    pub in_use: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Note {
    name: String,
    usage_count: u64,
}

impl CacheMounts {
    /// The mounts kept in `dir`, which is made if needed. What a killed server was making or removing
    /// is removed in the background.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).context("cache mounts")?;
        content::check_superblock(dir, FORMAT)?;
        let left = half_made(dir).context("cache mounts")?;
        if !left.is_empty() {
            std::thread::spawn(move || {
                for path in left {
                    if let Err(error) = std::fs::remove_dir_all(&path) {
                        tracing::warn!("left-over cache mount {}: {error}", path.display());
                    }
                }
            });
        }
        Ok(CacheMounts(Arc::new(Inner {
            dir: dir.to_owned(),
            used: Mutex::new(HashMap::new()),
            sizes: Mutex::default(),
            locks: Mutex::new(HashMap::new()),
            making: Mutex::new(HashMap::new()),
        })))
    }

    /// Begins to use the mount of that name. A new one starts with what is in `base`, if given;
    /// `base_key` tells bases apart.
    pub async fn acquire(
        &self,
        name: &str,
        sharing: CacheSharing,
        base_key: &str,
        base: Option<PathBuf>,
        cancel: &CancellationToken,
    ) -> Result<CacheMount> {
        let mut hasher = DigestHasher::new();
        hasher.field(name.as_bytes());
        hasher.field(base_key.as_bytes());
        let key = hasher.finish().hex();
        let lock = match sharing {
            CacheSharing::Locked => Some(self.lock(&key, cancel).await?),
            CacheSharing::Shared | CacheSharing::Private => None,
        };
        let (mounts, name) = (self.clone(), name.to_owned());
        let cancel = cancel.clone();
        // Made over there: whoever waits for it may go away meanwhile, and its use must end.
        blocking(move || {
            let dir = mounts.take(&key, &name, sharing, base.as_deref(), &cancel)?;
            Ok(CacheMount {
                mounts,
                dir,
                _lock: lock,
            })
        })
        .await
    }

    /// All cache mounts. Blocks on the disk: sizes are measured.
    pub fn list(&self) -> Result<Vec<CacheMountInfo>> {
        let mut found = Vec::new();
        for key in entries(&self.0.dir)? {
            for dir in entries(&key)? {
                let Ok(meta) = std::fs::metadata(&dir) else {
                    continue;
                };
                let note = read_note(&dir);
                let used = self.0.used.lock().contains_key(&dir);
                let note_meta = std::fs::metadata(dir.join("note"));
                let last_used = note_meta.and_then(|m| m.modified());
                let created = meta.created().or_else(|_| meta.modified());
                let created = created.unwrap_or(SystemTime::UNIX_EPOCH);
                found.push(CacheMountInfo {
                    id: id_of(&dir),
                    name: note.name,
                    size_bytes: self.size(&dir, || archive::allocated(&dir, &|_| false)),
                    created,
                    last_used: last_used.unwrap_or(created),
                    usage_count: note.usage_count,
                    in_use: used,
                });
            }
        }
        Ok(found)
    }

    /// Removes a mount; says whether it was there and not in use. Blocks on the disk.
    pub fn remove(&self, id: &str) -> Result<bool> {
        for key in entries(&self.0.dir)? {
            for dir in entries(&key)? {
                if id_of(&dir) != id {
                    continue;
                }
                let name = key.file_name().unwrap_or_default().to_string_lossy();
                let making = lock_of(&self.0.making, &name);
                let one_at_a_time = making.lock();
                let doomed = {
                    let used = self.0.used.lock();
                    if used.contains_key(&dir) {
                        return Ok(false);
                    }
                    // Renamed under the lock, so that nobody begins to use what is being removed.
                    let doomed = self.0.dir.join(format!(".gone-{id}"));
                    std::fs::rename(&dir, &doomed)?;
                    self.0.sizes.lock().remove(&dir);
                    doomed
                };
                let _ = std::fs::remove_dir(&key);
                drop(one_at_a_time);
                std::fs::remove_dir_all(&doomed)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Bytes of disk blocks of a mount: measured once after each use, and now and then while it is
    /// used, because a mount may have very many files.
    fn size(&self, dir: &Path, measure: impl FnOnce() -> u64) -> u64 {
        let before = {
            let used = self.0.used.lock();
            let size = self.0.sizes.lock().get(dir).copied().unwrap_or_default();
            if let Some((bytes, at)) = size.known
                && (!used.contains_key(dir) || at.elapsed() < SIZE_AGE_MAX)
            {
                return bytes;
            }
            size.ended_uses
        };
        let at = Instant::now();
        let bytes = measure();
        let mut sizes = self.0.sizes.lock();
        let size = sizes.entry(dir.to_owned()).or_default();
        if size.ended_uses == before {
            size.known = Some((bytes, at));
        }
        bytes
    }

    async fn lock(
        &self,
        key: &str,
        cancel: &CancellationToken,
    ) -> Result<tokio::sync::OwnedMutexGuard<()>> {
        let lock = lock_of(&self.0.locks, key);
        tokio::select! {
            guard = lock.lock_owned() => Ok(guard),
            () = cancel.cancelled() => Err(Error::canceled()),
        }
    }

    /// Chooses or makes the directory, and counts the use.
    fn take(
        &self,
        key: &str,
        name: &str,
        sharing: CacheSharing,
        base: Option<&Path>,
        cancel: &CancellationToken,
    ) -> Result<PathBuf> {
        let group = self.0.dir.join(key);
        let dir = {
            let mut used = self.0.used.lock();
            let free = |dir: &PathBuf| sharing != CacheSharing::Private || !used.contains_key(dir);
            let dir = (0..)
                .map(|n| group.join(format!("{n}")))
                .find(free)
                .unwrap_or_else(|| group.join("0"));
            *used.entry(dir.clone()).or_insert(0) += 1;
            dir
        };
        let making = lock_of(&self.0.making, key);
        // Who comes while another makes the directory waits, and uses that one.
        let one_at_a_time = making.lock();
        let prepared = prepare(&dir, name, base, cancel);
        drop(one_at_a_time);
        if let Err(error) = prepared {
            self.release(&dir);
            return Err(error.context(format!("cache mount {name}")));
        }
        Ok(dir)
    }

    fn release(&self, dir: &Path) {
        let mut used = self.0.used.lock();
        if let Some(count) = used.get_mut(dir) {
            *count -= 1;
            if *count == 0 {
                used.remove(dir);
                let mut sizes = self.0.sizes.lock();
                let size = sizes.entry(dir.to_owned()).or_default();
                size.known = None;
                size.ended_uses += 1;
            }
        }
    }
}

impl CacheMount {
    /// The directory to mount.
    pub fn path(&self) -> PathBuf {
        self.dir.join("fs")
    }
}

impl Drop for CacheMount {
    fn drop(&mut self) {
        self.mounts.release(&self.dir);
    }
}

/// The lock of a key; those that nobody has are not kept.
fn lock_of<L: Default>(locks: &Mutex<HashMap<String, Arc<L>>>, key: &str) -> Arc<L> {
    let mut locks = locks.lock();
    locks.retain(|_, lock| Arc::strong_count(lock) > 1);
    locks.entry(key.to_owned()).or_default().clone()
}

/// Makes a directory that is not there, whole or not at all, and notes its use. One at a time for
/// each key.
fn prepare(dir: &Path, name: &str, base: Option<&Path>, cancel: &CancellationToken) -> Result<()> {
    if !dir.join("fs").is_dir() {
        let parent = dir.parent().unwrap_or(dir);
        std::fs::create_dir_all(parent)?;
        let new = New(tempfile_in(parent)?);
        let fs = new.0.join("fs");
        std::fs::create_dir(&fs)?;
        rustix::fs::chmod(&fs, rustix::fs::Mode::from_raw_mode(0o755))
            .map_err(std::io::Error::from)?;
        if let Some(base) = base {
            let copy = llb::CopyAction {
                src: "/".into(),
                dest: "/".into(),
                dir_copy_contents: true,
                create_dest_path: true,
                ..llb::CopyAction::default()
            };
            file_actions::copy(&Root::open(base)?, &Root::open(&fs)?, &copy, None, cancel)?;
        }
        // What a half-finished removal left.
        let _ = std::fs::remove_dir_all(dir);
        std::fs::rename(&new.0, dir)?;
    }
    let mut note = read_note(dir);
    note.name = name.to_owned();
    note.usage_count += 1;
    let text = serde_json::to_vec(&note).map_err(|error| Error::internal(error.to_string()))?;
    let new = dir.join("note.new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, dir.join("note"))?;
    Ok(())
}

/// A directory being made; what is still there under its first name when it is dropped is removed.
struct New(PathBuf);

impl Drop for New {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("unfinished cache mount {}: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

/// A new directory beside others, under a name that is swept when the mounts are opened again.
fn tempfile_in(parent: &Path) -> Result<PathBuf> {
    let mut random = [0_u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(std::io::Error::from)?;
    let path = parent.join(format!(".new-{:016x}", u64::from_le_bytes(random)));
    std::fs::create_dir(&path)?;
    Ok(path)
}

fn read_note(dir: &Path) -> Note {
    std::fs::read(dir.join("note"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

/// The directories in one, those being made or removed left out.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = directories(dir)?;
    found.retain(|path| !is_half_made(path));
    Ok(found)
}

/// What is being made or removed in a directory of mounts.
fn half_made(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in directories(dir)? {
        match is_half_made(&path) {
            true => found.push(path),
            false => found.extend(directories(&path)?.into_iter().filter(|p| is_half_made(p))),
        }
    }
    Ok(found)
}

fn is_half_made(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().starts_with('.')
}

/// The directories in one, sorted; what else lies there is none of ours.
fn directories(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// A short name for a directory.
fn id_of(dir: &Path) -> String {
    let number = dir.file_name().unwrap_or_default().to_string_lossy();
    let key = dir.parent().and_then(Path::file_name).unwrap_or_default();
    let key = key.to_string_lossy();
    format!("{}-{number}", &key[..key.len().min(24)])
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn acquire(mounts: &CacheMounts, name: &str, sharing: CacheSharing) -> CacheMount {
        let cancel = CancellationToken::new();
        mounts
            .acquire(name, sharing, "", None, &cancel)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn what_was_measured_while_a_use_ended_is_measured_again() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = CacheMounts::open(dir.path()).unwrap();
        let mount = acquire(&mounts, "go", CacheSharing::Shared).await;
        let dir = mount.dir.clone();
        // The walk has passed a file by that grows before the step ends.
        let half = mounts.size(&dir, || {
            drop(mount);
            1
        });
        assert_eq!(half, 1);
        assert_eq!(mounts.size(&dir, || 2), 2);
        // Nobody has used it since.
        assert_eq!(mounts.size(&dir, || 3), 2);
        let again = acquire(&mounts, "go", CacheSharing::Shared).await;
        assert_eq!(mounts.size(&dir, || 3), 2, "believed for a while");
        drop(again);
        assert_eq!(mounts.size(&dir, || 3), 3);
    }

    #[tokio::test]
    async fn whoever_does_not_wait_for_a_mount_does_not_keep_it() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = CacheMounts::open(dir.path()).unwrap();
        for sharing in [CacheSharing::Shared, CacheSharing::Locked] {
            // Asked once, which sends it off, and dropped.
            let given_up = Box::pin(acquire(&mounts, "go", sharing));
            drop(futures::poll!(given_up));
        }
        // The one that is locked comes after the others that are.
        drop(acquire(&mounts, "go", CacheSharing::Locked).await);
        let unused = async {
            while !mounts.0.used.lock().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, unused).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_written_is_there_next_time_and_can_be_removed_when_unused() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = CacheMounts::open(dir.path()).unwrap();
        let mount = acquire(&mounts, "go", CacheSharing::Shared).await;
        std::fs::write(mount.path().join("x"), "y").unwrap();
        let info = mounts.list().unwrap();
        assert_eq!((info[0].name.as_str(), info[0].in_use), ("go", true));
        assert!(!mounts.remove(&info[0].id).unwrap());
        drop(mount);
        let reopened = CacheMounts::open(dir.path()).unwrap();
        let again = acquire(&reopened, "go", CacheSharing::Locked).await;
        assert!(again.path().join("x").exists());
        drop(again);
        assert!(mounts.remove(&info[0].id).unwrap());
        assert!(mounts.list().unwrap().is_empty());
    }

    #[tokio::test]
    async fn private_users_get_their_own_and_shared_ones_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = CacheMounts::open(dir.path()).unwrap();
        let one = acquire(&mounts, "a", CacheSharing::Private).await;
        let two = acquire(&mounts, "a", CacheSharing::Private).await;
        assert_ne!(one.path(), two.path());
        let one = acquire(&mounts, "b", CacheSharing::Shared).await;
        let two = acquire(&mounts, "b", CacheSharing::Shared).await;
        assert_eq!(one.path(), two.path());
        let locked = acquire(&mounts, "c", CacheSharing::Locked).await;
        let cancel = CancellationToken::new();
        cancel.cancel();
        let second = mounts
            .acquire("c", CacheSharing::Locked, "", None, &cancel)
            .await;
        assert!(second.err().unwrap().is_canceled());
        drop(locked);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn those_who_want_a_new_shared_mount_at_once_get_the_same() {
        for _ in 0..50 {
            let dir = tempfile::tempdir().unwrap();
            let mounts = CacheMounts::open(dir.path()).unwrap();
            let users = (0..4).map(|n| {
                let mounts = mounts.clone();
                tokio::spawn(async move {
                    let mount = acquire(&mounts, "a", CacheSharing::Shared).await;
                    std::fs::write(mount.path().join(n.to_string()), "").unwrap();
                    mount
                })
            });
            let users: Vec<_> = futures::future::join_all(users).await;
            let mount = users[0].as_ref().unwrap().path();
            assert_eq!(std::fs::read_dir(mount).unwrap().count(), 4);
            assert_eq!(mounts.list().unwrap()[0].usage_count, 4);
        }
    }

    #[tokio::test]
    async fn a_new_mount_starts_with_its_base() {
        let dir = tempfile::tempdir().unwrap();
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("f"), "1").unwrap();
        let mounts = CacheMounts::open(dir.path()).unwrap();
        let cancel = CancellationToken::new();
        let path = Some(base.path().to_owned());
        let mount = mounts.acquire("a", CacheSharing::Shared, "k", path, &cancel);
        assert!(mount.await.unwrap().path().join("f").exists());
    }
}
