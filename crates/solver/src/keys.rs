//! How keys are put together; the table in the crate's documentation says of what.

use oci::{Digest, DigestHasher};

/// One input as it enters a key.
pub(crate) enum KeyInput {
    /// By canonical key and output number.
    Definition(Digest, usize),
    /// By the digest of what is read of it.
    Content(Digest),
}

/// The key of a vertex of that identity with these inputs.
pub(crate) fn key(identity: &Digest, inputs: &[KeyInput]) -> Digest {
    let mut hasher = DigestHasher::new();
    hasher.field(b"cooperage key 1");
    hasher.field(identity.as_bytes());
    for input in inputs {
        match input {
            KeyInput::Definition(canonical, output) => {
                hasher.field(b"definition");
                hasher.field(canonical.as_bytes());
                hasher.field(&(*output as u64).to_le_bytes());
            }
            KeyInput::Content(digest) => {
                hasher.field(b"content");
                hasher.field(digest.as_bytes());
            }
        }
    }
    hasher.finish()
}
