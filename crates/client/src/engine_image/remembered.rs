//! What is small of images that were exported from an Engine before: indexes, manifests and
//! configurations, by the image's ID, so that a server that has the layers is told of the image
//! without another export.
//!
//! ```text
//! engine-images/HEX.json   {"image": descriptor, "blobs": ["…"]}
//! ```
//!
//! IDs and blobs are content-addressed: an entry is right for ever, and one that is broken or other
//! than it says is no entry.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci::{Descriptor, Digest, ImageIndex, ImageManifest, media_type};
use serde::{Deserialize, Serialize};

use crate::layout;

/// Entries that are kept; the oldest go.
const ENTRIES_MAX: usize = 64;
/// The largest blob that is small, in bytes.
const BLOB_BYTES_MAX: u64 = 1 << 20;

/// What is known of an image.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// Of the index or manifest, as in the layout.
    pub(super) image: Descriptor,
    /// Texts of index, manifests and configurations.
    blobs: Vec<String>,
}

impl Remembered {
    /// Reads what is small of a layout.
    pub(super) fn of_layout(image: &Descriptor, directory: &Path) -> Option<Self> {
        let mut blobs = Vec::new();
        let mut waiting = vec![image.clone()];
        let mut seen = BTreeSet::new();
        while let Some(blob) = waiting.pop() {
            let path = directory.join(layout::blob_path(&blob.digest));
            if !seen.insert(blob.digest) || blob.size > BLOB_BYTES_MAX {
                continue;
            }
            // An index may name platforms that the Engine does not have.
            let Ok(text) = std::fs::read_to_string(path) else {
                continue;
            };
            if media_type::is_index(&blob.media_type) {
                let index: ImageIndex = serde_json::from_str(&text).ok()?;
                waiting.extend(index.manifests);
            } else if media_type::is_manifest(&blob.media_type) {
                let manifest: ImageManifest = serde_json::from_str(&text).ok()?;
                waiting.push(manifest.config);
            }
            blobs.push(text);
        }
        let image = image.clone();
        (!blobs.is_empty()).then_some(Remembered { image, blobs })
    }

    /// What is known of the image of that ID.
    pub(super) fn find(entries: &Path, id: &str) -> Option<Self> {
        let text = std::fs::read(entry(entries, id)?).ok()?;
        let found: Remembered = serde_json::from_slice(&text).ok()?;
        let has_image = |blob: &String| Digest::of(blob) == found.image.digest;
        found.blobs.iter().any(has_image).then_some(found)
    }

    /// Keeps it. Best effort: without it the next build exports again.
    pub(super) fn keep(&self, entries: &Path, id: &str) {
        let (Some(path), Ok(text)) = (entry(entries, id), serde_json::to_string(self)) else {
            return;
        };
        let _ = std::fs::create_dir_all(entries);
        let _ = crate::outcome::write_file(&path, &text);
        forget_oldest(entries);
    }

    /// Writes the blobs into a layout.
    pub(super) fn write_to(&self, directory: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(directory.join("blobs/sha256"))?;
        for blob in &self.blobs {
            let path = directory.join(layout::blob_path(&Digest::of(blob)));
            std::fs::write(path, blob)?;
        }
        Ok(())
    }
}

fn entry(entries: &Path, id: &str) -> Option<PathBuf> {
    let digest: Digest = id.parse().ok()?;
    Some(entries.join(format!("{}.json", digest.hex())))
}

fn forget_oldest(entries: &Path) {
    let Ok(found) = std::fs::read_dir(entries) else {
        return;
    };
    let mut found: Vec<_> = found
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    let surplus = found.len().saturating_sub(ENTRIES_MAX);
    for (_, path) in found.into_iter().take(surplus) {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_id_and_nothing_broken_is() {
        let dir = tempfile::tempdir().unwrap();
        let (layout_dir, entries) = (dir.path().join("layout"), dir.path().join("entries"));
        let put = |text: &str| {
            let path = layout_dir.join(layout::blob_path(&Digest::of(text)));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            Digest::of(text)
        };
        let config = put("{}");
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{config}","size":2}},"layers":[]}}"#
        );
        let digest = put(&manifest);
        let image = Descriptor::new(media_type::OCI_MANIFEST, digest, manifest.len() as u64);
        let id = config.to_string();
        assert_eq!(Remembered::find(&entries, &id), None);
        let known = Remembered::of_layout(&image, &layout_dir).unwrap();
        known.keep(&entries, &id);
        assert_eq!(Remembered::find(&entries, &id), Some(known));
        let again = dir.path().join("again");
        Remembered::find(&entries, &id)
            .unwrap()
            .write_to(&again)
            .unwrap();
        for digest in [config, digest] {
            assert!(again.join(layout::blob_path(&digest)).exists());
        }
        let path = entry(&entries, &id).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("schemaVersion", "schemaversion")).unwrap();
        assert_eq!(Remembered::find(&entries, &id), None);
    }
}
