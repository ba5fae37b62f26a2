//! The lock under which a server is started and ended.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::places::{failed, make_private};
use crate::DriverError;

/// How long somebody else may take to start or end the server: more than a start that fails.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How often the lock is tried.
const PAUSE: Duration = Duration::from_millis(20);

/// The lock, held until this is dropped.
pub(super) struct RunLock(#[expect(dead_code, reason = "locked as long as it is open")] File);

impl RunLock {
    /// Waits for the lock. The folder it is in is made if missing.
    pub(super) async fn take(path: &Path) -> Result<Self, DriverError> {
        let start = Instant::now();
        loop {
            if let Some(lock) = Self::attempt(path)? {
                return Ok(lock);
            }
            if start.elapsed() > TIMEOUT {
                return Err(DriverError::Boot {
                    reason: format!("another command has held {} for too long", path.display()),
                    hint: Some("it starts or stops the same server: look for it with `ps`".into()),
                });
            }
            // The lock is not waited for in a thread: that could not be cancelled.
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The lock if nobody has it. The file may have been removed, with its folder, between being
    /// opened and locked: then it is nobody's lock.
    fn attempt(path: &Path) -> Result<Option<Self>, DriverError> {
        if let Some(dir) = path.parent() {
            make_private(dir)?;
        }
        let opened = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("opening", path, source)),
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let locked = file.metadata().map(|found| (found.dev(), found.ino()));
        let there = std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
        match (locked, there) {
            (Ok(locked), Ok(there)) if locked == there => Ok(Some(RunLock(file))),
            _ => Ok(None),
        }
    }
}

/// True while no server has the state: it locks a file in it as long as it lives.
pub(super) fn state_is_free(state: &Path) -> bool {
    let opened = File::options()
        .write(true)
        .open(state.join("buildkitd.lock"));
    match opened {
        // Closing the file gives the lock back.
        Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_has_the_lock_and_a_lock_that_was_removed_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/lock");
        let first = RunLock::take(&path).await.unwrap();
        assert!(RunLock::attempt(&path).unwrap().is_none());
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let second = RunLock::attempt(&path).unwrap();
        assert!(second.is_some());
        drop(first);
        assert!(RunLock::attempt(&path).unwrap().is_none());
        drop(second);
        assert!(RunLock::attempt(&path).unwrap().is_some());
    }
}
