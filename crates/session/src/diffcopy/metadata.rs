//! Transfers of what files are without what is in them.
//!
//! The receiver notes down every entry in one file, and takes from the sender only those entries that
//! somebody asked for, with the directories they are in. The file is BuildKit's: each entry as the
//! message that it came in, after its length in four bytes, the lowest first.

use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;

use super::order;
use crate::error::SessionError;
use crate::packet::{FileStat, encode_stat};

/// The name of that file, in the destination.
pub const METADATA_FILE: &[u8] = b".fsutil-metadata";

/// Says of which paths the entry itself is wanted.
pub type Wanted = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// What came of a transfer of metadata.
pub struct Metadata {
    wanted: Wanted,
    notes: BytesMut,
    /// Directories around the present entry that were not given on, the outermost first.
    parents: Vec<(u32, FileStat)>,
}

impl Metadata {
    /// Nothing came yet.
    pub fn new(wanted: Wanted) -> Self {
        Metadata {
            wanted,
            notes: BytesMut::new(),
            parents: Vec::new(),
        }
    }

    /// Notes an entry down, and gives it on if it is wanted.
    pub fn take(
        &mut self,
        id: u32,
        stat: FileStat,
        entries: &mut Vec<(u32, FileStat)>,
    ) -> Result<(), SessionError> {
        order::check_path(&stat.path)?;
        if stat.path == METADATA_FILE {
            return Ok(());
        }
        let mut message = BytesMut::new();
        encode_stat(&stat, &mut message);
        self.notes
            .extend_from_slice(&(message.len() as u32).to_le_bytes());
        self.notes.extend_from_slice(&message);
        let (parent, _) = order::split(&stat.path);
        let is_around = |dir: &FileStat| {
            parent
                .strip_prefix(dir.path.as_slice())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        self.parents.retain(|(_, dir)| is_around(dir));
        if (self.wanted)(&stat.path) {
            entries.append(&mut self.parents);
            entries.push((id, stat));
        } else if stat.is_dir() {
            self.parents.push((id, stat));
        }
        Ok(())
    }

    /// Writes the notes; false if they are there already.
    pub fn write(&self, dest: &Path) -> Result<bool, SessionError> {
        let path = dest.join(std::ffi::OsStr::from_bytes(METADATA_FILE));
        let failed = |error| SessionError::file("write", &path, error);
        match std::fs::read(&path) {
            Ok(known) if known == self.notes => return Ok(false),
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        // Whatever is there, nothing is written through it.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .map_err(failed)?;
        file.write_all(&self.notes).map_err(failed)?;
        Ok(true)
    }
}
