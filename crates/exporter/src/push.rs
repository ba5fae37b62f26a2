//! Pushing an image: blobs in parallel, then manifests, then the index.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use content::ContentStore;
use diag::{Error, Result};
use futures::future::try_join_all;
use oci::{Descriptor, Digest, Reference};
use registry::{BlobSource, Client, RegistryError};
use status::{Line, StatusSink};
use tokio::io::AsyncRead;

use crate::attrs::PushAttrs;
use crate::committed::CommittedImage;
use crate::image::is_nondistributable;
use crate::sending::blocking;

/// Pushes an image under one name.
///
/// # Errors
/// The registry's, with its own words, after `failed to push NAME: `.
pub async fn push_image(
    client: &Client,
    content: &ContentStore,
    image: &CommittedImage,
    name: &str,
    attrs: &PushAttrs,
    statuses: &Arc<dyn StatusSink>,
) -> Result<()> {
    let target = target_of(name, image, attrs)?;
    let client = match attrs.insecure {
        true => client.with_insecure(target.registry()),
        false => client.clone(),
    };
    let push = Push {
        client,
        content,
        image,
        target,
        statuses,
    };
    push.run().await.map_err(|error| {
        Error::from(error.with_details()).context(format!("failed to push {name}"))
    })
}

/// Where the image goes: a tag, or nothing but the repository.
fn target_of(name: &str, image: &CommittedImage, attrs: &PushAttrs) -> Result<Reference> {
    let parsed: Reference = name
        .parse()
        .map_err(|error: oci::ReferenceError| Error::invalid(error.to_string()))?;
    if attrs.by_digest {
        if parsed.tag().is_some() || parsed.digest().is_some() {
            let text = format!("can't push tagged ref {parsed} by digest");
            return Err(Error::invalid(text));
        }
        return Ok(parsed);
    }
    match parsed.digest() {
        // A dangling name: there is nothing to tag.
        Some(digest) if digest == image.descriptor.digest => Ok(parsed.without_digest()),
        Some(digest) => Err(Error::invalid(format!(
            "failed to combine ref {name} with digest {digest}"
        ))),
        None => Ok(parsed.with_default_tag()),
    }
}

struct Push<'a> {
    client: Client,
    content: &'a ContentStore,
    image: &'a CommittedImage,
    target: Reference,
    statuses: &'a Arc<dyn StatusSink>,
}

impl Push<'_> {
    async fn run(&self) -> std::result::Result<(), RegistryError> {
        let layers = Line::start(self.statuses, "pushing layers");
        let blobs = self.blobs();
        try_join_all(
            blobs
                .into_iter()
                .map(|(blob, sources)| async move { self.blob(&blob, &sources).await }),
        )
        .await?;
        layers.finish();
        let whole = match self.target.tag() {
            Some(_) => self
                .target
                .clone()
                .with_digest(self.image.descriptor.digest),
            None => self.target.clone(),
        };
        let manifests = Line::start(self.statuses, format!("pushing manifest for {whole}"));
        if self.image.is_index {
            // Parts of an index have no tags of their own.
            let untagged = self.untagged();
            try_join_all(
                self.image
                    .manifests
                    .iter()
                    .map(|manifest| self.manifest(&untagged, &manifest.descriptor)),
            )
            .await?;
        }
        self.manifest(&self.target, &self.image.descriptor).await?;
        manifests.finish();
        Ok(())
    }

    /// The target's repository without a tag.
    fn untagged(&self) -> Reference {
        let name = self.target.name();
        // It is the name of a name.
        name.parse().unwrap_or_else(|_| self.target.clone())
    }

    /// Layers and configurations, each once, with the repositories of this registry that have it.
    fn blobs(&self) -> Vec<(Descriptor, Vec<String>)> {
        let mut all: HashMap<Digest, (Descriptor, Vec<String>)> = HashMap::new();
        let mut order = Vec::new();
        for manifest in &self.image.manifests {
            for layer in &manifest.layers {
                let entry = all.entry(layer.descriptor.digest).or_insert_with(|| {
                    order.push(layer.descriptor.digest);
                    (layer.descriptor.clone(), Vec::new())
                });
                if let Some(sources) = layer.sources.get(self.target.registry()) {
                    entry.1.extend(sources.iter().cloned());
                }
            }
            all.entry(manifest.config.digest).or_insert_with(|| {
                order.push(manifest.config.digest);
                (manifest.config.clone(), Vec::new())
            });
        }
        order
            .into_iter()
            .filter_map(|digest| all.remove(&digest))
            .filter(|(blob, _)| !is_nondistributable(&blob.media_type))
            .collect()
    }

    async fn blob(
        &self,
        blob: &Descriptor,
        sources: &[String],
    ) -> std::result::Result<(), RegistryError> {
        let file: Arc<dyn BlobSource> = Arc::new(StoredBlob {
            content: self.content.clone(),
            digest: blob.digest,
        });
        let quiet = Arc::new(|_| ());
        self.client
            .push_blob(&self.target, blob, file, sources, quiet)
            .await?;
        Ok(())
    }

    async fn manifest(
        &self,
        to: &Reference,
        descriptor: &Descriptor,
    ) -> std::result::Result<(), RegistryError> {
        let bytes = tokio::fs::read(self.content.path(&descriptor.digest)).await;
        let bytes = bytes.map_err(|error| RegistryError::Local {
            digest: descriptor.digest,
            cause: error.to_string(),
        })?;
        self.client
            .push_manifest(to, descriptor, bytes.into())
            .await
    }
}

/// A blob of the store, looked at when it is opened: what a registry has already need not be read.
struct StoredBlob {
    content: ContentStore,
    digest: Digest,
}

#[async_trait]
impl BlobSource for StoredBlob {
    async fn open(&self) -> std::io::Result<Pin<Box<dyn AsyncRead + Send + Sync>>> {
        let (content, digest) = (self.content.clone(), self.digest);
        let opened = blocking(move || Ok(content.open_blob(&digest)?)).await;
        let file = opened.map_err(std::io::Error::other)?;
        Ok(Box::pin(tokio::fs::File::from_std(file)))
    }
}
