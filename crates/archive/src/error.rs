//! What can go wrong with archives.

use std::path::{Path, PathBuf};

use diag::Code;

/// Why an archive could not be read, unpacked or written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The filesystem refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as `open`.
        action: &'static str,
        /// On what; a path inside the tree that is worked on, or a whole one.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The stream that an archive is read from or written to failed.
    #[error("{0}")]
    Stream(#[source] std::io::Error),
    /// The bytes are not a tar archive, or a damaged one.
    #[error("archive/tar: invalid tar header: {0}")]
    Format(String),
    /// The archive ends in the middle of an entry.
    #[error("unexpected EOF")]
    Truncated,
    /// An entry of a kind that cannot be made.
    #[error("unhandled tar header type {kind} of `{path}`")]
    Kind {
        /// The type flag.
        kind: u8,
        /// The entry.
        path: String,
    },
    /// A name, size or number that no entry may have.
    #[error("invalid archive entry `{path}`: {reason}")]
    Entry {
        /// The entry.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The layer cannot be unpacked without the layers below it: it has a hard link into them.
    #[error("`{0}` is linked to a file of a layer below")]
    NeedsLowers(String),
    /// An option of a compression makes no sense.
    #[error("invalid compression level {level} for {kind}")]
    Level {
        /// The compression.
        kind: &'static str,
        /// The level asked for.
        level: i32,
    },
}

impl ArchiveError {
    /// A failure of the filesystem, for `map_err`.
    pub(crate) fn io<E: Into<std::io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| ArchiveError::Io {
            action,
            path,
            source: source.into(),
        }
    }

    pub(crate) fn entry(path: &[u8], reason: impl Into<String>) -> Self {
        ArchiveError::Entry {
            path: String::from_utf8_lossy(path).into_owned(),
            reason: reason.into(),
        }
    }
}

impl From<ArchiveError> for diag::Error {
    fn from(error: ArchiveError) -> Self {
        let text = error.to_string();
        let code = match error {
            ArchiveError::Io { source, .. } | ArchiveError::Stream(source) => {
                diag::Error::from(source).code()
            }
            ArchiveError::Format(_)
            | ArchiveError::Truncated
            | ArchiveError::Kind { .. }
            | ArchiveError::Entry { .. }
            | ArchiveError::Level { .. } => Code::InvalidArgument,
            ArchiveError::NeedsLowers(_) => Code::FailedPrecondition,
        };
        diag::Error::new(code, text)
    }
}
