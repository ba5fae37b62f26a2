//! Objects of git: names, kinds, and what stands in commits, tags and trees.
//!
//! Format: <https://git-scm.com/book/en/v2/Git-Internals-Git-Objects>.

use std::fmt;

use diag::{Error, Result};
use oci::DigestHasher;
use sha1_checked::Digest as _;

/// How objects of a repository are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// By SHA-1, checked for the traces of forged collisions as git does.
    Sha1,
    /// By SHA-256.
    Sha256,
}

/// Name of an object: the digest of its kind, size and content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Oid {
    bytes: [u8; 32],
    len: u8,
}

/// What an object is; the numbers are those of packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Commit = 1,
    Tree = 2,
    Blob = 3,
    Tag = 4,
}

/// Makes names of objects and checksums of files.
pub(super) enum Hasher {
    Sha1(Box<sha1_checked::Sha1>),
    Sha256(DigestHasher),
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TreeEntry {
    pub(super) mode: u32,
    pub(super) name: Vec<u8>,
    pub(super) oid: Oid,
}

/// What is needed of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) tree: Oid,
    /// When it was committed, in seconds since 1970.
    pub(super) time: i64,
}

impl Format {
    /// The format that `object-format` of the protocol names.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "sha1" => Some(Format::Sha1),
            "sha256" => Some(Format::Sha256),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Sha1 => "sha1",
            Format::Sha256 => "sha256",
        }
    }

    /// Length of a name in bytes.
    pub(super) fn len(self) -> usize {
        match self {
            Format::Sha1 => 20,
            Format::Sha256 => 32,
        }
    }

    pub(super) fn hasher(self) -> Hasher {
        match self {
            Format::Sha1 => Hasher::Sha1(Box::default()),
            Format::Sha256 => Hasher::Sha256(DigestHasher::new()),
        }
    }

    /// The name of an object.
    pub(super) fn name_of(self, kind: Kind, data: &[u8]) -> Result<Oid> {
        let mut hasher = self.object_hasher(kind, data.len() as u64);
        hasher.update(data);
        hasher.finish()
    }

    /// Makes the name of an object whose content follows.
    pub(super) fn object_hasher(self, kind: Kind, size: u64) -> Hasher {
        let mut hasher = self.hasher();
        hasher.update(format!("{} {size}\0", kind.name()).as_bytes());
        hasher
    }
}

impl Hasher {
    pub(super) fn update(&mut self, data: &[u8]) {
        match self {
            Hasher::Sha1(hasher) => hasher.update(data),
            Hasher::Sha256(hasher) => hasher.update(data),
        }
    }

    /// # Errors
    /// Content that was made to collide.
    pub(super) fn finish(self) -> Result<Oid> {
        match self {
            Hasher::Sha1(hasher) => {
                let outcome = hasher.try_finalize();
                if outcome.has_collision() {
                    return Err(Error::invalid(
                        "an object was made to collide with another of the same SHA-1",
                    ));
                }
                Oid::from_bytes(outcome.hash())
            }
            Hasher::Sha256(hasher) => Oid::from_bytes(hasher.finish().as_bytes()),
        }
    }
}

impl Oid {
    /// From 20 or 32 bytes.
    pub(super) fn from_bytes(from: &[u8]) -> Result<Self> {
        let mut bytes = [0; 32];
        match from.len() {
            len @ (20 | 32) => {
                bytes[..len].copy_from_slice(from);
                let len = len as u8;
                Ok(Oid { bytes, len })
            }
            len => Err(Error::invalid(format!("an object's name of {len} bytes"))),
        }
    }

    /// From hexadecimal digits.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let bad = || Error::invalid(format!("invalid commit sha {text:?}"));
        if !text.is_ascii() || !text.len().is_multiple_of(2) {
            return Err(bad());
        }
        let bytes: Option<Vec<u8>> = (0..text.len() / 2)
            .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok())
            .collect();
        Oid::from_bytes(&bytes.ok_or_else(bad)?).map_err(|_| bad())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    pub(super) fn format(&self) -> Format {
        if self.len == 32 {
            Format::Sha256
        } else {
            Format::Sha1
        }
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Commit => "commit",
            Kind::Tree => "tree",
            Kind::Blob => "blob",
            Kind::Tag => "tag",
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Kind::Commit),
            2 => Some(Kind::Tree),
            3 => Some(Kind::Blob),
            4 => Some(Kind::Tag),
            _ => None,
        }
    }
}

