//! Loading an image into a Docker Engine while the server exports it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use diag::Error;
use driver::engine::{Engine, JsonMessage};
use futures::Stream;
use jiff::Timestamp;
use progress::VertexStatus;
use progress_ui::Progress;
use tokio::sync::mpsc;

use crate::steps::Step;

/// How often the progress of a layer is shown at most.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// Loads an archive as it arrives. From when the Engine answers, it is shown as the vertex
/// `importing to docker`.
pub async fn load_image<S>(engine: Engine, archive: S, progress: Progress) -> Result<(), Error>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
{
    let (messages, told) = mpsc::unbounded_channel();
    let loading = async move {
        let tell = move |message: &JsonMessage| {
            let _ = messages.send(message.clone());
        };
        engine.load_images(archive, tell).await.map_err(Error::from)
    };
    show(loading, told, progress).await
}

/// Shows what an Engine tells while it loads.
async fn show(
    loading: impl Future<Output = Result<(), Error>>,
    mut told: mpsc::UnboundedReceiver<JsonMessage>,
    progress: Progress,
) -> Result<(), Error> {
    tokio::pin!(loading);
    let (first, ended) = tokio::select! {
        biased;
        first = told.recv() => (first, None),
        result = &mut loading => (None, Some(result)),
    };
    Step::run(&progress, "importing to docker", |step| async move {
        let mut layers = Layers::default();
        let mut note = |message: &JsonMessage| {
            if let Some(status) = layers.note(message, &step, Instant::now()) {
                step.status(status);
            }
        };
        if let Some(message) = first {
            note(&message);
        }
        let result = match ended {
            Some(result) => result,
            None => loop {
                tokio::select! {
                    biased;
                    Some(message) = told.recv() => note(&message),
                    result = &mut loading => break result,
                }
            },
        };
        while let Ok(message) = told.try_recv() {
            note(&message);
        }
        for status in layers.finish() {
            step.status(status);
        }
        result
    })
    .await
}

/// The layers an Engine told of.
#[derive(Default)]
struct Layers(BTreeMap<String, (VertexStatus, Option<Instant>)>);

impl Layers {
    /// Takes in a message; gives the status to show, if it is time to show one.
    fn note(&mut self, message: &JsonMessage, step: &Step, now: Instant) -> Option<VertexStatus> {
        let has_progress = message.progress.current != 0 || message.progress.total != 0;
        if message.id.is_empty() || !has_progress {
            return None;
        }
        let (status, shown) = self
            .0
            .entry(message.id.clone())
            .or_insert_with(|| (step.begin(format!("loading layer {}", message.id)), None));
        if message.status == "Loading layer" {
            status.current = message.progress.current;
            status.total = message.progress.total;
        }
        if shown.is_some_and(|shown| now.duration_since(shown) < STATUS_INTERVAL) {
            return None;
        }
        *shown = Some(now);
        status.timestamp = Timestamp::now();
        Some(status.clone())
    }

    /// All layers, completed.
    fn finish(self) -> impl Iterator<Item = VertexStatus> {
        let now = Timestamp::now();
        self.0.into_values().map(move |(status, _)| VertexStatus {
            timestamp: now,
            completed: Some(now),
            ..status
        })
    }
}

#[cfg(test)]
mod tests {
    use driver::engine::ProgressDetail;

    use super::*;

    fn message(id: &str, current: i64) -> JsonMessage {
        JsonMessage {
            id: id.into(),
            status: "Loading layer".into(),
            progress: ProgressDetail { current, total: 10 },
            ..JsonMessage::default()
        }
    }

    #[tokio::test]
    async fn layers_are_shown_now_and_then() {
        let (progress, _statuses) = Progress::channel();
        let result: Result<(), Error> = Step::run(&progress, "a", |step| async move {
            let mut layers = Layers::default();
            let start = Instant::now();
            let mut shown = Vec::new();
            for (current, after_s) in [(1, 0), (5, 1), (8, 3)] {
                let now = start + Duration::from_secs(after_s);
                shown.extend(layers.note(&message("abc", current), &step, now));
            }
            let shown: Vec<i64> = shown.into_iter().map(|status| status.current).collect();
            assert_eq!(shown, [1, 8]);
            assert!(layers.note(&JsonMessage::default(), &step, start).is_none());
            Ok(())
        })
        .await;
        result.unwrap();
    }

    #[tokio::test]
    async fn a_load_is_a_vertex_from_the_first_answer() {
        let (progress, statuses) = Progress::channel();
        let (tell, told) = mpsc::unbounded_channel();
        let loading = async move {
            tell.send(message("abc", 4)).unwrap();
            Err(Error::invalid("no space"))
        };
        let error = show(loading, told, progress).await.unwrap_err();
        assert_eq!(error.to_string(), "no space");
        let statuses: Vec<progress::SolveStatus> = statuses.collect();
        let vertices: Vec<&str> = statuses
            .iter()
            .flat_map(|status| &status.vertexes)
            .map(|vertex| vertex.error.as_str())
            .collect();
        assert_eq!(vertices, ["", "no space"]);
        let layers: Vec<bool> = statuses
            .iter()
            .flat_map(|status| &status.statuses)
            .map(|status| status.completed.is_some())
            .collect();
        assert_eq!(layers, [false, true]);
    }
}
