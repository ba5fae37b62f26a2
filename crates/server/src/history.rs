//! Records of builds: those running, and those finished, which outlive the server.
//!
//! ```text
//! history.db   builds(ref PRIMARY KEY, record BLOB, completed_at_ms, pinned)
//! ```
//! A record is the wire message itself (`BuildHistoryRecord`); what a build said is a blob in the
//! content store, named by the record's `logs`: the status messages of the build one after the
//! other, each with its length before it (protobuf varint). Losing the file loses history only.

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::Path;

use content::ContentStore;
use diag::{Context, Error, Result};
use futures::Stream;
use jiff::Timestamp;
use oci::Digest;
use parking_lot::Mutex;
use progress::SolveStatus;
use prost::Message;
use proto::control::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, Descriptor,
    StatusResponse,
};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::broadcast;

use crate::config::HistoryConfig;
use crate::filters::Filters;
use crate::wire::timestamp;

/// The media type stock gives the blob of a build's status messages.
const STATUS_MEDIA_TYPE: &str = "application/vnd.buildkit.status.v0";
/// How many events a slow listener may be behind before it has to read the list anew.
const EVENTS_MAX: usize = 256;
/// The newest format of the database that this version reads and writes.
const FORMAT: i64 = 1;

/// What is known of builds.
pub struct History {
    database: Mutex<Connection>,
    content: ContentStore,
    active: Mutex<HashMap<String, BuildHistoryRecord>>,
    events: broadcast::Sender<BuildHistoryEvent>,
    config: HistoryConfig,
}

impl History {
    /// Opens or makes the database at `path`.
    pub fn open(path: &Path, content: ContentStore, config: HistoryConfig) -> Result<Self> {
        let database =
            open_database(path).with_context(|| format!("build history at {}", path.display()))?;
        Ok(History {
            database: Mutex::new(database),
            content,
            active: Mutex::new(HashMap::new()),
            events: broadcast::Sender::new(EVENTS_MAX),
            config,
        })
    }

