//! Pushing from the image store of a Docker Engine whose own build server does not push.

use std::collections::BTreeMap;

use diag::Error;
use driver::NodeConfig;
use driver::engine::{Engine, JsonMessage, RegistryAuth};
use jiff::Timestamp;
use oci::Reference;
use progress::VertexStatus;
use progress_ui::Progress;
use tokio::sync::mpsc;

use crate::response::{CONFIG_DIGEST, DIGEST, Response};
use crate::steps::Step;

/// Pushes an image that was built in the node's Engine under each of its names, separated by commas;
/// what the registry then calls it becomes the digest of the answer.
pub(crate) async fn push_names(
    node: &NodeConfig,
    names: &str,
    response: &mut Response,
    progress: &Progress,
) -> Result<(), Error> {
    if names.is_empty() {
        return Err(Error::invalid("tag is needed when pushing to registry"));
    }
    let engine = node
        .engine
        .as_ref()
        .ok_or_else(|| Error::internal("the builder has no Docker Engine"))?;
    let mut first = None;
    for name in names.split(',') {
        let reference = name
            .parse::<Reference>()
            .map_err(|error| Error::invalid(format!("{name}: {error}")))?
            .with_default_tag();
        let auth = match &node.auth {
            Some(auth) => auth.registry_auth(reference.registry()).await,
            None => None,
        };
        let title = format!("pushing {name} with docker");
        let pushing = |step| push(engine, &reference, auth.as_ref(), step);
        Step::run(progress, title, pushing).await?;
        first.get_or_insert((reference, auth));
    }
    let Some((reference, auth)) = first else {
        return Ok(());
    };
    let image = engine.image(&reference.familiar()).await?;
    if image.repo_digests.is_empty() {
        return Ok(());
    }
    let remote = engine
        .registry_digest(&reference.to_string(), auth.as_ref())
        .await?;
    if !remote.is_empty() {
        // Engines of old name only one digest, the configuration's.
        if let Some(digest) = response.get(DIGEST).cloned() {
            response.entry(CONFIG_DIGEST.to_owned()).or_insert(digest);
        }
        response.insert(DIGEST.to_owned(), remote);
    }
    Ok(())
}

async fn push(
    engine: &Engine,
    reference: &Reference,
    auth: Option<&RegistryAuth>,
    step: Step,
) -> Result<(), Error> {
    let (messages, mut told) = mpsc::unbounded_channel();
    let name = reference.to_string();
    let pushing = engine.push_image(&name, auth, move |message: &JsonMessage| {
        let _ = messages.send(message.clone());
    });
    tokio::pin!(pushing);
    let mut layers = Layers::default();
    let result = loop {
        tokio::select! {
            biased;
            Some(message) = told.recv() => layers.note(&message, &step),
            result = &mut pushing => break result,
        }
    };
    while let Ok(message) = told.try_recv() {
        layers.note(&message, &step);
    }
    layers.finish(&step);
    result.map_err(Error::from)
}

/// The layers an Engine told of.
#[derive(Default)]
struct Layers(BTreeMap<String, VertexStatus>);

impl Layers {
    fn note(&mut self, message: &JsonMessage, step: &Step) {
        let has_progress = message.progress.current != 0 || message.progress.total != 0;
        let pushed = message.status == "Pushed";
        if message.id.is_empty() {
            return;
        }
        if !self.0.contains_key(&message.id) && !has_progress && !pushed {
            return;
        }
        let status = self
            .0
            .entry(message.id.clone())
            .or_insert_with(|| step.begin(format!("pushing layer {}", message.id)));
        let now = Timestamp::now();
        status.timestamp = now;
        if has_progress {
            status.current = message.progress.current;
            status.total = message.progress.total;
        }
        if pushed {
            status.current = status.total;
        }
        if pushed || message.error.is_some() {
            status.completed = Some(now);
        }
        step.status(status.clone());
    }

    /// Completes what was not.
    fn finish(self, step: &Step) {
        for (_, mut status) in self.0 {
            if status.completed.is_none() {
                status.completed = Some(Timestamp::now());
                step.status(status);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use driver::engine::ProgressDetail;

    use super::*;

    #[tokio::test]
    async fn a_layer_is_shown_from_its_first_byte_until_it_is_pushed() {
        let (progress, statuses) = Progress::channel();
        let message = |id: &str, status: &str, current, total| JsonMessage {
            id: id.into(),
            status: status.into(),
            progress: ProgressDetail { current, total },
            ..JsonMessage::default()
        };
        let result: Result<(), Error> = Step::run(&progress, "p", |step| async move {
            let mut layers = Layers::default();
            for told in [
                message("a", "Preparing", 0, 0),
                message("a", "Pushing", 5, 10),
                message("b", "Layer already exists", 0, 0),
                message("a", "Pushed", 0, 0),
                message("c", "Pushing", 1, 2),
            ] {
                layers.note(&told, &step);
            }
            layers.finish(&step);
            Ok(())
        })
        .await;
        result.unwrap();
        drop(progress);
        let shown: Vec<(String, i64, bool)> = statuses
            .collect::<Vec<progress::SolveStatus>>()
            .into_iter()
            .flat_map(|status| status.statuses)
            .map(|one| (one.id, one.current, one.completed.is_some()))
            .collect();
        let (a, c) = ("pushing layer a".to_owned(), "pushing layer c".to_owned());
        assert_eq!(
            shown,
            [
                (a.clone(), 5, false),
                (a, 10, true),
                (c.clone(), 1, false),
                (c, 1, true)
            ]
        );
    }
}
