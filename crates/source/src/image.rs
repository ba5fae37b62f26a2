//! Images: from a name to a layer stack, from whoever has the contents.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use content::{ContentStore, Lease};
use diag::{Error, Result};
use layers::{LayerHold, LayerStack, LayerStore, RecordType};
use oci::{Descriptor, Digest, ImageConfig, Platform, Reference};
use status::StatusSink;

use crate::flights::Flights;

/// Where manifests and blobs come from: a registry, or an OCI layout.
#[async_trait]
pub trait ContentProvider: Send + Sync {
    /// What a name stands for now.
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor>;

    /// A manifest, index or configuration, whole and verified.
    async fn small(&self, reference: &Reference, descriptor: &Descriptor) -> Result<Bytes>;

    /// A blob piece by piece, verified when the last piece comes.
    async fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Box<dyn BlobStream>>;

    /// Media type and size of a blob, where that is not known from a manifest.
    ///
    /// # Errors
    /// `NotFound` if it is not there.
    async fn find(&self, reference: &Reference, digest: Digest) -> Result<Descriptor>;

    /// The manifests that name another one as their subject; none where there is no list of them.
    ///
    /// # Errors
    /// The list cannot be had.
    async fn referrers(&self, reference: &Reference, digest: Digest) -> Result<Vec<Descriptor>> {
        let _ = (reference, digest);
        Ok(Vec::new())
    }

    /// Registry and repository from which other repositories of that registry can mount the blobs,
    /// if it is one.
    fn repository(&self, reference: &Reference) -> Option<(String, String)> {
        let _ = reference;
        None
    }
}

/// A blob on its way.
#[async_trait]
pub trait BlobStream: Send {
    /// The next piece; `None` at the end.
    async fn chunk(&mut self) -> Result<Option<Bytes>>;

    /// Told before the first piece by whoever compares the digest of what comes itself, that nobody
    /// need do so twice. The size is looked at in any case.
    fn leave_digest(&mut self) {}
}

#[async_trait]
impl ContentProvider for registry::Client {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        Ok(registry::Client::resolve(self, reference).await?)
    }

    async fn small(&self, reference: &Reference, descriptor: &Descriptor) -> Result<Bytes> {
        let media_type = descriptor.media_type.as_str();
        let manifest =
            oci::media_type::is_index(media_type) || oci::media_type::is_manifest(media_type);
        Ok(match manifest {
            true => self.fetch_manifest(reference, descriptor).await?,
            false => self.fetch_small_blob(reference, descriptor).await?,
        })
    }

    async fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Box<dyn BlobStream>> {
        Ok(Box::new(self.fetch_blob(reference, descriptor, 0).await?))
    }

    async fn find(&self, reference: &Reference, digest: Digest) -> Result<Descriptor> {
        Ok(self.find_blob(reference, digest).await?)
    }

    async fn referrers(&self, reference: &Reference, digest: Digest) -> Result<Vec<Descriptor>> {
        Ok(registry::Client::referrers(self, reference, digest).await?)
    }

    fn repository(&self, reference: &Reference) -> Option<(String, String)> {
        Some((
            reference.registry().to_owned(),
            reference.repository().to_owned(),
        ))
    }
}

#[async_trait]
impl BlobStream for registry::BlobReader {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        Ok(registry::BlobReader::chunk(self).await?)
    }

    fn leave_digest(&mut self) {
        registry::BlobReader::leave_digest(self);
    }
}

/// Which image is wanted.
#[derive(Clone, Debug)]
pub struct ImageRequest {
    /// Its name; with a digest it is taken by that.
    pub reference: Reference,
    /// What it is to run on.
    pub platform: Platform,
    /// Only so many of its layers, from the bottom.
    pub layer_limit: Option<usize>,
    /// The digest it must have.
    pub checksum: Option<Digest>,
    /// For the layers' records.
    pub record_type: RecordType,
}