impl TreeEntry {
    pub(super) fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    /// Whether it is the commit of another repository.
    pub(super) fn is_submodule(&self) -> bool {
        self.mode & 0o170_000 == 0o160_000
    }
}

/// Reads a directory.
///
/// # Errors
/// Malformed ones, and names that are not those of files or that lead elsewhere.
pub(super) fn parse_tree(mut data: &[u8], format: Format) -> Result<Vec<TreeEntry>> {
    let bad = || Error::invalid("a malformed tree object");
    let mut entries = Vec::new();
    while !data.is_empty() {
        let space = data.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let mode = std::str::from_utf8(&data[..space]).map_err(|_| bad())?;
        let mode = u32::from_str_radix(mode, 8).map_err(|_| bad())?;
        data = &data[space + 1..];
        let end = data.iter().position(|byte| *byte == 0).ok_or_else(bad)?;
        let name = data[..end].to_vec();
        data = &data[end + 1..];
        let oid = Oid::from_bytes(data.get(..format.len()).ok_or_else(bad)?)?;
        data = &data[format.len()..];
        if !is_file_name(&name) {
            let shown = String::from_utf8_lossy(&name);
            return Err(Error::invalid(format!("invalid path {shown:?} in a tree")));
        }
        entries.push(TreeEntry { mode, name, oid });
    }
    Ok(entries)
}

/// Reads a commit.
pub(super) fn parse_commit(data: &[u8]) -> Result<Commit> {
    let bad = || Error::invalid("a malformed commit object");
    let (mut tree, mut time) = (None, None);
    for line in data.split(|byte| *byte == b'\n') {
        if line.is_empty() {
            break;
        }
        let line = String::from_utf8_lossy(line);
        match line.split_once(' ') {
            Some(("tree", oid)) if tree.is_none() => tree = Some(Oid::parse(oid)?),
            Some(("committer", who)) => {
                time = who.rsplit(' ').nth(1).and_then(|text| text.parse().ok());
            }
            _ => {}
        }
    }
    Ok(Commit {
        tree: tree.ok_or_else(bad)?,
        time: time.ok_or_else(bad)?,
    })
}

/// What an annotated tag names.
pub(super) fn parse_tag(data: &[u8]) -> Result<Oid> {
    let line = data.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = std::str::from_utf8(line).unwrap_or_default();
    match line.strip_prefix("object ") {
        Some(oid) => Oid::parse(oid),
        None => Err(Error::invalid("a malformed tag object")),
    }
}

/// Refuses names of no file, and those by which a checkout would write into `.git`.
fn is_file_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && !name.eq_ignore_ascii_case(b".git")
        && !name.contains(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_gits() {
        let blob = |format: Format| format.name_of(Kind::Blob, b"hello\n").unwrap().to_string();
        assert_eq!(
            blob(Format::Sha1),
            "ce013625030ba8dba906f756967f9e9ca394464a"
        );
        assert_eq!(
            blob(Format::Sha256),
            "2cf8d83d9ee29543b34a87727421fdecb7e3f3a183d337639025de576db9ebb4"
        );
        let oid = Oid::parse("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        assert_eq!(oid.to_string(), blob(Format::Sha1));
        assert!(Oid::parse("ce01").is_err());
        assert!(Oid::parse("zz013625030ba8dba906f756967f9e9ca394464a").is_err());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["..", ".", ".git", ".GIT", "a/b", ""] {
            let mut tree = format!("100644 {name}\0").into_bytes();
            tree.extend([7; 20]);
            assert!(parse_tree(&tree, Format::Sha1).is_err(), "{name:?}");
        }
        let mut tree = b"40000 dir\0".to_vec();
        tree.extend([7; 20]);
        let entries = parse_tree(&tree, Format::Sha1).unwrap();
        assert!(entries[0].is_dir());
        assert!(parse_tree(&tree[..20], Format::Sha1).is_err());
    }

    #[test]
    fn a_commit_has_a_tree_and_a_time() {
        let tree = "ce013625030ba8dba906f756967f9e9ca394464a";
        let text =
            format!("tree {tree}\nauthor A <a> 1 +0000\ncommitter A <a> 20 +0100\n\nparent x");
        let commit = parse_commit(text.as_bytes()).unwrap();
        assert_eq!((commit.tree.to_string().as_str(), commit.time), (tree, 20));
        assert!(parse_commit(b"author A").is_err());
    }
}
