//! What can go wrong with records of builders.

use std::path::PathBuf;

use diag::Code;
use driver::DriverError;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    /// A name that cannot be stored.
    #[error(
        "invalid name {0}, name needs to start with a letter and may not contain symbols, except ._-"
    )]
    InvalidName(String),
    /// Neither a record nor a context has that name.
    #[error("no builder \"{0}\" found")]
    NoBuilder(String),
    /// What the user asked for is wrong; the text is the whole message.
    #[error("{0}")]
    Invalid(String),
    /// A builder is in use; the text is the whole message.
    #[error("{0}")]
    Busy(String),
    /// A record cannot be read.
    #[error("the record of builder \"{name}\" cannot be read: {reason}")]
    CorruptRecord {
        /// The builder.
        name: String,
        /// Where the record is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
    /// A configuration file is wrong.
    #[error("{context}: {reason}")]
    Config {
        /// What was done.
        context: String,
        /// What is wrong.
        reason: String,
    },
    /// A driver failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The Engine cannot be reached, so what the builder left there is unknown.
    #[error("{source}")]
    Unreachable {
        /// How it failed.
        source: DriverError,
        /// What may remain.
        remains: Vec<String>,
    },
}

impl BuilderError {
    /// A failure of a file operation.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| BuilderError::File { path, source }
    }
}

impl From<BuilderError> for diag::Error {
    fn from(error: BuilderError) -> Self {
        let text = error.to_string();
        match error {
            BuilderError::InvalidName(_)
            | BuilderError::Invalid(_)
            | BuilderError::Config { .. } => diag::Error::invalid(text),
            BuilderError::Busy(_) => diag::Error::new(Code::FailedPrecondition, text),
            BuilderError::NoBuilder(_) => diag::Error::not_found(text),
            BuilderError::CorruptRecord { name, path, .. } => {
                diag::Error::new(Code::DataLoss, text).hint(format!(
                    "look at {}, or remove the builder with `rm --force {name}`",
                    path.display()
                ))
            }
            BuilderError::File { source, .. } => {
                let code = diag::Error::from(source).code();
                diag::Error::new(code, text)
            }
            BuilderError::Driver(source) => source.into(),
            BuilderError::Unreachable { source, remains } => {
                let user_error = diag::Error::from(source);
                user_error.hint(format!(
                    "the builder is kept because this may remain: {}; `rm --force` forgets it",
                    remains.join(", ")
                ))
            }
        }
    }
}
