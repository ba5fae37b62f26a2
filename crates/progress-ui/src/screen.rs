//! A small terminal emulator for the last lines a running step wrote.
//!
//! It knows what progress bars use: carriage return, backspace, cursor movement, erasing. Colours
//! and all else are read and dropped.

use unicode_width::UnicodeWidthChar;

/// An escape sequence longer than this is given up.
const ESCAPE_BYTES_MAX: usize = 256;

/// A grid of characters with a cursor.
#[derive(Clone, Debug)]
pub(crate) struct Screen {
    width: usize,
    rows: Vec<Vec<char>>,
    row: usize,
    column: usize,
    saved: (usize, usize),
    unparsed: Vec<u8>,
}

/// The second cell of a character two cells wide.
const CONTINUATION: char = '\0';

impl Screen {
    /// An empty screen; both sides are at least 1.
    pub(crate) fn new(height: usize, width: usize) -> Self {
        let (height, width) = (height.max(1), width.max(1));
        Screen {
            width,
            rows: vec![vec![' '; width]; height],
            row: 0,
            column: 0,
            saved: (0, 0),
            unparsed: Vec::new(),
        }
    }

    /// Changes the size; what does not fit is cut, at the right and at the top.
    pub(crate) fn resize(&mut self, height: usize, width: usize) {
        let (height, width) = (height.max(1), width.max(1));
        if self.rows.len() > height {
            let used = self.row.max(self.used_rows().saturating_sub(1)) + 1;
            let cut = used.saturating_sub(height);
            self.rows.drain(..cut);
            self.row = self.row.saturating_sub(cut);
        }
        self.rows.resize(height, vec![' '; width]);
        for row in &mut self.rows {
            row.resize(width, ' ');
        }
        self.width = width;
        self.row = self.row.min(height - 1);
        self.column = self.column.min(width);
    }

    /// The rows that are not blank, padded to the width.
    pub(crate) fn text_rows(&self) -> Vec<String> {
        self.rows
            .iter()
            .filter(|row| row.iter().any(|c| *c != ' '))
            .map(|row| row.iter().filter(|c| **c != CONTINUATION).collect())
            .collect()
    }

    /// How many rows are not blank.
    pub(crate) fn used_height(&self) -> usize {
        self.rows
            .iter()
            .filter(|row| row.iter().any(|c| *c != ' '))
            .count()
    }

