//! Databases of the state that cannot be read any more, because a disk or a hand damaged them, or took
//! them away.
//!
//! All of them describe caches and past builds, so a server that starts without them is better than
//! one that does not start: the file is set aside, for who wants to look at it, and a new one made. What
//! that cost is said in the log and to the user of the next build.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};

/// Renames the database at `path`, with its log, to `….damaged` if it is none that SQLite can read
/// from end to end. What users are told of it, if so; `what` is what it knew.
pub(crate) fn set_aside_if_damaged(path: &Path, what: &str) -> std::io::Result<Option<String>> {
    let Some(reason) = damage(path) else {
        return Ok(None);
    };
    for suffix in ["-wal", "-shm", ""] {
        let part = with_suffix(path, suffix);
        if part.exists() {
            std::fs::rename(&part, with_suffix(path, &format!("{suffix}.damaged")))?;
        }
    }
    let notice = format!(
        "{} was damaged ({reason}): {what} is lost; the file is kept as {}",
        path.display(),
        with_suffix(path, ".damaged").display()
    );
    tracing::error!("{notice}");
    Ok(Some(notice))
}

/// What users are told of a database that a hand has taken away, or emptied, from a state in which
/// something was built; `what` is what it knew.
pub(crate) fn notice_if_missing(state: &Path, database: &str, what: &str) -> Option<String> {
    let path = state.join(database);
    let built = std::fs::read_dir(state.join("layers/layers"));
    if !built.is_ok_and(|mut layers| layers.next().is_some())
        || std::fs::metadata(&path).is_ok_and(|meta| meta.len() > 0)
    {
        return None;
    }
    let notice = format!("{} is missing: {what} is lost", path.display());
    tracing::error!("{notice}");
    Some(notice)
}

/// What is wrong with a database, if it is there; errors of other kinds than damage are left to who
/// opens it next.
fn damage(path: &Path) -> Option<String> {
    if !path.exists() {
        return None;
    }
    let read = || -> rusqlite::Result<String> {
        let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        database.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
    };
    match read() {
        Ok(said) if said == "ok" => None,
        Ok(said) => Some(said.trim().replace('\n', " ")),
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Some(error.to_string()),
            _ => None,
        },
    }
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
    fn only_what_is_no_whole_database_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let set_aside = || set_aside_if_damaged(&path, "everything").unwrap();
        assert_eq!(set_aside(), None);
        assert!(!path.exists());
        let fill = || {
            let database = Connection::open(&path).unwrap();
            database
                .execute_batch(
                    "CREATE TABLE t(x); CREATE INDEX i ON t(x);
                     WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 5000)
                     INSERT INTO t SELECT hex(randomblob(50)) FROM n;",
                )
                .unwrap();
        };
        fill();
        assert_eq!(set_aside(), None);
        std::fs::write(&path, vec![b'?'; 8192]).unwrap();
        let notice = set_aside().unwrap();
        assert!(notice.contains("everything is lost"), "{notice}");
        assert!(!path.exists() && dir.path().join("x.db.damaged").exists());
        // Damage in the middle, where opening does not look.
        fill();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 8192].fill(0xa5);
        std::fs::write(&path, bytes).unwrap();
        assert!(set_aside().is_some());
    }
}
