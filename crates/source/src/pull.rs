//! From a resolved image to a layer stack.

use std::sync::Arc;

use content::ContentError;
use diag::{Error, Result};
use futures::future::try_join_all;
use layers::{LayerHold, LayerId, LayerNote, LayerStack, PackedLayer, Unpacked};
use status::{Line, StatusSink};

use crate::image::{ContentProvider, ImageSource, PulledImage, ResolvedImage, ResolvedLayer};
use crate::resolve::blocking;
use crate::stream::{Streamed, stream_layer};

/// Annotation that names the repositories that have a blob; the registry follows.
const SOURCE_PREFIX: &str = "containerd.io/distribution.source.";

/// A layer that was got, or one that has to wait for those below it.
enum Got {
    Layer(LayerId, LayerHold),
    NeedsLowers(PackedLayer),
}

impl ImageSource {
    pub(crate) async fn pull_now(
        &self,
        provider: &dyn ContentProvider,
        image: &ResolvedImage,
        statuses: &Arc<dyn StatusSink>,
    ) -> Result<PulledImage> {
        let jobs = image.layers.iter().enumerate().map(|(index, layer)| {
            let job = Job {
                source: self,
                provider,
                image,
                statuses,
            };
            async move { job.layer(index, layer).await }
        });
        let mut stack = LayerStack::empty();
        let mut holds = Vec::new();
        for got in try_join_all(jobs).await? {
            let (id, hold) = match got {
                Got::Layer(id, hold) => (id, hold),
                Got::NeedsLowers(packed) => {
                    let line =
                        Line::start(statuses, format!("extracting {}", packed.descriptor.digest));
                    let done = self.unpack(packed, Some(stack.clone())).await?;
                    line.finish();
                    match done {
                        Unpacked::Layer(id, hold) => (id, hold),
                        Unpacked::NeedsLowers => {
                            return Err(Error::internal(
                                "a layer needs more than what is below it",
                            ));
                        }
                    }
                }
            };
            stack = stack.with(id);
            holds.push(hold);
        }
        let hold = self.layers.hold(&stack);
        Ok(PulledImage { stack, hold })
    }

    async fn unpack(&self, packed: PackedLayer, below: Option<LayerStack>) -> Result<Unpacked> {
        let (content, layers) = (self.content.clone(), self.layers.clone());
        blocking(move || Ok(layers.unpack_blob(&content, &packed, below.as_ref())?)).await
    }

    /// The layer that an archive was unpacked into before, if it does not depend on others.
    async fn find(&self, layer: &ResolvedLayer) -> Result<Option<(LayerId, LayerHold)>> {
        let (layers, diff_id) = (self.layers.clone(), layer.diff_id);
        blocking(move || {
            let Some(id) = layers.find_by_diff_id(&diff_id)? else {
                return Ok(None);
            };
            // It may be removed at this moment; then it is unpacked anew.
            Ok(layers.try_hold(&id.into()).ok().map(|hold| (id, hold)))
        })
        .await
    }
}

#[derive(Clone, Copy)]
struct Job<'a> {
    source: &'a ImageSource,
    provider: &'a dyn ContentProvider,
    image: &'a ResolvedImage,
    statuses: &'a Arc<dyn StatusSink>,
}

impl Job<'_> {
    async fn layer(&self, index: usize, layer: &ResolvedLayer) -> Result<Got> {
        let _alone = self.source.flights.enter(layer.descriptor.digest).await;
        if let Some((id, hold)) = self.source.find(layer).await? {
            // Who exports wants the blob that the image had.
            self.protect(layer);
            return Ok(Got::Layer(id, hold));
        }
        let packed = self.packed(layer);
        if !self.protect_whole(layer).await? {
            let streamed = stream_layer(
                &self.source.layers,
                self.provider,
                &self.image.reference,
                &self.image.lease,
                &packed,
                self.statuses,
            );
            if let Streamed::Layer(id, hold) = streamed.await? {
                return Ok(Got::Layer(id, hold));
            }
        }
        // Nothing is below the first, so that is all it can need.
        let below = (index == 0).then(LayerStack::empty);
        let line = Line::start(
            self.statuses,
            format!("extracting {}", layer.descriptor.digest),
        );
        let unpacked = self.source.unpack(packed.clone(), below).await?;
        line.finish();
        Ok(match unpacked {
            Unpacked::Layer(id, hold) => Got::Layer(id, hold),
            Unpacked::NeedsLowers => Got::NeedsLowers(packed),
        })
    }

    /// Keeps the layer's blob if it is here; true when it is.
    fn protect(&self, layer: &ResolvedLayer) -> bool {
        let blob = &layer.descriptor;
        self.image.lease.protect_sized(blob.digest, blob.size)
    }

    /// The same where the blob is about to be unpacked: it is read once to see that it is whole, unless
    /// that is known.
    async fn protect_whole(&self, layer: &ResolvedLayer) -> Result<bool> {
        if !self.protect(layer) {
            return Ok(false);
        }
        let (content, digest) = (self.source.content.clone(), layer.descriptor.digest);
        blocking(move || match content.open_blob(&digest) {
            Ok(_) => Ok(true),
            Err(ContentError::Damaged(_) | ContentError::NotFound(_)) => Ok(false),
            Err(error) => Err(error.into()),
        })
        .await
    }

    fn packed(&self, layer: &ResolvedLayer) -> PackedLayer {
        let mut descriptor = layer.descriptor.clone();
        if let Some((registry, repository)) = self.provider.repository(&self.image.reference) {
            descriptor
                .annotations
                .insert(format!("{SOURCE_PREFIX}{registry}"), repository);
        }
        PackedLayer {
            descriptor,
            diff_id: Some(layer.diff_id),
            note: LayerNote::new(format!("pulled from {}", self.image.reference))
                .of_type(self.image.record_type),
        }
    }
}
