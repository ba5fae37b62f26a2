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

use crate::steps::Step;

/// How often the progress of a layer is shown at most.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// Loads an archive as it arrives, shown as the vertex `importing to docker`.
pub async fn load_image<S>(engine: Engine, archive: S, progress: Progress) -> Result<(), Error>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
{
    Step::run(&progress, "importing to docker", |step| async move {
        let mut layers = Layers::default();
        let result = engine
            .load_images(archive, |message| {
                if let Some(status) = layers.note(message, &step, Instant::now()) {
                    step.status(status);
                }
            })
            .await;
        for status in layers.finish() {
            step.status(status);
        }
        result.map_err(Error::from)
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

    #[tokio::test]
    async fn layers_are_shown_now_and_then_and_at_the_end() {
        let (progress, statuses) = Progress::channel();
        let message = |id: &str, current| JsonMessage {
            id: id.into(),
            status: "Loading layer".into(),
            progress: ProgressDetail { current, total: 10 },
            ..JsonMessage::default()
        };
        let result: Result<(), Error> =
            Step::run(&progress, "importing to docker", |step| async move {
                let mut layers = Layers::default();
                let start = Instant::now();
                for (current, after_s) in [(1, 0), (5, 1), (8, 3)] {
                    let now = start + Duration::from_secs(after_s);
                    if let Some(status) = layers.note(&message("abc", current), &step, now) {
                        step.status(status);
                    }
                }
                assert!(layers.note(&JsonMessage::default(), &step, start).is_none());
                layers.finish().for_each(|status| step.status(status));
                Ok(())
            })
            .await;
        result.unwrap();
        drop(progress);
        let seen: Vec<(String, i64, bool)> = statuses
            .flat_map(|status| status.statuses)
            .map(|status| (status.id, status.current, status.completed.is_some()))
            .collect();
        let id = || "loading layer abc".to_owned();
        assert_eq!(seen, [(id(), 1, false), (id(), 8, false), (id(), 8, true)]);
    }
}
