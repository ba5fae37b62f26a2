//! What `docker save` writes, as an OCI layout.
//!
//! Engines since 25 write a layout; older ones write `manifest.json`, the configuration as
//! `<hex>.json` and each layer as `<id>/layer.tar`, or a link to another such file.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use archive::{EntryKind, Reader};
use diag::Error;
use driver::engine::Engine;
use oci::{Descriptor, Digest, DigestHasher, ImageIndex, ImageManifest, media_type};
use serde::Deserialize;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::layout;

/// The largest index, in bytes.
const INDEX_BYTES_MAX: u64 = 8 << 20;

/// Exports an image of an Engine into a directory; gives its descriptor there.
pub(super) async fn export(
    engine: &Engine,
    name: &str,
    directory: PathBuf,
) -> Result<Descriptor, Error> {
    let stream = engine.export_image(name).await?;
    let reader = SyncIoBridge::new(StreamReader::new(stream));
    let unpacking = tokio::task::spawn_blocking(move || unpack(reader, &directory));
    let unpacked = unpacking.await;
    unpacked.map_err(|error| Error::internal(error.to_string()))?
}

/// Unpacks a saved image into a layout.
fn unpack(reader: impl Read, directory: &Path) -> Result<Descriptor, Error> {
    std::fs::create_dir_all(directory.join("blobs/sha256"))?;
    let mut saved = Saved {
        directory: directory.to_owned(),
        files: BTreeMap::new(),
        links: BTreeMap::new(),
        texts: BTreeMap::new(),
    };
    let mut archive = Reader::new(reader);
    while let Some(mut entry) = archive.next_entry()? {
        let path = String::from_utf8_lossy(&entry.header().clean_path()).into_owned();
        match entry.header().kind {
            EntryKind::Regular if matches!(&*path, layout::INDEX | "manifest.json") => {
                let mut text = Vec::new();
                (&mut entry).take(INDEX_BYTES_MAX).read_to_end(&mut text)?;
                saved.texts.insert(path, text);
            }
            EntryKind::Regular => saved.add_blob(path, &mut entry)?,
            EntryKind::Symlink | EntryKind::HardLink => {
                let target = String::from_utf8_lossy(&entry.header().link).into_owned();
                saved.links.insert(path, target);
            }
            _ => {}
        }
    }
    saved.image()
}

/// What came out of the archive.
struct Saved {
    directory: PathBuf,
    /// Blobs by their paths in the archive.
    files: BTreeMap<String, (Digest, u64)>,
    links: BTreeMap<String, String>,
    texts: BTreeMap<String, Vec<u8>>,
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
}

