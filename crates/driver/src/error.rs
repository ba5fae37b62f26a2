//! What can go wrong with a node's server.

use diag::Code;
use engine_api::EngineError;

/// A failure of a driver.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// There is no such driver.
    #[error("failed to find driver \"{0}\"")]
    UnknownDriver(String),
    /// An option or its value is wrong; the text is the whole message.
    #[error("{0}")]
    Option(String),
    /// The Engine failed or refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The Engine failed or refused while something was done.
    #[error("{context}: {source}")]
    EngineDuring {
        /// What was done.
        context: String,
        /// How it failed.
        source: EngineError,
    },
    /// The server is not running.
    #[error("driver not running")]
    NotRunning,
    /// The Engine behind the driver does not answer.
    #[error("{0}: driver not connecting")]
    NotConnecting(String),
    /// The server did not come up; `reason` is what it ended with, `log` its last lines.
    #[error("{reason}")]
    Boot {
        /// What happened.
        reason: String,
        /// What the user can do.
        hint: Option<String>,
    },
    /// The server answered a call with an error.
    #[error("{context}: {source}")]
    Call {
        /// What was asked.
        context: &'static str,
        /// The answer.
        source: Box<tonic::Status>,
    },
    /// A connection could not be made or broke.
    #[error("{0}")]
    Connection(String),
    /// The driver does not do that.
    #[error("{0}")]
    Unsupported(String),
    /// The driver does that only for root; the text says what.
    #[error("{0}")]
    NeedsRoot(String),
    /// Input or output of our own.
    #[error("{context}: {source}")]
    Io {
        /// What was done.
        context: String,
        /// How it failed.
        source: std::io::Error,
    },
}

impl DriverError {
    /// True when the Engine could not be reached, so nothing is known about what it holds.
    pub fn is_unreachable(&self) -> bool {
        match self {
            DriverError::Engine(source) | DriverError::EngineDuring { source, .. } => {
                source.is_unreachable()
            }
            DriverError::NotConnecting(_) => true,
            _ => false,
        }
    }
}

impl From<DriverError> for diag::Error {
    fn from(error: DriverError) -> Self {
        let text = error.to_string();
        match error {
            DriverError::Engine(source) => source.into(),
            DriverError::EngineDuring { context, source } => {
                diag::Error::from(source).context(context)
            }
            DriverError::UnknownDriver(_) => diag::Error::not_found(text),
            DriverError::Option(_) => diag::Error::invalid(text),
            DriverError::Unsupported(_) => diag::Error::unimplemented(text),
            DriverError::NeedsRoot(_) => diag::Error::new(Code::PermissionDenied, text).hint(
                "run it as root (`sudo`), or use a builder with `--driver docker-container` or \
                 `--driver remote`",
            ),
            DriverError::Boot { hint, .. } => {
                let user_error = diag::Error::new(Code::Unavailable, text);
                match hint {
                    Some(hint) => user_error.hint(hint),
                    None => user_error,
                }
            }
            DriverError::Call { source, .. } => {
                diag::Error::new(Code::from_number(source.code() as i32), text)
            }
            DriverError::NotRunning
            | DriverError::NotConnecting(_)
            | DriverError::Connection(_) => diag::Error::new(Code::Unavailable, text),
            DriverError::Io { context, source } => diag::Error::from(source).context(context),
        }
    }
}
