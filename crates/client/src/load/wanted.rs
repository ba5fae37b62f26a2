//! The image that a server is about to send, read ahead from the server's content store.

use std::collections::BTreeMap;

use diag::Error;
use oci::{Descriptor, Digest, ImageConfig, ImageIndex, ImageManifest, Reference, media_type};
use proto::content::{ContentClient, InfoRequest, ReadContentRequest, ReadContentResponse};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::response::{announced_descriptor, announced_names};

/// The largest manifest or configuration that is read into memory, in bytes.
const SMALL_BLOB_BYTES_MAX: u64 = 8 << 20;
/// The largest message accepted from a server.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// The content store of a build server, to read from.
#[derive(Clone)]
pub(crate) struct ServerContent(Channel);

/// An image by its parts: what is small is here, layers are named.
pub(super) struct WantedImage {
    /// Of the index or the only manifest, as the server announces it.
    pub(super) root: Descriptor,
    /// Names it shall have, in full.
    pub(super) names: Vec<Reference>,
    /// Index, manifests and configurations.
    pub(super) small: BTreeMap<Digest, Vec<u8>>,
    /// The manifests.
    pub(super) manifests: Vec<WantedManifest>,
}

/// One manifest.
pub(super) struct WantedManifest {
    /// Of the manifest.
    pub(super) digest: Digest,
    /// Of its configuration.
    pub(super) config: Digest,
    /// Bottom first.
    pub(super) layers: Vec<WantedLayer>,
}

/// One layer.
pub(super) struct WantedLayer {
    /// Of its blob.
    pub(super) descriptor: Descriptor,
    /// Of what is in the blob, where the configuration tells.
    pub(super) diff_id: Option<Digest>,
}

impl ServerContent {
    /// The store of the server at the other end.
    pub(crate) fn new(channel: Channel) -> Self {
        ServerContent(channel)
    }

    fn client(&self) -> ContentClient<Channel> {
        ContentClient::new(self.0.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Whether a blob is there.
    pub(super) async fn has(&self, digest: &Digest) -> Result<bool, Status> {
        let digest = digest.to_string();
        match self.client().info(InfoRequest { digest }).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// A blob in pieces, unverified.
    pub(super) async fn stream(
        &self,
        digest: &Digest,
    ) -> Result<Streaming<ReadContentResponse>, Status> {
        let request = ReadContentRequest {
            digest: digest.to_string(),
            offset: 0,
            size: 0,
        };
        Ok(self.client().read(request).await?.into_inner())
    }

    async fn read(&self, blob: &Descriptor) -> Result<Vec<u8>, Error> {
        let broken = |reason: &str| Error::invalid(format!("{}: {reason}", blob.digest));
        if blob.size > SMALL_BLOB_BYTES_MAX {
            return Err(broken("too large"));
        }
        let failed = |status: Status| broken(status.message());
        let mut stream = self.stream(&blob.digest).await.map_err(failed)?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.message().await.map_err(failed)? {
            bytes.extend_from_slice(&piece.data);
            if bytes.len() as u64 > blob.size {
                return Err(broken("longer than announced"));
            }
        }
        match Digest::of(&bytes) == blob.digest {
            true => Ok(bytes),
            false => Err(broken("other content than announced")),
        }
    }
}

impl WantedImage {
    /// Reads what an exporter announces.
    ///
    /// # Errors
    /// Servers that announce too little or do not let their content be read.
    pub(super) async fn read(
        server: &ServerContent,
        announced: &BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let root = announced_descriptor(announced)
            .ok_or_else(|| Error::not_found("the exporter announces no image"))?;
        let mut image = WantedImage {
            names: announced_names(announced)?,
            small: BTreeMap::new(),
            manifests: Vec::new(),
            root: root.clone(),
        };
        let bytes = server.read(&root).await?;
        if media_type::is_index(&root.media_type) {
            let index: ImageIndex = parse(&bytes)?;
            image.small.insert(root.digest, bytes);
            for manifest in index.manifests {
                let bytes = server.read(&manifest).await?;
                image.add_manifest(server, manifest.digest, bytes).await?;
            }
        } else {
            image.add_manifest(server, root.digest, bytes).await?;
        }
        Ok(image)
    }

    async fn add_manifest(
        &mut self,
        server: &ServerContent,
        digest: Digest,
        bytes: Vec<u8>,
    ) -> Result<(), Error> {
        let manifest: ImageManifest = parse(&bytes)?;
        let config_bytes = server.read(&manifest.config).await?;
        // Attestations have configurations of other kinds: their layers are always sent.
        let diff_ids = serde_json::from_slice::<ImageConfig>(&config_bytes)
            .map(|config| config.rootfs.diff_ids)
            .unwrap_or_default();
        let all_known = diff_ids.len() == manifest.layers.len();
        let layers = manifest.layers.into_iter().enumerate();
        self.manifests.push(WantedManifest {
            digest,
            config: manifest.config.digest,
            layers: layers
                .map(|(index, descriptor)| WantedLayer {
                    descriptor,
                    diff_id: all_known.then(|| diff_ids[index]),
                })
                .collect(),
        });
        self.small.insert(digest, bytes);
        self.small.insert(manifest.config.digest, config_bytes);
        Ok(())
    }

    /// Every layer's blob once.
    pub(super) fn layers(&self) -> BTreeMap<Digest, &Descriptor> {
        self.manifests
            .iter()
            .flat_map(|manifest| &manifest.layers)
            .map(|layer| (layer.descriptor.digest, &layer.descriptor))
            .collect()
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(|error| Error::invalid(error.to_string()))
}
