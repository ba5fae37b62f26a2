//! Removing directories behind the back of whoever gave them up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::CWD;

use crate::{LayerError, LayerId, Result};

/// How long the end of a store waits for what is being removed. Disks may take minutes for much, and who
/// stops a server does not; the next one goes on.
const PATIENCE: Duration = Duration::from_secs(2);

/// A thread that removes what is moved to the trash directory.
pub(crate) struct Reaper {
    trash: PathBuf,
    work: Mutex<Option<Work>>,
}

struct Work {
    doomed: Sender<PathBuf>,
    /// Never gets anything; is disconnected when the thread has ended.
    ended: Receiver<()>,
    /// Leaves the rest to the next start.
    stop: Arc<AtomicBool>,
}

impl Reaper {
    /// Starts it, and has it remove what an earlier process left in `trash`.
    pub(crate) fn start(trash: PathBuf) -> Result<Self> {
        let (sender, receiver) = channel::<PathBuf>();
        let (running, ended) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let fail = || LayerError::io("start thread for", &trash);
        std::thread::Builder::new()
            .name("layer-reaper".into())
            .spawn(move || {
                let _running: Sender<()> = running;
                for path in receiver {
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    if let Err(error) = archive::remove_tree(CWD, &path) {
                        let path = path.display();
                        tracing::warn!(%path, %error, "could not remove; left for the next start");
                    }
                }
            })
            .map_err(fail())?;
        let left = std::fs::read_dir(&trash).map_err(LayerError::io("list", &trash))?;
        for entry in left.flatten() {
            let _ = sender.send(entry.path());
        }
        Ok(Reaper {
            trash,
            work: Mutex::new(Some(Work {
                doomed: sender,
                ended,
                stop,
            })),
        })
    }

    /// Takes a directory away at once and removes it later. What is not there is no error.
    pub(crate) fn discard(&self, path: &Path) -> Result<()> {
        let target = self.trash.join(LayerId::random().to_string());
        match std::fs::rename(path, &target) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(LayerError::io("discard", path)(error)),
        }
        if let Some(work) = &*self.work.lock() {
            let _ = work.doomed.send(target);
        }
        Ok(())
    }
}

impl Drop for Reaper {
    /// Waits until all is removed, but not for long.
    fn drop(&mut self) {
        if let Some(work) = self.work.get_mut().take() {
            drop(work.doomed);
            if work.ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                work.stop.store(true, Ordering::Relaxed);
            }
        }
    }
}
