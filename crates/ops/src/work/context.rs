//! What a running op sees of the build that wants it.

use std::sync::Arc;

use async_trait::async_trait;
use diag::Result;
use oci::Digest;
use progress::{VertexLog, VertexStatus, VertexWarning};
use proto::pb;
use solver::{Outcome, RunContext};
use status::{Status, StatusSink};

use super::output::Output;

/// Something that happened in a vertex. The vertex named in it does not count: each build that
/// watches fills in its own.
#[derive(Clone, Debug)]
pub enum Event {
    /// A piece of work: a download, a transfer.
    Status(VertexStatus),
    /// Output.
    Log(VertexLog),
    /// A warning.
    Warning(VertexWarning),
}

/// The files of a process that failed, by the number of the mount; `None` for mounts that have none.
#[derive(Clone, Debug, Default)]
pub struct FailedStep {
    /// What it started from.
    pub before: Vec<Option<Output>>,
    /// What it left behind.
    pub after: Vec<Option<Output>>,
}

/// The outside of a build: whom to tell, and the client that is asked for files and secrets.
#[async_trait]
pub trait Outside: Send + Sync + 'static {
    /// A vertex began to do something.
    fn started(&self, vertex: &Digest);
    /// Something happened in a vertex.
    fn event(&self, vertex: &Digest, event: &Event);
    /// A vertex ended.
    fn completed(&self, vertex: &Digest, outcome: Outcome<'_>);
    /// A vertex that has ended is used, and was not made again.
    fn reused(&self, vertex: &Digest);
    /// The client's session.
    async fn session(&self) -> Result<session::Session>;
    /// The client's session of that id, for sources that name one.
    async fn session_of(&self, id: &str) -> Result<session::Session>;
    /// Registries, with the client's credentials.
    fn registry(&self) -> registry::Client;
    /// Solves a definition that was found in a file, as a part of the build.
    async fn solve_definition(&self, definition: pb::Definition) -> Result<Output>;
    /// Whether somebody may want to look into steps that failed.
    fn wants_failures(&self) -> bool;
    /// A process failed; told only if it is wanted.
    fn failed(&self, vertex: &Digest, step: &FailedStep);
}

/// A build as the solver passes it around.
#[derive(Clone)]
pub struct BuildContext(Arc<dyn Outside>);

impl BuildContext {
    /// The context of a build with that outside.
    pub fn new(outside: Arc<dyn Outside>) -> Self {
        BuildContext(outside)
    }

    /// Whether both are of the same build.
    pub fn is(&self, other: &BuildContext) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::ops::Deref for BuildContext {
    type Target = dyn Outside;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl solver::Context for BuildContext {
    type Event = Event;

    fn started(&self, vertex: &Digest) {
        self.0.started(vertex);
    }

    fn event(&self, vertex: &Digest, event: &Event) {
        self.0.event(vertex, event);
    }

    fn completed(&self, vertex: &Digest, outcome: Outcome<'_>) {
        self.0.completed(vertex, outcome);
    }

    fn reused(&self, vertex: &Digest) {
        self.0.reused(vertex);
    }
}

/// Passes states of work on to everybody who watches a run.
pub struct RunSink {
    context: RunContext<BuildContext>,
    vertex: Digest,
}

impl RunSink {
    /// A sink for the work of a vertex.
    pub fn of_vertex(context: &RunContext<BuildContext>, vertex: Digest) -> Arc<dyn StatusSink> {
        Arc::new(RunSink {
            context: context.clone(),
            vertex,
        })
    }
}

impl StatusSink for RunSink {
    fn status(&self, status: Status) {
        let status = to_vertex_status(&status, self.vertex);
        self.context.emit(Event::Status(status));
    }
}

/// A line of work as it stands below a vertex.
pub fn to_vertex_status(status: &Status, vertex: Digest) -> VertexStatus {
    VertexStatus {
        id: status.id.clone(),
        vertex,
        name: status.action().to_owned(),
        current: status.current as i64,
        total: status.total as i64,
        timestamp: jiff::Timestamp::now(),
        started: Some(status.started),
        completed: status.completed,
    }
}
