//! Which paths of a build context are meant: ignore patterns, globs, filters, followed links.
//!
//! The semantics are those that Docker users know from `.dockerignore` (`**`, `!` exceptions, a
//! pattern that matches a directory matches everything below it) and that BuildKit's file sync uses
//! for include and exclude patterns. Paths are relative, slash-separated byte strings: names on disk
//! need not be UTF-8.
//!
//! Nothing here reads files; what needs to look at a tree ([`follow_links`]) asks a [`LinkTree`].

mod expression;
mod filter;
mod follow;
mod glob;
mod ignore_file;
mod matcher;
#[cfg(test)]
mod robust_tests;
#[cfg(test)]
mod table_tests;

pub use filter::{FilterState, PathFilter, Verdict};
pub use follow::{LinkTree, follow_links};
pub use glob::{clean_path, glob_match, has_wildcards};
pub use ignore_file::read_ignore_file;
pub use matcher::{ParentMatches, Pattern, PatternMatcher};

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A `!` with nothing after it.
    #[error("illegal exclusion pattern: \"!\"")]
    EmptyException,
    /// The glob syntax is broken: an open `[`, a trailing `\`.
    #[error("syntax error in pattern")]
    Syntax,
}

impl From<PatternError> for diag::Error {
    fn from(error: PatternError) -> Self {
        diag::Error::invalid(error.to_string())
    }
}
