//! The records of all builders, and which of them is current.
//!
//! ```text
//! .lock            flock'd by who reads and writes together
//! instances/NAME   record (JSON)
//! activity/NAME    time of the last build (RFC 3339)
//! current          {"Key": endpoint, "Name": builder, "Global": bool}
//! defaults/HASH    name of the default builder of the endpoint with that hash
//! refs/NAME/…      what builds left for `history`
//! broken/NAME      why the removal of that builder did not finish (ours)
//! kept/NODE        container or volume of that node were kept when its builder was removed (ours)
//! ```
//!
//! A directory that cannot be written is no obstacle to reading.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::names::validate_name;
use crate::{BuilderError, ConfigDir, NodeGroup};

const INSTANCES: &str = "instances";
const DEFAULTS: &str = "defaults";
const ACTIVITY: &str = "activity";
const BROKEN: &str = "broken";
const KEPT: &str = "kept";
const REFS: &str = "refs";
const CURRENT: &str = "current";

/// The records; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    config: ConfigDir,
}

/// Reading and writing that nobody else comes between; the lock is held until this is dropped.
#[derive(Debug)]
pub struct Transaction<'a> {
    store: &'a Store,
    /// Absent where the directory cannot be written.
    _lock: Option<File>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Current {
    key: String,
    name: String,
    global: bool,
}

impl Store {
    /// The records in that directory.
    pub fn new(config: ConfigDir) -> Self {
        Store { config }
    }

    /// The directory.
    pub fn config(&self) -> &ConfigDir {
        &self.config
    }

    /// Where the record of that name is, or would be.
    pub fn record_path(&self, name: &str) -> PathBuf {
        let name = validate_name(name).unwrap_or_else(|_| name.to_owned());
        self.config.path().join(INSTANCES).join(name)
    }

    /// Waits for the lock and takes it.
    pub fn transaction(&self) -> Transaction<'_> {
        let lock = self.lock();
        if lock.is_some() {
            self.config.sweep();
        }
        Transaction {
            store: self,
            _lock: lock,
        }
    }

    fn lock(&self) -> Option<File> {
        for dir in [INSTANCES, DEFAULTS, ACTIVITY] {
            self.config.make_dir(dir).ok()?;
        }
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.config.path().join(".lock"))
            .ok()?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).ok()?;
        Some(file)
    }
}

