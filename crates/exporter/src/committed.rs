//! An image that is complete in the content store.

use std::collections::BTreeMap;

use base64::Engine as _;
use content::Lease;
use diag::{Error, Result};
use oci::{Descriptor, Digest, Reference};

use crate::go_json;

/// An image whose every blob is in the content store, protected by a lease.
#[derive(Clone)]
pub struct CommittedImage {
    /// Of the index, or of the only manifest (then with its platform).
    pub descriptor: Descriptor,
    /// The manifests in order.
    pub manifests: Vec<CommittedManifest>,
    /// True if `descriptor` is an index.
    pub is_index: bool,
    /// Keeps the blobs as long as the image is used.
    pub lease: Lease,
}

/// One manifest of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct CommittedManifest {
    /// Of the manifest.
    pub descriptor: Descriptor,
    /// Of its configuration.
    pub config: Descriptor,
    /// Of its layers, as they stand in the manifest.
    pub layers: Vec<CommittedLayer>,
}

/// One layer of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct CommittedLayer {
    /// As it stands in the manifest.
    pub descriptor: Descriptor,
    /// Repositories that have it, by registry (`docker.io` → `library/busybox`).
    pub sources: BTreeMap<String, Vec<String>>,
}

impl CommittedImage {
    /// Every blob once: layers and configurations first, manifests and the index last, in an order
    /// in which a registry accepts them.
    pub fn blobs(&self) -> Vec<Descriptor> {
        let mut seen = std::collections::HashSet::new();
        let children = self.manifests.iter().flat_map(|manifest| {
            let layers = manifest.layers.iter().map(|layer| &layer.descriptor);
            layers.chain([&manifest.config])
        });
        let manifests = self.manifests.iter().map(|manifest| &manifest.descriptor);
        children
            .chain(manifests)
            .chain([&self.descriptor])
            .filter(|descriptor| seen.insert(descriptor.digest))
            .cloned()
            .collect()
    }

    /// The digest of the configuration, if there is only one.
    pub fn config_digest(&self) -> Option<Digest> {
        match (self.is_index, self.manifests.as_slice()) {
            (false, [only]) => Some(only.config.digest),
            _ => None,
        }
    }

    /// What a client is told about the image: `containerimage.*`.
    pub(crate) fn response(&self, descriptor: &Descriptor) -> Result<BTreeMap<String, String>> {
        let json =
            go_json::to_vec(descriptor).map_err(|error| Error::internal(error.to_string()))?;
        let encoded = base64::prelude::BASE64_STANDARD.encode(json);
        let mut response = BTreeMap::from([
            (
                "containerimage.digest".to_owned(),
                self.descriptor.digest.to_string(),
            ),
            ("containerimage.descriptor".to_owned(), encoded),
        ]);
        if let Some(digest) = self.config_digest() {
            response.insert(
                "containerimage.config.digest".to_owned(),
                digest.to_string(),
            );
        }
        Ok(response)
    }
}

/// The names of a comma-separated list in full, with a tag each.
pub(crate) fn normalized_names(names: &str) -> Result<Vec<Reference>> {
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| {
            name.parse::<Reference>()
                .map(Reference::with_default_tag)
                .map_err(|error| Error::invalid(format!("failed to parse {name}: {error}")))
        })
        .collect()
}
