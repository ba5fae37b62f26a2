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
        let full = code == Code::ResourceExhausted;
        let error = diag::Error::new(code, error.to_string());
        if full {
            error.hint("the disk of the build server is full: `prune` frees space")
        } else {
            error
        }
    }
}

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
    fn errors_read_as_stock_prints_them() {
        let error = OpError::path("lstat", "/x/y", Errno::NOENT);
        assert_eq!(error.to_string(), "lstat /x/y: no such file or directory");
        assert_eq!(
            OpError::NotFound("/a.txt".into()).to_string(),
            "\"/a.txt\": not found"
        );
    }
}
