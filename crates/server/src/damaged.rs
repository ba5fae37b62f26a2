//! Databases of the state that cannot be read any more, because a disk or a hand damaged them.
//!
//! All of them describe caches and past builds, so a server that starts without them is better than
//! one that does not start: the file is set aside, for who wants to look at it, and a new one made.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};

/// Renames the database at `path`, with its log, to `….damaged` if it is none that SQLite can read.
pub(crate) fn set_aside_if_damaged(path: &Path) -> std::io::Result<()> {
    if !path.exists() || is_readable(path) {
        return Ok(());
    }
    tracing::warn!("{} is damaged: a new one is made", path.display());
    for suffix in ["-wal", "-shm", ""] {
        let part = with_suffix(path, suffix);
        if part.exists() {
            std::fs::rename(&part, with_suffix(path, &format!("{suffix}.damaged")))?;
        }
    }
    Ok(())
}

/// Errors of other kinds are left to who opens it next.
fn is_readable(path: &Path) -> bool {
    let read = || -> rusqlite::Result<i64> {
        let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        database.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
    };
    !matches!(
        read().map_err(|error| error.sqlite_error_code()),
        Err(Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
    )
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_database_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        set_aside_if_damaged(&path).unwrap();
        assert!(!path.exists());
        Connection::open(&path)
            .and_then(|database| database.execute_batch("CREATE TABLE t(x)"))
            .unwrap();
        set_aside_if_damaged(&path).unwrap();
        assert!(path.exists());
        std::fs::write(&path, vec![b'?'; 8192]).unwrap();
        set_aside_if_damaged(&path).unwrap();
        assert!(!path.exists() && dir.path().join("x.db.damaged").exists());
    }
}