    /// A build began.
    pub fn start(&self, record: BuildHistoryRecord) {
        self.active
            .lock()
            .insert(record.r#ref.clone(), record.clone());
        self.tell(BuildHistoryEventType::Started, record);
    }

    /// A build ended: keeps its record with what it said. Blocks on the disk.
    pub fn complete(&self, mut record: BuildHistoryRecord, said: &[StatusResponse]) -> Result<()> {
        let mut bytes = Vec::new();
        for message in said {
            bytes.extend(message.encode_length_delimited_to_vec());
        }
        // Protected until the record names it.
        let lease = self.content.lease();
        let digest = lease.put(&bytes)?;
        record.logs = Some(Descriptor {
            media_type: STATUS_MEDIA_TYPE.to_owned(),
            digest: digest.to_string(),
            size: bytes.len() as i64,
            annotations: HashMap::new(),
        });
        record.generation = 1;
        self.write(&record)?;
        self.active.lock().remove(&record.r#ref);
        self.tell(BuildHistoryEventType::Complete, record);
        self.forget_old()
    }

    /// The record of a build, running or finished.
    pub fn get(&self, build: &str) -> Result<Option<BuildHistoryRecord>> {
        if let Some(record) = self.active.lock().get(build) {
            return Ok(Some(record.clone()));
        }
        let row: Option<Vec<u8>> = self
            .database
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

    /// What a finished build said; `None` if it is not known.
    pub fn status(&self, build: &str) -> Result<Option<Vec<SolveStatus>>> {
        let Some(logs) = self.get(build)?.and_then(|record| record.logs) else {
            return Ok(None);
        };
        let digest: Digest = logs
            .digest
            .parse()
            .map_err(|error| Error::internal(format!("build history: {error}")))?;
        let bytes = self.content.read(&digest)?;
        let mut rest = bytes.as_slice();
        let mut said = Vec::new();
        while !rest.is_empty() {
            let message = StatusResponse::decode_length_delimited(&mut rest)
                .map_err(|error| Error::internal(format!("build history: {error}")))?;
            said.push(SolveStatus::from_proto(message));
        }
        Ok(Some(said))
    }

    /// The events a request asks for: what is there now and, unless it asks for an early exit, what
    /// comes.
    pub fn listen(
        &self,
        request: BuildHistoryRequest,
    ) -> Result<impl Stream<Item = BuildHistoryEvent> + Send + use<>> {
        // Subscribed before the list is read, so that nothing falls between the two.
        let events = self.events.subscribe();
        let now = self.present(&request)?;
        let wanted = request.r#ref.clone();
        let live = futures::stream::unfold(events, move |mut events| {
            let wanted = wanted.clone();
            async move {
                loop {
                    let event = match events.recv().await {
                        Ok(event) => event,
                        Err(broadcast::error::RecvError::Lagged(_)) => continue,
                        Err(broadcast::error::RecvError::Closed) => return None,
                    };
                    let record = event.record.as_ref()?;
                    if wanted.is_empty() || record.r#ref == wanted {
                        return Some((event, events));
                    }
                }
            }
        });
        let live = (!request.early_exit).then_some(live);
        use futures::StreamExt;
        Ok(futures::stream::iter(now).chain(futures::stream::iter(live).flatten()))
    }

    /// Pins or unpins a record.
    pub fn pin(&self, build: &str, pinned: bool) -> Result<()> {
        let Some(mut record) = self.get(build)? else {
            return Err(not_found(build));
        };
        if record.pinned == pinned {
            return Ok(());
        }
        record.pinned = pinned;
        record.generation += 1;
        if let Some(active) = self.active.lock().get_mut(build) {
            *active = record.clone();
            return Ok(());
        }
        self.write(&record)?;
        self.tell(BuildHistoryEventType::Complete, record);
        Ok(())
    }

    /// Forgets a finished build.
    pub fn delete(&self, build: &str) -> Result<()> {
        let Some(record) = self.get(build)? else {
            return Err(not_found(build));
        };
        self.database
            .lock()
            .execute("DELETE FROM builds WHERE ref = ?1", params![build])
            .map_err(internal)?;
        self.tell(BuildHistoryEventType::Deleted, record);
        Ok(())
    }

    /// The blobs that records name.
    pub fn blobs(&self) -> Result<HashSet<Digest>> {
        let mut blobs = HashSet::new();
        for record in self.finished()? {
            let results = record.results.values().chain(&record.result);
            let named = results
                .flat_map(|result| result.attestations.iter().chain(result.results.values()))
                .chain(&record.logs)
                .chain(&record.external_error);
            blobs.extend(named.filter_map(|descriptor| descriptor.digest.parse::<Digest>().ok()));
        }
        Ok(blobs)
    }

    fn present(&self, request: &BuildHistoryRequest) -> Result<Vec<BuildHistoryEvent>> {
        let filters = Filters::parse(&request.filter)?;
        let mut records: Vec<(BuildHistoryEventType, BuildHistoryRecord)> = Vec::new();
        for record in self.active.lock().values() {
            records.push((BuildHistoryEventType::Started, record.clone()));
        }
        if !request.active_only {
            let finished = self.finished()?;
            records.extend(
                finished
                    .into_iter()
                    .map(|record| (BuildHistoryEventType::Complete, record)),
            );
        }
        records.retain(|(_, record)| {
            (request.r#ref.is_empty() || record.r#ref == request.r#ref)
                && filters.matches(|path| field(record, path))
        });
        records.sort_by_key(|(_, record)| {
            let created = record.created_at.as_ref();
            created.map(|at| (at.seconds, at.nanos))
        });
        if let Ok(limit) = usize::try_from(request.limit)
            && limit > 0
            && records.len() > limit
        {
            records.drain(..records.len() - limit);
        }
        Ok(records
            .into_iter()
            .map(|(kind, record)| event(kind, record))
            .collect())
    }

    fn finished(&self) -> Result<Vec<BuildHistoryRecord>> {
        let database = self.database.lock();
        let mut query = database
            .prepare_cached("SELECT record FROM builds ORDER BY completed_at_ms")
            .map_err(internal)?;
        let rows = query
            .query_map([], |row| row.get::<_, Vec<u8>>(0))
            .map_err(internal)?;
        rows.map(|row| decode(&row.map_err(internal)?)).collect()
    }

    fn write(&self, record: &BuildHistoryRecord) -> Result<()> {
        let completed = record
            .completed_at
            .as_ref()
            .map_or(0, |at| at.seconds * 1000 + i64::from(at.nanos) / 1_000_000);
        self.database
            .lock()
            .execute(
                "INSERT OR REPLACE INTO builds(ref, record, completed_at_ms, pinned)
                 VALUES (?1, ?2, ?3, ?4)",
                params![
                    record.r#ref,
                    record.encode_to_vec(),
                    completed,
                    record.pinned
                ],
            )
            .map_err(internal)?;
        Ok(())
    }

    /// Removes records that are both too old and too many.
    fn forget_old(&self) -> Result<()> {
        let oldest = Timestamp::now().as_millisecond()
            - i64::try_from(self.config.max_age.0.as_millis()).unwrap_or(i64::MAX);
        self.database
            .lock()
            .execute(
                "DELETE FROM builds WHERE pinned = 0 AND completed_at_ms < ?1 AND ref NOT IN (
                     SELECT ref FROM builds ORDER BY completed_at_ms DESC LIMIT ?2)",
                params![oldest, self.config.max_entries],
            )
            .map_err(internal)?;
        Ok(())
    }

    fn tell(&self, kind: BuildHistoryEventType, record: BuildHistoryRecord) {
        // Nobody listening is no error.
        let _ = self.events.send(event(kind, record));
    }
}

fn open_database(path: &Path) -> Result<Connection> {
    let database = Connection::open(path).map_err(internal)?;
    database
        .pragma_update(None, "journal_mode", "WAL")
        .and_then(|()| database.pragma_update(None, "synchronous", "NORMAL"))
        .map_err(internal)?;
    let format: i64 = database
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(internal)?;
    if format > FORMAT {
        return Err(Error::new(
            diag::Code::FailedPrecondition,
            format!("it has format {format}, this version reads up to {FORMAT}"),
        ));
    }
    database
        .execute_batch(
            "BEGIN;
             CREATE TABLE IF NOT EXISTS builds(
                 ref TEXT PRIMARY KEY,
                 record BLOB NOT NULL,
                 completed_at_ms INTEGER NOT NULL,
                 pinned INTEGER NOT NULL);
             PRAGMA user_version = 1;
             COMMIT;",
        )
        .map_err(internal)?;
    Ok(database)
}

fn event(kind: BuildHistoryEventType, record: BuildHistoryRecord) -> BuildHistoryEvent {
    BuildHistoryEvent {
        r#type: kind as i32,
        record: Some(record),
    }
}

fn field(record: &BuildHistoryRecord, path: &[&str]) -> Option<String> {
    match path {
        ["ref"] => Some(record.r#ref.clone()),
        ["status"] => Some(
            match (&record.completed_at, &record.error) {
                (None, _) => "running",
                (_, None) => "completed",
                (_, Some(error)) if error.code == diag::Code::Canceled as i32 => "canceled",
                _ => "error",
            }
            .to_owned(),
        ),
        ["repository"] => record
            .frontend_attrs
            .get("vcs:source")
            .or_else(|| record.frontend_attrs.get("context"))
            .cloned(),
        _ => None,
    }
}

fn decode(bytes: &[u8]) -> Result<BuildHistoryRecord> {
    BuildHistoryRecord::decode(bytes)
        .map_err(|error| Error::internal(format!("build history: {error}")))
}

fn internal(error: rusqlite::Error) -> Error {
    Error::internal(format!("build history: {error}"))
}

fn not_found(build: &str) -> Error {
    Error::not_found(format!("no build {build} in the history"))
}

/// A record that begins now.
pub fn new_record(build: &str) -> BuildHistoryRecord {
    BuildHistoryRecord {
        r#ref: build.to_owned(),
        created_at: Some(timestamp(Timestamp::now())),
        ..BuildHistoryRecord::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    fn history(dir: &Path, config: HistoryConfig) -> History {
        let content = ContentStore::open(dir.join("content")).unwrap();
        History::open(&dir.join("history.db"), content, config).unwrap()
    }

    fn finish(history: &History, name: &str, at_seconds: i64) {
        let mut record = new_record(name);
        history.start(record.clone());
        let at = Timestamp::from_second(at_seconds).unwrap();
        record.completed_at = Some(timestamp(at));
        let vertex = progress::Vertex::new(Digest::of(name), name);
        let said = SolveStatus::of_vertexes(vec![vertex]).to_proto();
        history.complete(record, &said).unwrap();
    }

    async fn refs(history: &History, request: BuildHistoryRequest) -> Vec<String> {
        let events = history.listen(request).unwrap();
        events
            .map(|event| event.record.unwrap().r#ref)
            .collect()
            .await
    }

    #[tokio::test]
    async fn a_finished_build_is_listed_and_replayed_by_a_later_server() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now().as_second();
        finish(&history(dir.path(), HistoryConfig::default()), "a", now);
        let again = history(dir.path(), HistoryConfig::default());
        let early = BuildHistoryRequest {
            early_exit: true,
            ..BuildHistoryRequest::default()
        };
        assert_eq!(refs(&again, early.clone()).await, ["a"]);
        let other = BuildHistoryRequest {
            r#ref: "b".into(),
            ..early
        };
        assert!(refs(&again, other).await.is_empty());
        let said = again.status("a").unwrap().unwrap();
        assert_eq!(said[0].vertexes[0].name, "a");
        assert_eq!(again.blobs().unwrap().len(), 1);
        again.delete("a").unwrap();
        assert!(again.get("a").unwrap().is_none());
    }

    #[tokio::test]
    async fn old_records_go_when_there_are_enough_newer_ones() {
        let dir = tempfile::tempdir().unwrap();
        let config = HistoryConfig {
            max_age: crate::config::Span::from_secs(60),
            max_entries: 1,
        };
        let history = history(dir.path(), config);
        let now = Timestamp::now().as_second();
        finish(&history, "old", now - 1000);
        assert!(history.get("old").unwrap().is_some());
        finish(&history, "pinned", now - 999);
        assert!(history.get("old").unwrap().is_none());
        history.pin("pinned", true).unwrap();
        finish(&history, "new", now);
        assert!(history.get("pinned").unwrap().is_some());
    }

    #[tokio::test]
    async fn listeners_hear_of_builds_as_they_start_and_end() {
        let dir = tempfile::tempdir().unwrap();
        let history = history(dir.path(), HistoryConfig::default());
        let mut live = Box::pin(history.listen(BuildHistoryRequest::default()).unwrap());
        finish(&history, "a", 1);
        let kinds = [live.next().await.unwrap(), live.next().await.unwrap()];
        assert_eq!(kinds.map(|event| event.r#type), [0, 1]);
    }
}
