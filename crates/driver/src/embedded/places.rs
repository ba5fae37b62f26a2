//! Where a server on this machine has its files.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci::Digest;

use crate::{DriverError, NodeConfig};

/// Where servers are when nothing else is said.
const DEFAULT_BASE: &str = "/var/lib/cooperage";
/// Where sockets and locks are. The same for all commands of a user, whatever their environment:
/// two of them with different places would start two servers.
const RUN_BASE: &str = "/run/cooperage";
/// Starts the names of folders whose removal has begun.
const REMOVED: &str = ".removed-";
/// Digits of the name of a folder in [`RUN_BASE`].
const ID_DIGITS: usize = 16;

/// The files of one server.
#[derive(Clone, Debug)]
pub(super) struct Places {
    base: PathBuf,
    /// Configuration and log.
    pub(super) dir: PathBuf,
    /// The server's root.
    pub(super) state: PathBuf,
    /// `buildkitd.toml` and what it names.
    pub(super) config: PathBuf,
    /// What the server says.
    pub(super) log: PathBuf,
    /// Socket, lock and mark.
    pub(super) run: PathBuf,
    /// Where the server listens.
    pub(super) socket: PathBuf,
    /// Held by whoever starts or ends the server.
    pub(super) lock: PathBuf,
    /// There while the server does not run because somebody ended it.
    pub(super) stopped: PathBuf,
}

/// The folder that servers of this machine are in: `$XDG_DATA_HOME/cooperage` where that is set,
/// else `/var/lib/cooperage`.
pub fn default_base() -> PathBuf {
    match std::env::var_os("XDG_DATA_HOME").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() => dir.join("cooperage"),
        _ => PathBuf::from(DEFAULT_BASE),
    }
}

impl Places {
    /// Those of a node, whose state may be elsewhere.
    pub(super) fn of(node: &NodeConfig, state: Option<&Path>) -> Result<Self, DriverError> {
        let base = PathBuf::from(&node.endpoint);
        if !base.is_absolute() {
            return Err(DriverError::Option(format!(
                "invalid endpoint {:?} for embedded driver: expecting the absolute path of a folder",
                node.endpoint
            )));
        }
        let name = node.container_name();
        let dir = base.join(&name);
        let id = Digest::of(dir.as_os_str().as_encoded_bytes());
        let run = Path::new(RUN_BASE).join(&id.hex()[..ID_DIGITS]);
        Ok(Places {
            state: match state {
                Some(state) => state.to_owned(),
                None => base.join(format!("{name}_state")),
            },
            config: dir.join("config"),
            log: dir.join("buildkitd.log"),
            socket: run.join("buildkitd.sock"),
            lock: run.join("lock"),
            stopped: run.join("stopped"),
            base,
            dir,
            run,
        })
    }

    /// Makes the folders that a server needs, for its user only, and removes what a removal that
    /// was cut off has left.
    pub(super) fn make(&self) -> Result<(), DriverError> {
        for dir in [&self.base, &self.dir, &self.config, &self.state] {
            make_private(dir)?;
        }
        self.sweep();
        Ok(())
    }

    /// Removes the folders, state only when asked to. What was removed is out of the way at once,
    /// also when the rest is cut off.
    pub(super) fn remove(&self, state: bool) -> Result<(), DriverError> {
        let doomed = [Some(&self.dir), state.then_some(&self.state)];
        for dir in doomed.into_iter().flatten() {
            let hidden = self
                .base
                .join(format!("{REMOVED}{:016x}", rand::random::<u64>()));
            match std::fs::rename(dir, &hidden) {
                Ok(()) => remove_dir(&hidden)?,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(source) => return Err(failed("removing", dir, source)),
            }
        }
        self.sweep();
        remove_dir(&self.run)?;
        // Gone with the last server that was there.
        let _ = std::fs::remove_dir(&self.base);
        let _ = std::fs::remove_dir(RUN_BASE);
        Ok(())
    }

    fn sweep(&self) {
        let entries = std::fs::read_dir(&self.base).into_iter().flatten();
        for entry in entries.flatten() {
            if is_removed(&entry.file_name()) {
                // The next one tries again.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn is_removed(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(REMOVED.as_bytes())
}

/// Makes a folder, and those above it, that only this user can enter.
pub(super) fn make_private(dir: &Path) -> Result<(), DriverError> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(|source| failed("making", dir, source))
}

fn remove_dir(dir: &Path) -> Result<(), DriverError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("removing", dir, error)),
        _ => Ok(()),
    }
}

/// A failed operation on a file.
pub(super) fn failed(what: &str, path: &Path, source: std::io::Error) -> DriverError {
    DriverError::Io {
        context: format!("{what} {}", path.display()),
        source,
    }
}
