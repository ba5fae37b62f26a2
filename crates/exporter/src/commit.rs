//! From a build's result to an image in the content store.

use std::sync::Arc;

use content::{ContentStore, Lease};
use diag::{Context, Error, Result};
use futures::future::try_join_all;
use layers::{LayerStack, LayerStore};
use oci::{Descriptor, ImageConfig, Platform};
use status::{Line, StatusSink};
use tokio::sync::Semaphore;

use crate::annotations::Annotations;
use crate::attrs::{ImageAttrs, LayerCompression};
use crate::committed::{CommittedImage, CommittedLayer, CommittedManifest};
use crate::image::{self, ConfigInput, ImageLayer};
use crate::layer_blobs::{LayerBlobs, shared_with_base, sources_of};

/// What a build made: a filesystem, or one for each of several platforms.
#[derive(Clone, Debug, Default)]
pub struct ExportSource {
    /// The results in the order they have in an index.
    pub platforms: Vec<PlatformImage>,
    /// True if the result is a map by platforms, even of one: it becomes an index.
    pub multi: bool,
    /// Name that the frontend gives the image, for `name=*`.
    pub image_name: Option<String>,
    /// The frontend's `SOURCE_DATE_EPOCH`, seconds since 1970.
    pub epoch: Option<i64>,
    /// The frontend's annotations.
    pub annotations: Annotations,
}

/// The result for one platform.
#[derive(Clone, Debug, Default)]
pub struct PlatformImage {
    /// The frontend's name for it, such as `linux/amd64`.
    pub id: String,
    /// The platform.
    pub platform: Platform,
    /// The files; empty for a result without any.
    pub stack: LayerStack,
    /// The frontend's image configuration, JSON; `None` for the default one.
    pub config: Option<Vec<u8>>,
    /// The base image's configuration, JSON.
    pub base_config: Option<Vec<u8>>,
    /// Inline cache to put into the configuration, JSON.
    pub inline_cache: Option<Vec<u8>>,
    /// The frontend's `SOURCE_DATE_EPOCH` for this platform.
    pub epoch: Option<i64>,
}

impl ExportSource {
    /// A result for one platform, which becomes an image without an index.
    pub fn single(platform: PlatformImage) -> Self {
        ExportSource {
            platforms: vec![platform],
            ..ExportSource::default()
        }
    }
}

/// Makes images; clones share what is under way.
#[derive(Clone)]
pub(crate) struct Committer {
    content: ContentStore,
    blobs: LayerBlobs,
    /// Layers worked on at once.
    workers: Arc<Semaphore>,
}

