//! The layers of a result, each as lines that can be compared.

use std::path::Path;

use serde_json::Value;

use super::tree;

/// What is in each layer of the only image of a layout; the layers are unpacked below `directory`.
pub fn of_layout(layout: &Path, directory: &Path, now_from: u64) -> Vec<String> {
    let index = read(&layout.join("index.json"));
    let manifest = &index["manifests"][0];
    let manifest = read(&blob(layout, &manifest["digest"]));
    let layers = manifest["layers"].as_array().into_iter().flatten();
    let mut lines = Vec::new();
    for (number, layer) in layers.enumerate() {
        lines.push(format!("layer {number}"));
        let archive = blob(layout, &layer["digest"]);
        let directory = directory.join(number.to_string());
        lines.extend(tree::of_archive(&archive, &directory, now_from));
    }
    lines
}

fn blob(layout: &Path, digest: &Value) -> std::path::PathBuf {
    let digest = digest.as_str().unwrap().replace(':', "/");
    layout.join("blobs").join(digest)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
