//! `.dockerignore` files and their patterns, with the rules Docker has always had: `*` and `?`
//! within a path element, `**` over elements, `[…]`, `!` for exceptions, the last match counts, a
//! directory takes everything below it along.

use std::collections::BTreeSet;

/// The patterns of an ignore file, cleaned: no comments, no blank lines, no leading slashes, `!`
/// in front of exceptions.
pub fn read_patterns(data: &[u8]) -> Vec<String> {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let text = String::from_utf8_lossy(data);
    let mut patterns = Vec::new();
    for line in text.split('\n') {
        if line.starts_with('#') {
            continue;
        }
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let (sign, pattern) = match line.strip_prefix('!') {
            Some(rest) => ("!", rest.trim()),
            None => ("", line),
        };
        let mut pattern = if pattern.is_empty() {
            String::new()
        } else {
            clean_path(pattern)
        };
        if pattern.len() > 1 && pattern.starts_with('/') {
            pattern.remove(0);
        }
        patterns.push(format!("{sign}{pattern}"));
    }
    patterns
}

/// A path without `.`, `..`, double and trailing slashes where that can be told from the text
/// alone (Go's `path.Clean`); an empty path is `.`.
pub fn clean_path(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Why patterns cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A bracket that is not closed, an empty range, an escape at the end.
    #[error("syntax error in pattern")]
    Syntax,
    /// `!` and nothing after it.
    #[error("illegal exclusion pattern: \"!\"")]
    EmptyException,
}

/// Tells whether paths are matched by a list of patterns.
#[derive(Clone, Debug)]
pub struct PatternMatcher {
    patterns: Vec<Pattern>,
}

/// One pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    exception: bool,
    matcher: Matcher,
}

impl PatternMatcher {
    /// A matcher of these patterns, in their order.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, PatternError> {
        let mut compiled = Vec::with_capacity(patterns.len());
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            let cleaned = clean_path(pattern);
            let (exception, text) = match cleaned.strip_prefix('!') {
                Some("") => return Err(PatternError::EmptyException),
                Some(rest) => (true, rest.to_owned()),
                None => (false, cleaned),
            };
            check_syntax(&text)?;
            compiled.push(Pattern {
                matcher: Matcher::compile(&text),
                text,
                exception,
            });
        }
        Ok(PatternMatcher { patterns: compiled })
    }

    /// Whether the path, or a directory above it, is matched and no later exception takes it back.
    pub fn matches_or_parent_matches(&self, path: &str) -> bool {
        let mut matched = false;
        for pattern in &self.patterns {
            // Only what could change the outcome is looked at.
            if pattern.exception == matched && pattern.matches_or_parent(path) {
                matched = !pattern.exception;
            }
        }
        matched
    }

    /// Whether any pattern is an exception.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.exception)
    }

    /// The patterns.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }
}

impl Pattern {
    /// The pattern without `!`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it had a `!`.
    pub fn is_exception(&self) -> bool {
        self.exception
    }

    /// Whether the path itself is matched.
    pub fn matches(&self, path: &str) -> bool {
        self.matcher.matches(path)
    }

    fn matches_or_parent(&self, path: &str) -> bool {
        self.matches(path)
            || path
                .match_indices('/')
                .any(|(at, _)| self.matches(&path[..at]))
    }
}

/// The forms a pattern compiles to; the simple ones behave a little differently from what their
/// text says, and Docker's users rely on it.
#[derive(Clone, Debug)]
enum Matcher {
    /// No special characters.
    Exact(String),
    /// `prefix**`
    Prefix(String),
    /// `**suffix`: whatever ends with it; `**/name` is also `name` itself.
    Suffix(String),
    /// Everything else.
    Tokens(Vec<Token>),
}

