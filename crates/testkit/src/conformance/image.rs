//! What is in an OCI archive or layout, as plain facts.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::layer_tar::entries;
use super::tree::{Tree, sha256};

/// Blobs and index of a layout, by path.
pub struct Layout {
    files: BTreeMap<String, Vec<u8>>,
}

/// One image of a layout.
pub struct Image {
    /// The configuration, parsed.
    pub config: Value,
    /// The configuration as it is stored.
    pub config_text: String,
    /// Media type of the manifest's configuration.
    pub manifest: Value,
    /// Digests of the unpacked layers, bottom first.
    pub diff_ids: Vec<String>,
    /// All layers put together.
    pub files: Map<String, Value>,
}

impl Layout {
    /// Reads an archive.
    pub fn read(archive: &Path) -> Result<Layout, String> {
        let bytes = std::fs::read(archive).map_err(|e| format!("{}: {e}", archive.display()))?;
        let files = entries(&bytes)?.into_iter().map(|entry| {
            let path = entry.path.trim_start_matches("./").to_owned();
            (path, entry.data)
        });
        Ok(Layout {
            files: files.collect(),
        })
    }

    /// Reads a folder.
    pub fn open(folder: &Path) -> Result<Layout, String> {
        let mut files = BTreeMap::new();
        let mut take = |name: String| {
            let bytes = std::fs::read(folder.join(&name)).map_err(|e| format!("{name}: {e}"))?;
            files.insert(name, bytes);
            Ok::<(), String>(())
        };
        take("index.json".into())?;
        let blobs = std::fs::read_dir(folder.join("blobs/sha256")).map_err(|e| e.to_string())?;
        for blob in blobs.flatten() {
            take(format!(
                "blobs/sha256/{}",
                blob.file_name().to_string_lossy()
            ))?;
        }
        Ok(Layout { files })
    }

    fn file(&self, name: &str) -> Result<&[u8], String> {
        let found = self.files.get(name).map(Vec::as_slice);
        found.ok_or_else(|| format!("the layout has no {name}"))
    }

    fn blob(&self, digest: &Value) -> Result<&[u8], String> {
        let digest = digest.as_str().unwrap_or_default();
        let bytes = self.file(&format!("blobs/{}", digest.replace(':', "/")))?;
        if format!("sha256:{}", sha256(bytes)) != digest {
            return Err(format!("blob {digest} has another digest"));
        }
        Ok(bytes)
    }

    fn json(&self, digest: &Value) -> Result<Value, String> {
        serde_json::from_slice(self.blob(digest)?).map_err(|error| error.to_string())
    }

    /// All images in the order of the index, the tags and the annotations of indexes.
    pub fn images(&self) -> Result<(Vec<Image>, Vec<String>, Map<String, Value>), String> {
        let index: Value =
            serde_json::from_slice(self.file("index.json")?).map_err(|error| error.to_string())?;
        let mut todo: VecDeque<Value> = list(&index, "manifests").iter().cloned().collect();
        let name = |entry: &Value| {
            let name = &entry["annotations"]["org.opencontainers.image.ref.name"];
            name.as_str().map(str::to_owned)
        };
        let mut tags: Vec<String> = todo.iter().filter_map(name).collect();
        tags.sort();
        let (mut images, mut annotations) = (Vec::new(), Map::new());
        while let Some(descriptor) = todo.pop_front() {
            let manifest = self.json(&descriptor["digest"])?;
            if manifest.get("manifests").is_some() {
                if let Some(more) = manifest["annotations"].as_object() {
                    annotations.extend(more.clone());
                }
                for inner in list(&manifest, "manifests").iter().rev() {
                    todo.push_front(inner.clone());
                }
                continue;
            }
            images.push(self.image(manifest)?);
        }
        Ok((images, tags, annotations))
    }

