//! Lines of a file and the errors that point at them.

use diag::Range;

/// Lines of a file, both included, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lines {
    /// The first one.
    pub first: u32,
    /// The last one.
    pub last: u32,
}

impl Lines {
    /// A single line.
    pub fn one(line: u32) -> Self {
        Lines {
            first: line,
            last: line,
        }
    }

    /// From a line to a line; a last line before the first one is the first one.
    pub fn new(first: u32, last: u32) -> Self {
        Lines {
            first,
            last: last.max(first),
        }
    }

    /// A range for each line, as BuildKit sends them.
    pub fn ranges(self) -> Vec<Range> {
        (self.first..=self.last)
            .map(|line| Range::lines(line, line))
            .collect()
    }
}

/// Something wrong in a Dockerfile, in stock's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SyntaxError {
    /// What is wrong.
    pub message: String,
    /// Where.
    pub lines: Lines,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file cannot be built.
    Error,
    /// The file can be built.
    Warning,
}

/// A finding of the parser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub message: String,
    /// Where.
    pub lines: Lines,
}

/// A physical line with its line end.
pub(crate) struct PhysicalLines<'a> {
    rest: &'a [u8],
}

/// Longest physical line in bytes, its line end included.
pub(crate) const LINE_BYTES_MAX: usize = 64 * 1024;

impl<'a> PhysicalLines<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        PhysicalLines { rest: data }
    }

    /// True when what is left cannot be read because its next line is too long.
    pub(crate) fn too_long(&self) -> bool {
        self.rest.len() >= LINE_BYTES_MAX && !self.rest[..LINE_BYTES_MAX].contains(&b'\n')
    }
}

impl<'a> Iterator for PhysicalLines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() || self.too_long() {
            return None;
        }
        let end = self
            .rest
            .iter()
            .position(|b| *b == b'\n')
            .map_or(self.rest.len(), |at| at + 1);
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(line)
    }
}
