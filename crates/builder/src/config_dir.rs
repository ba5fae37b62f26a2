//! The directory with all that Buildx keeps: `$BUILDX_CONFIG`, else `buildx` beside Docker's
//! configuration.
//!
//! Files are written beside their place and renamed. The file in the making stands in the
//! directory itself and not in `instances/`, where stock would take it for a builder. Run through
//! sudo by a user whose home this is, files are given to that user.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Gid, Uid};

use crate::BuilderError;

/// Starts the names of files in the making.
const UNFINISHED: &str = ".tmp-cooperage-";
/// After this a file in the making is garbage of a process that was killed.
const UNFINISHED_AGE_MAX: Duration = Duration::from_secs(600);
/// Identity of this user on this machine.
const NODE_ID_FILE: &str = ".buildNodeID";
/// Server configuration used when none is named.
const DEFAULT_CONFIG_FILE: &str = "buildkitd.default.toml";

/// The directory.
#[derive(Clone, Debug)]
pub struct ConfigDir {
    dir: PathBuf,
    owner: Option<(u32, u32)>,
}

impl ConfigDir {
    /// The directory for this process, where Docker's configuration is in `docker_dir`.
    pub fn of_environment(docker_dir: &Path) -> Self {
        let dir = match std::env::var_os("BUILDX_CONFIG") {
            Some(dir) if !dir.is_empty() => PathBuf::from(dir),
            _ => docker_dir.join("buildx"),
        };
        let owner = sudoer(&dir);
        ConfigDir { dir, owner }
    }

    /// That directory.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        ConfigDir {
            dir: dir.into(),
            owner: None,
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The server configuration to use when the user names none, if there is one.
    pub fn default_server_config(&self) -> Option<PathBuf> {
        let path = self.dir.join(DEFAULT_CONFIG_FILE);
        path.is_file().then_some(path)
    }

    /// Makes a directory in it, and it itself.
    pub fn make_dir(&self, name: &str) -> Result<(), BuilderError> {
        use std::os::unix::fs::DirBuilderExt;
        let path = self.dir.join(name);
        if path.is_dir() {
            return Ok(());
        }
        let mut missing: Vec<&Path> = path
            .ancestors()
            .take_while(|ancestor| !ancestor.exists())
            .collect();
        missing.reverse();
        for dir in missing {
            match std::fs::DirBuilder::new().mode(0o700).create(dir) {
                Ok(()) => self.give(dir),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(BuilderError::file(dir)(error)),
            }
        }
        Ok(())
    }

    /// Writes a file in it whole or not at all; it survives a crash.
    pub fn write(&self, name: &str, data: &[u8]) -> Result<(), BuilderError> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.dir.join(name);
        self.make_dir("")?;
        let unfinished = self
            .dir
            .join(format!("{UNFINISHED}{:016x}", rand::random::<u64>()));
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&unfinished)?;
            file.write_all(data)?;
            file.sync_all()?;
            self.give(&unfinished);
            std::fs::rename(&unfinished, &path)
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&unfinished);
            BuilderError::file(path)(error)
        })
    }

    /// Removes files in the making whose makers were killed.
    pub(crate) fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten() {
            let unfinished = entry.file_name().to_string_lossy().starts_with(UNFINISHED);
            let old = || {
                let modified = entry.metadata().and_then(|meta| meta.modified()).ok()?;
                SystemTime::now().duration_since(modified).ok()
            };
            if unfinished && old().is_some_and(|age| age > UNFINISHED_AGE_MAX) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// The identity of this user on this machine, made on first use. Where it cannot be written,
    /// one that is the same for this process only.
    pub fn node_id(&self) -> String {
        let path = self.dir.join(NODE_ID_FILE);
        if let Ok(text) = std::fs::read_to_string(&path)
            && !text.trim().is_empty()
        {
            return text.trim().to_owned();
        }
        let id = format!("{:016x}", rand::random::<u64>());
        let _ = self.write(NODE_ID_FILE, id.as_bytes());
        // Somebody else may have been first.
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => text.trim().to_owned(),
            _ => id,
        }
    }

    /// Gives a file to the user behind sudo. Best effort: a file of root's is still readable to us.
    fn give(&self, path: &Path) {
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let _ = rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
        }
    }
}

/// The user who runs us through sudo, when the directory is in that user's home.
fn sudoer(dir: &Path) -> Option<(u32, u32)> {
    std::env::var_os("SUDO_COMMAND")?;
    let id = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let (uid, gid) = (id("SUDO_UID")?, id("SUDO_GID")?);
    let home = std::env::var("HOME").ok().filter(|home| !home.is_empty())?;
    (home_of(uid)? == home && dir.starts_with(&home) && dir != Path::new(&home))
        .then_some((uid, gid))
}

/// Reads the user database itself: a static executable cannot load the system's lookup modules.
fn home_of(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let matches = fields.next()?.parse::<u32>().ok()? == uid;
        matches.then(|| fields.nth(2).map(str::to_owned))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = ConfigDir::at(dir.path().join("buildx"));
        config.make_dir("instances").unwrap();
        config.write("instances/a", b"1").unwrap();
        config.write("instances/a", b"2").unwrap();
        assert_eq!(
            std::fs::read(config.path().join("instances/a")).unwrap(),
            b"2"
        );
        assert_eq!(std::fs::read_dir(config.path()).unwrap().count(), 1);
        assert_eq!(config.node_id(), config.node_id());
    }
}
