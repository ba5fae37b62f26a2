//! Quotes, escapes and variables of words: what an instruction's text becomes before it is used.
//!
//! It is the shell's expansion as far as Dockerfiles have it: `$name`, `${name}` and its forms `-`,
//! `:-`, `+`, `:+`, `?`, `:?`, `#`, `##`, `%`, `%%`, `/`, `//`; single and double quotes; the escape
//! character. No command substitution, no globbing, no process. An error's text is the one stock
//! prints.
//!
//! Each text is read once from left to right; nesting is bounded by [`DEPTH_MAX`], so neither time
//! nor stack grow past the length of the text.

use std::collections::{BTreeMap, BTreeSet};

use crate::pattern;
use crate::quote::{is_space, quoted};

/// How deep `${a:-${b:-…}}` may nest.
pub const DEPTH_MAX: usize = 100;

/// How many bytes a text may become: `ENV A=$A$A` doubles at each line, so something must say stop.
pub const LENGTH_MAX: usize = 16 << 20;

/// Where values of variables come from.
pub trait Variables {
    /// The value of a variable, or none if it is not set.
    fn get(&self, name: &str) -> Option<&str>;
}

impl Variables for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        BTreeMap::get(self, name).map(String::as_str)
    }
}

/// No variable is set.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoVariables;

impl Variables for NoVariables {
    fn get(&self, _name: &str) -> Option<&str> {
        None
    }
}

/// What expansion does with a text.
#[derive(Clone, Copy, Debug)]
pub struct Lexer {
    /// The escape character, `\` or a backtick.
    pub escape: char,
    /// Whether quotes stay in the outcome.
    pub raw_quotes: bool,
    /// Whether escape characters stay in the outcome.
    pub raw_escapes: bool,
    /// Whether quotes are ordinary characters.
    pub skip_quotes: bool,
    /// Whether variables that are not set stay as they are written.
    pub skip_unset: bool,
}

/// What a text became.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The whole text.
    pub text: String,
    /// The text cut at unquoted white space.
    pub words: Vec<String>,
    /// Variables that were used and set.
    pub matched: BTreeSet<String>,
    /// Variables that were used and not set.
    pub unmatched: BTreeSet<String>,
}

/// Why a text cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {}: {reason}", quoted(.text))]
pub struct ExpandError {
    /// The text.
    pub text: String,
    /// What is wrong in it.
    pub reason: String,
    /// Variables without a value that were met before the fault.
    pub unmatched: BTreeSet<String>,
}

impl Lexer {
    /// A lexer that removes quotes and escapes and expands everything.
    pub fn new(escape: char) -> Self {
        Lexer {
            escape,
            raw_quotes: false,
            raw_escapes: false,
            skip_quotes: false,
            skip_unset: false,
        }
    }

    /// Expands a text.
    pub fn expand(&self, text: &str, variables: &dyn Variables) -> Result<Expansion, ExpandError> {
        let mut cursor = Cursor {
            lexer: *self,
            // Stock's scanner passes over a byte order mark at the beginning of whatever it reads.
            chars: text
                .strip_prefix('\u{feff}')
                .unwrap_or(text)
                .chars()
                .collect(),
            at: 0,
            depth: 0,
            raw_escapes: self.raw_escapes,
            variables,
            outcome: Expansion::default(),
        };
        match cursor.until(None, self.raw_escapes) {
            Ok((text, words)) => {
                let mut outcome = cursor.outcome;
                outcome.text = text;
                outcome.words = words;
                Ok(outcome)
            }
            Err(reason) => Err(ExpandError {
                text: text.to_owned(),
                reason,
                unmatched: cursor.outcome.unmatched,
            }),
        }
    }
}

/// Collects words cut at white space.
#[derive(Default)]
struct Words {
    current: String,
    done: Vec<String>,
}

impl Words {
    fn push(&mut self, c: char) {
        if is_space(c) {
            self.end();
        } else {
            self.current.push(c);
        }
    }

    fn push_raw(&mut self, text: &str) {
        self.current.push_str(text);
    }

    fn end(&mut self) {
        if !self.current.is_empty() {
            self.done.push(std::mem::take(&mut self.current));
        }
    }
}

struct Cursor<'a> {
    lexer: Lexer,
    chars: Vec<char>,
    at: usize,
    depth: usize,
    raw_escapes: bool,
    variables: &'a dyn Variables,
    outcome: Expansion,
}

