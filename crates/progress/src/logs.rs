//! The lines a vertex wrote, put together from pieces.

use std::collections::VecDeque;

use jiff::SignedDuration;

/// A line, without its newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it began, counted from the start of its vertex.
    pub since_start: SignedDuration,
    /// Its bytes as written, escape sequences included.
    pub data: Vec<u8>,
}

/// The lines of one vertex. Old ones can be dropped; numbers of lines stay what they were.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    lines: VecDeque<LogLine>,
    dropped: usize,
    partial: bool,
}

impl Logs {
    /// Takes what was written at `since_start`.
    pub fn push(&mut self, since_start: SignedDuration, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let complete = data.ends_with(b"\n");
        let text = if complete {
            &data[..data.len() - 1]
        } else {
            data
        };
        for (index, piece) in text.split(|byte| *byte == b'\n').enumerate() {
            match self.lines.back_mut() {
                Some(last) if index == 0 && self.partial => last.data.extend_from_slice(piece),
                _ => self.lines.push_back(LogLine {
                    since_start,
                    data: piece.to_vec(),
                }),
            }
        }
        self.partial = !complete;
    }

    /// The number of lines ever seen, a partial one included.
    pub fn len(&self) -> usize {
        self.dropped + self.lines.len()
    }

    /// True when nothing was ever written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when the last line has not ended yet.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// The lines kept, from the line of that number on, each with its number.
    pub fn lines_from(&self, number: usize) -> impl Iterator<Item = (usize, &LogLine)> {
        let skip = number.saturating_sub(self.dropped);
        self.lines
            .iter()
            .enumerate()
            .skip(skip)
            .map(|(index, line)| (self.dropped + index, line))
    }

    /// Forgets all lines but the last `keep`.
    pub fn keep_last(&mut self, keep: usize) {
        let excess = self.lines.len().saturating_sub(keep);
        self.lines.drain(..excess);
        self.dropped += excess;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(logs: &Logs) -> Vec<(usize, String)> {
        logs.lines_from(0)
            .map(|(n, line)| (n, String::from_utf8_lossy(&line.data).into_owned()))
            .collect()
    }

    #[test]
    fn pieces_become_lines() {
        let mut logs = Logs::default();
        for piece in ["a", "b\nc\n", "\n", "", "d"] {
            logs.push(SignedDuration::ZERO, piece.as_bytes());
        }
        let expected = ["ab", "c", "", "d"].map(str::to_owned);
        assert_eq!(
            text(&logs),
            expected.into_iter().enumerate().collect::<Vec<_>>()
        );
        assert!(logs.is_partial());
        logs.push(SignedDuration::ZERO, b"\n");
        assert!(!logs.is_partial());
        assert_eq!(logs.len(), 4);
    }

    #[test]
    fn dropping_old_lines_keeps_the_numbers() {
        let mut logs = Logs::default();
        logs.push(SignedDuration::ZERO, b"a\nb\nc\n");
        logs.keep_last(1);
        assert_eq!(text(&logs), [(2, "c".to_owned())]);
        assert_eq!(logs.len(), 3);
        assert_eq!(logs.lines_from(3).count(), 0);
    }
}
