//! Exporters: what is made of a build's result for its user.
//!
//! | exporter | makes | for |
//! |---|---|---|
//! | `image` | configuration, manifests, index in the content store | registries ([`push_image`]) |
//! | `docker`, `oci` | the same as an archive or blobs | the client |
//! | `local`, `tar` | files | the client |
//!
//! An export has two parts: *committing* turns layers and a frontend's configuration into a
//! [`CommittedImage`], whole in the content store; then it is sent where it is wanted. Blobs of layers
//! are found or computed once, however many exports want them.
//!
//! The client is seen through [`ClientTarget`]; this crate knows nothing of sessions or wires.
//!
//! **Invariant: equal results give equal bytes**, on every machine and with any number of threads; the
//! JSON is Go's so that they are those of stock BuildKit where the frontend's input is the same.

mod annotations;
mod attrs;
mod commit;
mod committed;
mod exporter;
mod files;
pub mod go_json;
mod image;
mod image_archive;
mod layer_blobs;
mod push;
mod sending;
mod target;

pub use annotations::Annotations;
pub use attrs::{ExporterSpec, FilesAttrs, ImageAttrs, LayerCompression, PushAttrs};
pub use commit::{ExportSource, PlatformImage};
pub use committed::{CommittedImage, CommittedLayer, CommittedManifest};
pub use exporter::{ExportContext, Exported, Exporter};
pub use push::push_image;
pub use target::{ClientTarget, SentBytes, Tree};
