//! What stacks of layers hold, written down.
//!
//! A listing is a cache beside its stack: it carries the name of the stack and a checksum, and one
//! that is not there, damaged or of another stack counts as none.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use diag::Result;
use layers::LayerStack;
use oci::{Digest, DigestHasher};
use session::diffcopy::Listing;

const MAGIC: &[u8; 8] = b"list\0\0\0\x01";
/// Bytes of a digest.
const DIGEST_BYTES: usize = 32;

/// Where listings are kept, a file each stack.
#[derive(Clone, Debug)]
pub(crate) struct Listings {
    dir: PathBuf,
}

impl Listings {
    pub(crate) fn new(dir: &Path) -> Self {
        Listings {
            dir: dir.to_owned(),
        }
    }

    /// The file of a stack.
    pub(crate) fn path(&self, stack: &LayerStack) -> PathBuf {
        self.dir.join(format!("{}.list", stack_name(stack).hex()))
    }

    /// Writes a listing down so that it is seen as a whole. It is not synced: after a power failure
    /// the checksum tells whether it is there.
    pub(crate) fn write(&self, stack: &LayerStack, listing: &Listing) -> Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(stack_name(stack).as_bytes());
        bytes.append(&mut listing.encode());
        let check = Digest::of(&bytes);
        bytes.extend_from_slice(check.as_bytes());
        let path = self.path(stack);
        let temporary = path.with_extension("list.new");
        File::create(&temporary)?.write_all(&bytes)?;
        std::fs::rename(&temporary, path)?;
        Ok(())
    }

    /// Reads the listing of a stack; `None` if it is not there, not of that stack, or damaged.
    pub(crate) fn read(&self, stack: &LayerStack) -> Option<Listing> {
        let bytes = std::fs::read(self.path(stack)).ok()?;
        let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
        if Digest::of(body).as_bytes() != check {
            return None;
        }
        let rest = body.strip_prefix(MAGIC)?;
        Listing::decode(rest.strip_prefix(stack_name(stack).as_bytes())?)
    }

    /// Removes the listing of a stack, if there is one.
    pub(crate) fn remove(&self, stack: &LayerStack) {
        // One that stays is swept when the server starts the next time.
        let _ = std::fs::remove_file(self.path(stack));
    }
}

/// Names a stack in 32 bytes.
fn stack_name(stack: &LayerStack) -> Digest {
    let mut hasher = DigestHasher::new();
    for id in stack.iter() {
        hasher.field(id.to_string().as_bytes());
    }
    hasher.finish()
}
