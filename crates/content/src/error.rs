//! What can go wrong in a content store.

use std::path::PathBuf;

use diag::Code;
use oci::Digest;

/// Why an operation of the content store failed.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The filesystem refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as `open`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// No blob of that digest is stored.
    #[error("content {0}: not found")]
    NotFound(Digest),
    /// A blob that a disk or a hand has changed since it was stored; it is removed.
    #[error("content {0} was damaged on the disk of the build server, and is removed")]
    Damaged(Digest),
    /// The bytes written have another digest than promised.
    #[error("unexpected commit digest {actual}, expected {expected}: failed precondition")]
    DigestMismatch {
        /// What was promised.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// More or fewer bytes than promised were written.
    #[error("unexpected commit size {actual}, expected {expected}: failed precondition")]
    SizeMismatch {
        /// What was promised, in bytes.
        expected: u64,
        /// What came, in bytes.
        actual: u64,
    },
    /// A blob is too large to be read into memory.
    #[error("content {digest} has {size} bytes, more than the {limit} that may be read at once")]
    TooLarge {
        /// Which blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The directory was written by a version of this program that this one does not know.
    #[error("{} has format {found}, this program knows format {known}", path.display())]
    Format {
        /// The superblock.
        path: PathBuf,
        /// The version found in it.
        found: u32,
        /// The version known.
        known: u32,
    },
    /// The file that says what a directory is does not say it any more.
    #[error("{} is damaged: it does not say which format its directory has", .0.display())]
    Superblock(PathBuf),
}

impl ContentError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| ContentError::Io {
            action,
            path,
            source,
        }
    }
}

impl From<ContentError> for diag::Error {
    fn from(error: ContentError) -> Self {
        let text = error.to_string();
        match error {
            ContentError::Io { source, .. } => {
                let code = diag::Error::from(source).code();
                diag::Error::new(code, text)
            }
            ContentError::NotFound(_) => diag::Error::not_found(text),
            ContentError::DigestMismatch { .. } | ContentError::SizeMismatch { .. } => {
                diag::Error::new(Code::FailedPrecondition, text)
            }
            ContentError::Damaged(_) => diag::Error::new(Code::DataLoss, text)
                .hint("build again: it is made or brought anew"),
            ContentError::TooLarge { .. } => diag::Error::new(Code::ResourceExhausted, text),
            ContentError::Format { .. } => diag::Error::new(Code::FailedPrecondition, text)
                .hint("remove the directory or use the version that wrote it"),
            ContentError::Superblock(_) => diag::Error::new(Code::DataLoss, text).hint(
                "remove that file if no newer version has used the directory, else the directory",
            ),
        }
    }
}
