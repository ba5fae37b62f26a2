//! Records of builds: those running, and those finished, which outlive the server.
//!
//! A record is the wire message itself (`BuildHistoryRecord`), kept by [`records`]; what it names by
//! digest, a build's status messages ([`log`]), its error with all details and its trace, are blobs
//! in the content store. Losing all of it loses history only.
//!
//! Invariant: a finished record names no blob that was not there when it was written, and its blobs
//! stay as long as it does ([`History::blobs`]).

mod filter;
mod log;
mod records;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use content::{ContentStore, Lease};
use diag::{Code, Context, Error, Result};
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use oci::Digest;
use parking_lot::Mutex;
use progress::SolveStatus;
use prost::Message;
use proto::control::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest,
    BuildResultInfo, Descriptor,
};
use tokio::sync::{broadcast, watch};

use crate::config::HistoryConfig;
use crate::errors::to_rpc_status;
use crate::wire::timestamp;
use filter::RecordFilters;
pub use log::StatusLog;
use records::Records;

/// The media type stock gives an error with all its details (its spelling too).
const ERROR_MEDIA_TYPE: &str = "application/vnd.googeapis.google.rpc.status+proto";
/// The media type stock gives the spans of a build.
const TRACE_MEDIA_TYPE: &str = "application/vnd.buildkit.otlp.json.v0";
/// How many events a slow listener may be behind.
const EVENTS_MAX: usize = 256;

/// What is known of builds.
pub struct History {
    records: Records,
    content: ContentStore,
    active: Mutex<HashMap<String, BuildHistoryRecord>>,
    events: broadcast::Sender<BuildHistoryEvent>,
    /// Builds that ended, and whose traces are on their way.
    tracing: watch::Sender<HashSet<String>>,
    /// Held by whoever changes a record that is there.
    changing: Mutex<()>,
    config: HistoryConfig,
}

/// The place for the trace of a build that ended; dropped, there will be none.
pub struct TraceSlot {
    history: Arc<History>,
    build: String,
}

/// How a build ended, for its record.
pub struct Ended<'e> {
    /// Its error, if it failed.
    pub error: Option<&'e Error>,
    /// What it said.
    pub events: &'e [Arc<SolveStatus>],
}

impl History {
    /// Opens or makes the database at `path`. Builds that were running when it was last used are
    /// recorded as failed.
    pub fn open(path: &Path, content: ContentStore, config: HistoryConfig) -> Result<Self> {
        let records =
            Records::open(path).with_context(|| format!("build history at {}", path.display()))?;
        let history = History {
            records,
            content,
            active: Mutex::new(HashMap::new()),
            events: broadcast::Sender::new(EVENTS_MAX),
            tracing: watch::Sender::default(),
            changing: Mutex::new(()),
            config,
        };
        history.finish_cut_off()?;
        Ok(history)
    }