#[derive(Clone, Debug)]
enum Token {
    Char(char),
    /// `?`
    AnyButSlash,
    /// `*`
    ManyButSlash,
    /// `**/`: nothing, or any text ending with a slash.
    Directories,
    /// `**` at the end.
    Rest,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Matcher {
    fn compile(text: &str) -> Matcher {
        let mut tokens = Vec::new();
        let (mut special, mut prefix, mut suffix) = (false, false, false);
        let mut chars = text.chars().peekable();
        let mut first = true;
        while let Some(c) = chars.next() {
            match c {
                '*' if chars.peek() == Some(&'*') => {
                    chars.next();
                    if chars.peek() == Some(&'/') {
                        chars.next();
                    }
                    if chars.peek().is_none() {
                        prefix = !special && !suffix;
                        special |= !prefix;
                        tokens.push(Token::Rest);
                    } else {
                        special = true;
                        tokens.push(Token::Directories);
                    }
                    if first {
                        (special, prefix, suffix) = (false, false, true);
                    }
                }
                '*' => {
                    special = true;
                    tokens.push(Token::ManyButSlash);
                }
                '?' => {
                    special = true;
                    tokens.push(Token::AnyButSlash);
                }
                '[' => {
                    special = true;
                    tokens.push(class(&mut chars));
                }
                '\\' => {
                    special = true;
                    tokens.push(Token::Char(chars.next().unwrap_or('\\')));
                }
                c => tokens.push(Token::Char(c)),
            }
            first = false;
        }
        if special {
            Matcher::Tokens(tokens)
        } else if suffix {
            Matcher::Suffix(text[2..].to_owned())
        } else if prefix {
            Matcher::Prefix(text[..text.len() - 2].to_owned())
        } else {
            Matcher::Exact(text.to_owned())
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Matcher::Exact(text) => path == text,
            Matcher::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Matcher::Suffix(suffix) => {
                path.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(path)
            }
            Matcher::Tokens(tokens) => matches_tokens(tokens, path),
        }
    }
}

/// Runs all ways through the tokens side by side: time is the product of both lengths at most.
fn matches_tokens(tokens: &[Token], path: &str) -> bool {
    let mut states = BTreeSet::new();
    add_state(tokens, &mut states, 0);
    for c in path.chars() {
        let mut next = BTreeSet::new();
        for state in &states {
            let here = *state;
            // Odd states are inside of a `**/` that has begun and must end with a slash.
            let (index, inside) = (here / 2, here % 2 == 1);
            match tokens.get(index) {
                Some(Token::Directories) => {
                    next.insert(index * 2 + 1);
                    if c == '/' {
                        add_state(tokens, &mut next, index + 1);
                    }
                }
                Some(_) if inside => {}
                Some(Token::Char(wanted)) if *wanted == c => {
                    add_state(tokens, &mut next, index + 1);
                }
                Some(Token::AnyButSlash) if c != '/' => add_state(tokens, &mut next, index + 1),
                Some(Token::ManyButSlash) if c != '/' => add_state(tokens, &mut next, index),
                Some(Token::Rest) => add_state(tokens, &mut next, index),
                Some(Token::Class { negated, ranges }) => {
                    let inside = ranges.iter().any(|(low, high)| (*low..=*high).contains(&c));
                    if inside != *negated {
                        add_state(tokens, &mut next, index + 1);
                    }
                }
                _ => {}
            }
        }
        if next.is_empty() {
            return false;
        }
        states = next;
    }
    states.contains(&(tokens.len() * 2))
}

/// Adds the state before token `index`, and those that can be had without taking a character.
fn add_state(tokens: &[Token], states: &mut BTreeSet<usize>, mut index: usize) {
    while states.insert(index * 2) {
        match tokens.get(index) {
            Some(Token::ManyButSlash | Token::Directories | Token::Rest) => index += 1,
            _ => return,
        }
    }
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Token {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    let escaped = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next() {
        Some('\\') => chars.next(),
        other => other,
    };
    while let Some(next) = chars.peek() {
        if *next == ']' && !ranges.is_empty() {
            chars.next();
            break;
        }
        let Some(low) = escaped(chars) else { break };
        let mut high = low;
        if chars.next_if_eq(&'-').is_some() {
            high = escaped(chars).unwrap_or(low);
        }
        ranges.push((low, high));
    }
    Token::Class { negated, ranges }
}

/// The syntax Go's `path.Match` asks for.
fn check_syntax(text: &str) -> Result<(), PatternError> {
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next().ok_or(PatternError::Syntax)?;
            }
            '[' => {
                chars.next_if_eq(&'^');
                let mut count = 0;
                loop {
                    if chars.peek() == Some(&']') && count > 0 {
                        chars.next();
                        break;
                    }
                    class_char(&mut chars)?;
                    if chars.next_if_eq(&'-').is_some() {
                        class_char(&mut chars)?;
                    }
                    count += 1;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn class_char(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<(), PatternError> {
    let c = match chars.next() {
        None | Some('-' | ']') => return Err(PatternError::Syntax),
        Some('\\') => chars.next(),
        other => other,
    };
    // The bracket must still be closed after it.
    match (c, chars.peek()) {
        (Some(_), Some(_)) => Ok(()),
        _ => Err(PatternError::Syntax),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_docker() {
        for (pattern, path, expected) in [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/", "file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("**/dir", "dir", true),
            ("**/dir", "dir/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir2/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**/file", "dir/dir/file", true),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/file.txt", true),
            ("a/*.txt", "a/dir/file.txt", false),
            ("a/*.txt", "a/file.txts", false),
            ("a[b-d]e", "ace", true),
            ("a[^b-d]e", "ace", false),
            ("a[b-d]e", "aze", false),
            ("a[]b", "ab", false),
            ("abc.def", "abcdef", false),
            ("a?c.def", "abc.def", true),
            ("a\\?c", "a?c", true),
            ("a\\?c", "abc", false),
            ("**/foo/bar", "foo/bar", true),
            ("**/foo/bar", "dir/foo/bar", true),
            ("abc/**", "abc", false),
            ("abc/**", "abc/def/ghi", true),
            ("**/.foo", ".foo", true),
            ("**/.foo", "bar.foo", false),
            ("./bar.*", "bar.x", true),
            ("a(b)c/def", "a(b)c/xyz", false),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            (
                "dist/*.whl",
                "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
                true,
            ),
            ("日本*", "日本語", true),
        ] {
            let Ok(matcher) = PatternMatcher::new(&[pattern]) else {
                assert!(!expected, "{pattern}");
                continue;
            };
            assert_eq!(
                matcher.matches_or_parent_matches(path),
                expected,
                "{pattern} {path}"
            );
        }
    }

    #[test]
    fn the_last_match_counts() {
        let matcher = PatternMatcher::new(&["docs", "!docs/README.md", "**/*.tmp"]).unwrap();
        for (path, expected) in [
            ("docs/x", true),
            ("docs/README.md", false),
            ("docs/README.md/a.tmp", true),
            ("other", false),
        ] {
            assert_eq!(matcher.matches_or_parent_matches(path), expected, "{path}");
        }
        assert!(matcher.has_exceptions());
    }

    #[test]
    fn wrong_patterns_are_refused() {
        for pattern in [
            "[", "[]", "[^", "[^]", "[a", "[a-", "[-]", "[x-]", "[-x]", "a[", "\\",
        ] {
            assert_eq!(
                PatternMatcher::new(&[pattern]).unwrap_err(),
                PatternError::Syntax,
                "{pattern}"
            );
        }
        assert_eq!(
            PatternMatcher::new(&["!"]).unwrap_err(),
            PatternError::EmptyException
        );
    }

    #[test]
    fn ignore_files_are_cleaned() {
        let text = b"\xef\xbb\xbf# c\n/a/./b/\n\n  x  \n! /y/\n!\n./z\r\n /\n";
        assert_eq!(read_patterns(text), ["a/b", "x", "!y", "!", "z", "/"]);
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let matcher = PatternMatcher::new(&["*a".repeat(30).as_str()]).unwrap();
        assert!(!matcher.matches_or_parent_matches(&"a".repeat(5000).replace("aa", "ab")));
    }
}
