//! Which files get lines that end as on Windows, and which their own name: the part of
//! `.gitattributes` that changes what is checked out.
//!
//! Not heeded: `filter` (a filter is a program, and none is configured) and `working-tree-encoding`.
//!
//! Format: <https://git-scm.com/docs/gitattributes>.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use super::object::Oid;

/// How long a pattern is compared; one that takes longer was made for that.
const STEPS_MAX: u32 = 100_000;

/// How the ends of a file's lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LineEnds {
    /// As they are in the repository.
    #[default]
    Kept,
    /// With a carriage return.
    Crlf,
    /// With a carriage return if the file is text with none.
    CrlfIfText,
}

/// How what is checked out differs from what is in the repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Conversion {
    pub(super) line_ends: LineEnds,
    /// Whether `$Id$` becomes the name of the content.
    pub(super) ident: bool,
}

/// What the attribute `text` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Set,
    Unset,
    Auto,
}

/// What directories say of files, the outermost first.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes {
    rules: Arc<Vec<Rule>>,
}

/// A line of `.gitattributes`.
#[derive(Clone, Debug)]
struct Rule {
    /// The directory that it stands in; empty or with a slash at the end.
    base: Vec<u8>,
    pattern: Vec<u8>,
    /// Whether the pattern is compared with the last part of a path only.
    by_name: bool,
    text: Option<Option<Text>>,
    /// Whether lines end with a carriage return.
    eol: Option<Option<bool>>,
    ident: Option<bool>,
}

impl Attributes {
    /// Adds the lines of a directory's file.
    pub(super) fn with(mut self, dir: &[u8], text: &str) -> Self {
        let mut base = dir.to_vec();
        if !base.is_empty() {
            base.push(b'/');
        }
        let rules: Vec<Rule> = text
            .lines()
            .filter_map(|line| Rule::parse(line, &base))
            .collect();
        if !rules.is_empty() {
            Arc::make_mut(&mut self.rules).extend(rules);
        }
        self
    }

    /// What counts for a file; later lines win.
    pub(super) fn conversion(&self, path: &[u8]) -> Conversion {
        let (mut text, mut eol, mut ident) = (None, None, false);
        for rule in self.rules.iter().filter(|rule| rule.matches(path)) {
            text = rule.text.unwrap_or(text);
            eol = rule.eol.unwrap_or(eol);
            ident = rule.ident.unwrap_or(ident);
        }
        let line_ends = match (text, eol) {
            (Some(Text::Unset), _) | (_, None | Some(false)) => LineEnds::Kept,
            (Some(Text::Auto), Some(true)) => LineEnds::CrlfIfText,
            (Some(Text::Set) | None, Some(true)) => LineEnds::Crlf,
        };
        Conversion { line_ends, ident }
    }
}

impl Conversion {
    /// Whether everything stays as it is in the repository.
    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }

    /// What is checked out of a content of that name.
    pub(super) fn apply(self, oid: Oid, data: &[u8]) -> Cow<'_, [u8]> {
        let named = match self.ident {
            true => Cow::Owned(with_ident(oid, data)),
            false => Cow::Borrowed(data),
        };
        match self.line_ends.converted(&named) {
            Some(converted) => Cow::Owned(converted),
            None => named,
        }
    }
}

impl LineEnds {
    /// The content with other ends of lines; `None` if it stays as it is.
    pub(super) fn converted(self, data: &[u8]) -> Option<Vec<u8>> {
        let fits = match self {
            LineEnds::Kept => false,
            LineEnds::Crlf => true,
            LineEnds::CrlfIfText => !data.contains(&b'\r') && is_text(data),
        };
        if !fits || !data.contains(&b'\n') {
            return None;
        }
        let mut out = Vec::with_capacity(data.len() + data.len() / 16);
        let mut before = 0;
        for &byte in data {
            if byte == b'\n' && before != b'\r' {
                out.push(b'\r');
            }
            out.push(byte);
            before = byte;
        }
        Some(out)
    }
}

