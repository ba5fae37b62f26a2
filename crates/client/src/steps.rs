//! Showing what this side of a build does, as vertices among the server's.

use std::fmt::Display;
use std::future::Future;

use jiff::Timestamp;
use oci::Digest;
use progress::{SolveStatus, Vertex, VertexStatus};
use progress_ui::Progress;

use crate::id::new_id;

/// A vertex of our own while it runs.
#[derive(Clone, Debug)]
pub struct Step {
    progress: Progress,
    digest: Digest,
}

impl Step {
    /// Runs `work` as a vertex of that name; its error is shown as the vertex's.
    pub async fn run<T, E, F>(
        progress: &Progress,
        name: impl Into<String>,
        work: impl FnOnce(Step) -> F,
    ) -> Result<T, E>
    where
        E: Display,
        F: Future<Output = Result<T, E>>,
    {
        let step = Step {
            progress: progress.clone(),
            digest: Digest::of(new_id()),
        };
        let mut vertex = Vertex::new(step.digest, name);
        vertex.started = Some(Timestamp::now());
        let announce = |vertex: &Vertex| {
            progress.send(SolveStatus::of_vertexes(vec![vertex.clone()]));
        };
        announce(&vertex);
        let result = work(step).await;
        vertex.completed = Some(Timestamp::now());
        if let Err(error) = &result {
            vertex.error = error.to_string();
        }
        announce(&vertex);
        result
    }

    /// Shows something that is done at once.
    pub fn done(progress: &Progress, name: &str) {
        let now = Timestamp::now();
        let mut vertex = Vertex::new(Digest::of(new_id()), name);
        (vertex.started, vertex.completed) = (Some(now), Some(now));
        progress.send(SolveStatus::of_vertexes(vec![vertex]));
    }

    /// Shows a piece of the work.
    pub fn status(&self, mut status: VertexStatus) {
        status.vertex = self.digest;
        self.progress.send(SolveStatus {
            statuses: vec![status],
            ..SolveStatus::default()
        });
    }

    /// A piece of the work that starts now.
    pub fn begin(&self, id: impl Into<String>) -> VertexStatus {
        VertexStatus::started(self.digest, id, Timestamp::now())
    }
}