impl Transaction<'_> {
    fn path(&self, dir: &str, name: &str) -> PathBuf {
        self.store.config.path().join(dir).join(name)
    }

    /// Names of all records, sorted.
    pub fn names(&self) -> Result<Vec<String>, BuilderError> {
        let path = self.store.config.path().join(INSTANCES);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(BuilderError::file(path)(error)),
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| validate_name(name).is_ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// A record; `None` when there is none of that name.
    pub fn get(&self, name: &str) -> Result<Option<NodeGroup>, BuilderError> {
        let name = validate_name(name)?;
        let path = self.path(INSTANCES, &name);
        let reason = match read_regular(&path) {
            Ok(bytes) => match serde_json::from_slice::<NodeGroup>(&bytes) {
                Ok(group) if group.name.eq_ignore_ascii_case(&name) => return Ok(Some(group)),
                // What it names belongs to another record.
                Ok(group) => format!("it is that of builder {:?}", group.name),
                Err(error) => error.to_string(),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == ErrorKind::IsADirectory => "it is a directory".to_owned(),
            Err(error) if error.kind() == ErrorKind::InvalidInput => error.to_string(),
            Err(error) => return Err(BuilderError::file(path)(error)),
        };
        Err(BuilderError::CorruptRecord { name, path, reason })
    }

    /// Writes a record.
    pub fn save(&self, group: &NodeGroup) -> Result<(), BuilderError> {
        let name = validate_name(&group.name)?;
        self.touch(&name);
        for node in &group.nodes {
            // What was kept belongs to this builder again.
            self.set_kept(&node.name, false);
        }
        let path = format!("{INSTANCES}/{name}");
        let bytes = serde_json::to_vec(group).map_err(|error| BuilderError::Config {
            context: path.clone(),
            reason: error.to_string(),
        })?;
        self.store.config.write(&path, &bytes)
    }

    /// Removes a record and all that is kept beside it; one that is not there is no error.
    pub fn remove(&self, name: &str) -> Result<(), BuilderError> {
        let name = validate_name(name)?;
        for path in [self.path(ACTIVITY, &name), self.path(BROKEN, &name)] {
            let _ = std::fs::remove_file(path);
        }
        let _ = std::fs::remove_dir_all(self.path(REFS, &name));
        let path = self.path(INSTANCES, &name);
        let removed = match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => std::fs::remove_dir_all(&path),
            _ => std::fs::remove_file(&path),
        };
        match removed {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(BuilderError::file(path)(error)),
        }
    }

    /// Fails when records cannot be removed, so that this is known before anything else is.
    pub fn check_removable(&self, name: &str) -> Result<(), BuilderError> {
        let path = self.path(INSTANCES, &validate_name(name)?);
        match rustix::fs::access(path.parent().unwrap_or(&path), rustix::fs::Access::WRITE_OK) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(BuilderError::file(path)(error.into())),
        }
    }

    /// Removes what builds on one node left.
    pub fn remove_node_refs(&self, name: &str, node: &str) {
        if validate_name(name).is_ok() && validate_name(node).is_ok() {
            let _ = std::fs::remove_dir_all(self.path(REFS, name).join(node));
        }
    }

    /// Notes that the builder is used now. Best effort: the note decides nothing.
    pub fn touch(&self, name: &str) {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let _ = self.store.config.make_dir(ACTIVITY);
        let _ = self
            .store
            .config
            .write(&format!("{ACTIVITY}/{name}"), now.as_bytes());
    }

    /// When the builder was last used, if that is known.
    pub fn last_activity(&self, name: &str) -> Option<Timestamp> {
        let bytes = read_regular(&self.path(ACTIVITY, name)).ok()?;
        std::str::from_utf8(&bytes).ok()?.trim().parse().ok()
    }

    /// Notes that a removal did not finish; `None` takes the note away. Best effort.
    pub fn set_broken(&self, name: &str, reason: Option<&str>) {
        match reason {
            Some(reason) => {
                let _ = self.store.config.make_dir(BROKEN);
                let _ = self
                    .store
                    .config
                    .write(&format!("{BROKEN}/{name}"), reason.as_bytes());
            }
            None => {
                let _ = std::fs::remove_file(self.path(BROKEN, name));
            }
        }
    }

    /// Why the builder's removal did not finish, if that was tried.
    pub fn broken(&self, name: &str) -> Option<String> {
        let bytes = read_regular(&self.path(BROKEN, name)).ok()?;
        String::from_utf8(bytes).ok()
    }

    /// Notes that what a node left is kept on purpose, or no longer. Best effort.
    pub fn set_kept(&self, node: &str, kept: bool) {
        if validate_name(node).is_err() {
            return;
        }
        if kept {
            let _ = self.store.config.make_dir(KEPT);
            let _ = self.store.config.write(&format!("{KEPT}/{node}"), b"");
        } else {
            let _ = std::fs::remove_file(self.path(KEPT, node));
        }
    }

    /// Names of nodes of which something is kept on purpose.
    pub fn kept(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.store.config.path().join(KEPT));
        let names = entries.into_iter().flatten().flatten();
        names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// The current builder of that endpoint; `None` when that is the endpoint's own.
    pub fn current(&self, key: &str) -> Result<Option<NodeGroup>, BuilderError> {
        let current = self.read_current()?;
        if !current.name.is_empty() {
            if current.global
                && let Ok(Some(group)) = self.get(&current.name)
            {
                return Ok(Some(group));
            }
            if current.key == key {
                return Ok(self.get(&current.name).unwrap_or(None));
            }
        }
        let path = self.path(DEFAULTS, &hash(key));
        let name = match read_regular(&path) {
            // What is no text names no record.
            Ok(bytes) => String::from_utf8(bytes).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.reset_current(key);
                return Ok(None);
            }
            Err(error) => return Err(BuilderError::file(path)(error)),
        };
        let group = self.get(&name).unwrap_or(None);
        if group.is_none() {
            self.reset_current(key);
            return Ok(None);
        }
        // As stock does, so that both agree on what is current. Best effort.
        let _ = self.set_current(key, &name, false, true);
        Ok(group)
    }

    /// Makes a builder current for that endpoint, or for all of them (`global`); `default` makes it
    /// the one that a switch back to the endpoint finds.
    pub fn set_current(
        &self,
        key: &str,
        name: &str,
        global: bool,
        default: bool,
    ) -> Result<(), BuilderError> {
        self.write_current(&Current {
            key: key.to_owned(),
            name: name.to_owned(),
            global,
        })?;
        let file = format!("{DEFAULTS}/{}", hash(key));
        if default {
            self.store.config.make_dir(DEFAULTS)?;
            return self.store.config.write(&file, name.as_bytes());
        }
        let _ = std::fs::remove_file(self.store.config.path().join(file));
        Ok(())
    }

    fn reset_current(&self, key: &str) {
        let _ = self.write_current(&Current {
            key: key.to_owned(),
            ..Current::default()
        });
    }

    fn read_current(&self) -> Result<Current, BuilderError> {
        let path = self.store.config.path().join(CURRENT);
        match read_regular(&path) {
            // A current file that is garbage means that nothing was chosen.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Current::default()),
            Err(error) => Err(BuilderError::file(path)(error)),
        }
    }

    fn write_current(&self, current: &Current) -> Result<(), BuilderError> {
        let bytes = serde_json::to_vec(current).map_err(|error| BuilderError::Config {
            context: CURRENT.to_owned(),
            reason: error.to_string(),
        })?;
        self.store.config.write(CURRENT, &bytes)
    }
}