impl Rule {
    fn parse(line: &str, base: &[u8]) -> Option<Rule> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (pattern, words) = match line.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => line.split_once(char::is_whitespace)?,
        };
        // Macros and negative patterns have no meaning here.
        if pattern.starts_with('!') || pattern.starts_with('[') || pattern.ends_with('/') {
            return None;
        }
        let (mut text, mut eol, mut ident) = (None, None, None);
        for word in words.split_whitespace() {
            match word {
                "text" | "crlf" => text = Some(Some(Text::Set)),
                "-text" | "-crlf" | "binary" => text = Some(Some(Text::Unset)),
                "text=auto" => text = Some(Some(Text::Auto)),
                "!text" => text = Some(None),
                "eol=crlf" => eol = Some(Some(true)),
                "eol=lf" | "crlf=input" => eol = Some(Some(false)),
                "!eol" | "-eol" => eol = Some(None),
                "ident" => ident = Some(true),
                "-ident" | "!ident" => ident = Some(false),
                _ => {}
            }
        }
        (text.is_some() || eol.is_some() || ident.is_some()).then(|| Rule {
            base: base.to_vec(),
            by_name: !pattern.contains('/'),
            pattern: pattern.trim_start_matches('/').as_bytes().to_vec(),
            text,
            eol,
            ident,
        })
    }

    fn matches(&self, path: &[u8]) -> bool {
        let Some(path) = path.strip_prefix(self.base.as_slice()) else {
            return false;
        };
        if self.by_name {
            let name = path.rsplit(|byte| *byte == b'/').next();
            return matches(&self.pattern, name.unwrap_or_default());
        }
        matches(&self.pattern, path)
    }
}

/// Compares as git does: `*` and `?` stay inside of a part of a path, `**` does not.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    compare(pattern, text, &Cell::new(STEPS_MAX))
}

fn compare(pattern: &[u8], text: &[u8], steps: &Cell<u32>) -> bool {
    if steps.get() == 0 {
        return false;
    }
    steps.set(steps.get() - 1);
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', b'/', rest @ ..] => {
            let after = |at: usize| text[at] == b'/' && compare(rest, &text[at + 1..], steps);
            compare(rest, text, steps) || (0..text.len()).any(after)
        }
        [b'*', b'*', rest @ ..] => (0..=text.len()).any(|at| compare(rest, &text[at..], steps)),
        [b'*', rest @ ..] => {
            let end = text.iter().position(|byte| *byte == b'/');
            (0..=end.unwrap_or(text.len())).any(|at| compare(rest, &text[at..], steps))
        }
        [b'?', rest @ ..] => {
            matches!(text, [byte, more @ ..] if *byte != b'/' && compare(rest, more, steps))
        }
        [b'[', rest @ ..] => match (set(rest), text) {
            (Some((length, has)), [byte, more @ ..]) => {
                *byte != b'/' && has(*byte) && compare(&rest[length..], more, steps)
            }
            _ => false,
        },
        [b'\\', byte, rest @ ..] | [byte, rest @ ..] => {
            matches!(text, [first, more @ ..] if first == byte && compare(rest, more, steps))
        }
    }
}

/// A set of bytes after `[`: how long it is with its end, and what is in it.
fn set(pattern: &[u8]) -> Option<(usize, impl Fn(u8) -> bool + '_)> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let start = usize::from(negated);
    // A bracket at the beginning is one of the bytes.
    let end = pattern
        .iter()
        .skip(start + 1)
        .position(|byte| *byte == b']')?
        + start
        + 1;
    let members = &pattern[start..end];
    let has = move |byte: u8| {
        let mut at = 0;
        while at < members.len() {
            match members.get(at + 1..at + 3) {
                Some([b'-', last]) => {
                    if (members[at]..=*last).contains(&byte) {
                        return !negated;
                    }
                    at += 3;
                }
                _ => {
                    if members[at] == byte {
                        return !negated;
                    }
                    at += 1;
                }
            }
        }
        negated
    };
    Some((end + 1, has))
}

/// Writes the name into each `$Id$`, and over the name that an earlier checkout left there. Between
/// the dollars of such a one there is a single word; whatever else is there was not git's.
fn with_ident(oid: Oid, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 64);
    let mut rest = data;
    while let Some(at) = rest.iter().position(|byte| *byte == b'$') {
        let (before, after) = rest.split_at(at + 1);
        out.extend_from_slice(before);
        rest = after;
        let Some(length) = ident_length(after) else {
            continue;
        };
        out.extend_from_slice(format!("Id: {oid} $").as_bytes());
        rest = &after[length..];
    }
    out.extend_from_slice(rest);
    out
}

