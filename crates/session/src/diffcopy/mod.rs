//! DiffCopy: bringing a tree of files from one end of a session to the other.
//!
//! [`send`] walks a tree and answers requests for content; [`receive`] brings a directory to the state
//! of the tree that arrives and asks only for files that differ. Either may run at either end: a build
//! server receives contexts and sends exports.
//!
//! # Why it does not stall
//!
//! Each end is several loops with queues between them. Two ends wait for each other for ever when
//! there is a cycle of full queues through both: a sender that no longer takes requests because its
//! content cannot be written, and a receiver that no longer takes content because its requests cannot.
//! Therefore: **each end reads its inbound stream whatever its own writes do.**
//! - A sender takes every request at once: the queue of wanted ids is bounded only by the number of
//!   entries it has announced (4 bytes each, each id once).
//! - A receiver's outbound queue (requests, a few bytes each) is bounded in the same way and never
//!   waited for. What it reads goes through bounded queues to loops that write to disk and wait for
//!   nothing else.
//! - Only a sender's content waits for the network, in a bounded queue.
//!
//! Below, HTTP/2 keeps the same rule, see [`crate::pipe`].
//!
//! Where both trees are on this machine, [`mirror`] does the same without packets: the result is the
//! same, because the comparison is.

mod dest;
mod differ;
mod listing;
mod metadata;
mod mirror;
mod order;
mod receive;
mod send;
mod writer;

use std::sync::Arc;

pub use listing::{Listed, Listing};
pub use metadata::{METADATA_FILE, Wanted};
pub use mirror::{Tree, mirror};
pub use receive::{Change, ChangeKind, OnListing, Owner, ReceiveOptions, SyncStats, receive};
pub use send::{OUTBOUND_BATCHES, SendOptions, SendStats, send};

/// Told how many bytes went over the wire since the beginning, and at the end once more with `true`.
pub type Progress = Arc<dyn Fn(u64, bool) + Send + Sync>;

/// The size of a piece of content, as stock senders have it.
pub const CHUNK_BYTES: usize = 32 << 10;

#[cfg(test)]
mod tests;
