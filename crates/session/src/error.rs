//! What can go wrong in a session.

use std::io;
use std::path::PathBuf;

use diag::Code;

use crate::client::KeyError;

/// A failure of a session or of something asked over it.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No session of that id appeared in time.
    #[error("no active session for {id}: context deadline exceeded")]
    NotFound {
        /// The id asked for.
        id: String,
    },
    /// The session ended before or during the call.
    #[error("session closed")]
    Closed,
    /// The client of the session does not offer what was asked for.
    #[error("{0}")]
    Unsupported(String),
    /// The peer answered with a gRPC error.
    #[error("{}", .0.message())]
    Status(Box<tonic::Status>),
    /// The other end of a file transfer failed.
    #[error("error from {role}: {message}")]
    Peer {
        /// `sender` or `receiver`.
        role: &'static str,
        /// Its message.
        message: String,
    },
    /// The peer broke the protocol.
    #[error("{0}")]
    Protocol(String),
    /// A limit of ours was passed.
    #[error("{0}")]
    Limit(String),
    /// A file could not be read or written.
    #[error("{op} {}: {}", .path.display(), io_text(.source))]
    File {
        /// What was tried, such as `open`.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// An input or output failure without a file.
    #[error("{}", io_text(.0))]
    Io(#[from] io::Error),
    /// A pattern of a request is malformed.
    #[error("invalid {kind}: {patterns:?}: {source}")]
    Pattern {
        /// `includepatterns` or `excludepatterns`.
        kind: &'static str,
        /// All of them.
        patterns: Vec<String>,
        /// Why.
        source: pathmatch::PatternError,
    },
    /// A file gives no key for an agent.
    #[error("failed to {step} {}: {reason}", .path.display())]
    Key {
        /// What failed: `open`, `read` or `parse`.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: KeyError,
    },
    /// The work was dropped before it was done.
    #[error("context canceled")]
    Canceled,
}

impl SessionError {
    /// A file operation that failed.
    pub(crate) fn file(
        op: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        SessionError::File {
            op,
            path: path.into(),
            source: source.into(),
        }
    }

    /// The class of the failure.
    pub fn code(&self) -> Code {
        match self {
            SessionError::NotFound { .. } => Code::DeadlineExceeded,
            SessionError::Closed => Code::Unavailable,
            SessionError::Unsupported(_) => Code::Unimplemented,
            SessionError::Status(status) => Code::from_number(status.code() as i32),
            SessionError::Peer { .. } => Code::Unknown,
            SessionError::Protocol(_) => Code::Internal,
            SessionError::Limit(_) => Code::ResourceExhausted,
            SessionError::File { source, .. } => {
                diag::Error::from(io::Error::from(source.kind())).code()
            }
            SessionError::Io(error) => diag::Error::from(io::Error::from(error.kind())).code(),
            SessionError::Key {
                reason: KeyError::File { source, .. },
                ..
            } => diag::Error::from(io::Error::from(source.kind())).code(),
            SessionError::Key { .. } => Code::InvalidArgument,
            SessionError::Pattern { .. } => Code::InvalidArgument,
            SessionError::Canceled => Code::Canceled,
        }
    }
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        SessionError::Status(Box::new(status))
    }
}

impl From<SessionError> for diag::Error {
    fn from(error: SessionError) -> Self {
        let told = diag::Error::new(error.code(), error.to_string());
        match error {
            SessionError::Key {
                reason: KeyError::Passphrase,
                ..
            } => told.hint("add the key to an agent with `ssh-add` and forward its socket"),
            _ => told,
        }
    }
}

impl From<SessionError> for tonic::Status {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Status(status) => *status,
            error => tonic::Status::new(
                tonic::Code::from_i32(error.code() as i32),
                error.to_string(),
            ),
        }
    }
}

/// Errors of the system in the words Go has for them, which are those scripts know; Rust's carry
/// ` (os error N)` behind.
pub(crate) fn io_text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}
