//! The files of an image or folder as plain facts.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::layer_tar::{TarEntry, entries};

/// Files by absolute path; names of one file share its number.
#[derive(Default)]
pub struct Tree {
    paths: BTreeMap<String, usize>,
    nodes: Vec<Map<String, Value>>,
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

/// Hexadecimal SHA-256.
pub fn sha256(data: &[u8]) -> String {
    hex(&Sha256::digest(data))
}

/// Two digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Tree {
    /// Lays a layer's tar over what is there, whiteouts included.
    pub fn apply(&mut self, tar: &[u8]) -> Result<(), String> {
        let mut added = Vec::new();
        for entry in entries(tar)? {
            let path = normal(&entry.path);
            let (parent, name) = split(&path);
            if name == ".wh..wh..opq" {
                let below = format!("{}/", parent.trim_end_matches('/'));
                self.paths
                    .retain(|path, _| !path.starts_with(&below) || added.contains(path));
                continue;
            }
            if let Some(gone) = name.strip_prefix(".wh.") {
                self.remove(&normal(&format!("{parent}/{gone}")));
                continue;
            }
            self.put(&path, &entry)?;
            self.make_parents(parent);
            added.push(path);
        }
        Ok(())
    }

    fn put(&mut self, path: &str, entry: &TarEntry) -> Result<(), String> {
        if entry.kind == b'1' {
            let source = normal(&entry.target);
            let node = *self
                .paths
                .get(&source)
                .ok_or_else(|| format!("hard link {path} to missing {source}"))?;
            if self.paths.get(path) != Some(&node) {
                self.remove(path);
            }
            self.paths.insert(path.to_owned(), node);
            return Ok(());
        }
        let facts = facts(entry);
        let is_dir = |facts: &Map<String, Value>| facts["type"] == "dir";
        let stays = self
            .paths
            .get(path)
            .is_some_and(|old| is_dir(&self.nodes[*old]));
        if !(stays && is_dir(&facts)) {
            self.remove(path);
        }
        self.nodes.push(facts);
        self.paths.insert(path.to_owned(), self.nodes.len() - 1);
        Ok(())
    }

    /// A layer may leave out folders; whoever unpacks it makes them.
    fn make_parents(&mut self, mut path: &str) {
        while path != "/" && !self.paths.contains_key(path) {
            let made = TarEntry {
                kind: b'5',
                mode: 0o755,
                mtime: now(),
                ..TarEntry::default()
            };
            self.nodes.push(facts(&made));
            self.paths.insert(path.to_owned(), self.nodes.len() - 1);
            path = split(path).0;
        }
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.paths
            .retain(|found, _| found != path && !found.starts_with(&below));
    }

    /// Path → facts; the root's own entry is left out, names of one file name the first of them.
    pub fn facts(&self) -> Map<String, Value> {
        let mut groups: BTreeMap<usize, Vec<&String>> = BTreeMap::new();
        for (path, node) in self.paths.iter().filter(|(path, _)| *path != "/") {
            groups.entry(*node).or_default().push(path);
        }
        let mut all = Map::new();
        for (path, node) in self.paths.iter().filter(|(path, _)| *path != "/") {
            let mut facts = self.nodes[*node].clone();
            if groups[node].len() > 1 {
                facts.insert("hardlink".into(), json!(groups[node][0]));
            }
            all.insert(path.clone(), Value::Object(facts));
        }
        all
    }
}

/// The files below a folder.
pub fn folder(root: &Path) -> std::io::Result<Map<String, Value>> {
    let mut tree = Tree::default();
    let mut inodes = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let meta = path.symlink_metadata()?;
            let name = path.strip_prefix(root).unwrap_or(&path);
            let name = format!("/{}", name.to_string_lossy());
            if meta.is_dir() {
                todo.push(path.clone());
            } else if let Some(node) = inodes.get(&meta.ino()) {
                tree.paths.insert(name, *node);
                continue;
            }
            let mut entry = TarEntry {
                kind: b'0',
                mode: meta.mode() & 0o7777,
                uid: meta.uid().into(),
                gid: meta.gid().into(),
                mtime: meta.mtime(),
                ..TarEntry::default()
            };
            if meta.is_dir() {
                entry.kind = b'5';
            } else if meta.is_symlink() {
                entry.kind = b'2';
                entry.target = std::fs::read_link(&path)?.to_string_lossy().into_owned();
            } else if meta.file_type().is_fifo() {
                entry.kind = b'6';
            } else {
                entry.data = std::fs::read(&path)?;
            }
            tree.nodes.push(facts(&entry));
            inodes.insert(meta.ino(), tree.nodes.len() - 1);
            tree.paths.insert(name, tree.nodes.len() - 1);
        }
    }
    Ok(tree.facts())
}

fn facts(entry: &TarEntry) -> Map<String, Value> {
    let kind = match entry.kind {
        b'0' => "file",
        b'2' => "symlink",
        b'3' => "char",
        b'4' => "block",
        b'5' => "dir",
        b'6' => "fifo",
        _ => "?",
    };
    let mut facts = Map::new();
    facts.insert("type".into(), json!(kind));
    if kind != "symlink" {
        facts.insert("mode".into(), json!(format!("{:04o}", entry.mode)));
    }
    facts.insert("uid".into(), json!(entry.uid));
    facts.insert("gid".into(), json!(entry.gid));
    facts.insert("mtime".into(), json!(entry.mtime));
    match kind {
        "file" => {
            facts.insert("size".into(), json!(entry.data.len()));
            facts.insert("sha256".into(), json!(sha256(&entry.data)));
            if let Some(text) = preview(&entry.data) {
                facts.insert("text".into(), json!(text));
            }
        }
        "symlink" => drop(facts.insert("target".into(), json!(entry.target))),
        "char" | "block" => {
            let (major, minor) = entry.device;
            facts.insert("device".into(), json!(format!("{major}:{minor}")));
        }
        _ => {}
    }
    if !entry.xattrs.is_empty() {
        let values = entry.xattrs.iter();
        let values: Map<String, Value> = values.map(|(k, v)| (k.clone(), json!(hex(v)))).collect();
        facts.insert("xattrs".into(), Value::Object(values));
    }
    facts
}

/// Short texts are kept in recordings for people.
fn preview(data: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(data).ok()?;
    let plain = |c: char| matches!(c, '\t' | '\n' | '\r') || !c.is_control();
    (text.chars().count() <= 160 && text.chars().all(plain)).then(|| text.to_owned())
}

fn normal(path: &str) -> String {
    let parts = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    let joined: Vec<&str> = parts.collect();
    format!("/{}", joined.join("/"))
}

fn split(path: &str) -> (&str, &str) {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    (if parent.is_empty() { "/" } else { parent }, name)
}