impl Saved {
    /// Keeps a file under its digest.
    fn add_blob(&mut self, path: String, content: &mut impl Read) -> Result<(), Error> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        let mut hasher = DigestHasher::new();
        let mut buffer = vec![0; 256 << 10];
        let mut size = 0;
        loop {
            let count = content.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            file.write_all(&buffer[..count])?;
            size += count as u64;
        }
        let digest = hasher.finish();
        let kept = self.directory.join(layout::blob_path(&digest));
        file.persist(kept).map_err(|error| error.error)?;
        self.files.insert(path, (digest, size));
        Ok(())
    }

    /// The image's descriptor; its manifest is made if the archive has none.
    fn image(&self) -> Result<Descriptor, Error> {
        let broken = |what: &str| Error::invalid(format!("the saved image has {what}"));
        if let Some(text) = self.texts.get(layout::INDEX) {
            let index: ImageIndex =
                serde_json::from_slice(text).map_err(|error| broken(&error.to_string()))?;
            let first = index.manifests.into_iter().next();
            return first.ok_or_else(|| broken("no manifest"));
        }
        let text = self.texts.get("manifest.json");
        let text = text.ok_or_else(|| broken("no manifest.json"))?;
        let manifests: Vec<DockerManifest> =
            serde_json::from_slice(text).map_err(|error| broken(&error.to_string()))?;
        let first = manifests.first().ok_or_else(|| broken("no manifest"))?;
        let describe = |path: &str, kind: &str| {
            let (digest, size) = self
                .file(path)
                .ok_or_else(|| broken(&format!("no {path:?}")))?;
            Ok::<_, Error>(Descriptor::new(kind, digest, size))
        };
        let layers = first.layers.iter();
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            artifact_type: None,
            config: describe(&first.config, media_type::OCI_CONFIG)?,
            layers: layers
                .map(|path| describe(path, media_type::OCI_LAYER))
                .collect::<Result<_, _>>()?,
            subject: None,
            annotations: BTreeMap::new(),
        };
        let bytes =
            serde_json::to_vec(&manifest).map_err(|error| Error::internal(error.to_string()))?;
        let digest = Digest::of(&bytes);
        std::fs::write(self.directory.join(layout::blob_path(&digest)), &bytes)?;
        let size = bytes.len() as u64;
        Ok(Descriptor::new(media_type::OCI_MANIFEST, digest, size))
    }

    /// A file of the archive, through links to others.
    fn file(&self, path: &str) -> Option<(Digest, u64)> {
        let mut path = path.to_owned();
        for _ in 0..=self.links.len() {
            if let Some(found) = self.files.get(&path) {
                return Some(*found);
            }
            let target = self.links.get(&path)?;
            // `../ID/layer.tar` beside the directory of the link.
            path = target.trim_start_matches("../").to_owned();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use archive::{Header, Writer};

    use super::*;

    fn saved(files: &[(&str, &str)], link: Option<(&str, &str)>) -> Vec<u8> {
        let mut tar = Writer::new(Vec::new());
        for (path, content) in files {
            tar.append_bytes(Header::file(*path, 0), content.as_bytes())
                .unwrap();
        }
        if let Some((path, target)) = link {
            let mut header = Header::new(EntryKind::Symlink, path);
            header.link = target.into();
            tar.append(&header, std::io::empty()).unwrap();
        }
        tar.finish().unwrap()
    }

    #[test]
    fn the_old_form_becomes_a_layout() {
        let manifest =
            r#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["1/layer.tar","2/layer.tar"]}]"#;
        let archive = saved(
            &[
                ("1/layer.tar", "layer"),
                ("c.json", "{}"),
                ("manifest.json", manifest),
            ],
            Some(("2/layer.tar", "../1/layer.tar")),
        );
        let dir = tempfile::tempdir().unwrap();
        let image = unpack(archive.as_slice(), dir.path()).unwrap();
        let blob = |digest: &Digest| std::fs::read(dir.path().join(layout::blob_path(digest)));
        let manifest: ImageManifest =
            serde_json::from_slice(&blob(&image.digest).unwrap()).unwrap();
        assert_eq!(manifest.config.digest, Digest::of("{}"));
        let layers: Vec<Digest> = manifest.layers.iter().map(|one| one.digest).collect();
        assert_eq!(layers, [Digest::of("layer"), Digest::of("layer")]);
        assert_eq!(blob(&layers[0]).unwrap(), b"layer");
    }

    #[test]
    fn a_layout_stays_one() {
        let image = Descriptor::new(media_type::OCI_MANIFEST, Digest::of("m"), 1);
        let mut index = layout::empty_index();
        index.manifests.push(image.clone());
        let index = serde_json::to_string(&index).unwrap();
        let path = layout::blob_path(&Digest::of("m"));
        let archive = saved(&[(&path, "m"), (layout::INDEX, &index)], None);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(unpack(archive.as_slice(), dir.path()).unwrap(), image);
        assert!(dir.path().join(path).exists());
    }

    #[test]
    fn what_a_broken_archive_lacks_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = r#"[{"Config":"c.json","Layers":[]}]"#;
        let archive = saved(&[("manifest.json", manifest)], None);
        let error = unpack(archive.as_slice(), dir.path()).unwrap_err();
        assert!(error.to_string().contains("c.json"), "{error}");
        let loops = saved(
            &[("manifest.json", r#"[{"Config":"a","Layers":[]}]"#)],
            Some(("a", "a")),
        );
        assert!(unpack(loops.as_slice(), dir.path()).is_err());
    }
}