impl Committer {
    pub(crate) fn new(content: ContentStore, layers: LayerStore) -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Committer {
            blobs: LayerBlobs::new(content.clone(), layers),
            content,
            workers: Arc::new(Semaphore::new(workers)),
        }
    }

    /// Makes the image of a result, complete in the content store.
    pub(crate) async fn commit(
        &self,
        source: &ExportSource,
        attrs: &ImageAttrs,
        statuses: &Arc<dyn StatusSink>,
    ) -> Result<CommittedImage> {
        let mut annotations = attrs.annotations.clone();
        annotations.extend(source.annotations.clone());
        check(source, attrs, &annotations)?;
        let lease = self.content.lease();
        let line = Line::start(statuses, "exporting layers");
        let all = source
            .platforms
            .iter()
            .map(|platform| self.layers(&platform.stack, attrs, &lease));
        let all: Vec<Vec<ImageLayer>> = try_join_all(all).await?;
        line.finish();
        let mut manifests = Vec::new();
        for (platform, layers) in source.platforms.iter().zip(all) {
            let epoch = match attrs.epoch {
                Some(explicit) => explicit,
                None => platform.epoch.or(source.epoch),
            };
            let layers = match (attrs.rewrite_timestamp, epoch) {
                (true, Some(epoch)) => {
                    self.clamped(layers, platform, epoch, attrs.compression, &lease, statuses)
                        .await?
                }
                _ => layers,
            };
            let one = Manifest {
                platform,
                layers: &layers,
                epoch,
                annotations: &annotations,
                of_platform: source.multi.then_some(&platform.platform),
            };
            manifests.push(self.manifest(one, attrs, &lease, statuses).await?);
        }
        self.finish(source, attrs, &annotations, manifests, lease, statuses)
            .await
    }

    /// The layers of a stack with their blobs.
    async fn layers(
        &self,
        stack: &LayerStack,
        attrs: &ImageAttrs,
        lease: &Lease,
    ) -> Result<Vec<ImageLayer>> {
        let jobs = (0..stack.len()).map(|index| {
            let (blobs, stack, lease) = (self.blobs.clone(), stack.clone(), lease.clone());
            let compression = attrs.compression;
            self.blocking(move || blobs.layer(&stack, index, compression, &lease))
        });
        let mut layers = try_join_all(jobs).await?;
        if !attrs.prefer_nondistributable {
            for layer in &mut layers {
                layer.descriptor.media_type = image::distributable(&layer.descriptor.media_type);
            }
        }
        Ok(layers)
    }

    /// The layers with times clamped, except those that are still the base image's.
    async fn clamped(
        &self,
        layers: Vec<ImageLayer>,
        platform: &PlatformImage,
        epoch: i64,
        compression: LayerCompression,
        lease: &Lease,
        statuses: &Arc<dyn StatusSink>,
    ) -> Result<Vec<ImageLayer>> {
        let time = image::epoch_time(epoch)?;
        let text = time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC");
        let line = Line::start(
            statuses,
            format!("rewriting layers with source-date-epoch {epoch} ({text})"),
        );
        let base: Option<ImageConfig> = match &platform.base_config {
            Some(bytes) => Some(
                serde_json::from_slice(bytes)
                    .map_err(|error| Error::invalid(error.to_string()))
                    .context("failed to unmarshal base image config")?,
            ),
            None => None,
        };
        let base = base.map(|base| base.rootfs.diff_ids).unwrap_or_default();
        let shared = shared_with_base(&layers, &base);
        let jobs = layers.into_iter().enumerate().map(|(index, layer)| {
            let (blobs, lease) = (self.blobs.clone(), lease.clone());
            self.blocking(move || match index < shared {
                true => Ok(layer),
                false => blobs.with_times_clamped(&layer, epoch, compression, &lease),
            })
        });
        let layers = try_join_all(jobs).await?;
        line.finish();
        Ok(layers)
    }

    /// Makes and stores a manifest and its configuration.
    async fn manifest(
        &self,
        one: Manifest<'_>,
        attrs: &ImageAttrs,
        lease: &Lease,
        statuses: &Arc<dyn StatusSink>,
    ) -> Result<CommittedManifest> {
        let oci_types = attrs.uses_oci_types();
        let platform = one.platform;
        let input = ConfigInput {
            config: platform.config.as_deref(),
            base_config: platform.base_config.as_deref(),
            inline_cache: platform.inline_cache.as_deref(),
            epoch: one.epoch,
        };
        let config_bytes = image::assemble_config(input, one.layers)?;
        let annotations = one.annotations.manifest(one.of_platform);
        let (mut descriptor, config, bytes) =
            image::assemble_manifest(&config_bytes, one.layers, oci_types, annotations)?;
        self.store(
            format!("exporting manifest {}", descriptor.digest),
            bytes,
            lease,
            statuses,
        )
        .await?;
        self.store(
            format!("exporting config {}", config.digest),
            config_bytes,
            lease,
            statuses,
        )
        .await?;
        descriptor.annotations = one.annotations.manifest_descriptor(one.of_platform);
        descriptor.platform = Some(platform.platform.clone().normalized());
        Ok(CommittedManifest {
            descriptor,
            config,
            layers: one
                .layers
                .iter()
                .map(|layer| CommittedLayer {
                    descriptor: image::public_descriptor(&layer.descriptor, oci_types),
                    sources: sources_of(&layer.descriptor),
                })
                .collect(),
        })
    }

    async fn finish(
        &self,
        source: &ExportSource,
        attrs: &ImageAttrs,
        annotations: &Annotations,
        manifests: Vec<CommittedManifest>,
        lease: Lease,
        statuses: &Arc<dyn StatusSink>,
    ) -> Result<CommittedImage> {
        let descriptor = match (source.multi, manifests.as_slice()) {
            (false, [only]) => only.descriptor.clone(),
            _ => {
                let parts: Vec<Descriptor> =
                    manifests.iter().map(|one| one.descriptor.clone()).collect();
                let (mut index, bytes) =
                    image::assemble_index(parts, attrs.uses_oci_types(), annotations.index())?;
                index.annotations = annotations.index_descriptor();
                let text = format!("exporting manifest list {}", index.digest);
                self.store(text, bytes, &lease, statuses).await?;
                index
            }
        };
        Ok(CommittedImage {
            descriptor,
            manifests,
            is_index: source.multi,
            lease,
        })
    }

    async fn store(
        &self,
        text: String,
        bytes: Vec<u8>,
        lease: &Lease,
        statuses: &Arc<dyn StatusSink>,
    ) -> Result<()> {
        let line = Line::start(statuses, text);
        let lease = lease.clone();
        self.blocking(move || Ok(lease.put(&bytes)?)).await?;
        line.finish();
        Ok(())
    }

    /// Runs blocking work, as much of it at once as there are processors.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        // Fails only if the semaphore is closed, which nobody does.
        let permit = Arc::clone(&self.workers).acquire_owned().await.ok();
        crate::sending::blocking(move || {
            let _permit = permit;
            work()
        })
        .await
    }
}

/// A manifest to be made.
struct Manifest<'a> {
    platform: &'a PlatformImage,
    layers: &'a [ImageLayer],
    epoch: Option<i64>,
    annotations: &'a Annotations,
    /// For annotations that are meant for one platform.
    of_platform: Option<&'a Platform>,
}

/// Refuses what cannot be an image.
fn check(source: &ExportSource, attrs: &ImageAttrs, annotations: &Annotations) -> Result<()> {
    if source.platforms.is_empty() {
        return Err(Error::invalid("invalid empty platforms index for exporter"));
    }
    if !source.multi && source.platforms.len() > 1 {
        return Err(Error::invalid(
            "cannot export multiple platforms without multi-platform enabled",
        ));
    }
    for platform in annotations.platforms() {
        let known = source
            .platforms
            .iter()
            .any(|one| one.platform.clone().normalized() == *platform);
        if !known {
            return Err(Error::invalid(format!(
                "invalid annotation: no platform {platform} found in source"
            )));
        }
    }
    if !attrs.uses_oci_types() && annotations.need_oci_types() {
        return Err(Error::invalid(
            "cannot export annotations with \"oci-mediatypes=false\"",
        ));
    }
    let of_index = !annotations.index().is_empty() || !annotations.index_descriptor().is_empty();
    if !source.multi && of_index {
        return Err(Error::invalid(
            "index annotations not supported for single platform export",
        ));
    }
    Ok(())
}