impl ImageRequest {
    /// The image of that name for a platform, without further wishes.
    pub fn new(reference: Reference, platform: Platform) -> Self {
        ImageRequest {
            reference: reference.with_default_tag(),
            platform,
            layer_limit: None,
            checksum: None,
            record_type: RecordType::Regular,
        }
    }
}

/// What a name stands for. Manifests and configuration are in the content store and stay there as
/// long as this lives.
#[derive(Clone)]
pub struct ResolvedImage {
    /// The name as asked for.
    pub reference: Reference,
    /// The name with the digest of what was found.
    pub pinned: Reference,
    /// Of the index or manifest that the name stands for.
    pub root: Descriptor,
    /// Of the platform's manifest; the same as `root` if that is no index.
    pub manifest: Descriptor,
    /// The image configuration as it came.
    pub config: Bytes,
    /// Of the configuration.
    pub config_descriptor: Descriptor,
    /// The layers that are wanted, bottom first.
    pub layers: Vec<ResolvedLayer>,
    /// Keeps the contents.
    pub lease: Lease,
    pub(crate) record_type: RecordType,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedLayer {
    /// The blob, as it stands in the manifest.
    pub descriptor: Descriptor,
    /// Digest of the plain tar.
    pub diff_id: Digest,
}

impl ResolvedImage {
    /// The digest of what the name stands for.
    pub fn digest(&self) -> Digest {
        self.root.digest
    }

    /// The configuration, read.
    ///
    /// # Errors
    /// It is not JSON of an image configuration.
    pub fn image_config(&self) -> Result<ImageConfig> {
        serde_json::from_slice(&self.config)
            .map_err(|error| Error::invalid(format!("failed to parse image config: {error}")))
    }

    /// A digest of the files alone: equal for images with equal layers, however they are named and
    /// configured. `None` for an image without layers.
    pub fn chain_id(&self) -> Option<Digest> {
        let mut diff_ids = self.layers.iter().map(|layer| layer.diff_id);
        let first = diff_ids.next()?;
        Some(diff_ids.fold(first, |chain, diff_id| {
            Digest::of(format!("{chain} {diff_id}"))
        }))
    }
}

/// An image as a layer stack.
pub struct PulledImage {
    /// The files.
    pub stack: LayerStack,
    /// Keeps the layers.
    pub hold: LayerHold,
}

/// Takes images from providers into the stores; clones share what is under way.
#[derive(Clone)]
pub struct ImageSource {
    pub(crate) content: ContentStore,
    pub(crate) layers: LayerStore,
    pub(crate) flights: Arc<Flights<Digest>>,
}

impl ImageSource {
    /// A source that puts what it gets into these stores.
    pub fn new(content: ContentStore, layers: LayerStore) -> Self {
        ImageSource {
            content,
            layers,
            flights: Arc::default(),
        }
    }

    /// Pins what a name stands for and gets manifest and configuration. A name with a digest whose
    /// contents are here is not asked for anywhere.
    ///
    /// Reports as `resolve NAME`.
    ///
    /// # Errors
    /// The provider's; no manifest for the platform; contents that contradict each other.
    pub async fn resolve(
        &self,
        provider: &dyn ContentProvider,
        request: &ImageRequest,
        statuses: &Arc<dyn StatusSink>,
    ) -> Result<ResolvedImage> {
        let line = status::Line::start(statuses, format!("resolve {}", request.reference));
        let resolved = self.resolve_now(provider, request).await?;
        line.finish();
        Ok(resolved)
    }

    /// Makes a layer stack of an image. Layers are got and unpacked at the same time, each on its own;
    /// those that are there are used as they are.
    ///
    /// Reports each layer as its digest and then `extracting DIGEST`.
    ///
    /// # Errors
    /// The provider's; blobs that are not what the image says; archives that cannot be unpacked.
    pub async fn pull(
        &self,
        provider: &dyn ContentProvider,
        image: &ResolvedImage,
        statuses: &Arc<dyn StatusSink>,
    ) -> Result<PulledImage> {
        self.pull_now(provider, image, statuses).await
    }
}
