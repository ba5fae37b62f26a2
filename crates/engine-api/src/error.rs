//! What can go wrong between us and an Engine.

use diag::Code;

/// A failure of an Engine call.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing answers at the endpoint.
    #[error("Cannot connect to the Docker daemon at {host}. Is the docker daemon running?")]
    Connect {
        /// The endpoint as the user wrote it.
        host: String,
        /// What the attempt ended with.
        reason: String,
        /// True when this user may not open the socket.
        denied: bool,
    },
    /// The Engine refused the call.
    #[error("Error response from daemon: {message}")]
    Api {
        /// HTTP status.
        status: u16,
        /// The Engine's own text.
        message: String,
    },
    /// A stream of progress messages ended with an error.
    #[error("{0}")]
    Stream(String),
    /// The connection failed in the middle of a call.
    #[error("error during connect: {method} {path}: {reason}")]
    Broken {
        /// HTTP method.
        method: String,
        /// Path without version.
        path: String,
        /// What happened.
        reason: String,
    },
    /// The answer is not what the API promises.
    #[error("unexpected answer of the Docker daemon to {path}: {reason}")]
    Answer {
        /// Path without version.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The endpoint is not a Docker host.
    #[error("invalid bind address format: {0}")]
    Endpoint(String),
    /// Certificates or keys cannot be used.
    #[error("{path}: {reason}")]
    Tls {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Input or output of our own.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl EngineError {
    /// The thing named does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, EngineError::Api { status: 404, .. })
    }

    /// Somebody else has that name or does the same.
    pub fn is_conflict(&self) -> bool {
        matches!(self, EngineError::Api { status: 409, .. })
    }

    /// The Engine could not be reached, so nothing is known about what it holds.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            EngineError::Connect { .. } | EngineError::Broken { .. } | EngineError::Tls { .. }
        )
    }
}

impl From<EngineError> for diag::Error {
    fn from(error: EngineError) -> Self {
        let code = match &error {
            EngineError::Connect { denied: true, .. } => Code::PermissionDenied,
            EngineError::Connect { .. } | EngineError::Broken { .. } => Code::Unavailable,
            EngineError::Api { status, .. } => match status {
                400 => Code::InvalidArgument,
                401 => Code::Unauthenticated,
                403 => Code::PermissionDenied,
                404 => Code::NotFound,
                409 => Code::AlreadyExists,
                501 => Code::Unimplemented,
                _ => Code::Unknown,
            },
            EngineError::Endpoint(_) => Code::InvalidArgument,
            _ => Code::Unknown,
        };
        let text = error.to_string();
        match error {
            EngineError::Connect { reason, denied, .. } => {
                let user_error = diag::Error::new(code, text).hint(reason);
                if denied {
                    user_error.hint("add yourself to the group that owns the socket, or use sudo")
                } else {
                    user_error
                }
            }
            _ => diag::Error::new(code, text),
        }
    }
}
