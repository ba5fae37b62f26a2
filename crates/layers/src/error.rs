//! What can go wrong with layers.

use std::path::{Path, PathBuf};

use diag::Code;
use oci::Digest;

use crate::LayerId;

/// Why an operation of the layer store failed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The filesystem refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as `mount`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel refused a mount and said why.
    #[error("mount overlay on {}: {source}{}{log}", path.display(), if log.is_empty() { "" } else { ": " })]
    Mount {
        /// Where it was to be mounted.
        path: PathBuf,
        /// The error itself.
        source: std::io::Error,
        /// The kernel's words, possibly none.
        log: String,
    },
    /// A layer does not exist, or not any more.
    #[error("layer {0} not found")]
    NotFound(LayerId),
    /// A stack has fewer layers than that.
    #[error("the stack has {count} layers, none at {index}")]
    Index {
        /// The place asked for, counted from 0 at the bottom.
        index: usize,
        /// How many layers there are.
        count: usize,
    },
    /// A layer cannot be removed while something uses it.
    #[error("layer {0} is in use")]
    Held(LayerId),
    /// Another process has the store open.
    #[error("{} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// The store was made where overlayfs could not be used.
    #[error("layers in {} were made on another disk, where overlayfs does not work", .0.display())]
    StandIns(PathBuf),
    /// The text is no layer id.
    #[error("invalid layer id `{0}`")]
    Id(String),
    /// Nobody wants the outcome any more.
    #[error("context canceled")]
    Interrupted,
    /// The metadata database failed.
    #[error("layer database: {0}")]
    Database(#[from] rusqlite::Error),
    /// The unpacked bytes have another digest than promised.
    #[error("layer has diff ID {actual}, expected {expected}")]
    DiffId {
        /// What the image's configuration says.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// Reading or writing an archive failed.
    #[error(transparent)]
    Archive(#[from] archive::ArchiveError),
    /// The content store failed.
    #[error(transparent)]
    Content(#[from] content::ContentError),
}

impl LayerError {
    /// Whether it says that there is no space on the disk.
    pub(crate) fn is_full_disk(&self) -> bool {
        let full = std::io::ErrorKind::StorageFull;
        matches!(
            self,
            LayerError::Io { source, .. } | LayerError::Mount { source, .. } if source.kind() == full
        )
    }

    pub(crate) fn io<E: Into<std::io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| LayerError::Io {
            action,
            path,
            source: source.into(),
        }
    }
}

impl From<LayerError> for diag::Error {
    fn from(error: LayerError) -> Self {
        let text = error.to_string();
        match error {
            LayerError::Io { source, .. } | LayerError::Mount { source, .. } => {
                let code = diag::Error::from(source).code();
                diag::Error::new(code, text)
            }
            LayerError::NotFound(_) => diag::Error::not_found(text),
            LayerError::Held(_) => diag::Error::new(Code::FailedPrecondition, text),
            LayerError::Locked(_) => diag::Error::new(Code::FailedPrecondition, text)
                .hint("stop the other server, or give this one a `--root` of its own"),
            LayerError::StandIns(_) => diag::Error::new(Code::FailedPrecondition, text)
                .hint("use another snapshotter, or remove the directory"),
            LayerError::Id(_) | LayerError::DiffId { .. } => diag::Error::invalid(text),
            LayerError::Index { .. } => diag::Error::internal(text),
            LayerError::Interrupted => diag::Error::canceled(),
            LayerError::Database(error)
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) =>
            {
                diag::Error::new(Code::ResourceExhausted, text)
            }
            LayerError::Database(_) => diag::Error::internal(text),
            LayerError::Archive(error) => error.into(),
            LayerError::Content(error) => error.into(),
        }
    }
}
