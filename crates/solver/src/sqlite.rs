//! The key store in SQLite.
//!
//! ```text
//! records(id, canonical UNIQUE, outputs JSON, note JSON, created_at_ms, last_used_at_ms, usage_count,
//!         description)
//! keys(key PRIMARY KEY, record → records.id, made_at_ms)
//! ```
//!
//! A source that changes often leaves one more key to the same record each time; of these the newest
//! few are kept, the others are found again by content.
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

use crate::KeyPart;
use crate::store::{KeyStore, Record, RecordInfo, RecordNote, StoreError};

/// The newest format this version reads and the one it writes.
const FORMAT: i64 = 2;
/// How much of the database is kept in memory, in KiB; the kernel caches the file as well.
const CACHE_KIB: i64 = 512;
/// How many keys may lead to one record.
const KEYS_MAX: usize = 64;
/// How many records of one description a miss is compared with.
const SIMILAR_MAX: usize = 8;
/// How many records are looked at before others get at the database.
const PAGE: usize = 256;

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
        database.pragma_update(None, "cache_size", -CACHE_KIB)?;
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
        if found == 1 {
            database.execute_batch(
                "BEGIN;
                 ALTER TABLE records ADD COLUMN description TEXT NOT NULL DEFAULT '';
                 ALTER TABLE keys ADD COLUMN made_at_ms INTEGER NOT NULL DEFAULT 0;
                 PRAGMA user_version = 2;
                 COMMIT;",
            )?;
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
                 usage_count INTEGER NOT NULL,
                 description TEXT NOT NULL DEFAULT '');
             CREATE TABLE IF NOT EXISTS keys(
                 key BLOB PRIMARY KEY,
                 record INTEGER NOT NULL REFERENCES records(id) ON DELETE CASCADE,
                 made_at_ms INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
             CREATE INDEX IF NOT EXISTS keys_of_record ON keys(record);
             CREATE INDEX IF NOT EXISTS records_described ON records(description, last_used_at_ms);
             PRAGMA user_version = 2;
             COMMIT;",
        )?;
        Ok(SqliteKeyStore {
            database: Mutex::new(database),
            check: Box::new(check),
        })
    }

    /// Id, outputs and time of last use of the next records.
    fn page_after(&self, id: i64) -> Result<Vec<(i64, String, i64)>, StoreError> {
        let database = self.database.lock();
        let mut statement = database.prepare_cached(
            "SELECT id, outputs, last_used_at_ms FROM records WHERE id > ?1 ORDER BY id LIMIT ?2",
        )?;
        let rows = statement.query_map(params![id, PAGE as i64], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
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
        .prepare_cached("INSERT OR REPLACE INTO keys(key, record, made_at_ms) VALUES (?1, ?2, ?3)")?
        .execute(params![key.as_bytes(), id, now_ms()])?;
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
        let description = &note.description;
        let note = serde_json::to_string(note)?;
        let mut database = self.database.lock();
        let transaction = database.transaction()?;
        let id: i64 = transaction
            .prepare_cached(
                "INSERT INTO records
                     (canonical, outputs, note, created_at_ms, last_used_at_ms, usage_count,
                      description)
                 VALUES (?1, ?2, ?3, ?4, ?4, 1, ?5)
                 ON CONFLICT(canonical) DO UPDATE SET
                     outputs = ?2, note = ?3, created_at_ms = ?4, last_used_at_ms = ?4,
                     description = ?5
                 RETURNING id",
            )?
            .query_row(
                params![canonical.as_bytes(), outputs, note, now_ms(), description],
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
            transaction
                .prepare_cached(
                    "DELETE FROM keys WHERE record = ?1 AND key <> ?2 AND key <> ?3 AND key NOT IN (
                         SELECT key FROM keys WHERE record = ?1
                         ORDER BY made_at_ms DESC LIMIT ?4)",
                )?
                .execute(params![
                    id,
                    canonical.as_bytes(),
                    key.as_bytes(),
                    KEYS_MAX as i64
                ])?;
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

    fn similar(&self, description: &str) -> Result<Vec<(Digest, Vec<KeyPart>)>, StoreError> {
        let database = self.database.lock();
        let mut statement = database.prepare_cached(
            "SELECT canonical, note FROM records WHERE description = ?1
             ORDER BY last_used_at_ms DESC LIMIT ?2",
        )?;
        let rows = statement.query_map(params![description, SIMILAR_MAX as i64], |row| {
            let note: String = row.get(1)?;
            let note: RecordNote = serde_json::from_str(&note).unwrap_or_default();
            Ok((digest(row.get(0)?)?, note.parts))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn forget_evicted(&self, unused_since_ms: i64, count_max: usize) -> Result<usize, StoreError> {
        let mut evicted = Vec::new();
        let mut last = i64::MIN;
        loop {
            let page = self.page_after(last)?;
            let Some((id, ..)) = page.last() else { break };
            last = *id;
            for (id, outputs, used) in page {
                if self.decode(&outputs).is_none() {
                    evicted.push((used, id));
                }
            }
        }
        evicted.sort_unstable_by(|one, two| two.cmp(one));
        let doomed = evicted
            .iter()
            .enumerate()
            .filter(|(at, (used, _))| *at >= count_max || *used < unused_since_ms);
        let mut database = self.database.lock();
        let transaction = database.transaction()?;
        let mut count = 0;
        for (_, (used, id)) in doomed {
            // One that was asked for, or made again, meanwhile stays.
            count += transaction
                .prepare_cached("DELETE FROM records WHERE id = ?1 AND last_used_at_ms = ?2")?
                .execute(params![id, used])?;
        }
        transaction.commit()?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> SqliteKeyStore<u64> {
        // Odd outputs are gone.
        SqliteKeyStore::open(path, |output: &u64| {
            output.is_multiple_of(2).then_some(*output)
        })
        .unwrap()
    }

    fn note(description: &str) -> RecordNote {
        RecordNote {
            description: description.into(),
            parts: vec![KeyPart::new("op", description)],
            missed: None,
        }
    }

    fn key(name: &str) -> Digest {
        Digest::of(name)
    }

    #[test]
    fn a_store_of_the_first_format_is_read_and_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(
            "CREATE TABLE records(id INTEGER PRIMARY KEY, canonical BLOB NOT NULL UNIQUE,
                 outputs TEXT NOT NULL, note TEXT NOT NULL, created_at_ms INTEGER NOT NULL,
                 last_used_at_ms INTEGER NOT NULL, usage_count INTEGER NOT NULL);
             CREATE TABLE keys(key BLOB PRIMARY KEY, record INTEGER NOT NULL
                 REFERENCES records(id) ON DELETE CASCADE) WITHOUT ROWID;
             PRAGMA user_version = 1;",
        )
        .unwrap();
        let canonical = key("c");
        old.execute(
            "INSERT INTO records VALUES (1, ?1, '[2]', '{\"description\":\"d\",\"parts\":[]}', 1, 1, 1)",
            params![canonical.as_bytes()],
        )
        .unwrap();
        old.execute(
            "INSERT INTO keys VALUES (?1, 1)",
            params![canonical.as_bytes()],
        )
        .unwrap();
        drop(old);
        for _ in 0..2 {
            let store = open(&path);
            let record = store.lookup(&canonical).unwrap().unwrap();
            assert_eq!(record.outputs, Some(vec![2]));
        }
    }

    #[test]
    fn keys_to_one_record_and_evicted_records_do_not_grow_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("keys.db"));
        store.save(&key("kept"), &[], &[2], &note("kept")).unwrap();
        for n in 0..5 * KEYS_MAX {
            store
                .alias(&key(&format!("alias {n}")), &key("kept"))
                .unwrap();
        }
        let count: i64 = store
            .database
            .lock()
            .query_row("SELECT count(*) FROM keys", [], |row| row.get(0))
            .unwrap();
        assert!(count <= KEYS_MAX as i64 + 2, "{count}");
        assert!(store.lookup(&key("kept")).unwrap().is_some());
        let newest = key(&format!("alias {}", 5 * KEYS_MAX - 1));
        assert!(store.lookup(&newest).unwrap().is_some());
        for n in 0..PAGE + 10 {
            let name = format!("gone {n}");
            store.save(&key(&name), &[], &[1], &note(&name)).unwrap();
        }
        assert_eq!(store.forget_evicted(0, PAGE).unwrap(), 10);
        assert_eq!(store.list().unwrap().len(), PAGE + 1);
        assert_eq!(store.forget_evicted(i64::MAX, PAGE).unwrap(), PAGE);
        assert!(store.lookup(&key("kept")).unwrap().is_some());
    }

    #[test]
    fn records_are_found_by_description_the_newest_first() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("keys.db"));
        for n in 0..2 * SIMILAR_MAX {
            let canonical = key(&format!("{n}"));
            store
                .save(&canonical, &[], &[2], &note("RUN make"))
                .unwrap();
        }
        store.save(&key("x"), &[], &[2], &note("COPY")).unwrap();
        let similar = store.similar("RUN make").unwrap();
        assert_eq!(similar.len(), SIMILAR_MAX);
        assert_eq!(similar[0].1, [KeyPart::new("op", "RUN make")]);
        assert!(store.similar("RUN other").unwrap().is_empty());
    }
}
