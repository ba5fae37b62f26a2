//! The records on disk.
//!
//! ```text
//! history.db   builds(ref PRIMARY KEY, record BLOB, created_at_ms, completed_at_ms, pinned)
//!              running(ref PRIMARY KEY, record BLOB)
//! ```
//! A record is the wire message itself (`BuildHistoryRecord`). A build is in one of the tables; one
//! that is in `running` when the file is opened was cut off with its server.

use std::path::Path;

use diag::{Code, Error, Result};
use parking_lot::Mutex;
use prost::Message;
use proto::control::BuildHistoryRecord;
use rusqlite::{Connection, OptionalExtension, params};

/// The newest format that this version reads and writes. Format 1 framed what builds said in
/// another way; its records are dropped.
const FORMAT: i64 = 2;
/// How much of the database is kept in memory, in KiB; the kernel caches the file as well.
const CACHE_KIB: i64 = 512;

/// The database.
pub(super) struct Records(Mutex<Connection>);

impl Records {
    /// Opens or makes the database at `path`.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let database = Connection::open(path).map_err(internal)?;
        database
            .pragma_update(None, "journal_mode", "WAL")
            .and_then(|()| database.pragma_update(None, "synchronous", "NORMAL"))
            .and_then(|()| database.pragma_update(None, "cache_size", -CACHE_KIB))
            .map_err(internal)?;
        let format: i64 = database
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(internal)?;
        if format > FORMAT {
            return Err(Error::new(
                Code::FailedPrecondition,
                format!("it has format {format}, this version reads up to {FORMAT}"),
            ));
        }
        if format == 1 {
            tracing::info!("build records of an older format are dropped");
            database
                .execute_batch("DROP TABLE builds;")
                .map_err(internal)?;
        }
        database
            .execute_batch(&format!(
                "BEGIN;
                 CREATE TABLE IF NOT EXISTS builds(
                     ref TEXT PRIMARY KEY,
                     record BLOB NOT NULL,
                     created_at_ms INTEGER NOT NULL,
                     completed_at_ms INTEGER NOT NULL,
                     pinned INTEGER NOT NULL);
                 CREATE TABLE IF NOT EXISTS running(
                     ref TEXT PRIMARY KEY,
                     record BLOB NOT NULL);
                 PRAGMA user_version = {FORMAT};
                 COMMIT;"
            ))
            .map_err(internal)?;
        Ok(Records(Mutex::new(database)))
    }

    /// A build began.
    pub(super) fn begin(&self, record: &BuildHistoryRecord) -> Result<()> {
        self.0
            .lock()
            .execute(
                "INSERT OR REPLACE INTO running(ref, record) VALUES (?1, ?2)",
                params![record.r#ref, record.encode_to_vec()],
            )
            .map_err(internal)?;
        Ok(())
    }

    /// Writes the record of a build that ended.
    pub(super) fn finish(&self, record: &BuildHistoryRecord) -> Result<()> {
        let mut database = self.0.lock();
        let change = database.transaction().map_err(internal)?;
        change
            .execute("DELETE FROM running WHERE ref = ?1", params![record.r#ref])
            .map_err(internal)?;
        change
            .execute(
                "INSERT OR REPLACE INTO builds(ref, record, created_at_ms, completed_at_ms, pinned)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    record.r#ref,
                    record.encode_to_vec(),
                    milliseconds(record.created_at.as_ref()),
                    milliseconds(record.completed_at.as_ref()),
                    record.pinned
                ],
            )
            .map_err(internal)?;
        change.commit().map_err(internal)
    }

    /// The record of a build that ended.
    pub(super) fn get(&self, build: &str) -> Result<Option<BuildHistoryRecord>> {
        let row: Option<Vec<u8>> = self
            .0
            .lock()
            .query_row(
                "SELECT record FROM builds WHERE ref = ?1",
                params![build],
                |row| row.get(0),
            )
            .optional()
            .map_err(internal)?;
        row.map(|bytes| decode(&bytes)).transpose()
    }

    /// Whether there was one to remove.
    pub(super) fn remove(&self, build: &str) -> Result<bool> {
        let removed = self
            .0
            .lock()
            .execute("DELETE FROM builds WHERE ref = ?1", params![build])
            .map_err(internal)?;
        Ok(removed > 0)
    }

    /// Builds that were running when the server before this one ended.
    pub(super) fn cut_off(&self) -> Result<Vec<BuildHistoryRecord>> {
        let mut records = Vec::new();
        self.each("SELECT record FROM running", |record| {
            records.push(record);
            true
        })?;
        Ok(records)
    }

    /// Shows the records of builds that ended, the newest first, until `visit` says that it has
    /// enough.
    pub(super) fn newest_first(&self, visit: impl FnMut(BuildHistoryRecord) -> bool) -> Result<()> {
        self.each(
            "SELECT record FROM builds ORDER BY created_at_ms DESC, rowid DESC",
            visit,
        )
    }

    /// Removes records that are both too old and too many; pinned ones count for nothing. The refs of
    /// those removed.
    pub(super) fn forget_old(&self, oldest_ms: i64, entries_max: i64) -> Result<Vec<String>> {
        let database = self.0.lock();
        let mut query = database
            .prepare_cached(
                "DELETE FROM builds WHERE pinned = 0 AND completed_at_ms < ?1 AND ref NOT IN (
                     SELECT ref FROM builds WHERE pinned = 0
                     ORDER BY completed_at_ms DESC LIMIT ?2)
                 RETURNING ref",
            )
            .map_err(internal)?;
        let removed = query
            .query_map(params![oldest_ms, entries_max.max(0)], |row| row.get(0))
            .map_err(internal)?;
        removed.map(|row| row.map_err(internal)).collect()
    }

    fn each(&self, query: &str, mut visit: impl FnMut(BuildHistoryRecord) -> bool) -> Result<()> {
        let database = self.0.lock();
        let mut query = database.prepare_cached(query).map_err(internal)?;
        let mut rows = query.query([]).map_err(internal)?;
        while let Some(row) = rows.next().map_err(internal)? {
            let bytes: Vec<u8> = row.get(0).map_err(internal)?;
            if !visit(decode(&bytes)?) {
                break;
            }
        }
        Ok(())
    }
}

fn milliseconds(at: Option<&bollard_buildkit_proto::google::protobuf::Timestamp>) -> i64 {
    at.map_or(0, |at| at.seconds * 1000 + i64::from(at.nanos) / 1_000_000)
}

fn decode(bytes: &[u8]) -> Result<BuildHistoryRecord> {
    BuildHistoryRecord::decode(bytes)
        .map_err(|error| Error::internal(format!("build history: {error}")))
}

fn internal(error: rusqlite::Error) -> Error {
    Error::internal(format!("build history: {error}"))
}
