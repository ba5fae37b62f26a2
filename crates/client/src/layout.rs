//! OCI image layouts as this side writes them: the index of a directory or archive.
//!
//! Format: <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>, with
//! containerd's annotation for full names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diag::{Context, Error};
use oci::{Descriptor, Digest, ImageIndex, Reference, media_type};

use crate::export::Target;
use crate::plan::SolvePlan;
use crate::response::Response;
use crate::response::{announced_descriptor, announced_names};

/// containerd's annotation for a full name.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// OCI's annotation for a name within a layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Name of the index.
pub(crate) const INDEX: &str = "index.json";
/// Name of the file that says what the directory is.
pub(crate) const MARKER: &str = "oci-layout";
/// Content of that file.
pub(crate) const MARKER_TEXT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";

/// The directory that a plan exports into as a content store (`tar=false`). Servers know of one only.
pub fn export_layout(plan: &SolvePlan) -> Result<Option<PathBuf>, Error> {
    let mut layouts = layouts(plan);
    match (layouts.next(), layouts.next()) {
        (_, Some(_)) => Err(Error::invalid("oci store key \"export\" already exists")),
        (first, None) => Ok(first.cloned()),
    }
}

/// Enters what was exported into a directory as content into its index, when the server is done.
pub async fn enter_layouts(plan: &SolvePlan, response: &Response) -> Result<(), Error> {
    let Some(image) = announced_descriptor(response) else {
        return Ok(());
    };
    let names = announced_names(response)?;
    for directory in layouts(plan) {
        let directory = directory.clone();
        let (image, names) = (image.clone(), names.clone());
        let entering =
            tokio::task::spawn_blocking(move || put_in_directory(&directory, &image, &names));
        let entered = entering.await;
        entered.map_err(|error| Error::internal(error.to_string()))??;
    }
    Ok(())
}

fn layouts(plan: &SolvePlan) -> impl Iterator<Item = &PathBuf> {
    plan.exports
        .iter()
        .filter_map(|export| match &export.target {
            Target::Layout(directory) => Some(directory),
            _ => None,
        })
}

/// Where a blob is in a layout.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// An index without images.
pub(crate) fn empty_index() -> ImageIndex {
    ImageIndex {
        schema_version: 2,
        media_type: media_type::OCI_INDEX.to_owned(),
        artifact_type: None,
        manifests: Vec::new(),
        subject: None,
        annotations: BTreeMap::new(),
    }
}

/// Puts an image into an index, once under each of these names, or as `latest` without any; what had
/// such a name before loses its place.
pub(crate) fn put(index: &mut ImageIndex, image: &Descriptor, names: &[Reference]) {
    let named = names
        .iter()
        .map(|name| (Some(name.to_string()), name.object()));
    let entries: Vec<(Option<String>, String)> = match names {
        [] => vec![(None, "latest".to_owned())],
        _ => named.collect(),
    };
    for (full, short) in entries {
        let mut entry = image.clone();
        entry.annotations.insert(REF_NAME.to_owned(), short);
        if let Some(full) = full {
            entry.annotations.insert(IMAGE_NAME.to_owned(), full);
        }
        let same = |other: &Descriptor| {
            [IMAGE_NAME, REF_NAME]
                .iter()
                .all(|key| other.annotations.get(*key) == entry.annotations.get(*key))
        };
        index.manifests.retain(|other| !same(other));
        index.manifests.push(entry);
    }
}

/// Enters an image whose blobs are there into the index of a directory. Blocks.
///
/// # Errors
/// An index that cannot be read, and a directory that cannot be written to.
pub(crate) fn put_in_directory(
    directory: &Path,
    image: &Descriptor,
    names: &[Reference],
) -> Result<(), Error> {
    let path = directory.join(INDEX);
    let mut index = match std::fs::read(&path) {
        Ok(text) if text.is_empty() => empty_index(),
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| Error::invalid(error.to_string()))
            .with_context(|| format!("could not unmarshal {}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => empty_index(),
        Err(error) => {
            return Err(Error::from(error).context(format!("could not read {}", path.display())));
        }
    };
    put(&mut index, image, names);
    let text = serde_json::to_string(&index).map_err(|error| Error::internal(error.to_string()))?;
    crate::outcome::write_file(&directory.join(MARKER), MARKER_TEXT)?;
    crate::outcome::write_file(&path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Descriptor {
        Descriptor::new(media_type::OCI_MANIFEST, Digest::of(text), 1)
    }

    #[test]
    fn a_name_moves_to_the_newest_image_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let name = |text: &str| vec![text.parse::<Reference>().unwrap()];
        put_in_directory(dir.path(), &image("1"), &name("a:1")).unwrap();
        put_in_directory(dir.path(), &image("2"), &name("b:1")).unwrap();
        put_in_directory(dir.path(), &image("3"), &name("a:1")).unwrap();
        put_in_directory(dir.path(), &image("3"), &[]).unwrap();
        let text = std::fs::read(dir.path().join(INDEX)).unwrap();
        let index: ImageIndex = serde_json::from_slice(&text).unwrap();
        let shown: Vec<_> = index
            .manifests
            .iter()
            .map(|one| {
                (
                    one.digest,
                    one.annotations.get(IMAGE_NAME).map(String::as_str),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (Digest::of("2"), Some("docker.io/library/b:1")),
                (Digest::of("3"), Some("docker.io/library/a:1")),
                (Digest::of("3"), None),
            ]
        );
        assert!(dir.path().join(MARKER).exists());
    }

    #[test]
    fn an_index_that_is_no_json_is_named_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(INDEX), "{").unwrap();
        let error = put_in_directory(dir.path(), &image("1"), &[]).unwrap_err();
        assert!(error.to_string().contains("index.json"), "{error}");
        assert_eq!(std::fs::read(dir.path().join(INDEX)).unwrap(), b"{");
    }
}
