//! `printf` with flags, width and precision.

use serde_json::Value;

use super::values::text_of;

/// The text that a format gives with these arguments.
pub(super) fn printf(format: &str, arguments: &[Value]) -> String {
    let mut out = String::new();
    let mut next = arguments.iter();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let (verb, after) = Verb::parse(&rest[at + 1..]);
        rest = after;
        match verb.letter {
            Some('%') => out.push('%'),
            Some(_) => out.push_str(&verb.format(next.next())),
            None => out.push_str("%!(NOVERB)"),
        }
    }
    out.push_str(rest);
    out
}

/// One `%` of a format: flags, width, precision, letter.
#[derive(Debug, Default)]
struct Verb {
    left: bool,
    zeros: bool,
    plus: bool,
    width: usize,
    precision: Option<usize>,
    letter: Option<char>,
}

/// More than this many columns are taken as a slip.
const WIDTH_MAX: usize = 1 << 16;

impl Verb {
    /// Reads what comes after a `%`; gives the rest.
    fn parse(text: &str) -> (Verb, &str) {
        let mut verb = Verb::default();
        let flags = text.len() - text.trim_start_matches(['-', '0', '+', ' ', '#']).len();
        verb.left = text[..flags].contains('-');
        verb.zeros = text[..flags].contains('0') && !verb.left;
        verb.plus = text[..flags].contains('+');
        let (width, text) = digits(&text[flags..]);
        verb.width = width.unwrap_or(0).min(WIDTH_MAX);
        let text = match text.strip_prefix('.') {
            Some(text) => {
                let (precision, text) = digits(text);
                verb.precision = Some(precision.unwrap_or(0));
                text
            }
            None => text,
        };
        let mut chars = text.chars();
        verb.letter = chars.next();
        (verb, chars.as_str())
    }

    fn format(&self, value: Option<&Value>) -> String {
        let letter = self.letter.unwrap_or('v');
        let Some(value) = value else {
            return format!("%!{letter}(MISSING)");
        };
        let mut text = match (letter, value.as_i64()) {
            ('x', Some(number)) => format!("{number:x}"),
            ('X', Some(number)) => format!("{number:X}"),
            ('d' | 'v', Some(number)) if self.plus => format!("{number:+}"),
            ('q', _) => format!("{:?}", text_of(value)),
            _ => text_of(value),
        };
        if let (Some(precision), 's' | 'v' | 'q', true) =
            (self.precision, letter, value.is_string())
        {
            text = text.chars().take(precision).collect();
        }
        let missing = self.width.saturating_sub(text.chars().count());
        match (self.left, self.zeros) {
            (true, _) => text + &" ".repeat(missing),
            (false, true) => "0".repeat(missing) + &text,
            (false, false) => " ".repeat(missing) + &text,
        }
    }
}

/// The number that a text begins with, and the rest.
fn digits(text: &str) -> (Option<usize>, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    (text[..end].parse().ok(), &text[end..])
}
