//! The process at the other end of a connection, and the folders it shares with us.
//!
//! A client on this machine may say where its folders are, so that they are read in place. That is
//! believed only of a process of our own user. Its paths are looked up in its own file system view
//! (`/proc/<pid>/root`): a client in a container can name nothing that it cannot see. And what is
//! found there must be the very folder that the client looked at, else it is not used: the process
//! may be a mere relay of a client on another machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use session::{OpenDir, SharedDir};

use crate::listen::Plain;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// User and process of a local client; nothing for those that come over a network.
    process: Option<(u32, i32)>,
}

impl Peer {
    /// That of a connection.
    pub(crate) fn of(io: &Plain) -> Self {
        let credentials = match io {
            Plain::Unix(io) => io.peer_cred().ok(),
            Plain::Tcp(_) => None,
        };
        // A process of another namespace has no number here.
        let process = credentials.and_then(|peer| {
            let pid = peer.pid().filter(|pid| *pid > 0)?;
            Some((peer.uid(), pid))
        });
        Peer { process }
    }

    /// Opens the folders that may be read in place. Blocks on the disk.
    pub(crate) fn open_dirs(
        &self,
        dirs: &BTreeMap<String, SharedDir>,
    ) -> BTreeMap<String, OpenDir> {
        let own = rustix::process::geteuid().as_raw();
        let Some((_, pid)) = self.process.filter(|(uid, _)| *uid == own) else {
            return BTreeMap::new();
        };
        let mut opened = BTreeMap::new();
        for (name, dir) in dirs {
            match open_in(pid, dir) {
                Ok(dir) => {
                    opened.insert(name.clone(), dir);
                }
                // It comes through the session then.
                Err(error) => tracing::debug!("{name} cannot be read in place: {error}"),
            }
        }
        opened
    }
}

fn open_in(pid: i32, dir: &SharedDir) -> io::Result<OpenDir> {
    let relative = dir.path.strip_prefix("/").map_err(io::Error::other)?;
    let mut path = PathBuf::from(format!("/proc/{pid}/root"));
    path.push(relative);
    let folder = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::DIRECTORY.bits() as i32)
        .open(&path)?;
    let found = folder.metadata()?;
    if (found.dev(), found.ino()) != (dir.device, dir.inode) {
        let text = format!(
            "another folder is at {}",
            String::from_utf8_lossy(dir.path.as_os_str().as_bytes())
        );
        return Err(io::Error::other(text));
    }
    Ok(OpenDir {
        fd: Arc::new(folder.into()),
        path: dir.path.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32) -> Peer {
        Peer {
            process: Some((uid, std::process::id() as i32)),
        }
    }

    fn shared(path: PathBuf) -> BTreeMap<String, SharedDir> {
        let dir = SharedDir::of(&path).unwrap();
        BTreeMap::from([("context".to_owned(), dir)])
    }

    #[test]
    fn folders_of_our_own_user_are_opened_and_of_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let dirs = shared(dir.path().to_owned());
        assert_eq!(peer(own).open_dirs(&dirs).len(), 1);
        assert!(peer(own + 1).open_dirs(&dirs).is_empty());
        assert!(Peer::default().open_dirs(&dirs).is_empty());
    }

    #[test]
    fn a_folder_that_is_not_the_one_the_client_saw_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let mut dirs = shared(dir.path().to_owned());
        if let Some(dir) = dirs.get_mut("context") {
            dir.inode += 1;
        }
        assert!(peer(own).open_dirs(&dirs).is_empty());
    }
}