/// The content of a regular file, or of one that a link leads to. Anything else fails without being
/// opened: a pipe would wait for a writer that never comes, a device has no end.
fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let kind = std::fs::metadata(path)?.file_type();
    if kind.is_file() || kind.is_dir() {
        return std::fs::read(path);
    }
    let what = if kind.is_fifo() {
        "it is a named pipe"
    } else if kind.is_socket() {
        "it is a socket"
    } else {
        "it is a device"
    };
    Err(io::Error::new(ErrorKind::InvalidInput, what))
}

fn hash(key: &str) -> String {
    Digest::of(key).hex()[..20].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(ConfigDir::at(dir.path()));
        (dir, store)
    }

    fn group(name: &str) -> NodeGroup {
        NodeGroup {
            name: name.to_owned(),
            driver: "remote".to_owned(),
            ..NodeGroup::default()
        }
    }

    #[test]
    fn records_are_saved_listed_and_removed() {
        let (_dir, store) = store();
        let txn = store.transaction();
        txn.save(&group("b")).unwrap();
        txn.save(&group("a")).unwrap();
        assert_eq!(txn.names().unwrap(), ["a", "b"]);
        assert!(txn.last_activity("a").is_some());
        txn.remove("a").unwrap();
        txn.remove("a").unwrap();
        assert_eq!(txn.get("a").unwrap(), None);
        assert_eq!(txn.last_activity("a"), None);
    }

    #[test]
    fn a_corrupt_record_is_named_and_hides_no_other() {
        let (dir, store) = store();
        let txn = store.transaction();
        txn.save(&group("good")).unwrap();
        std::fs::write(dir.path().join("instances/bad"), b"{\"Name\":").unwrap();
        assert_eq!(txn.names().unwrap(), ["bad", "good"]);
        assert!(matches!(
            txn.get("bad"),
            Err(BuilderError::CorruptRecord { .. })
        ));
        assert!(txn.get("good").unwrap().is_some());
    }

    #[test]
    fn what_is_no_file_is_a_damaged_record_and_nothing_waits_for_it() {
        let (dir, store) = store();
        let txn = store.transaction();
        txn.save(&group("good")).unwrap();
        let instances = dir.path().join("instances");
        let pipe = |path: &Path| {
            rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU).unwrap();
        };
        pipe(&instances.join("pipe"));
        let _socket = std::os::unix::net::UnixListener::bind(instances.join("socket")).unwrap();
        std::fs::create_dir(instances.join("directory")).unwrap();
        for (link, target) in [
            ("zero", "/dev/zero"),
            ("to-pipe", "pipe"),
            ("to-good", "good"),
        ] {
            std::os::unix::fs::symlink(target, instances.join(link)).unwrap();
        }
        for (name, expected) in [
            ("pipe", "it is a named pipe"),
            ("to-pipe", "it is a named pipe"),
            ("socket", "it is a socket"),
            ("directory", "it is a directory"),
            ("zero", "it is a device"),
            ("to-good", "it is that of builder \"good\""),
        ] {
            assert!(txn.names().unwrap().contains(&name.to_owned()));
            let Err(BuilderError::CorruptRecord { reason, .. }) = txn.get(name) else {
                panic!("{name}");
            };
            assert_eq!(reason, expected, "{name}");
        }
        assert!(txn.get("good").unwrap().is_some());
        for name in ["pipe", "directory"] {
            txn.remove(name).unwrap();
            assert_eq!(txn.get(name).unwrap(), None);
        }
        for dir in ["activity", "broken"] {
            let _ = std::fs::create_dir(store.config().path().join(dir));
            pipe(&store.config().path().join(dir).join("piped"));
        }
        assert_eq!(txn.last_activity("piped"), None);
        assert_eq!(txn.broken("piped"), None);
    }

    #[test]
    fn current_follows_the_endpoint_its_default_and_the_global_choice() {
        let (_dir, store) = store();
        let txn = store.transaction();
        for name in ["a", "b"] {
            txn.save(&group(name)).unwrap();
        }
        let current = |key: &str| txn.current(key).unwrap().map(|group| group.name);
        assert_eq!(current("e"), None);
        txn.set_current("e", "a", false, false).unwrap();
        assert_eq!(current("e").as_deref(), Some("a"));
        assert_eq!(current("other"), None);
        txn.set_current("e", "b", false, true).unwrap();
        assert_eq!(current("other"), None);
        assert_eq!(current("e").as_deref(), Some("b"));
        txn.set_current("e", "a", true, false).unwrap();
        assert_eq!(current("other").as_deref(), Some("a"));
        txn.remove("a").unwrap();
        assert_eq!(current("e"), None);
    }

    #[test]
    fn a_directory_that_cannot_be_made_can_still_be_asked() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"").unwrap();
        let store = Store::new(ConfigDir::at(dir.path().join("file/buildx")));
        let txn = store.transaction();
        assert!(txn.get("a").is_err() || txn.get("a").unwrap().is_none());
        txn.touch("a");
    }
}
