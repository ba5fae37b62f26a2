//! Filesystem states as stacks of immutable layers.
//!
//! A *layer* is a directory in overlayfs' upper format, made once and never changed. A state is a
//! [`LayerStack`]: a list of layers, bottom first. A layer says nothing about what is below it, so
//! stacks may be cut and joined freely: merging is joining, the difference to a prefix is the rest.
//!
//! ```text
//! LayerStore ── writable(stack) ─► WritableStack ── commit ─► stack + new layer   (a step ran)
//!            ── new_layer()     ─► NewLayer      ── commit ─► layer               (unpacked, copied)
//!            ── mount(stack)    ─► MountedStack                                   (only to read)
//! ```
//!
//! Handles clean up when dropped: a stack not committed leaves nothing, mounts go away. Mounting is
//! overlayfs; where there is none, stacks are copied together ([`Backend::Copy`]) under the same
//! contract. All calls block on the filesystem: call them from a blocking thread.
//!
//! ```text
//! <dir>/superblock, lock
//! <dir>/layers.db                  SQLite; the schema stands in `db.rs`
//! <dir>/layers/<id>/               committed layers
//! <dir>/flat/<id>/                 joined bottoms of stacks too long for one mount
//! <dir>/new/<id>/{fs,work}         layers being made; swept when the store is opened
//! <dir>/mounts/<id>/               mount points; unmounted and swept when the store is opened
//! <dir>/trash/<id>/                being removed
//! <dir>/empty/                     what the empty stack looks like
//! ```
//!
//! **Invariant**: a directory in `layers/` that the database knows is whole and never changes. A
//! directory is renamed there first and recorded then; what one of both does not know is swept when
//! the store is opened. After a crash of the whole machine, layers that were not known to be on
//! disk ([`LayerStore::sync`]) are dropped.

mod blob;
mod db;
mod diff;
mod difference;
mod error;
mod flat;
mod handles;
mod id;
mod info;
mod locks;
mod merged;
#[cfg(test)]
mod oracle_tests;
mod overlay;
mod reaper;
mod register;
mod store;
#[cfg(test)]
mod tests;
mod unpack;

pub use archive::Compression;
pub use blob::{blob_key, layer_media_type};
pub use error::LayerError;
pub use handles::{LayerDirs, LayerHold, MountedStack, NewLayer, WritableStack};
pub use id::{LayerId, LayerStack};
pub use info::{LayerBlob, LayerInfo, LayerNote, MadeOn, RecordType};
pub use locks::KeyedLocks;
pub use store::{Backend, LayerStore};
pub use unpack::{PackedLayer, Unpacked};

/// A result of this crate.
pub type Result<T, E = LayerError> = std::result::Result<T, E>;
