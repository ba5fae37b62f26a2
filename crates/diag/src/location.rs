//! Places in source files that errors and warnings point at.

use std::sync::Arc;

/// A place in a file: line counted from 1, character (byte of the line) from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line, counted from 1.
    pub line: u32,
    /// Byte of the line, counted from 0.
    pub character: u32,
}

/// From a place to a place, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Range {
    /// Where it starts.
    pub start: Position,
    /// Where it ends.
    pub end: Position,
}

impl Range {
    /// Whole lines, counted from 1, the last one included.
    pub fn lines(first: u32, last: u32) -> Self {
        Range {
            start: Position {
                line: first,
                character: 0,
            },
            end: Position {
                line: last,
                character: 0,
            },
        }
    }
}

/// A file with the ranges in it that are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceLocation {
    /// The name the user knows the file by, such as `Dockerfile`.
    pub filename: String,
    /// What the file is written in, such as `Dockerfile`; may be empty.
    pub language: String,
    /// The whole file.
    pub data: Arc<[u8]>,
    /// What is pointed at.
    pub ranges: Vec<Range>,
}

impl SourceLocation {
    /// The excerpt stock clients print above an error: a few lines of context each side of
    /// the marked lines, `>>>` before those marked.
    ///
    /// The text starts with `FILE:LINE`, a line of dashes, the lines, a line of dashes.
    pub fn excerpt(&self) -> String {
        Excerpts::new(&self.filename, &self.data).at(&self.ranges)
    }
}

/// A file that many excerpts are made of: its lines are found once.
#[derive(Clone, Debug)]
pub struct Excerpts<'a> {
    filename: &'a str,
    lines: Vec<&'a [u8]>,
}

impl<'a> Excerpts<'a> {
    /// Finds the lines of a file.
    pub fn new(filename: &'a str, data: &'a [u8]) -> Self {
        Excerpts {
            filename,
            lines: data.split(|b| *b == b'\n').collect(),
        }
    }

    /// The excerpt at these ranges, as [`SourceLocation::excerpt`] has it.
    pub fn at(&self, ranges: &[Range]) -> String {
        let start = ranges.iter().map(|r| r.start.line).min().unwrap_or(0);
        let end = ranges.iter().map(|r| r.end.line).max().unwrap_or(start);
        let total = self.lines.len() as u32;
        if start < 1 || start > total {
            return String::new();
        }
        let (from, to) = padded(start, end.clamp(start, total), total);
        let marked = |line: u32| {
            ranges
                .iter()
                .any(|r| r.start.line <= line && line <= r.end.line)
        };
        let mut out = format!("{}:{start}\n--------------------\n", self.filename);
        for line in from..=to {
            let mark = if marked(line) { ">>>" } else { "   " };
            let text = String::from_utf8_lossy(self.lines[line as usize - 1]);
            out.push_str(&format!(" {line:>3} | {mark} {text}\n"));
        }
        out.push_str("--------------------\n");
        out
    }
}

/// Widens a range of lines by what a reader wants to see around it. As stock does: a budget of two
/// (four for a single line) is spent by rounds that each take one line at either end and cost one
/// more than the lines they took.
fn padded(start: u32, end: u32, total: u32) -> (u32, u32) {
    let budget = if start == end { 4 } else { 2 };
    let (mut from, mut to, mut spent) = (start, end, 0);
    while spent < budget {
        if from > 1 {
            from -= 1;
            spent += 1;
        }
        if to < total {
            to += 1;
            spent += 1;
        }
        spent += 1;
    }
    (from, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_marks_its_lines_and_shows_those_around() {
        let location = SourceLocation {
            filename: "Dockerfile".into(),
            language: "Dockerfile".into(),
            data: b"FROM a\nRUN b\nRUN c\n".as_slice().into(),
            ranges: vec![Range::lines(2, 2)],
        };
        assert_eq!(
            location.excerpt(),
            "Dockerfile:2\n--------------------\n   1 |     FROM a\n   2 | >>> RUN b\n   3 |     RUN c\n   4 |     \n--------------------\n"
        );
    }
}
