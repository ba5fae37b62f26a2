//! A client of the OCI distribution API: resolving names, fetching and pushing manifests and blobs.
//!
//! What it does: mirrors, plain HTTP where it is allowed, TLS with configured authorities, Basic
//! and Bearer authorisation with credentials that somebody else keeps ([`Credentials`]), retries,
//! downloads that resume where they broke off, uploads that mount blobs of other repositories.
//! What it does not: choosing platforms, storing or unpacking anything.
//!
//! **Invariant: no byte leaves this crate as the content of a digest unless it has that digest**;
//! a [`BlobReader`] that was started in the middle of a blob is the one exception, and says so.
//!
//! The texts of errors are those of BuildKit's resolver, because scripts match them.
//! API: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>.

mod auth;
mod blob;
mod challenge;
mod client;
mod config;
mod credentials;
mod error;
mod manifest;
mod network;
mod push;
mod referrers;
mod retry;
mod scope;
mod tls;
mod token;
mod transport;

pub use blob::BlobReader;
pub use client::{Client, Traffic};
pub use config::{Endpoint, KeyPair, RegistryConfig, RegistryHosts, Scheme};
pub use credentials::{Anonymous, Credentials, HostCredentials, Token, TokenRequest};
pub use error::RegistryError;
pub use push::{BlobSource, BytesBlob, FileBlob, PushOutcome};
pub use retry::RetryPolicy;
pub use transport::{innermost, web_client};
