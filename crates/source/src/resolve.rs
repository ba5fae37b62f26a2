//! From a name to manifest and configuration.

use bytes::Bytes;
use content::{ContentError, Lease};
use diag::{Code, Error, Result};
use oci::{Descriptor, Digest, ImageConfig, ImageIndex, ImageManifest, Platform, media_type};

use crate::image::{ContentProvider, ImageRequest, ImageSource, ResolvedImage, ResolvedLayer};

/// How often an index may lead to another index.
const INDEX_DEPTH_MAX: usize = 4;

/// Bytes of a manifest or configuration at most; providers have limits of their own.
const SMALL_SIZE_MAX: u64 = 8 * 1024 * 1024;

/// How media types of the oldest manifests begin.
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// Marks manifests that say something about another one and are no images.
const ATTESTATION: &str = "vnd.docker.reference.type";

impl ImageSource {
    pub(crate) async fn resolve_now(
        &self,
        provider: &dyn ContentProvider,
        request: &ImageRequest,
    ) -> Result<ResolvedImage> {
        let lease = self.content.lease();
        let root = match self.known_root(request, &lease).await? {
            Some(root) => root,
            None => provider.resolve(&request.reference).await?,
        };
        if let Some(checksum) = request.checksum.filter(|checksum| *checksum != root.digest) {
            return Err(Error::invalid(format!(
                "image digest {} for {} does not match expected checksum {checksum}",
                root.digest, request.reference
            )));
        }
        let getter = Getter {
            source: self,
            provider,
            request,
            lease: &lease,
        };
        let (descriptor, manifest) = getter.manifest_for_platform(&root).await?;
        let config = getter.small(&manifest.config).await?;
        let layers = layers_of(&manifest, &config, request.layer_limit)?;
        Ok(ResolvedImage {
            reference: request.reference.clone(),
            pinned: request.reference.clone().with_digest(root.digest),
            root,
            manifest: descriptor,
            config,
            config_descriptor: manifest.config,
            layers,
            lease,
            record_type: request.record_type,
        })
    }

    /// The descriptor of a name's digest, if its content is here.
    async fn known_root(
        &self,
        request: &ImageRequest,
        lease: &Lease,
    ) -> Result<Option<Descriptor>> {
        let Some(digest) = request.reference.digest() else {
            return Ok(None);
        };
        if !lease.protect(digest) {
            return Ok(None);
        }
        let Some(bytes) = self.read(digest).await? else {
            return Ok(None);
        };
        Ok(
            detect(&bytes)
                .map(|media_type| Descriptor::new(media_type, digest, bytes.len() as u64)),
        )
    }

    /// A small content; `None` if what is here was damaged, and so has to be got again.
    async fn read(&self, digest: Digest) -> Result<Option<Bytes>> {
        let content = self.content.clone();
        blocking(move || match content.read(&digest) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(ContentError::Damaged(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })
        .await
    }
}

/// Runs blocking work in a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    // It panicked, or the runtime is shutting down.
    joined.map_err(|error| Error::internal(error.to_string()))?
}

/// Gets the small contents of one image.
pub(crate) struct Getter<'a> {
    pub(crate) source: &'a ImageSource,
    pub(crate) provider: &'a dyn ContentProvider,
    pub(crate) request: &'a ImageRequest,
    pub(crate) lease: &'a Lease,
}

impl Getter<'_> {
    /// A small content from the store, or from the provider into the store.
    pub(crate) async fn small(&self, descriptor: &Descriptor) -> Result<Bytes> {
        if descriptor.size > SMALL_SIZE_MAX {
            return Err(Error::new(
                Code::ResourceExhausted,
                format!(
                    "rejecting {} byte {} of {}",
                    descriptor.size, descriptor.media_type, self.request.reference
                ),
            ));
        }
        let _alone = self.source.flights.enter(descriptor.digest).await;
        if self.lease.protect_sized(descriptor.digest, descriptor.size)
            && let Some(bytes) = self.source.read(descriptor.digest).await?
        {
            return Ok(bytes);
        }
        let bytes = self
            .provider
            .small(&self.request.reference, descriptor)
            .await?;
        let (lease, copy) = (self.lease.clone(), bytes.clone());
        blocking(move || Ok(lease.put(&copy)?)).await?;
        Ok(bytes)
    }

    /// The manifest behind a descriptor, through indexes.
    async fn manifest_for_platform(
        &self,
        root: &Descriptor,
    ) -> Result<(Descriptor, ImageManifest)> {
        let mut descriptor = root.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            check_kind(root, &descriptor)?;
            let bytes = self.small(&descriptor).await?;
            if media_type::is_manifest(&descriptor.media_type) {
                return Ok((descriptor, parse(root, &bytes)?));
            }
            let index: ImageIndex = parse(root, &bytes)?;
            descriptor = self.best(root, &index).await?;
        }
        Err(Error::invalid(format!(
            "{}: index within index too deep",
            root.digest
        )))
    }

    /// The entry of an index that serves the wanted platform best.
    async fn best(&self, root: &Descriptor, index: &ImageIndex) -> Result<Descriptor> {
        let mut best: Option<(u32, Descriptor)> = None;
        for entry in &index.manifests {
            let image = media_type::is_manifest(&entry.media_type)
                || media_type::is_index(&entry.media_type);
            if !image || entry.annotations.contains_key(ATTESTATION) {
                continue;
            }
            let platform = match &entry.platform {
                Some(platform) => platform.clone(),
                None => self.platform_of(root, entry).await?,
            };
            if let Some(rank) = self.request.platform.match_rank(&platform)
                && best.as_ref().is_none_or(|(known, _)| rank < *known)
            {
                best = Some((rank, entry.clone()));
            }
        }
        best.map(|(_, entry)| entry).ok_or_else(|| {
            Error::not_found(format!(
                "no match for platform in manifest {}: not found",
                root.digest
            ))
        })
    }

    /// The platform that a manifest's configuration names.
    async fn platform_of(&self, root: &Descriptor, entry: &Descriptor) -> Result<Platform> {
        if !media_type::is_manifest(&entry.media_type) {
            // An index within the index: nothing is known before it is looked into.
            return Ok(self.request.platform.clone());
        }
        let manifest: ImageManifest = parse(root, &self.small(entry).await?)?;
        let config = self.small(&manifest.config).await?;
        let platform: Platform = parse(root, &config)?;
        Ok(platform.normalized())
    }
}

