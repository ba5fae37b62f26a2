//! Sessions: one connection between a client and a build server that carries services both ways.
//!
//! The client opens a byte stream to the server and then *serves* gRPC on it; the server asks it for
//! files, credentials, secrets, agents, and gives it results. [`SessionManager`] is the server's half,
//! [`ClientSession`] the client's. Both speak BuildKit's protocol with stock peers.
//!
//! Sessions know nothing of builds, images or Dockerfiles. The invariant that holds everywhere: each
//! end reads what its peer sends whatever its own writes do (see [`diffcopy`] and [`pipe`]).

mod byte_stream;
mod caller;
mod client;
pub mod codec;
pub mod connection;
mod content_answers;
pub mod diffcopy;
mod error;
mod filter;
mod headers;
mod in_place;
mod manager;
pub mod mode;
pub mod packet;
pub mod pipe;
pub mod walk;

pub use byte_stream::ByteStream;
pub use caller::{
    EXPORT_STORE, FileSink, RegistryCredentials, RemoteContent, SendDirRequest, SyncRequest, Token,
    TokenRequest,
};
pub use client::{
    AuthNotice, AuthOptions, ClientSession, ClientSessionBuilder, ExportTarget, ExportWriter,
    FillStore, KeyError, LocalDir, SecretSource, SessionHandle, SshAgent, Uploads,
};
pub use content_answers::{blob_info, read_blob};
pub use error::SessionError;
pub use headers::SessionHeaders;
pub use in_place::{OpenDir, SharedDir};
pub use manager::{Session, SessionManager, SessionStream};

/// What sessions give or fail with.
pub type Result<T, E = SessionError> = std::result::Result<T, E>;

#[cfg(test)]
mod tests;
