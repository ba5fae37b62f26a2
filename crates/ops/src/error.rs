//! What goes wrong while an op is keyed or run.

use std::io;

use rustix::io::Errno;

/// Why a file action or a content digest failed. Paths are those of the image, never of the host.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// A system call failed on a path: `mkdir /x: not a directory`.
    #[error("{call} {path}: {}", errno_text(*.errno))]
    Path {
        /// The call, as Go programs name it: `lstat`, `mkdir`, `open`.
        call: &'static str,
        /// The path within the root.
        path: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A path that must exist does not: `"/a.txt": not found`.
    #[error("{0:?}: not found")]
    NotFound(String),
    /// A pattern matched nothing: `/a*: not found` in the words of a copy.
    #[error("{0} not found")]
    NoMatch(String),
    /// A directory was to be put where a file is.
    #[error("cannot copy to non-directory: {0}")]
    NotADirectory(String),
    /// A file was to be put where a directory is.
    #[error("cannot replace to directory {0} with file")]
    IsADirectory(String),
    /// A value of the op is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The work was cancelled.
    #[error("context canceled")]
    Canceled,
    /// An archive cannot be read or unpacked.
    #[error("failed to unpack {path}: {message}")]
    Archive {
        /// The archive.
        path: String,
        /// What its reader said.
        message: String,
    },
}

impl OpError {
    /// A failed call on a path of the root.
    pub fn path(call: &'static str, path: impl Into<String>, errno: Errno) -> Self {
        OpError::Path {
            call,
            path: path.into(),
            errno,
        }
    }

    /// True when something named does not exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            OpError::NotFound(_) | OpError::NoMatch(_) => true,
            OpError::Path { errno, .. } => *errno == Errno::NOENT,
            _ => false,
        }
    }
}

impl From<OpError> for diag::Error {
    fn from(error: OpError) -> Self {
        use diag::Code;
        let code = match &error {
            OpError::NotFound(_) | OpError::NoMatch(_) => Code::NotFound,
            OpError::Canceled => return diag::Error::canceled(),
            OpError::Path { errno, .. } => match *errno {
                Errno::NOENT => Code::NotFound,
                Errno::NOSPC | Errno::DQUOT => Code::ResourceExhausted,
                Errno::ACCESS | Errno::PERM => Code::PermissionDenied,
                _ => Code::Unknown,
            },
            OpError::Invalid(_) => Code::InvalidArgument,
            _ => Code::Unknown,
        };
        diag::Error::new(code, error.to_string())
    }
}

/// What to do about a full disk.
const DISK_FULL: &str = "the disk of the build server is full: `docker-buildx prune` frees space";

/// Adds what to do about it to an error of the server's own that says that the disk is full, in
/// the words of the kernel or of SQLite.
pub fn hint_at_full_disk(error: diag::Error) -> diag::Error {
    // One with a hint has been explained already; it may be another machine's disk.
    if error.code() != diag::Code::ResourceExhausted || !error.hints().is_empty() {
        return error;
    }
    let text = error.to_string().to_lowercase();
    let words = [
        "no space left on device",
        "disk quota exceeded",
        "database or disk is full",
    ];
    match words.iter().any(|words| text.contains(words)) {
        true => error.hint(DISK_FULL),
        false => error,
    }
}

/// The same for a process that failed, which says nothing of the disk itself: looked at is whether
/// that of the root file system it wrote to is full.
pub(crate) fn hint_at_disk_of(rootfs: &std::path::Path, error: diag::Error) -> diag::Error {
    match rustix::fs::statvfs(rootfs) {
        Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) < DISK_LEFT_BYTES_MIN => {
            error.hint(DISK_FULL)
        }
        // Some file systems count no inodes.
        Ok(disk) if disk.f_files > 0 && disk.f_favail == 0 => error.hint(
            "the disk of the build server has no inodes left: `docker-buildx prune` frees some",
        ),
        _ => error,
    }
}

/// With less than this a disk counts as full: the last bytes of one are rarely written.
const DISK_LEFT_BYTES_MIN: u64 = 1 << 20;

/// The kernel's error in the words Go programs print: lower case, without the number.
pub fn errno_text(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_hinted_at_once() {
        let full = diag::Error::from(OpError::path("write", "/x", Errno::NOSPC));
        let hinted = hint_at_full_disk(hint_at_full_disk(full));
        assert_eq!(hinted.hints(), [DISK_FULL]);
        let other = diag::Error::new(diag::Code::ResourceExhausted, "message too large");
        assert!(hint_at_full_disk(other).hints().is_empty());
    }

    #[test]
    fn errors_read_as_stock_prints_them() {
        let error = OpError::path("lstat", "/x/y", Errno::NOENT);
        assert_eq!(error.to_string(), "lstat /x/y: no such file or directory");
        assert_eq!(
            OpError::NotFound("/a.txt".into()).to_string(),
            "\"/a.txt\": not found"
        );
    }
}
