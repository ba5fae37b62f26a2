//! Digests of what a step reads: the selected paths of a stack of layers.
//!
//! | part of the digest | of what |
//! |---|---|
//! | kind, permission bits, owner, group | everything; permission bits not of links |
//! | size and sha256 of the bytes | regular files |
//! | target | symbolic links |
//! | device number | devices |
//! | extended attributes without `system.*` and `security.*`, but with `security.capability` | everything |
//! | names | everything below the selected path |
//!
//! Times are not part of it. Equal trees have equal digests however they are split into layers.

mod digest;
mod selector;
mod tree;

use std::collections::HashMap;

use oci::Digest;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

pub use selector::Selector;
pub use tree::Tree;

use crate::OpError;
use digest::Hasher;

/// The most file digests remembered; when there are more, all are forgotten.
const FILES_MAX: usize = 200_000;

/// What identifies the content of a file without reading it: layers never change, and an inode
/// number that is used again belongs to a file born later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileIdentity {
    device: u64,
    inode: u64,
    born_ns: i128,
    modified_ns: i128,
    size_bytes: u64,
}

/// Remembers digests of file contents, so that a file which several selections or builds share is
/// read once.
#[derive(Debug, Default)]
pub struct FileDigests {
    known: Mutex<HashMap<FileIdentity, Digest>>,
}

impl FileDigests {
    /// Remembers nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn get(&self, file: &FileIdentity) -> Option<Digest> {
        self.known.lock().get(file).copied()
    }

    fn put(&self, file: FileIdentity, digest: Digest) {
        let mut known = self.known.lock();
        if known.len() >= FILES_MAX {
            known.clear();
        }
        known.insert(file, digest);
    }
}

/// The digest of what several selectors select of one tree. Without selectors it is that of the
/// whole tree. Blocks on the disk.
///
/// # Errors
/// [`OpError::NotFound`] when a selected path does not exist.
pub fn content_digest(
    tree: &Tree,
    selectors: &[Selector],
    files: &FileDigests,
    cancel: &CancellationToken,
) -> Result<Digest, OpError> {
    let hasher = Hasher::new(tree, files, cancel);
    if selectors.is_empty() {
        return hasher.select(&Selector::path("/"));
    }
    if let [only] = selectors {
        return hasher.select(only);
    }
    let mut all = oci::DigestHasher::new();
    for selector in selectors {
        all.field(hasher.select(selector)?.as_bytes());
    }
    Ok(all.finish())
}
