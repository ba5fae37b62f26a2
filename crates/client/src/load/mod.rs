//! Loading an image into a Docker Engine while the server exports it.
//!
//! An exporter announces its image before it sends it. What is announced is read from the server's
//! content store (manifests and configurations, a few kilobytes) and compared with what the Engine
//! has: the very image only gets its names; of another the layers that the Engine lacks are read and
//! loaded, and the exporter is told that nothing more is needed. Wherever that does not work out (a
//! server that does not let its content be read, an Engine that has lost a layer meanwhile) the
//! exporter's own archive is loaded, whole.

mod archive;
mod known;
mod wanted;
mod writer;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use diag::Error;
use driver::engine::{Engine, JsonMessage};
use futures::Stream;
use jiff::Timestamp;
use oci::Reference;
use progress::VertexStatus;
use progress_ui::Progress;
use session::ExportWriter;
use tokio::sync::mpsc;

use crate::steps::Step;

pub(crate) use known::Store;
pub(crate) use wanted::ServerContent;
use wanted::WantedImage;
use writer::EngineWriter;

/// What a load is shown as.
const STEP: &str = "importing to docker";

/// How often the progress of a layer is shown at most.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// Where an exporter's image goes: an Engine, and how it keeps images.
#[derive(Clone)]
pub(crate) struct EngineTarget {
    /// The Engine.
    pub(crate) engine: Engine,
    /// Its image store.
    pub(crate) store: Store,
    /// The server that exports.
    pub(crate) server: ServerContent,
    /// Where the load is shown.
    pub(crate) progress: Progress,
}

impl EngineTarget {
    /// Takes what an exporter announces; a writer for its archive, or nothing when the image is in
    /// the Engine afterwards without it.
    pub(crate) async fn open(
        self,
        announced: BTreeMap<String, String>,
    ) -> io::Result<Option<ExportWriter>> {
        match self.load_missing(&announced).await {
            Ok(true) => return Ok(None),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the whole image is loaded"),
        }
        let EngineTarget {
            engine, progress, ..
        } = self;
        Ok(Some(Box::pin(EngineWriter::start(engine, progress))))
    }

    /// Loads what the Engine lacks of an image; false when that was of no use.
    async fn load_missing(&self, announced: &BTreeMap<String, String>) -> Result<bool, Error> {
        let image = Arc::new(WantedImage::read(&self.server, announced).await?);
        if let Some(id) = known::same_image(&self.engine, self.store, &image).await? {
            let naming = |step| self.name_image(id, image.names.clone(), step);
            Step::run(&self.progress, STEP, naming).await?;
            return Ok(true);
        }
        let omitted = known::known_layers(&self.engine, self.store, &image).await?;
        if omitted.is_empty() {
            return Ok(false);
        }
        for digest in image.layers().keys() {
            // A server may still have to fetch a layer, which only its exporter can make it do.
            let readable =
                omitted.contains(digest)
                    || self.server.has(digest).await.map_err(|status| {
                        Error::internal(format!("{digest}: {}", status.message()))
                    })?;
            if !readable {
                return Ok(false);
            }
        }
        tracing::debug!(
            layers = image.layers().len(),
            omitted = omitted.len(),
            "the Engine has some layers"
        );
        let (messages, told) = mpsc::unbounded_channel();
        let pieces = archive::archive_without(image.clone(), omitted, self.server.clone());
        let loading = async {
            let tell = move |message: &JsonMessage| {
                let _ = messages.send(message.clone());
            };
            if let Err(error) = self.engine.load_images(pieces, tell).await {
                tracing::debug!(%error, "the Engine did not take the image without some layers");
                return Ok(false);
            }
            match self.store {
                Store::Classic => Ok(true),
                Store::Containerd => Ok(known::is_complete(&self.engine, &image).await?),
            }
        };
        show(loading, told, self.progress.clone()).await
    }

    /// Gives an image that is there its names.
    async fn name_image(&self, id: String, names: Vec<Reference>, step: Step) -> Result<(), Error> {
        for name in names {
            let mut status = step.begin(format!("naming to {name}"));
            let tag = name.tag().unwrap_or("latest");
            self.engine.tag_image(&id, &name.name(), tag).await?;
            status.completed = Some(Timestamp::now());
            step.status(status);
        }
        Ok(())
    }
}

/// Loads an archive as it arrives. From when the Engine answers, it is shown as the vertex
/// `importing to docker`.
async fn load_image<S>(engine: Engine, archive: S, progress: Progress) -> Result<(), Error>
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
async fn show<T>(
    loading: impl Future<Output = Result<T, Error>>,
    mut told: mpsc::UnboundedReceiver<JsonMessage>,
    progress: Progress,
) -> Result<T, Error> {
    tokio::pin!(loading);
    let (first, ended) = tokio::select! {
        biased;
        first = told.recv() => (first, None),
        result = &mut loading => (None, Some(result)),
    };
    Step::run(&progress, STEP, |step| async move {
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
            Err::<(), _>(Error::invalid("no space"))
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
