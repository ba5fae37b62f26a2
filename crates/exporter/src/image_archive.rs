//! Archives of images: OCI's layout, with `manifest.json` added for `docker load`.
//!
//! ```text
//! blobs/  blobs/sha256/  blobs/sha256/<hex>…  index.json  [manifest.json]  oci-layout
//! ```

use std::collections::BTreeMap;
use std::io::{BufReader, Write};

use archive::{Header, Writer};
use content::ContentStore;
use diag::{Error, Result};
use oci::{Descriptor, Digest, ImageIndex, Reference, media_type};
use serde::Serialize;

use crate::committed::CommittedImage;
use crate::go_json;

/// containerd's annotation for a full name.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// OCI's annotation for a name within a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What is put into an archive besides the image itself.
#[derive(Clone, Debug, Default)]
pub struct ArchiveOptions {
    /// Names of the image; without any it has none in the archive.
    pub names: Vec<Reference>,
    /// Adds `manifest.json`, which `docker load` wants.
    pub docker: bool,
}

/// An image as `docker load` wants it described.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: &'static str,
}

/// Writes the archive of an image; `descriptor` is the image's with the annotations for
/// `index.json`. Blocks.
///
/// # Errors
/// Blobs that are not in the store, and failures of `out`.
pub fn write_image_archive<W: Write>(
    content: &ContentStore,
    image: &CommittedImage,
    descriptor: &Descriptor,
    options: &ArchiveOptions,
    out: W,
) -> Result<W> {
    let mut blobs = image.blobs();
    // All names of the archive are sorted.
    blobs.sort_by_key(|blob| blob.digest);
    let mut tar = Writer::new(out);
    for directory in ["blobs/", "blobs/sha256/"] {
        tar.append(&Header::directory(directory), std::io::empty())?;
    }
    for blob in &blobs {
        let mut header = Header::file(blob_path(blob.digest), blob.size);
        header.mode = 0o444;
        let file = content.open_blob(&blob.digest)?;
        tar.append(&header, BufReader::with_capacity(256 * 1024, file))?;
    }
    let json = |bytes: serde_json::Result<Vec<u8>>| {
        bytes.map_err(|error| Error::internal(error.to_string()))
    };
    let index = json(go_json::to_vec(&layout_index(descriptor, &options.names)))?;
    tar.append_bytes(Header::file("index.json", 0), &index)?;
    if options.docker && !image.is_index {
        let manifest = json(go_json::to_vec(&docker_manifest(image, &options.names)))?;
        tar.append_bytes(Header::file("manifest.json", 0), &manifest)?;
    }
    let layout = json(go_json::to_vec(&Layout {
        image_layout_version: "1.0.0",
    }))?;
    let mut header = Header::file("oci-layout", 0);
    header.mode = 0o444;
    tar.append_bytes(header, &layout)?;
    Ok(tar.finish()?)
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The index of a layout: the image once for each name.
pub(crate) fn layout_index(descriptor: &Descriptor, names: &[Reference]) -> ImageIndex {
    let named = |name: &Reference| {
        let mut named = descriptor.clone();
        named
            .annotations
            .insert(IMAGE_NAME.to_owned(), name.to_string());
        named.annotations.insert(REF_NAME.to_owned(), name.object());
        named
    };
    ImageIndex {
        schema_version: 2,
        media_type: media_type::OCI_INDEX.to_owned(),
        artifact_type: None,
        manifests: match names {
            [] => vec![descriptor.clone()],
            names => names.iter().map(named).collect(),
        },
        subject: None,
        annotations: BTreeMap::new(),
    }
}

fn docker_manifest(image: &CommittedImage, names: &[Reference]) -> Vec<DockerManifest> {
    let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
    image
        .manifests
        .iter()
        .map(|manifest| DockerManifest {
            config: blob_path(manifest.config.digest),
            repo_tags: some(names.iter().map(Reference::familiar).collect()),
            layers: some(
                manifest
                    .layers
                    .iter()
                    .map(|layer| blob_path(layer.descriptor.digest))
                    .collect(),
            ),
        })
        .collect()
}
