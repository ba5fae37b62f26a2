//! The key store in SQLite.
//!
//! ```text
//! records(id, canonical UNIQUE, outputs JSON, note JSON, created_at_ms, last_used_at_ms, usage_count)
//! keys(key PRIMARY KEY, record → records.id)
//! ```
//!
//! WAL with `synchronous=NORMAL`: a commit survives kill -9 without a sync; a power cut may lose the
//! newest commits, never the order of them. The layer files that a record names are checked when it
//! is read, so a record that survived its files is a miss and no error.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use oci::Digest;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Serialize, de::DeserializeOwned};

use crate::store::{KeyStore, Record, RecordInfo, RecordNote, StoreError};

/// The newest format this version reads and the one it writes.
const FORMAT: i64 = 1;

type Check<O> = Box<dyn Fn(&O) -> Option<O> + Send + Sync>;

/// Keys and records in one SQLite file.
pub struct SqliteKeyStore<O> {
    database: Mutex<Connection>,
    check: Check<O>,
}

impl<O> SqliteKeyStore<O> {
    /// Opens or makes the file at `path`. `check` is given each output as it was stored and returns
    /// the one to use, or `None` if it is gone.
    ///
    /// # Errors
    /// Format, when a newer version made the file; else the database's.
    pub fn open(
        path: &Path,
        check: impl Fn(&O) -> Option<O> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let database = Connection::open(path)?;
        database.pragma_update(None, "journal_mode", "WAL")?;
        database.pragma_update(None, "synchronous", "NORMAL")?;
        database.pragma_update(None, "foreign_keys", true)?;
        let found: i64 = database.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found > FORMAT {
            let path = path.display().to_string();
            return Err(StoreError::Format {
                path,
                found,
                known: FORMAT,
            });
        }
        database.execute_batch(
            "BEGIN;
             CREATE TABLE IF NOT EXISTS records(
                 id INTEGER PRIMARY KEY,
                 canonical BLOB NOT NULL UNIQUE,
                 outputs TEXT NOT NULL,
                 note TEXT NOT NULL,
                 created_at_ms INTEGER NOT NULL,
                 last_used_at_ms INTEGER NOT NULL,
                 usage_count INTEGER NOT NULL);
             CREATE TABLE IF NOT EXISTS keys(
                 key BLOB PRIMARY KEY,
                 record INTEGER NOT NULL REFERENCES records(id) ON DELETE CASCADE) WITHOUT ROWID;
             CREATE INDEX IF NOT EXISTS keys_of_record ON keys(record);
             PRAGMA user_version = 1;
             COMMIT;",
        )?;
        Ok(SqliteKeyStore {
            database: Mutex::new(database),
            check: Box::new(check),
        })
    }

    /// All outputs, or `None` if one of them is gone.
    fn decode(&self, outputs: &str) -> Option<Vec<O>>
    where
        O: DeserializeOwned,
    {
        let stored: Vec<O> = serde_json::from_str(outputs).ok()?;
        stored.iter().map(|output| (self.check)(output)).collect()
    }
}

/// Makes a key lead to a record; a record that no key leads to any more is forgotten.
fn lead(transaction: &Transaction<'_>, key: &Digest, id: i64) -> Result<(), rusqlite::Error> {
    let before: Option<i64> = transaction
        .prepare_cached("SELECT record FROM keys WHERE key = ?1")?
        .query_row(params![key.as_bytes()], |row| row.get(0))
        .optional()?;
    if before == Some(id) {
        return Ok(());
    }
    transaction
        .prepare_cached("INSERT OR REPLACE INTO keys(key, record) VALUES (?1, ?2)")?
        .execute(params![key.as_bytes(), id])?;
    if let Some(before) = before {
        transaction
            .prepare_cached(
                "DELETE FROM records
                 WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM keys WHERE record = ?1)",
            )?
            .execute(params![before])?;
    }
    Ok(())
}

fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}

