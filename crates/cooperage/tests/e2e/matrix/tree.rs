//! A result as lines that can be compared.

use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Unpacks an archive into `directory`, which is emptied before, and lists what is in it. Times
/// from `now_from` (seconds since 1970) on are shown as "now".
pub fn of_archive(archive: &Path, directory: &Path, now_from: u64) -> Vec<String> {
    let _ = std::fs::remove_dir_all(directory);
    std::fs::create_dir_all(directory).unwrap();
    let status = Command::new("tar")
        .args([
            "--numeric-owner",
            "--same-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--warning=no-timestamp",
            "-xpf",
        ])
        .arg(archive)
        .arg("-C")
        .arg(directory)
        .status()
        .unwrap();
    assert!(status.success(), "tar: {status}");
    of_directory(directory, now_from)
}

/// Lists what is in a directory.
pub fn of_directory(directory: &Path, now_from: u64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut links = HashMap::new();
    walk(directory, Path::new(""), now_from, &mut links, &mut lines);
    lines
}

fn walk(
    root: &Path,
    below: &Path,
    now_from: u64,
    links: &mut HashMap<u64, PathBuf>,
    lines: &mut Vec<String>,
) {
    let mut names: Vec<_> = std::fs::read_dir(root.join(below))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    for name in names {
        let path = below.join(name);
        lines.push(line(root, &path, now_from, links));
        if root.join(&path).symlink_metadata().unwrap().is_dir() {
            walk(root, &path, now_from, links, lines);
        }
    }
}

fn line(root: &Path, path: &Path, now_from: u64, links: &mut HashMap<u64, PathBuf>) -> String {
    let full = root.join(path);
    let meta = full.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let content = if kind.is_file() {
        let bytes = std::fs::read(&full).unwrap();
        match std::str::from_utf8(&bytes) {
            Ok(text) if text.len() < 2000 => format!("{text:?}"),
            _ => format!("{} bytes, {}", bytes.len(), oci::Digest::of(&bytes)),
        }
    } else if kind.is_symlink() {
        format!("-> {}", std::fs::read_link(&full).unwrap().display())
    } else if kind.is_dir() {
        "directory".to_owned()
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else {
        format!("device {:x}", meta.rdev())
    };
    let time = match meta.mtime() {
        time if time as u64 >= now_from => "now".to_owned(),
        time => time.to_string(),
    };
    let mut line = format!(
        "/{} {:o} {}:{} @{time} {content}",
        path.display(),
        meta.mode() & 0o7777,
        meta.uid(),
        meta.gid()
    );
    if meta.nlink() > 1 && !kind.is_dir() {
        let first = links.entry(meta.ino()).or_insert_with(|| path.to_owned());
        line += &format!(" = /{}", first.display());
    }
    line + &attributes(&full)
}

/// Extended attributes, where there are any. Overlay's own are no part of a result; stock lets them
/// out of a difference.
fn attributes(path: &Path) -> String {
    let mut names = archive::xattr::list(path).unwrap();
    names.retain(|name| !name.starts_with(b"trusted.overlay."));
    names.sort();
    let shown = names.iter().filter_map(|name| {
        let value = archive::xattr::get(path, name).unwrap()?;
        Some(format!(" {}={value:?}", String::from_utf8_lossy(name)))
    });
    shown.collect()
}