/// Refuses what is neither a manifest nor an index, by its name.
fn check_kind(root: &Descriptor, descriptor: &Descriptor) -> Result<()> {
    let kind = descriptor.media_type.as_str();
    if media_type::is_manifest(kind) || media_type::is_index(kind) {
        return Ok(());
    }
    if kind.starts_with(SCHEMA_1) {
        return Err(Error::new(
            Code::FailedPrecondition,
            "support Docker Image manifest version 2, schema 1 has been removed. More information at https://docs.docker.com/go/deprecated-image-specs/",
        )
        .context(format!("{} is {kind}", root.digest))
        .hint("push the image again with a client that is not older than 2017"));
    }
    Err(Error::not_found(format!(
        "unexpected media type {kind} for {}: not found",
        root.digest
    )))
}

fn parse<T: serde::de::DeserializeOwned>(root: &Descriptor, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid(format!("failed to parse {}: {error}", root.digest)))
}

/// The layers of a manifest with the digests the configuration has for them.
fn layers_of(
    manifest: &ImageManifest,
    config: &[u8],
    limit: Option<usize>,
) -> Result<Vec<ResolvedLayer>> {
    let config: ImageConfig = serde_json::from_slice(config)
        .map_err(|error| Error::invalid(format!("failed to resolve rootfs: {error}")))?;
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        return Err(Error::invalid(format!(
            "mismatched image rootfs and manifest layers {diff_ids:?} {:?}",
            manifest.layers
        )));
    }
    let count = limit.unwrap_or(diff_ids.len());
    if count > diff_ids.len() {
        return Err(Error::invalid(format!(
            "layer limit {count} is greater than the number of layers in the image {}",
            diff_ids.len()
        )));
    }
    let pairs = manifest.layers.iter().zip(diff_ids);
    Ok(pairs
        .take(count)
        .map(|(descriptor, diff_id)| ResolvedLayer {
            descriptor: descriptor.clone(),
            diff_id,
        })
        .collect())
}

/// What a manifest or index is, from its content; `None` if it is neither.
pub(crate) fn detect(bytes: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        media_type: String,
        config: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        manifests: Option<serde::de::IgnoredAny>,
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(bytes).ok()?;
    if shape.fs_layers.is_some() && shape.config.is_none() && shape.manifests.is_none() {
        return Some(format!("{SCHEMA_1}prettyjws"));
    }
    let is_manifest = shape.config.is_some() && shape.layers.is_some();
    let is_index = shape.manifests.is_some();
    match (is_manifest, is_index) {
        // What looks like both is made to deceive.
        (true, true) | (false, false) => None,
        _ if !shape.media_type.is_empty() => Some(shape.media_type),
        (true, false) => Some(media_type::OCI_MANIFEST.to_owned()),
        (false, true) => Some(media_type::OCI_INDEX.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_and_indexes_are_told_apart_by_what_they_have() {
        let detected = |text: &str| detect(text.as_bytes());
        assert_eq!(
            detected(r#"{"config":{},"layers":[]}"#).unwrap(),
            media_type::OCI_MANIFEST
        );
        assert_eq!(
            detected(r#"{"manifests":[]}"#).unwrap(),
            media_type::OCI_INDEX
        );
        assert_eq!(
            detected(r#"{"mediaType":"x","manifests":[]}"#).unwrap(),
            "x"
        );
        assert_eq!(
            detected(r#"{"manifests":[],"config":{},"layers":[]}"#),
            None
        );
        let oldest = detected(r#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#).unwrap();
        let root = Descriptor::new(oldest.as_str(), Digest::of("x"), 1);
        let error = check_kind(&root, &root).unwrap_err().to_string();
        assert!(error.contains("schema 1 has been removed"), "{error}");
        assert!(error.contains("manifest.v1+prettyjws"), "{error}");
        assert_eq!(detected("{}"), None);
        assert_eq!(detected("no"), None);
    }
}
