//! What a registry says about an image besides its files: the attestations of its index and their
//! signatures, for those who judge where images come from. Nothing is verified here.

use bytes::Bytes;
use diag::{Error, Result};
use oci::{Descriptor, Digest, ImageIndex, ImageManifest, media_type};

use crate::image::{ContentProvider, ImageRequest, ImageSource, ResolvedImage};
use crate::resolve::Getter;

/// What a manifest of an index says of itself.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
const ATTESTATION_MANIFEST: &str = "attestation-manifest";
/// What a layer of an attestation manifest claims.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";

/// The kinds of signatures, the preferred first.
const SIGNATURES: [&str; 2] = [
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.cosign.artifact.sig.v1+json",
];

/// The way from an index to the signature of an image's attestations, as far as it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestationChain {
    /// Of the index.
    pub root: Digest,
    /// Of the platform's image.
    pub image_manifest: Digest,
    /// Of the manifest whose layers are that image's attestations.
    pub attestation_manifest: Option<Digest>,
    /// Of the manifest whose layers sign that one.
    pub signature_manifest: Option<Digest>,
    /// Index, attestation manifest, signature manifest with its layers, and the attestations that were
    /// asked for.
    pub blobs: Vec<(Descriptor, Bytes)>,
}

impl ImageSource {
    /// The chain of an image that was resolved; `None` for one that is in no OCI index. Of the
    /// attestations those come along whose predicate is of one of these types.
    ///
    /// # Errors
    /// The provider's; manifests that cannot be read.
    pub async fn attestation_chain(
        &self,
        provider: &dyn ContentProvider,
        image: &ResolvedImage,
        predicate_types: &[String],
    ) -> Result<Option<AttestationChain>> {
        if image.root.media_type != media_type::OCI_INDEX {
            return Ok(None);
        }
        let request = ImageRequest::new(image.reference.clone(), oci::Platform::host());
        let getter = Getter {
            source: self,
            provider,
            request: &request,
            lease: &image.lease,
        };
        let bytes = getter.small(&image.root).await?;
        let index: ImageIndex = read(&image.root, &bytes)?;
        let mut chain = AttestationChain {
            root: image.root.digest,
            image_manifest: image.manifest.digest,
            attestation_manifest: None,
            signature_manifest: None,
            blobs: vec![(image.root.clone(), bytes)],
        };
        if let Some(attestations) = attestations_of(&index, image.manifest.digest) {
            chain
                .add_attestations(&getter, attestations, predicate_types)
                .await?;
        }
        Ok(Some(chain))
    }
}

impl AttestationChain {
    async fn add_attestations(
        &mut self,
        getter: &Getter<'_>,
        attestations: &Descriptor,
        predicate_types: &[String],
    ) -> Result<()> {
        self.attestation_manifest = Some(attestations.digest);
        let manifest = self.add(getter, attestations).await?;
        let name = &getter.request.reference;
        let referrers = getter.provider.referrers(name, attestations.digest).await;
        let referrers = referrers.map_err(|error| {
            error.context(format!(
                "fetching referrers for attestation manifest {}",
                attestations.digest
            ))
        })?;
        if let Some(signature) = signature_among(&referrers) {
            self.signature_manifest = Some(signature.digest);
            let bytes = self.add(getter, signature).await?;
            let signed: ImageManifest = read(signature, &bytes)?;
            for layer in &signed.layers {
                self.add(getter, layer).await?;
            }
        }
        if predicate_types.is_empty() {
            return Ok(());
        }
        let manifest: ImageManifest = read(attestations, &manifest)?;
        for layer in &manifest.layers {
            let kind = layer.annotations.get(PREDICATE_TYPE);
            if kind.is_some_and(|kind| !kind.is_empty() && predicate_types.contains(kind)) {
                self.add(getter, layer).await?;
            }
        }
        Ok(())
    }

    /// Gets a content and keeps it, once.
    async fn add(&mut self, getter: &Getter<'_>, descriptor: &Descriptor) -> Result<Bytes> {
        let bytes = getter.small(descriptor).await?;
        let known = |(known, _): &(Descriptor, Bytes)| known.digest == descriptor.digest;
        if !self.blobs.iter().any(known) {
            self.blobs.push((descriptor.clone(), bytes.clone()));
        }
        Ok(bytes)
    }
}

/// The manifest of an index that has the attestations of an image.
fn attestations_of(index: &ImageIndex, image: Digest) -> Option<&Descriptor> {
    let image = image.to_string();
    index.manifests.iter().find(|entry| {
        let says = |key: &str, value: &str| entry.annotations.get(key).is_some_and(|v| v == value);
        says(REFERENCE_TYPE, ATTESTATION_MANIFEST) && says(REFERENCE_DIGEST, &image)
    })
}

/// The first signature of the best kind there is.
fn signature_among(referrers: &[Descriptor]) -> Option<&Descriptor> {
    SIGNATURES.iter().find_map(|kind| {
        let mut all = referrers.iter();
        all.find(|referrer| referrer.artifact_type.as_deref() == Some(kind))
    })
}

fn read<T: serde::de::DeserializeOwned>(descriptor: &Descriptor, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::invalid(format!(
            "unmarshaling manifest {}: {error}",
            descriptor.digest
        ))
    })
}