    /// A build began. Blocks on the disk.
    pub fn start(&self, record: BuildHistoryRecord) -> Result<()> {
        self.active
            .lock()
            .insert(record.r#ref.clone(), record.clone());
        let written = self.records.begin(&record);
        self.tell(BuildHistoryEventType::Started, record);
        written
    }

    /// A build ended: keeps its record with what it said. Results that the record names are kept too,
    /// if they are in the content store. Blocks on the disk.
    ///
    /// # Errors
    /// The record could not be kept. The build is no longer among those running all the same.
    pub fn complete(&self, mut record: BuildHistoryRecord, ended: Ended<'_>) -> Result<()> {
        let lease = self.content.lease();
        if let Some(active) = self.active.lock().get(&record.r#ref) {
            // It may have been pinned while it ran.
            record.pinned = active.pinned;
        }
        let kept = self.attach(&mut record, &lease, ended);
        let kept = kept.and_then(|()| {
            record.generation += 1;
            self.records.finish(&record)
        });
        self.active.lock().remove(&record.r#ref);
        self.tell(BuildHistoryEventType::Complete, record);
        kept?;
        self.forget_old()
    }

    /// The record of a build, running or finished.
    pub fn get(&self, build: &str) -> Result<Option<BuildHistoryRecord>> {
        if let Some(record) = self.active.lock().get(build) {
            return Ok(Some(record.clone()));
        }
        self.records.get(build)
    }

    /// What a finished build said; `None` if there is no such record. Blocks on the disk, and so does
    /// reading it.
    pub fn status(&self, build: &str) -> Result<Option<StatusLog>> {
        let Some(record) = self.records.get(build)? else {
            return Ok(None);
        };
        let Some(logs) = record.logs else {
            return Ok(Some(StatusLog::empty()));
        };
        let digest: Digest = logs
            .digest
            .parse()
            .map_err(|error| Error::internal(format!("build history: {error}")))?;
        Ok(Some(StatusLog::of(self.content.open_blob(&digest)?)))
    }

    /// The events a request asks for: what is there now and, unless it asks for an early exit, what
    /// comes. A listener that is too slow for what comes gets an error, and may list anew.
    pub fn listen(
        &self,
        request: BuildHistoryRequest,
    ) -> Result<impl Stream<Item = Result<BuildHistoryEvent>> + Send + use<>> {
        // Subscribed before the list is read, so that nothing falls between the two.
        let events = self.events.subscribe();
        let now = self.present(&request)?;
        let live = (!request.early_exit).then(|| follow(events, request.r#ref));
        let live = futures::stream::iter(live).flatten();
        Ok(futures::stream::iter(now).map(Ok).chain(live))
    }

    /// Pins or unpins a record.
    pub fn pin(&self, build: &str, pinned: bool) -> Result<()> {
        if let Some(active) = self.active.lock().get_mut(build) {
            active.pinned = pinned;
            return Ok(());
        }
        match self.change(build, |record| record.pinned = pinned)? {
            true => Ok(()),
            false => Err(not_found(build)),
        }
    }

    /// Says that the trace of a build that ended will follow.
    pub fn trace_slot(self: &Arc<Self>, build: &str) -> TraceSlot {
        self.tracing.send_modify(|builds| {
            builds.insert(build.to_owned());
        });
        TraceSlot {
            history: self.clone(),
            build: build.to_owned(),
        }
    }

    /// Waits until nothing more will be added to the record of a build that ended.
    pub async fn finalize(&self, build: &str) {
        let mut tracing = self.tracing.subscribe();
        // Fails only when `self` is gone.
        let _ = tracing.wait_for(|builds| !builds.contains(build)).await;
    }

    /// Forgets a finished build.
    ///
    /// # Errors
    /// `NotFound`, in stock's words, if there is none; `FailedPrecondition` if it runs.
    pub fn delete(&self, build: &str) -> Result<()> {
        if self.active.lock().contains_key(build) {
            return Err(Error::new(
                Code::FailedPrecondition,
                format!("build {build} is running"),
            ));
        }
        if !self.records.remove(build)? {
            let text = format!("lease \"ref_{build}\": not found");
            return Err(Error::new(Code::NotFound, text));
        }
        self.tell(BuildHistoryEventType::Deleted, only_ref(build));
        Ok(())
    }

    /// The blobs that records name, with those that the images among them are made of but for their
    /// layers.
    pub fn blobs(&self) -> Result<HashSet<Digest>> {
        let mut blobs = HashSet::new();
        self.records.newest_first(|record| {
            let results = || record.results.values().chain(&record.result);
            let named = results()
                .flat_map(|result| &result.attestations)
                .chain(&record.logs)
                .chain(&record.external_error)
                .chain(&record.trace);
            blobs.extend(named.filter_map(digest_of));
            for image in results().flat_map(|result| result.results.values()) {
                self.image_blobs(digest_of(image), &mut blobs);
            }
            true
        })?;
        Ok(blobs)
    }

    /// Adds an image's index, manifests and configurations, those that are here.
    fn image_blobs(&self, digest: Option<Digest>, blobs: &mut HashSet<Digest>) {
        let Some(digest) = digest.filter(|digest| blobs.insert(*digest)) else {
            return;
        };
        #[derive(serde::Deserialize)]
        struct Children {
            #[serde(default)]
            manifests: Vec<oci::Descriptor>,
            config: Option<oci::Descriptor>,
        }
        let Ok(bytes) = self.content.read(&digest) else {
            return;
        };
        if let Ok(children) = serde_json::from_slice::<Children>(&bytes) {
            blobs.extend(children.config.map(|config| config.digest));
            for manifest in children.manifests {
                self.image_blobs(Some(manifest.digest), blobs);
            }
        }
    }

    /// Changes the record of a build that ended; false if there is none.
    fn change(&self, build: &str, change: impl FnOnce(&mut BuildHistoryRecord)) -> Result<bool> {
        let _alone = self.changing.lock();
        let Some(before) = self.records.get(build)? else {
            return Ok(false);
        };
        let mut record = before.clone();
        change(&mut record);
        if record != before {
            record.generation += 1;
            self.records.finish(&record)?;
            self.tell(BuildHistoryEventType::Complete, record);
        }
        Ok(true)
    }

    /// Writes what a record names.
    fn attach(
        &self,
        record: &mut BuildHistoryRecord,
        lease: &Lease,
        ended: Ended<'_>,
    ) -> Result<()> {
        if let Some(error) = ended.error {
            let mut status = to_rpc_status(error);
            let external = lease.put(&status.encode_to_vec())?;
            record.external_error = Some(self.describe(external, ERROR_MEDIA_TYPE));
            status.details.clear();
            record.error = Some(status);
        }
        if !ended.events.is_empty() {
            record.logs = Some(log::write(lease, ended.events)?);
        }
        for result in record.results.values_mut().chain(&mut record.result) {
            self.keep_present(result, lease);
        }
        Ok(())
    }

    /// Exports that leave nothing here, such as a client's folder, have no descriptor that anybody
    /// could ask for.
    fn keep_present(&self, result: &mut BuildResultInfo, lease: &Lease) {
        let present = |descriptor: &Descriptor| {
            digest_of(descriptor).is_some_and(|digest| lease.protect(digest))
        };
        result.results.retain(|_, descriptor| present(descriptor));
        result.attestations.retain(present);
        let first = result.results.iter().min_by_key(|(number, _)| **number);
        result.result_deprecated = first.map(|(_, descriptor)| descriptor.clone());
    }

    fn describe(&self, digest: Digest, media_type: &str) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_string(),
            size: self.content.size(&digest).unwrap_or(0) as i64,
            annotations: HashMap::new(),
        }
    }

    fn finish_cut_off(&self) -> Result<()> {
        for mut record in self.records.cut_off()? {
            let error = Error::new(
                Code::Unavailable,
                "the build was cut off: its server ended before it did",
            );
            record.completed_at = Some(timestamp(Timestamp::now()));
            let ended = Ended {
                error: Some(&error),
                events: &[],
            };
            tracing::info!("build {} was cut off by the end of a server", record.r#ref);
            self.complete(record, ended)?;
        }
        Ok(())
    }

    fn present(&self, request: &BuildHistoryRequest) -> Result<Vec<BuildHistoryEvent>> {
        let limit = match usize::try_from(request.limit) {
            Ok(0) => usize::MAX,
            Ok(limit) => limit,
            Err(_) => {
                return Err(Error::invalid(format!("invalid limit {}", request.limit)));
            }
        };
        let filters = RecordFilters::parse(&request.filter, Timestamp::now())?;
        let wanted = |record: &BuildHistoryRecord| {
            (request.r#ref.is_empty() || record.r#ref == request.r#ref) && filters.matches(record)
        };
        let mut events: Vec<_> = self
            .active
            .lock()
            .values()
            .filter(|record| wanted(record))
            .map(|record| event(BuildHistoryEventType::Started, record.clone()))
            .collect();
        if request.active_only {
            return Ok(events);
        }
        let mut finished = Vec::new();
        self.records.newest_first(|record| {
            if wanted(&record) {
                finished.push(event(BuildHistoryEventType::Complete, record));
            }
            finished.len() < limit
        })?;
        events.extend(finished);
        Ok(events)
    }

    /// Removes records that are both too old and too many.
    fn forget_old(&self) -> Result<()> {
        let oldest = Timestamp::now().as_millisecond()
            - i64::try_from(self.config.max_age.0.as_millis()).unwrap_or(i64::MAX);
        for build in self.records.forget_old(oldest, self.config.max_entries)? {
            self.tell(BuildHistoryEventType::Deleted, only_ref(&build));
        }
        Ok(())
    }

    fn tell(&self, kind: BuildHistoryEventType, record: BuildHistoryRecord) {
        // Nobody listening is no error.
        let _ = self.events.send(event(kind, record));
    }
}

impl TraceSlot {
    /// Puts the trace into the record: spans as JSON objects one after the other. Blocks on the disk. A
    /// record that is gone meanwhile needs none.
    pub fn fill(self, trace: &[u8]) -> Result<()> {
        let history = &self.history;
        let lease = history.content.lease();
        let digest = lease.put(trace)?;
        let descriptor = history.describe(digest, TRACE_MEDIA_TYPE);
        history.change(&self.build, |record| record.trace = Some(descriptor))?;
        Ok(())
    }
}

impl Drop for TraceSlot {
    fn drop(&mut self) {
        self.history.tracing.send_modify(|builds| {
            builds.remove(&self.build);
        });
    }
}

/// A record that begins now.
pub fn new_record(build: &str) -> BuildHistoryRecord {
    BuildHistoryRecord {
        r#ref: build.to_owned(),
        created_at: Some(timestamp(Timestamp::now())),
        ..BuildHistoryRecord::default()
    }
}

/// The events of one build, or of all when `wanted` is empty, as they come.
fn follow(
    events: broadcast::Receiver<BuildHistoryEvent>,
    wanted: String,
) -> impl Stream<Item = Result<BuildHistoryEvent>> + Send {
    futures::stream::unfold(Some((events, wanted)), |state| async {
        let (mut events, wanted) = state?;
        loop {
            match events.recv().await {
                Ok(event) => {
                    let of = event.record.as_ref().map(|record| record.r#ref.as_str());
                    if wanted.is_empty() || of == Some(wanted.as_str()) {
                        return Some((Ok(event), Some((events, wanted))));
                    }
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    let error = Error::new(
                        Code::Aborted,
                        format!("the listener was too slow and missed {missed} events"),
                    );
                    return Some((Err(error), None));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    })
}

fn event(kind: BuildHistoryEventType, record: BuildHistoryRecord) -> BuildHistoryEvent {
    BuildHistoryEvent {
        r#type: kind as i32,
        record: Some(record),
    }
}

fn only_ref(build: &str) -> BuildHistoryRecord {
    BuildHistoryRecord {
        r#ref: build.to_owned(),
        ..BuildHistoryRecord::default()
    }
}

fn digest_of(descriptor: &Descriptor) -> Option<Digest> {
    descriptor.digest.parse().ok()
}

fn not_found(build: &str) -> Error {
    Error::not_found(format!(
        "failed to retrieve ref {build}: file does not exist"
    ))
}

#[cfg(test)]
mod tests;