fn digest(bytes: Vec<u8>) -> Result<Digest, rusqlite::Error> {
    let bytes = <[u8; 32]>::try_from(bytes)
        .map_err(|bytes| rusqlite::Error::InvalidParameterName(format!("{} bytes", bytes.len())))?;
    Ok(Digest::from_bytes(bytes))
}

impl<O: Serialize + DeserializeOwned + Send + Sync + 'static> KeyStore<O> for SqliteKeyStore<O> {
    fn lookup(&self, key: &Digest) -> Result<Option<Record<O>>, StoreError> {
        let row = {
            let database = self.database.lock();
            let row = database
                .prepare_cached(
                    "SELECT id, canonical, outputs FROM records
                     WHERE id = (SELECT record FROM keys WHERE key = ?1)",
                )?
                .query_row(params![key.as_bytes()], |row| {
                    Ok((
                        row.get::<_, i64>(0)?,
                        row.get::<_, Vec<u8>>(1)?,
                        row.get::<_, String>(2)?,
                    ))
                })
                .optional()?;
            if let Some((id, _, _)) = &row {
                database
                    .prepare_cached(
                        "UPDATE records SET last_used_at_ms = ?2, usage_count = usage_count + 1
                         WHERE id = ?1",
                    )?
                    .execute(params![id, now_ms()])?;
            }
            row
        };
        let Some((_, canonical, outputs)) = row else {
            return Ok(None);
        };
        Ok(Some(Record {
            canonical: digest(canonical)?,
            outputs: self.decode(&outputs),
        }))
    }

    fn save(
        &self,
        canonical: &Digest,
        keys: &[Digest],
        outputs: &[O],
        note: &RecordNote,
    ) -> Result<(), StoreError> {
        let outputs = serde_json::to_string(outputs)?;
        let note = serde_json::to_string(note)?;
        let mut database = self.database.lock();
        let transaction = database.transaction()?;
        let id: i64 = transaction
            .prepare_cached(
                "INSERT INTO records
                     (canonical, outputs, note, created_at_ms, last_used_at_ms, usage_count)
                 VALUES (?1, ?2, ?3, ?4, ?4, 1)
                 ON CONFLICT(canonical) DO UPDATE SET
                     outputs = ?2, note = ?3, created_at_ms = ?4, last_used_at_ms = ?4
                 RETURNING id",
            )?
            .query_row(
                params![canonical.as_bytes(), outputs, note, now_ms()],
                |row| row.get(0),
            )?;
        for key in keys.iter().chain([canonical]) {
            lead(&transaction, key, id)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn alias(&self, key: &Digest, canonical: &Digest) -> Result<(), StoreError> {
        let mut database = self.database.lock();
        let transaction = database.transaction()?;
        let id = transaction
            .prepare_cached("SELECT id FROM records WHERE canonical = ?1")?
            .query_row(params![canonical.as_bytes()], |row| row.get(0))
            .optional()?;
        if let Some(id) = id {
            lead(&transaction, key, id)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn list(&self) -> Result<Vec<RecordInfo<O>>, StoreError> {
        let database = self.database.lock();
        let mut statement = database.prepare_cached(
            "SELECT canonical, outputs, note, created_at_ms, last_used_at_ms, usage_count
             FROM records ORDER BY id",
        )?;
        let rows = statement.query_map([], |row| {
            let note: String = row.get(2)?;
            let outputs: String = row.get(1)?;
            Ok(RecordInfo {
                canonical: digest(row.get(0)?)?,
                outputs: self.decode(&outputs),
                created_at_ms: row.get(3)?,
                last_used_at_ms: row.get(4)?,
                usage_count: row.get(5)?,
                note: serde_json::from_str(&note).unwrap_or_default(),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn remove(&self, canonical: &Digest) -> Result<(), StoreError> {
        self.database
            .lock()
            .prepare_cached("DELETE FROM records WHERE canonical = ?1")?
            .execute(params![canonical.as_bytes()])?;
        Ok(())
    }
}
