//! Here-documents: `<<WORD`, `<<-WORD`, `<<"WORD"` in a line and the lines up to the word.

use crate::shell::{Lexer, NoVariables};

/// A here-document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it, without quotes.
    pub name: String,
    /// The number in front of `<<`; 0 if there is none.
    pub file_descriptor: u32,
    /// Whether variables in it are expanded: no part of the word was quoted.
    pub expand: bool,
    /// Whether tabs at the starts of its lines are dropped (`<<-`).
    pub chomp: bool,
    /// The bytes between the line and the end word.
    pub content: Vec<u8>,
}

impl Heredoc {
    /// Reads `<<WORD`; none if the word is something else, the message if it cannot be read.
    pub fn parse(word: &str) -> Result<Option<Heredoc>, String> {
        let Some((digits, chomp, rest)) = split(word) else {
            return Ok(None);
        };
        if rest.is_empty() {
            return Ok(None);
        }
        let mut lexer = Lexer::new('\\');
        lexer.skip_unset = true;
        let plain = lexer
            .expand(rest, &NoVariables)
            .map_err(|e| e.to_string())?;
        let [name] = plain.words.as_slice() else {
            return Ok(None);
        };
        lexer.raw_quotes = true;
        let raw = lexer
            .expand(rest, &NoVariables)
            .map_err(|e| e.to_string())?;
        let [raw] = raw.words.as_slice() else {
            return Err(format!(
                "internal lexing of heredoc produced inconsistent results: {rest}"
            ));
        };
        let quotes = |text: &str| text.chars().filter(|c| matches!(c, '\'' | '"')).count();
        Ok(Some(Heredoc {
            expand: quotes(name) == quotes(raw),
            name: name.clone(),
            file_descriptor: digits.parse().unwrap_or(0),
            chomp,
            content: Vec::new(),
        }))
    }

    /// The same; a word that cannot be read is no here-document.
    pub(crate) fn of(word: &str) -> Option<Heredoc> {
        Heredoc::parse(word).ok().flatten()
    }

    /// The content, without tabs at the starts of lines where `<<-` asks for that.
    pub fn text(&self) -> Vec<u8> {
        if self.chomp {
            without_leading_tabs(&self.content)
        } else {
            self.content.clone()
        }
    }
}

/// The here-documents that a line starts, in order.
pub(crate) fn in_line(line: &str) -> Result<Vec<Heredoc>, String> {
    let mut lexer = Lexer::new('\\');
    lexer.raw_quotes = true;
    lexer.raw_escapes = true;
    lexer.skip_unset = true;
    // A line that is not well quoted has none: it is for the shell to complain.
    let Ok(outcome) = lexer.expand(line, &NoVariables) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for word in &outcome.words {
        found.extend(Heredoc::parse(word)?);
    }
    Ok(found)
}

fn without_leading_tabs(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    let mut at_start = true;
    for byte in content {
        if at_start && *byte == b'\t' {
            continue;
        }
        at_start = *byte == b'\n';
        out.push(*byte);
    }
    out
}

/// Digits, whether there is a dash, and the word of `2<<-WORD`.
fn split(word: &str) -> Option<(&str, bool, &str)> {
    let (digits, rest) = word.split_once("<<")?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches(['\t', '\n', '\x0c', '\r', ' ']);
    (!rest.contains('<')).then_some((digits, chomp, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_start_a_heredoc() {
        for (word, name, expand, chomp) in [
            ("<<EOF", "EOF", true, false),
            ("<<-EOF", "EOF", true, true),
            ("<<'EOF'", "EOF", false, false),
            ("<<\"E O\"", "E O", false, false),
            ("3<<E", "E", true, false),
            ("<< EOF", "EOF", true, false),
            ("<<-\"a\"b", "ab", false, true),
        ] {
            let found = Heredoc::of(word).unwrap();
            assert_eq!(
                (found.name.as_str(), found.expand, found.chomp),
                (name, expand, chomp),
                "{word}"
            );
        }
        for word in ["<<", "<EOF", "<<<EOF", "a<<EOF", "<<a<b", "EOF", "<<-"] {
            assert_eq!(Heredoc::of(word), None, "{word}");
        }
    }

    #[test]
    fn a_line_may_start_several_and_quotes_hide_them() {
        let names = |line: &str| -> Vec<String> {
            in_line(line).unwrap().into_iter().map(|h| h.name).collect()
        };
        assert_eq!(names("COPY <<a <<'b' /x"), ["a", "b"]);
        assert_eq!(names("RUN echo '<<a' \"<<b\" \\<<c"), Vec::<String>::new());
        assert_eq!(names("RUN cat << EOF | sh"), ["EOF"]);
        assert_eq!(names("RUN it's <<EOF"), Vec::<String>::new());
    }

    #[test]
    fn chomping_drops_tabs_at_line_starts_only() {
        assert_eq!(
            without_leading_tabs(b"\t\ta\tb\n\tc\n \td"),
            b"a\tb\nc\n \td"
        );
    }
}
