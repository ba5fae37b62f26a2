//! Removing directories behind the back of whoever gave them up.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::fs::CWD;

use crate::{LayerError, LayerId, Result};

/// A thread that removes what is moved to the trash directory.
pub(crate) struct Reaper {
    trash: PathBuf,
    work: Mutex<Option<(Sender<PathBuf>, JoinHandle<()>)>>,
}

impl Reaper {
    /// Starts it, and has it remove what an earlier process left in `trash`.
    pub(crate) fn start(trash: PathBuf) -> Result<Self> {
        let (sender, receiver) = channel::<PathBuf>();
        let fail = || LayerError::io("start thread for", &trash);
        let thread = std::thread::Builder::new()
            .name("layer-reaper".into())
            .spawn(move || {
                for path in receiver {
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
            work: Mutex::new(Some((sender, thread))),
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
        if let Some((sender, _)) = &*self.work.lock() {
            let _ = sender.send(target);
        }
        Ok(())
    }
}

impl Drop for Reaper {
    /// Waits until all is removed.
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.work.get_mut().take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}
