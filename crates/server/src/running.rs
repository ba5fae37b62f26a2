//! A build while it runs: its vertices, what they say, and the client behind it.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use diag::{Error, Result};
use jiff::Timestamp;
use llb::Graph;
use oci::Digest;
use ops::work::{Event, FailedStep, Output, Outside, to_vertex_status};
use parking_lot::Mutex;
use progress::{SolveStatus, Vertex};
use proto::pb;
use session::{Session, SessionManager};
use solver::Outcome;
use status::{Status, StatusSink};

use crate::credentials::SessionCredentials;
use crate::job::Job;
use crate::progress_log::ProgressLog;
use crate::source_policy::Rules;

/// How long a client may take to bring up the session that a build needs.
const SESSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Numbers of a build for its history record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Vertices known.
    pub total: i32,
    /// Vertices that ended.
    pub completed: i32,
    /// Vertices found in the cache.
    pub cached: i32,
    /// Warnings given.
    pub warnings: i32,
}

/// A build while it runs.
pub struct Running {
    id: String,
    session_id: String,
    sessions: SessionManager,
    registry: registry::Client,
    progress: ProgressLog,
    /// The build itself, which owns this.
    job: OnceLock<Weak<Job>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    vertices: HashMap<Digest, Vertex>,
    locations: HashMap<Digest, Vec<diag::SourceLocation>>,
    warnings: i32,
    /// `None` while nobody wants them.
    failures: Option<HashMap<Digest, FailedStep>>,
}

impl Running {
    /// A build of that id, for the client with that session (may be empty: then nothing can be
    /// asked of it).
    pub fn new(
        id: impl Into<String>,
        session_id: impl Into<String>,
        sessions: SessionManager,
        registry: &registry::Client,
    ) -> Arc<Self> {
        let session_id = session_id.into();
        let credentials = SessionCredentials::new(sessions.clone(), session_id.clone());
        Arc::new(Running {
            id: id.into(),
            session_id,
            sessions,
            registry: registry.with_credentials(Arc::new(credentials)),
            progress: ProgressLog::new(),
            job: OnceLock::new(),
            state: Mutex::new(State::default()),
        })
    }

    /// Says which build it is, once.
    pub(crate) fn attach(&self, job: &Arc<Job>) {
        let _ = self.job.set(Arc::downgrade(job));
    }

    /// From now on what failed steps leave behind is kept until the build ends.
    pub fn keep_failures(&self) {
        self.state.lock().failures.get_or_insert_default();
    }

    /// What a failed step left behind.
    pub fn failure(&self, vertex: &Digest) -> Option<FailedStep> {
        self.state.lock().failures.as_ref()?.get(vertex).cloned()
    }

    /// Its id, which clients call its ref.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The id of its client's session.
    pub fn session_id(&self) -> &str {
        &self.session_id
    }

    /// What it says.
    pub fn progress(&self) -> &ProgressLog {
        &self.progress
    }

    /// Numbers for its history record.
    pub fn counts(&self) -> Counts {
        let state = self.state.lock();
        let count = |test: fn(&Vertex) -> bool| {
            state
                .vertices
                .values()
                .filter(|vertex| test(vertex))
                .count() as i32
        };
        Counts {
            total: count(|_| true),
            completed: count(|vertex| vertex.completed.is_some()),
            cached: count(|vertex| vertex.cached),
            warnings: state.warnings,
        }
    }

    /// Tells of the vertices of a graph that were not known.
    pub fn announce(&self, graph: &Graph) {
        let mut state = self.state.lock();
        let mut news = Vec::new();
        for digest in &graph.order {
            let Some(op) = graph.vertex(digest) else {
                continue;
            };
            if !op.locations.is_empty() {
                state
                    .locations
                    .entry(*digest)
                    .or_insert_with(|| op.locations.clone());
            }
            if state.vertices.contains_key(digest) {
                continue;
            }
            let vertex = Vertex {
                inputs: op.inputs.iter().map(|edge| edge.vertex).collect(),
                progress_group: op.meta.progress_group.clone(),
                ..Vertex::new(*digest, op.name())
            };
            state.vertices.insert(*digest, vertex.clone());
            news.push(vertex);
        }
        drop(state);
        self.progress.push(SolveStatus::of_vertexes(news));
    }

    /// The error with the places in the user's files that the failed vertex came from.
    pub fn locate(&self, error: Error) -> Error {
        if !error.locations().is_empty() {
            return error;
        }
        let digest = error
            .failed_vertex()
            .and_then(|vertex| vertex.parse::<Digest>().ok());
        let Some(digest) = digest else { return error };
        let locations = self.state.lock().locations.get(&digest).cloned();
        locations
            .unwrap_or_default()
            .into_iter()
            .fold(error, Error::at)
    }

    /// Does something that is shown as a vertex of its own but is no part of a graph. Equal ids are
    /// one vertex.
    pub async fn step<T>(
        &self,
        name: &str,
        id: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let digest = Digest::of(if id.is_empty() { name } else { id });
        {
            let mut state = self.state.lock();
            state
                .vertices
                .entry(digest)
                .or_insert_with(|| Vertex::new(digest, name));
        }
        self.started(&digest);
        // Cancelled work is dropped here; it must not stay shown as running.
        let guard = StepGuard {
            running: self,
            digest,
            done: false,
        };
        let outcome = work.await;
        guard.finish(outcome.as_ref().err());
        outcome
    }

