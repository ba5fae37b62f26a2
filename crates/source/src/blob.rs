//! A blob of a repository, or of an OCI layout, as a file in a layer of its own.
//!
//! The digest is part of the name, so nothing is to be found out before the content is needed.

use std::os::unix::fs::OpenOptionsExt;

use diag::{Error, Result};
use layers::{LayerHold, LayerNote, LayerStack, LayerStore, RecordType};
use oci::{Digest, Reference};
use tokio::io::AsyncWriteExt;

use crate::file_layer::{MODE_DEFAULT, finish_file, safe_name};
use crate::image::ContentProvider;
use crate::resolve::blocking;

/// Which blob, and what is made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRequest {
    /// Repository and digest.
    pub reference: Reference,
    /// What the file is called; empty for the digest's digits.
    pub filename: String,
    /// Permission bits; `None` is 0600.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// For the layer's record.
    pub record_type: RecordType,
}

impl BlobRequest {
    /// The blob of that name, without further wishes.
    pub fn new(reference: Reference) -> Self {
        BlobRequest {
            reference,
            filename: String::new(),
            mode: None,
            uid: 0,
            gid: 0,
            record_type: RecordType::Regular,
        }
    }

    /// The digest of the blob.
    ///
    /// # Errors
    /// Names without one.
    pub fn digest(&self) -> Result<Digest> {
        self.reference.digest().ok_or_else(|| {
            Error::invalid("invalid reference digest: a blob is named by its digest")
        })
    }

    /// What the file is called.
    ///
    /// # Errors
    /// As for [`BlobRequest::digest`].
    pub fn file_name(&self) -> Result<String> {
        match self.filename.as_str() {
            "" => Ok(self.digest()?.hex()),
            name => Ok(safe_name(name)),
        }
    }
}

/// Brings the blob from whoever has it, as a layer.
///
/// # Errors
/// The provider's; content that has not the digest.
pub async fn fetch_blob(
    provider: &dyn ContentProvider,
    layers: &LayerStore,
    request: &BlobRequest,
) -> Result<(LayerStack, LayerHold)> {
    let digest = request.digest()?;
    let descriptor = provider.find(&request.reference, digest).await?;
    let mut blob = provider.blob(&request.reference, &descriptor).await?;
    let store = layers.clone();
    let layer = blocking(move || Ok(store.new_layer()?)).await?;
    let path = layer.path().join(request.file_name()?);
    let opened = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE_DEFAULT)
        .open(&path)?;
    let mut file = tokio::fs::File::from_std(opened);
    // The provider verifies size and digest.
    while let Some(piece) = blob.chunk().await? {
        file.write_all(&piece).await?;
    }
    file.flush().await?;
    let request = request.clone();
    blocking(move || {
        finish_file(&path, request.mode, (request.uid, request.gid), 0)?;
        let note = LayerNote::new(format!("blob {}", request.reference));
        let (id, hold) = layer.commit_held(note.of_type(request.record_type))?;
        Ok((id.into(), hold))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;

    use layers::Backend;

    use super::*;
    use crate::oci_layout::{LayoutDir, OciLayout};

    #[tokio::test]
    async fn a_blob_of_a_layout_is_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let layers = LayerStore::open(dir.path().join("layers"), Backend::Auto).unwrap();
        let digest = Digest::of("staves");
        let blobs = dir.path().join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(digest.hex()), "staves").unwrap();
        let provider = OciLayout::new(Arc::new(LayoutDir::new(dir.path())));
        let reference = format!("example.org/a@{digest}").parse().unwrap();
        let plain = BlobRequest::new(reference);
        let (stack, _hold) = fetch_blob(&provider, &layers, &plain).await.unwrap();
        let files = layers.mount(&stack).unwrap();
        let file = files.path().join(digest.hex());
        let meta = std::fs::metadata(&file).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o600, 0));
        let wished = BlobRequest {
            filename: "../x/name".into(),
            mode: Some(0o640),
            uid: 7,
            gid: 8,
            ..plain.clone()
        };
        let (stack, _hold) = fetch_blob(&provider, &layers, &wished).await.unwrap();
        let files = layers.mount(&stack).unwrap();
        let meta = std::fs::metadata(files.path().join("name")).unwrap();
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (0o640, 7, 8)
        );
        // Content that is another leaves no layer.
        std::fs::write(blobs.join(digest.hex()), "staveX").unwrap();
        let error = fetch_blob(&provider, &layers, &plain)
            .await
            .map(drop)
            .unwrap_err();
        assert!(error.to_string().contains("digest"), "{error}");
        assert_eq!(layers.list().unwrap().len(), 2);
        let unnamed = BlobRequest::new("example.org/a:1".parse().unwrap());
        assert!(fetch_blob(&provider, &layers, &unnamed).await.is_err());
    }
}