    fn image(&self, manifest: Value) -> Result<Image, String> {
        let text = self.blob(&manifest["config"]["digest"])?;
        let config_text = String::from_utf8_lossy(text).into_owned();
        let config: Value =
            serde_json::from_str(&config_text).map_err(|error| error.to_string())?;
        let diff_ids: Vec<String> = list(&config["rootfs"], "diff_ids")
            .iter()
            .map(|id| id.as_str().unwrap_or_default().to_owned())
            .collect();
        let layers = list(&manifest, "layers");
        if layers.len() != diff_ids.len() {
            let (layers, ids) = (layers.len(), diff_ids.len());
            return Err(format!("{layers} layers but {ids} diff ids"));
        }
        let mut tree = Tree::default();
        for (layer, id) in layers.iter().zip(&diff_ids) {
            let tar = unpacked(self.blob(&layer["digest"])?)?;
            if format!("sha256:{}", sha256(&tar)) != *id {
                return Err(format!("diff id {id} does not match its layer"));
            }
            tree.apply(&tar)?;
        }
        Ok(Image {
            config,
            config_text,
            manifest,
            diff_ids,
            files: tree.facts(),
        })
    }
}

impl Image {
    /// `os/architecture[/variant]`.
    pub fn platform(&self) -> String {
        let parts = ["os", "architecture", "variant"];
        let parts = parts.iter().filter_map(|part| self.config[part].as_str());
        let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
        parts.join("/")
    }

    /// Architecture without its variant.
    pub fn architecture(&self) -> &str {
        self.config["architecture"].as_str().unwrap_or_default()
    }

    /// Configuration without history, layers and what is empty; `created` only where it is fixed.
    pub fn config_facts(&self, fixed_times: bool) -> Value {
        let skipped = ["rootfs", "history", "created", "config"];
        let mut facts = Map::new();
        for (key, value) in self.config.as_object().into_iter().flatten() {
            if !skipped.contains(&key.as_str()) && !is_empty(value) {
                facts.insert(key.clone(), value.clone());
            }
        }
        if fixed_times {
            facts.insert("created".into(), self.config["created"].clone());
        }
        let inner = self.config["config"].as_object().into_iter().flatten();
        let inner = inner.filter(|(_, value)| !is_empty(value) && **value != Value::Bool(false));
        let inner: Map<String, Value> = inner.map(|(k, v)| (k.clone(), v.clone())).collect();
        facts.insert("config".into(), Value::Object(inner));
        Value::Object(facts)
    }

    /// History entries, without their times unless those are fixed.
    pub fn history_facts(&self, fixed_times: bool) -> Value {
        let entries = list(&self.config, "history").iter().map(|entry| {
            let mut facts = Map::new();
            for key in ["created_by", "empty_layer", "comment", "author"] {
                let value = &entry[key];
                if !is_empty(value) && *value != Value::Bool(false) {
                    facts.insert(key.into(), value.clone());
                }
            }
            if fixed_times {
                facts.insert("created".into(), entry["created"].clone());
            }
            Value::Object(facts)
        });
        entries.collect()
    }

    /// The configuration's own text, with the digests of base layers named, since those depend on
    /// the machine's busybox.
    pub fn config_text(&self, base: &[String]) -> String {
        let mut text = self.config_text.clone();
        for (number, id) in base.iter().enumerate() {
            text = text.replace(id, &format!("base layer {number}"));
        }
        text
    }

    /// Annotations of the manifest, null without any.
    pub fn annotations(&self) -> Value {
        json!(self.manifest.get("annotations"))
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn unpacked(blob: &[u8]) -> Result<Vec<u8>, String> {
    if blob.starts_with(b"\x28\xb5\x2f\xfd") {
        return Err("layer is compressed with zstd; the default is gzip".into());
    }
    if !blob.starts_with(b"\x1f\x8b") {
        return Ok(blob.to_vec());
    }
    let mut tar = Vec::new();
    let mut reader = flate2::read::MultiGzDecoder::new(blob);
    reader
        .read_to_end(&mut tar)
        .map_err(|error| format!("a layer's gzip: {error}"))?;
    Ok(tar)
}