    /// A sink whose lines belong to the vertex that [`Running::step`] makes of that name and id.
    pub fn sink(self: &Arc<Self>, name: &str, id: &str) -> Arc<dyn StatusSink> {
        let vertex = Digest::of(if id.is_empty() { name } else { id });
        Arc::new(VertexSink {
            running: self.clone(),
            vertex,
        })
    }

    /// The build has ended: what still ran for it is shown as cancelled, and nothing more is said.
    pub fn end(&self) {
        let open: Vec<Digest> = {
            let state = self.state.lock();
            let running = |vertex: &&Vertex| vertex.started.is_some() && vertex.completed.is_none();
            let open = state.vertices.values().filter(running);
            open.map(|vertex| vertex.digest).collect()
        };
        for vertex in open {
            self.finish(&vertex, false, Some(&Error::canceled()));
        }
        self.state.lock().failures = None;
        self.progress.end();
    }

    fn finish(&self, vertex: &Digest, cached: bool, error: Option<&Error>) {
        let now = Timestamp::now();
        let mut state = self.state.lock();
        let Some(known) = state.vertices.get_mut(vertex) else {
            return;
        };
        known.started.get_or_insert(now);
        known.completed = Some(now);
        known.cached = cached;
        known.error = error.map(Error::to_string).unwrap_or_default();
        let event = SolveStatus::of_vertexes(vec![known.clone()]);
        drop(state);
        self.progress.push(event);
    }
}

struct StepGuard<'a> {
    running: &'a Running,
    digest: Digest,
    done: bool,
}

impl StepGuard<'_> {
    fn finish(mut self, error: Option<&Error>) {
        self.done = true;
        self.running.finish(&self.digest, false, error);
    }
}

impl Drop for StepGuard<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.running
                .finish(&self.digest, false, Some(&Error::canceled()));
        }
    }
}

struct VertexSink {
    running: Arc<Running>,
    vertex: Digest,
}

impl StatusSink for VertexSink {
    fn status(&self, status: Status) {
        let event = Event::Status(to_vertex_status(&status, self.vertex));
        self.running.event(&self.vertex, &event);
    }
}

#[async_trait]
impl Outside for Running {
    fn started(&self, vertex: &Digest) {
        let now = Timestamp::now();
        let mut state = self.state.lock();
        let Some(known) = state.vertices.get_mut(vertex) else {
            return;
        };
        if known.started.is_some() && known.completed.is_none() {
            return;
        }
        known.started = Some(now);
        known.completed = None;
        let event = SolveStatus::of_vertexes(vec![known.clone()]);
        drop(state);
        self.progress.push(event);
    }

    fn event(&self, vertex: &Digest, event: &Event) {
        let mut status = SolveStatus::default();
        match event.clone() {
            Event::Status(mut entry) => {
                entry.vertex = *vertex;
                status.statuses.push(entry);
            }
            Event::Log(mut log) => {
                log.vertex = *vertex;
                status.logs.push(log);
            }
            Event::Warning(mut warning) => {
                warning.vertex = *vertex;
                self.state.lock().warnings += 1;
                status.warnings.push(warning);
            }
        }
        self.progress.push(status);
    }

    fn completed(&self, vertex: &Digest, outcome: Outcome<'_>) {
        match outcome {
            Outcome::Cached => self.finish(vertex, true, None),
            Outcome::Done => self.finish(vertex, false, None),
            Outcome::Failed(error) => self.finish(vertex, false, Some(error)),
        }
    }

    fn reused(&self, vertex: &Digest) {
        let now = Timestamp::now();
        let mut state = self.state.lock();
        let Some(known) = state.vertices.get_mut(vertex) else {
            return;
        };
        // A second span of time, as stock shows what it loads: the first was that of the pinning.
        known.started = Some(now);
        known.completed = None;
        known.cached = true;
        let began = known.clone();
        known.completed = Some(now);
        let event = SolveStatus::of_vertexes(vec![began, known.clone()]);
        drop(state);
        self.progress.push(event);
    }

    async fn session(&self) -> Result<Session> {
        self.session_of(&self.session_id).await
    }

    async fn session_of(&self, id: &str) -> Result<Session> {
        if id.is_empty() {
            return Err(Error::new(
                diag::Code::FailedPrecondition,
                "no active sessions",
            ));
        }
        Ok(self.sessions.get(id, SESSION_TIMEOUT).await?)
    }

    fn registry(&self) -> registry::Client {
        self.registry.clone()
    }

    async fn solve_definition(&self, definition: pb::Definition) -> Result<Output> {
        let job = self.job.get().and_then(Weak::upgrade);
        let job = job.ok_or_else(Error::canceled)?;
        match job.load_definition(definition, &Rules::default()).await? {
            Some(reference) => job.evaluate(&reference).await,
            None => Ok(Output::empty()),
        }
    }

    fn wants_failures(&self) -> bool {
        self.state.lock().failures.is_some()
    }

    fn failed(&self, vertex: &Digest, step: &FailedStep) {
        if let Some(failures) = &mut self.state.lock().failures {
            failures.insert(*vertex, step.clone());
        }
    }
}
