//! Sources: files from outside as layers.
//!
//! | source | from | identity |
//! |---|---|---|
//! | [`image`] | a registry, or an OCI layout that a client serves | digest of manifest or index |
//! | [`local`] | a client's folder | digest of the tree |
//! | [`git`] | a repository | the commit, and what is made of it |
//! | [`blob`] | a registry, or a client's OCI layout: one blob | its digest, and the file's name, mode and owner |
//! | [`http`] | a file of a web server | digest of the file, its name, mode, owner and time |
//!
//! Each is taken in two steps, because a build often needs only the first: *resolving* pins what a
//! name stands for now; *pulling* makes a layer stack of it. Work asked for twice at the same time is
//! done once.
//!
//! This crate opens no sessions and has of them only what a folder's listing is: a client is seen through [`image::ContentProvider`],
//! [`oci_layout::BlobStore`] and [`local::DirSync`].

pub mod attestations;
pub mod blob;
pub mod git;
pub mod http;
pub mod image;
pub mod local;
pub mod oci_layout;

mod file_layer;
mod flatten;
mod flights;
mod listings;
mod pull;
mod resolve;
mod state_file;
mod stream;