    /// Takes what a step wrote.
    pub(crate) fn write(&mut self, data: &[u8]) {
        let mut input = std::mem::take(&mut self.unparsed);
        input.extend_from_slice(data);
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            let used = match rest[0] {
                0x1b => self.escape(rest),
                byte if byte < 0x80 => {
                    self.character(char::from(byte));
                    Some(1)
                }
                _ => self.wide(rest),
            };
            match used {
                Some(used) => at += used,
                None => {
                    self.unparsed = input.split_off(at);
                    return;
                }
            }
        }
    }

    fn used_rows(&self) -> usize {
        self.rows
            .iter()
            .rposition(|row| row.iter().any(|c| *c != ' '))
            .map_or(0, |last| last + 1)
    }

    /// One character beyond ASCII; `None` when more bytes are needed.
    fn wide(&mut self, rest: &[u8]) -> Option<usize> {
        let head = &rest[..rest.len().min(4)];
        let (text, used) = match std::str::from_utf8(head) {
            Ok(text) => (text, None),
            Err(error) if error.valid_up_to() > 0 => (
                std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default(),
                None,
            ),
            Err(error) => ("\u{fffd}", Some(error.error_len()?)),
        };
        let character = text.chars().next()?;
        self.character(character);
        Some(used.unwrap_or(character.len_utf8()))
    }

    fn character(&mut self, character: char) {
        match character {
            '\n' => {
                self.row += 1;
                self.column = 0;
            }
            '\r' => self.column = 0,
            '\u{8}' => self.column = self.column.saturating_sub(1),
            '\t' => self.column = (self.column / 8 * 8 + 8).min(self.width - 1),
            c if c.is_control() => {}
            c => self.put(c),
        }
    }

    fn put(&mut self, character: char) {
        let cells = character.width().unwrap_or(0);
        if cells == 0 || cells > self.width {
            return;
        }
        if self.column + cells > self.width {
            self.row += 1;
            self.column = 0;
        }
        if self.row >= self.rows.len() {
            let excess = self.row + 1 - self.rows.len();
            self.rows.drain(..excess.min(self.rows.len()));
            let height = self.row + 1 - excess;
            self.rows.resize(height.max(1), vec![' '; self.width]);
            self.row = self.rows.len() - 1;
        }
        let row = &mut self.rows[self.row];
        row[self.column] = character;
        if cells == 2 {
            row[self.column + 1] = CONTINUATION;
        }
        self.column += cells;
    }

    /// One escape sequence; `None` when more bytes are needed.
    fn escape(&mut self, rest: &[u8]) -> Option<usize> {
        match rest.get(1)? {
            b'[' => {
                let end = rest[2..].iter().position(|b| (0x40..=0x7e).contains(b));
                let Some(end) = end else {
                    return (rest.len() > ESCAPE_BYTES_MAX).then_some(rest.len());
                };
                self.control(&rest[2..2 + end], rest[2 + end]);
                Some(end + 3)
            }
            // An operating system command, such as a window title: up to BEL or ESC \.
            b']' => {
                let end = rest.iter().skip(2).position(|b| matches!(b, 0x07 | 0x1b));
                match end {
                    Some(end) if rest[2 + end] == 0x07 => Some(end + 3),
                    Some(end) => rest.get(end + 3).map(|_| end + 4),
                    None => (rest.len() > ESCAPE_BYTES_MAX).then_some(rest.len()),
                }
            }
            b'7' => {
                self.saved = (self.row, self.column);
                Some(2)
            }
            b'8' => {
                (self.row, self.column) = self.saved;
                Some(2)
            }
            b'(' | b')' => rest.get(2).map(|_| 3),
            _ => Some(2),
        }
    }

    fn control(&mut self, arguments: &[u8], command: u8) {
        let numbers: Vec<usize> = String::from_utf8_lossy(arguments)
            .split(';')
            .map(|n| n.parse().unwrap_or(0))
            .collect();
        let first = numbers[0];
        let count = first.max(1);
        match command {
            b'A' => self.row = self.row.saturating_sub(count),
            b'B' => self.row = (self.row + count).min(self.rows.len() - 1),
            b'C' => self.column = (self.column + count).min(self.width - 1),
            b'D' => self.column = self.column.saturating_sub(count),
            b'G' => self.column = (count - 1).min(self.width - 1),
            b'H' | b'f' => {
                self.row = (count - 1).min(self.rows.len() - 1);
                let column = numbers.get(1).copied().unwrap_or(1).max(1);
                self.column = (column - 1).min(self.width - 1);
            }
            b'K' => self.erase_in_row(first),
            b'J' => self.erase_in_screen(first),
            b's' => self.saved = (self.row, self.column),
            b'u' => (self.row, self.column) = self.saved,
            _ => {}
        }
    }

    fn erase_in_row(&mut self, direction: usize) {
        let (column, width) = (self.column.min(self.width), self.width);
        let Some(row) = self.rows.get_mut(self.row) else {
            return;
        };
        match direction {
            0 => row[column..].fill(' '),
            1 => row[..(column + 1).min(width)].fill(' '),
            _ => row.fill(' '),
        }
    }

    fn erase_in_screen(&mut self, direction: usize) {
        let height = self.rows.len();
        let range = match direction {
            0 => self.row.min(height)..height,
            1 => 0..(self.row + 1).min(height),
            _ => 0..height,
        };
        for row in &mut self.rows[range] {
            row.fill(' ');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(screen: &Screen) -> Vec<String> {
        let rows = screen.text_rows();
        rows.iter().map(|row| row.trim_end().to_owned()).collect()
    }

    #[test]
    fn the_last_rows_stay_and_long_lines_wrap() {
        let mut screen = Screen::new(3, 4);
        screen.write(b"a\nbb\nabcdef\n");
        assert_eq!(rows(&screen), ["bb", "abcd", "ef"]);
        screen.write("日本x\n".as_bytes());
        assert_eq!(rows(&screen), ["ef", "日本", "x"]);
    }

    #[test]
    fn progress_bars_overwrite_themselves() {
        let mut screen = Screen::new(2, 10);
        screen.write(b"10%\r20%\x1b[K\r\x1b[32m100%\x1b[0m");
        assert_eq!(rows(&screen), ["100%"]);
        screen.write(b"\nnext\x1b[1A\rdone\x1b[");
        screen.write(b"K\x1b]0;title\x07");
        assert_eq!(rows(&screen), ["done", "next"]);
    }

    #[test]
    fn no_bytes_break_it() {
        let mut screen = Screen::new(2, 3);
        let mut seed = 7u32;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let byte = (seed >> 24) as u8;
            let piece = [0x1b, b'[', b'0' + byte % 10, byte, byte.rotate_left(3)];
            screen.write(&piece[usize::from(byte % 4)..]);
            if byte == 9 {
                screen.resize(1 + (seed as usize >> 8) % 5, 1 + (seed as usize >> 16) % 9);
            }
        }
        assert!(screen.rows.len() <= 5);
    }
}