/// How long `Id$` or `Id: word $` is at the beginning of a text; `None` if it is neither.
fn ident_length(text: &[u8]) -> Option<usize> {
    if text.starts_with(b"Id$") {
        return Some(3);
    }
    let value = text.strip_prefix(b"Id:")?;
    let end = value.iter().position(|byte| *byte == b'$')?;
    let value = &value[..end];
    let word = value.get(1..).unwrap_or_default();
    let space = word.iter().position(|byte| *byte == b' ');
    let is_word = space.is_none_or(|at| at + 1 == word.len());
    (is_word && !value.contains(&b'\n')).then_some(3 + end + 1)
}

/// Git's measure of text: no zero, and hardly anything that cannot be printed.
fn is_text(data: &[u8]) -> bool {
    let (mut printable, mut other) = (0_usize, 0_usize);
    for &byte in data {
        match byte {
            0 => return false,
            b'\n' => {}
            8 | b'\t' | 0x1b | 0x0c => printable += 1,
            1..0x20 | 0x7f => other += 1,
            _ => printable += 1,
        }
    }
    // A file may end with the mark that DOS had for that.
    let other = other - usize::from(data.last() == Some(&0x1a));
    printable >> 7 >= other
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(text: &str, path: &str) -> LineEnds {
        let attributes = Attributes::default().with(b"", text);
        attributes.conversion(path.as_bytes()).line_ends
    }

    #[test]
    fn later_lines_win() {
        let text = "* text=auto\n*.bat text eol=crlf\n/x/*.bat -text\n# no\n";
        assert_eq!(ends(text, "a/run.bat"), LineEnds::Crlf);
        assert_eq!(ends(text, "x/run.bat"), LineEnds::Kept);
        assert_eq!(ends(text, "a.txt"), LineEnds::Kept);
        assert_eq!(ends("* text=auto eol=crlf", "a"), LineEnds::CrlfIfText);
        assert_eq!(ends("*.b eol=crlf\n*.b binary", "a.b"), LineEnds::Kept);
        let inner = Attributes::default().with(b"d", "*.c eol=crlf");
        assert_eq!(inner.conversion(b"d/a.c").line_ends, LineEnds::Crlf);
        assert_eq!(inner.conversion(b"a.c").line_ends, LineEnds::Kept);
    }

    #[test]
    fn patterns_are_gits() {
        for (pattern, text, fits) in [
            ("*.[ch]", "a.c", true),
            ("*.[!ch]", "a.c", false),
            ("a/*", "a/b/c", false),
            ("a/**", "a/b/c", true),
            ("**/c", "c", true),
            ("**/c", "a/b/c", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("\\*", "*", true),
            ("[", "[", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                fits,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn a_content_gets_its_name_where_git_writes_it() {
        let oid = Oid::parse("0123456789012345678901234567890123456789").unwrap();
        let named = "$Id: 0123456789012345678901234567890123456789 $";
        for (before, after) in [
            ("a $Id$ b", format!("a {named} b")),
            ("$Id: old $", named.to_owned()),
            ("$Id:$$Id: $", format!("{named}{named}")),
            ("$Id: not one word $", "$Id: not one word $".to_owned()),
            ("$Id: a\n$", "$Id: a\n$".to_owned()),
            ("$Id: no end", "$Id: no end".to_owned()),
            ("$$Id$", format!("${named}")),
            ("$Idea$", "$Idea$".to_owned()),
        ] {
            let found = with_ident(oid, before.as_bytes());
            assert_eq!(String::from_utf8(found).unwrap(), after, "{before}");
        }
        let of = |text: &str| {
            Attributes::default()
                .with(b"", text)
                .conversion(b"a.id")
                .ident
        };
        assert!(of("*.id ident") && !of("*.id ident\na.* -ident") && !of("*.x ident"));
    }

    #[test]
    fn only_text_is_converted_when_it_is_to_be_found_out() {
        assert_eq!(
            LineEnds::Crlf.converted(b"a\nb\r\n").unwrap(),
            b"a\r\nb\r\n"
        );
        assert_eq!(LineEnds::CrlfIfText.converted(b"a\nb\r\n"), None);
        assert_eq!(LineEnds::CrlfIfText.converted(b"a\0\n"), None);
        assert_eq!(LineEnds::CrlfIfText.converted(b"a\n").unwrap(), b"a\r\n");
        assert_eq!(LineEnds::Kept.converted(b"a\n"), None);
    }
}
