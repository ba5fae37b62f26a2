//! Layer archives: tar reading and writing as Go's `archive/tar` does it, unpacking into an overlay
//! upper directory, writing one out as an OCI layer, and compression.
//!
//! Own tar code because layers need what general crates lose: extended attributes with any bytes in
//! them, devices and fifos, sparse files that stay sparse, hard links, and byte-for-byte the choices
//! of headers that make digests equal to those of other builders.
//!
//! A *layer directory* is in overlayfs' own format: a character device 0/0 says that a name of the
//! layers below is gone, the attribute `trusted.overlay.opaque=y` on a directory that nothing below
//! it shows through. On a filesystem that keeps these to itself, because it is an overlay, others stand in
//! for them; the kernel does not understand those, so layers there cannot be mounted. Layer tars say the same with `.wh.NAME` and `.wh..wh..opq` entries.
//!
//! **Invariant**: nothing that an archive says makes this crate touch a file outside the directory
//! it was told to work in.

mod compress;
mod error;
mod gzip;
mod header;
mod layer;
mod pax;
mod reader;
mod resolve;
mod sparse;
#[cfg(test)]
mod tests;
mod tree;
mod unpack;
mod whiteout;
mod writer;
pub mod xattr;

pub use compress::{Compression, Compressor, Decompressor, Packing, compressor, decompressor};
pub use error::ArchiveError;
pub use header::{EntryKind, Header, Mtime};
pub use layer::{TarOptions, write_layer, write_tree};
pub use reader::{Entry, Reader};
pub use tree::{allocated, copy_entry, copy_metadata, remove_tree};
pub use unpack::{UnpackOptions, UnpackStats, unpack_layer, unpack_tree};
pub use whiteout::{
    OPAQUE_STAND_IN, has_overlays_marks, is_opaque, is_whiteout, make_opaque, make_whiteout,
};
pub use writer::Writer;

/// A result of this crate.
pub type Result<T, E = ArchiveError> = std::result::Result<T, E>;
