//! The store's metadata.
//!
//! ```text
//! meta(key, value)                         boot_id: when the unsynced layers were written
//! layers(id, description, record_type,     one row a committed layer
//!        created_us, last_used_us, usage_count,
//!        made_on,                          JSON list of ids, bottom first; or one id as JSON text:
//!                                          what that was made on, and it; or NULL
//!        size, whiteouts,                  NULL until somebody asked
//!        synced)                           1 once its files are known to be on disk
//! blobs(layer, key, blob)                  key: compression, such as `gzip` or `gzip:9`
//! named(name, layer)                       `diff:<digest>` and `chain:<digest>`
//! flats(id, layers)                        joined bottoms: JSON list of the joined ids
//! ```
//!
//! Times are microseconds since 1970.

use std::path::Path;

use jiff::Timestamp;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{LayerBlob, LayerId, LayerInfo, LayerNote, MadeOn, RecordType, Result};

/// How much of the database is kept in memory, in KiB; the kernel caches the file as well.
const CACHE_KIB: i64 = 512;
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS layers(
    id TEXT PRIMARY KEY,
    description TEXT NOT NULL,
    record_type TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    last_used_us INTEGER,
    usage_count INTEGER NOT NULL DEFAULT 0,
    made_on TEXT,
    size INTEGER,
    whiteouts INTEGER,
    synced INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blobs(
    layer TEXT NOT NULL REFERENCES layers(id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    blob TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY(layer, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS named(
    name TEXT PRIMARY KEY,
    layer TEXT NOT NULL REFERENCES layers(id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS named_layer ON named(layer);
CREATE TABLE IF NOT EXISTS flats(id TEXT PRIMARY KEY, layers TEXT NOT NULL UNIQUE) WITHOUT ROWID;
";

pub(crate) struct Database(Mutex<Connection>);

/// What a walk over a layer's files found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measure {
    /// Bytes of disk blocks.
    pub size: u64,
    /// Whether it says that something below is gone.
    pub whiteouts: bool,
}

impl Database {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "foreign_keys", "ON")?;
        connection.execute_batch(SCHEMA)?;
        Ok(Database(Mutex::new(connection)))
    }

    /// Notes the boot this process runs in. After another boot the layers not known to be on disk
    /// are not trusted, nor is what was joined of any: their rows are deleted.
    pub(crate) fn enter_boot(&self, boot_id: &str) -> Result<()> {
        let mut connection = self.0.lock();
        let transaction = connection.transaction()?;
        let known: Option<String> = transaction
            .query_row("SELECT value FROM meta WHERE key = 'boot_id'", [], |row| {
                row.get(0)
            })
            .optional()?;
        if known.as_deref() != Some(boot_id) {
            transaction.execute("DELETE FROM layers WHERE synced = 0", [])?;
            // Joined bottoms are made again from those that are left.
            transaction.execute("DELETE FROM flats", [])?;
            transaction.execute(
                "INSERT OR REPLACE INTO meta(key, value) VALUES('boot_id', ?1)",
                [boot_id],
            )?;
        }
        Ok(transaction.commit()?)
    }

    pub(crate) fn insert(
        &self,
        id: LayerId,
        note: &LayerNote,
        made_on: Option<&MadeOn>,
    ) -> Result<()> {
        let made_on = made_on.and_then(|below| serde_json::to_string(below).ok());
        self.0
            .lock()
            .prepare_cached(
                "INSERT INTO layers(id, description, record_type, created_us, made_on)
                 VALUES(?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                id.to_string(),
                note.description,
                note.record_type.name(),
                Timestamp::now().as_microsecond(),
                made_on,
            ])?;
        Ok(())
    }

    /// Forgets a layer; false if it was not known.
    pub(crate) fn delete(&self, id: LayerId) -> Result<bool> {
        let deleted = self
            .0
            .lock()
            .execute("DELETE FROM layers WHERE id = ?1", [id.to_string()])?;
        Ok(deleted > 0)
    }

    pub(crate) fn ids(&self) -> Result<Vec<LayerId>> {
        let connection = self.0.lock();
        let mut statement = connection.prepare_cached("SELECT id FROM layers")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|text| text?.parse()).collect()
    }

    /// What is known of a layer; its size is 0 and its blob missing.
    pub(crate) fn info(&self, id: LayerId) -> Result<Option<LayerInfo>> {
        let connection = self.0.lock();
        let mut statement = connection.prepare_cached(
            "SELECT description, record_type, created_us, last_used_us, usage_count, made_on
             FROM layers WHERE id = ?1",
        )?;
        let read = |row: &Row<'_>| read_info(id, row);
        Ok(statement.query_row([id.to_string()], read).optional()?)
    }

    /// Every layer with what it was made on, if that is known.
    pub(crate) fn all_made_on(&self) -> Result<Vec<(LayerId, Option<MadeOn>)>> {
        let connection = self.0.lock();
        let mut statement = connection.prepare("SELECT id, made_on FROM layers")?;
        let rows = statement.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?))
        })?;
        rows.map(|row| {
            let (id, made_on) = row?;
            let made_on = made_on.and_then(|text| serde_json::from_str(&text).ok());
            Ok((id.parse()?, made_on))
        })
        .collect()
    }

    /// What is known of every layer, with what was measured of it; blobs are missing.
    pub(crate) fn infos(&self) -> Result<Vec<(LayerInfo, Option<u64>)>> {
        let connection = self.0.lock();
        let mut statement = connection.prepare_cached(
            "SELECT description, record_type, created_us, last_used_us, usage_count, made_on,
                    size, id
             FROM layers ORDER BY id",
        )?;
        let rows = statement.query_map([], |row| {
            let size: Option<i64> = row.get(6)?;
            Ok((
                row.get::<_, String>(7)?,
                read_info(LayerId::NONE, row)?,
                size,
            ))
        })?;
        rows.map(|row| {
            let (id, info, size) = row?;
            let id = id.parse()?;
            Ok((LayerInfo { id, ..info }, size.map(|size| size as u64)))
        })
        .collect()
    }

    /// Every way every layer was packed.
    pub(crate) fn all_blobs(&self) -> Result<Vec<(LayerId, LayerBlob)>> {
        let connection = self.0.lock();
        let mut statement =
            connection.prepare_cached("SELECT layer, blob FROM blobs ORDER BY layer, number")?;
        let rows = statement.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        let mut blobs = Vec::new();
        for row in rows {
            let (id, text) = row?;
            if let Ok(blob) = serde_json::from_str(&text) {
                blobs.push((id.parse()?, blob));
            }
        }
        Ok(blobs)
    }

    pub(crate) fn measure(&self, id: LayerId) -> Result<Option<Measure>> {
        let connection = self.0.lock();
        let mut statement =
            connection.prepare_cached("SELECT size, whiteouts FROM layers WHERE id = ?1")?;
        let read = |row: &Row<'_>| -> rusqlite::Result<Option<Measure>> {
            let (size, whiteouts): (Option<i64>, Option<bool>) = (row.get(0)?, row.get(1)?);
            Ok(size.zip(whiteouts).map(|(size, whiteouts)| Measure {
                size: size as u64,
                whiteouts,
            }))
        };
        let found = statement.query_row([id.to_string()], read).optional()?;
        Ok(found.flatten())
    }

    pub(crate) fn set_measure(&self, id: LayerId, measure: Measure) -> Result<()> {
        self.0.lock().execute(
            "UPDATE layers SET size = ?2, whiteouts = ?3 WHERE id = ?1",
            params![id.to_string(), measure.size as i64, measure.whiteouts],
        )?;
        Ok(())
    }

    pub(crate) fn touch(&self, ids: &[LayerId]) -> Result<()> {
        let mut connection = self.0.lock();
        let transaction = connection.transaction()?;
        let now = Timestamp::now().as_microsecond();
        for id in ids {
            transaction
                .prepare_cached(
                    "UPDATE layers SET last_used_us = ?2, usage_count = usage_count + 1
                     WHERE id = ?1",
                )?
                .execute(params![id.to_string(), now])?;
        }
        Ok(transaction.commit()?)
    }

    pub(crate) fn set_blob(&self, id: LayerId, key: &str, blob: &LayerBlob) -> Result<()> {
        let text = serde_json::to_string(blob).unwrap_or_default();
        self.0.lock().execute(
            "INSERT INTO blobs(layer, key, blob, number)
             VALUES(?1, ?2, ?3, (SELECT COUNT(*) FROM blobs WHERE layer = ?1))
             ON CONFLICT(layer, key) DO UPDATE SET blob = excluded.blob",
            params![id.to_string(), key, text],
        )?;
        Ok(())
    }

    /// Every way a layer was packed, with its key, the one recorded first first.
    pub(crate) fn blobs(&self, id: LayerId) -> Result<Vec<(String, LayerBlob)>> {
        let connection = self.0.lock();
        let mut statement = connection
            .prepare_cached("SELECT key, blob FROM blobs WHERE layer = ?1 ORDER BY number")?;
        let rows = statement.query_map([id.to_string()], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        let mut blobs = Vec::new();
        for row in rows {
            let (key, text) = row?;
            blobs.extend(serde_json::from_str(&text).ok().map(|blob| (key, blob)));
        }
        Ok(blobs)
    }

    pub(crate) fn set_name(&self, name: &str, id: LayerId) -> Result<()> {
        self.0.lock().execute(
            "INSERT OR REPLACE INTO named(name, layer) VALUES(?1, ?2)",
            params![name, id.to_string()],
        )?;
        Ok(())
    }

    pub(crate) fn find_name(&self, name: &str) -> Result<Option<LayerId>> {
        let connection = self.0.lock();
        let mut statement = connection.prepare_cached("SELECT layer FROM named WHERE name = ?1")?;
        let found: Option<String> = statement.query_row([name], |row| row.get(0)).optional()?;
        found.map(|text| text.parse()).transpose()
    }

    pub(crate) fn insert_flat(&self, id: LayerId, layers: &[LayerId]) -> Result<()> {
        self.0.lock().execute(
            "INSERT INTO flats(id, layers) VALUES(?1, ?2)",
            params![id.to_string(), list(layers)],
        )?;
        Ok(())
    }

    pub(crate) fn find_flat(&self, layers: &[LayerId]) -> Result<Option<LayerId>> {
        let connection = self.0.lock();
        let found: Option<String> = connection
            .query_row(
                "SELECT id FROM flats WHERE layers = ?1",
                [list(layers)],
                |row| row.get(0),
            )
            .optional()?;
        found.map(|text| text.parse()).transpose()
    }

    pub(crate) fn delete_flat(&self, id: LayerId) -> Result<()> {
        self.0
            .lock()
            .execute("DELETE FROM flats WHERE id = ?1", [id.to_string()])?;
        Ok(())
    }

    /// The joined directories that have a layer in them.
    pub(crate) fn flats_with(&self, layer: LayerId) -> Result<Vec<LayerId>> {
        let connection = self.0.lock();
        let mut statement =
            connection.prepare_cached("SELECT id FROM flats WHERE instr(layers, ?1) > 0")?;
        let rows = statement.query_map([layer.to_string()], |row| row.get::<_, String>(0))?;
        rows.map(|text| text?.parse()).collect()
    }

    pub(crate) fn flats(&self) -> Result<Vec<(LayerId, Vec<LayerId>)>> {
        let connection = self.0.lock();
        let mut statement = connection.prepare_cached("SELECT id, layers FROM flats")?;
        let rows = statement.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        let mut flats = Vec::new();
        for row in rows {
            let (id, layers) = row?;
            flats.push((
                id.parse()?,
                serde_json::from_str(&layers).unwrap_or_default(),
            ));
        }
        Ok(flats)
    }

    /// The layers not known to be on disk.
    pub(crate) fn unsynced(&self) -> Result<Vec<LayerId>> {
        let connection = self.0.lock();
        let mut statement = connection.prepare_cached("SELECT id FROM layers WHERE synced = 0")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|text| text?.parse()).collect()
    }

    pub(crate) fn set_synced(&self, ids: &[LayerId]) -> Result<()> {
        let mut connection = self.0.lock();
        let transaction = connection.transaction()?;
        for id in ids {
            transaction
                .prepare_cached("UPDATE layers SET synced = 1 WHERE id = ?1")?
                .execute([id.to_string()])?;
        }
        Ok(transaction.commit()?)
    }
}

fn read_info(id: LayerId, row: &Row<'_>) -> rusqlite::Result<LayerInfo> {
    let kind: String = row.get(1)?;
    let made_on: Option<String> = row.get(5)?;
    Ok(LayerInfo {
        id,
        description: row.get(0)?,
        record_type: RecordType::from_name(&kind).unwrap_or_default(),
        created_at: time(row.get(2)?),
        last_used_at: row.get::<_, Option<i64>>(3)?.map(time),
        usage_count: row.get::<_, i64>(4)? as u64,
        size: 0,
        made_on: made_on.and_then(|text| serde_json::from_str(&text).ok()),
        blob: None,
        held: false,
    })
}

fn list(layers: &[LayerId]) -> String {
    serde_json::to_string(layers).unwrap_or_default()
}

fn time(microseconds: i64) -> Timestamp {
    Timestamp::from_microsecond(microseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}
