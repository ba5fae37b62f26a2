//! What a server asks a client for.

mod auth;
mod content;
mod files;
mod policy;
mod secrets;
mod ssh;
mod upload;

pub use auth::{RegistryCredentials, Token, TokenRequest};
pub use content::{EXPORT_STORE, RemoteContent};
pub use files::{FileSink, SendDirRequest, SyncRequest};
