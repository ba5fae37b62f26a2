//! Telling what happens while a server boots, as vertices of a build's progress.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use oci::Digest;
use progress::{SolveStatus, Vertex, VertexLog, VertexStatus};
use tokio::sync::mpsc;

/// Where boot progress goes: nowhere, or to a display.
#[derive(Clone, Default)]
pub struct BootProgress {
    sink: Sink,
    prefix: Option<String>,
}

#[derive(Clone, Default)]
enum Sink {
    #[default]
    Nowhere,
    Channel(mpsc::Sender<SolveStatus>),
    Callback(Arc<dyn Fn(SolveStatus) + Send + Sync>),
}

impl Sink {
    async fn send(&self, status: SolveStatus) {
        match self {
            Sink::Nowhere => {}
            Sink::Channel(sender) => {
                // A display that is gone does not stop the work.
                let _ = sender.send(status).await;
            }
            Sink::Callback(callback) => callback(status),
        }
    }
}

impl BootProgress {
    /// Nowhere.
    pub fn none() -> Self {
        Self::default()
    }

    /// To this channel; a receiver that is gone is no error.
    pub fn new(sender: mpsc::Sender<SolveStatus>) -> Self {
        BootProgress {
            sink: Sink::Channel(sender),
            prefix: None,
        }
    }

    /// To this function, which must not block for long.
    pub fn callback(callback: impl Fn(SolveStatus) + Send + Sync + 'static) -> Self {
        BootProgress {
            sink: Sink::Callback(Arc::new(callback)),
            prefix: None,
        }
    }

    /// With the node's name in the vertices' names, for when several boot at once.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.to_owned());
        self
    }

    /// Shows `work` as a vertex of that name; its error is the vertex's.
    pub async fn vertex<T, E, F, W>(&self, name: &str, work: W) -> Result<T, E>
    where
        W: FnOnce(VertexProgress) -> F,
        F: Future<Output = Result<T, E>>,
        E: std::fmt::Display,
    {
        let digest = Digest::of(rand::random::<[u8; 32]>());
        let name = match &self.prefix {
            None => name.to_owned(),
            Some(prefix) => match name.strip_prefix('[') {
                Some(rest) => format!("[{prefix} {rest}"),
                None => format!("[{prefix}] {name}"),
            },
        };
        let mut vertex = Vertex {
            digest,
            inputs: Vec::new(),
            name,
            started: Some(Timestamp::now()),
            completed: None,
            cached: false,
            error: String::new(),
            progress_group: None,
        };
        let steps = VertexProgress {
            sink: self.sink.clone(),
            digest,
        };
        steps.send_vertex(vertex.clone()).await;
        let result = work(steps.clone()).await;
        vertex.completed = Some(Timestamp::now());
        if let Err(error) = &result {
            vertex.error = error.to_string();
        }
        steps.send_vertex(vertex).await;
        result
    }
}

/// What happens within one vertex.
#[derive(Clone)]
pub struct VertexProgress {
    sink: Sink,
    digest: Digest,
}

impl VertexProgress {
    /// Shows `work` as a line of that name with the time it took.
    pub async fn step<T>(&self, name: &str, work: impl Future<Output = T>) -> T {
        let mut status = VertexStatus {
            id: name.to_owned(),
            vertex: self.digest,
            name: String::new(),
            current: 0,
            total: 0,
            timestamp: Timestamp::now(),
            started: Some(Timestamp::now()),
            completed: None,
        };
        self.status(status.clone()).await;
        let result = work.await;
        status.timestamp = Timestamp::now();
        status.completed = Some(status.timestamp);
        self.status(status).await;
        result
    }

    /// Shows a line that is done at once.
    pub async fn note(&self, name: &str) {
        self.step(name, std::future::ready(())).await;
    }

    /// Shows what a process wrote; `stream` is 1 for stdout, 2 for stderr.
    pub async fn log(&self, stream: i64, data: impl Into<Bytes>) {
        self.send(SolveStatus {
            logs: vec![VertexLog {
                vertex: self.digest,
                stream,
                timestamp: Timestamp::now(),
                data: data.into(),
            }],
            ..SolveStatus::default()
        })
        .await;
    }

    async fn status(&self, status: VertexStatus) {
        self.send(SolveStatus {
            statuses: vec![status],
            ..SolveStatus::default()
        })
        .await;
    }

    async fn send_vertex(&self, vertex: Vertex) {
        self.send(SolveStatus {
            vertexes: vec![vertex],
            ..SolveStatus::default()
        })
        .await;
    }

    async fn send(&self, status: SolveStatus) {
        self.sink.send(status).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vertex_with_a_step_is_told_from_start_to_end() {
        let (sender, mut receiver) = mpsc::channel(16);
        let progress = BootProgress::new(sender).with_prefix("n0");
        let result: Result<(), String> = progress
            .vertex("[internal] booting buildkit", |vertex| async move {
                vertex.step("creating container c", async {}).await;
                Err("no".to_owned())
            })
            .await;
        assert!(result.is_err());
        drop(progress);
        let mut seen = Vec::new();
        while let Some(status) = receiver.recv().await {
            for vertex in status.vertexes {
                seen.push(format!(
                    "{} {:?} {}",
                    vertex.name,
                    vertex.completed.is_some(),
                    vertex.error
                ));
            }
            for line in status.statuses {
                seen.push(format!("{} {:?}", line.id, line.completed.is_some()));
            }
        }
        assert_eq!(
            seen,
            [
                "[n0 internal] booting buildkit false ",
                "creating container c false",
                "creating container c true",
                "[n0 internal] booting buildkit true no"
            ]
        );
    }
}