/// What stock's scanner shows for "no more characters" inside a message.
const END: char = '\u{fffd}';

impl Cursor<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    fn ended(&self) -> bool {
        self.at >= self.chars.len()
    }

    /// Expands up to an unquoted `stop`, which is taken, or to the end of the text.
    fn until(
        &mut self,
        stop: Option<char>,
        raw_escapes: bool,
    ) -> Result<(String, Vec<String>), String> {
        if self.depth >= DEPTH_MAX {
            return Err(format!(
                "substitutions are nested more than {DEPTH_MAX} deep"
            ));
        }
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        self.depth += 1;
        let outcome = self.until_here(stop);
        self.depth -= 1;
        self.raw_escapes = outer;
        outcome
    }

    fn until_here(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), String> {
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(c) = self.peek() {
            if stop == Some(c) {
                self.at += 1;
                words.end();
                return Ok((text, words.done));
            }
            let quotes = !self.lexer.skip_quotes;
            match c {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.push(c));
                    text.push_str(&value);
                    within_limit(&text)?;
                }
                '<' => {
                    let value = self.possible_heredoc();
                    words.push_raw(&value);
                    text.push_str(&value);
                }
                '\'' | '"' if quotes => {
                    let value = if c == '"' {
                        self.double_quoted()?
                    } else {
                        self.single_quoted()?
                    };
                    words.push_raw(&value);
                    text.push_str(&value);
                }
                _ => {
                    self.at += 1;
                    if c != self.lexer.escape {
                        words.push(c);
                        text.push(c);
                        continue;
                    }
                    if self.raw_escapes {
                        words.current.push(c);
                        text.push(c);
                    }
                    let Some(escaped) = self.next() else { break };
                    words.current.push(escaped);
                    text.push(escaped);
                }
            }
        }
        if let Some(stop) = stop {
            return Err(format!(
                "unexpected end of statement while looking for matching {stop}"
            ));
        }
        words.end();
        Ok((text, words.done))
    }

    fn single_quoted(&mut self) -> Result<String, String> {
        let mut out = String::new();
        self.at += 1;
        if self.lexer.raw_quotes {
            out.push('\'');
        }
        loop {
            match self.next() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching single-quote"
                            .to_owned(),
                    );
                }
                Some('\'') => {
                    if self.lexer.raw_quotes {
                        out.push('\'');
                    }
                    return Ok(out);
                }
                Some(c) => out.push(c),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<String, String> {
        let mut out = String::new();
        self.at += 1;
        if self.lexer.raw_quotes {
            out.push('"');
        }
        let escape = self.lexer.escape;
        loop {
            match self.peek() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching double-quote"
                            .to_owned(),
                    );
                }
                Some('"') => {
                    self.at += 1;
                    if self.lexer.raw_quotes {
                        out.push('"');
                    }
                    return Ok(out);
                }
                Some('$') => {
                    out.push_str(&self.dollar()?);
                    within_limit(&out)?;
                }
                Some(c) => {
                    self.at += 1;
                    if c != escape {
                        out.push(c);
                        continue;
                    }
                    if self.raw_escapes {
                        out.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(next) if next == '"' || next == '$' || next == escape => {
                            self.at += 1;
                            out.push(next);
                        }
                        Some(_) => out.push(c),
                    }
                }
            }
        }
    }

    /// `<<` with the white space after it stays together, so that `<< EOF` is one word.
    fn possible_heredoc(&mut self) -> String {
        self.at += 1;
        if self.peek() != Some('<') {
            return "<".to_owned();
        }
        self.at += 1;
        let mut out = "<<".to_owned();
        while let Some(c) = self.peek().filter(|c| matches!(c, '\t' | '\r' | ' ')) {
            out.push(c);
            self.at += 1;
        }
        out
    }

    fn lookup(&mut self, name: &str) -> Option<String> {
        let value = self.variables.get(name).map(str::to_owned);
        let names = if value.is_some() {
            &mut self.outcome.matched
        } else {
            &mut self.outcome.unmatched
        };
        if !names.contains(name) {
            names.insert(name.to_owned());
        }
        value
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.lookup(&name) {
                Some(value) => value,
                None if self.lexer.skip_unset => format!("${name}"),
                None => String::new(),
            });
        }
        self.at += 1;
        match self.peek() {
            None => return Err("syntax error: missing '}'".to_owned()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".to_owned()),
            Some(_) => {}
        }
        let name = self.name();
        match self.next().unwrap_or(END) {
            '}' => Ok(match self.lookup(&name) {
                Some(value) => value,
                None if self.lexer.skip_unset => format!("${{{name}}}"),
                None => String::new(),
            }),
            ':' => {
                let operator = self.next().unwrap_or(END);
                let modifier = format!(":{operator}");
                if matches!(operator, '#' | '%') {
                    return Err(unsupported(&modifier));
                }
                self.conditional(&name, operator, &modifier, true)
            }
            operator @ ('+' | '-' | '?') => {
                self.conditional(&name, operator, &operator.to_string(), false)
            }
            operator @ ('#' | '%') => self.trimmed(&name, operator),
            '/' => self.replaced(&name),
            other => Err(unsupported(&other.to_string())),
        }
    }

    /// The word of `${name:-word}` up to its closing brace.
    fn brace_word(&mut self, raw_escapes: bool) -> Result<String, String> {
        match self.until(Some('}'), raw_escapes) {
            Ok((word, _)) => Ok(word),
            Err(_) if self.ended() => Err("syntax error: missing '}'".to_owned()),
            Err(reason) => Err(reason),
        }
    }

    fn conditional(
        &mut self,
        name: &str,
        operator: char,
        modifier: &str,
        empty_is_unset: bool,
    ) -> Result<String, String> {
        let word = self.brace_word(false)?;
        let value = self.lookup(name);
        if self.lexer.skip_unset && value.is_none() {
            return Ok(format!("${{{name}{modifier}{word}}}"));
        }
        let useful = value
            .as_ref()
            .filter(|value| !(empty_is_unset && value.is_empty()))
            .cloned();
        match operator {
            '-' => Ok(useful.unwrap_or(word)),
            '+' => Ok(useful.map_or_else(String::new, |_| word)),
            '?' => useful.ok_or_else(|| {
                let said = match (word.is_empty(), value.is_some()) {
                    (false, _) => word.as_str(),
                    (true, true) => "is not allowed to be empty",
                    (true, false) => "is not allowed to be unset",
                };
                format!("{name}: {said}")
            }),
            _ => Err(unsupported(modifier)),
        }
    }

    fn trimmed(&mut self, name: &str, operator: char) -> Result<String, String> {
        let word = self.brace_word(true)?;
        let Some(value) = self.lookup(name) else {
            if self.lexer.skip_unset {
                return Ok(format!("${{{name}{operator}{word}}}"));
            }
            return pattern::trim(&word, "", operator);
        };
        pattern::trim(&word, &value, operator)
    }

    fn replaced(&mut self, name: &str) -> Result<String, String> {
        let all = self.peek() == Some('/');
        if all {
            self.at += 1;
        }
        let wanted = match self.until(Some('/'), true) {
            Ok((word, _)) => word,
            Err(_) if self.ended() => return Err("syntax error: missing '/' in ${}".to_owned()),
            Err(reason) => return Err(reason),
        };
        let replacement = self.brace_word(true)?;
        let Some(value) = self.lookup(name) else {
            if self.lexer.skip_unset {
                return Ok(format!("${{{name}/{wanted}/{replacement}}}"));
            }
            return pattern::replace(&wanted, "", &replacement, all);
        };
        pattern::replace(&wanted, &value, &replacement, all)
    }

    /// A name: digits only, one special parameter, or letters, digits and underscores.
    fn name(&mut self) -> String {
        let start = self.at;
        match self.peek() {
            Some(c) if c.is_numeric() => {
                while self.peek().is_some_and(char::is_numeric) {
                    self.at += 1;
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => self.at += 1,
            _ => {
                while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    self.at += 1;
                }
            }
        }
        self.chars[start..self.at].iter().collect()
    }
}

fn within_limit(text: &str) -> Result<(), String> {
    if text.len() > LENGTH_MAX {
        return Err(format!(
            "the expanded text is larger than {LENGTH_MAX} bytes"
        ));
    }
    Ok(())
}

fn unsupported(modifier: &str) -> String {
    format!("unsupported modifier ({modifier}) in substitution")
}

#[cfg(test)]
mod tests;
