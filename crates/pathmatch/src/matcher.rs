//! Lists of patterns where later ones override earlier ones.

use regex::bytes::Regex;

use crate::expression;
use crate::glob::validate_against_dot;
use crate::{PatternError, clean_path};

/// An ordered list of ignore patterns.
///
/// A path is matched when the last pattern that concerns it is not an exception (`!`). A pattern
/// concerns a path when it matches the path or one of its parent directories.
#[derive(Clone, Debug, Default)]
pub struct PatternMatcher {
    patterns: Vec<Pattern>,
    has_exceptions: bool,
}

/// What matched a directory, kept to decide about its children without looking at all parents again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentMatches(Box<[bool]>);

/// One pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    exception: bool,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Exact,
    /// `dir/**`
    Prefix(usize),
    /// `**/name` and `**name`
    Suffix,
    Regex(Regex),
    /// Never matches: an exception that passes as a glob, but has no meaning as an expression. Stock
    /// asks it only about what is matched so far.
    Never,
}

impl PatternMatcher {
    /// Compiles patterns; empty ones are passed over.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, PatternError> {
        let mut matcher = PatternMatcher::default();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            let pattern = Pattern::new(pattern)?;
            matcher.has_exceptions |= pattern.exception;
            matcher.patterns.push(pattern);
        }
        Ok(matcher)
    }

    /// Whether there is nothing to match.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether any pattern is an exception.
    pub fn has_exceptions(&self) -> bool {
        self.has_exceptions
    }

    /// The patterns, in order.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether the path is matched, by itself or through one of its parents.
    ///
    /// A path that starts with a slash has the empty path among its parents, so that `*` matches
    /// it while `name` does not match `/name`.
    pub fn matches(&self, path: &[u8]) -> bool {
        let mut matched = false;
        for pattern in &self.patterns {
            // A pattern that cannot change the verdict is not evaluated.
            if pattern.exception == matched && pattern.matches_or_parent(path) {
                matched = !pattern.exception;
            }
        }
        matched
    }

    /// The same for a walk, where what matched the parent directory is known; `parent` is
    /// [`None`] for paths whose parent was not asked about.
    pub fn matches_below(
        &self,
        path: &[u8],
        parent: Option<&ParentMatches>,
    ) -> (bool, ParentMatches) {
        let parent = parent.filter(|parent| parent.0.len() == self.patterns.len());
        let mut matched = false;
        let mut info = vec![false; self.patterns.len()].into_boxed_slice();
        for (at, pattern) in self.patterns.iter().enumerate() {
            let mut hit = parent.is_some_and(|parent| parent.0[at]);
            if !hit {
                if pattern.exception != matched {
                    continue;
                }
                hit = match parent {
                    Some(_) => pattern.matches(path),
                    None => pattern.matches_or_parent(path),
                };
            }
            info[at] = hit;
            if hit {
                matched = !pattern.exception;
            }
        }
        (matched, ParentMatches(info))
    }
}

impl Pattern {
    /// The cleaned pattern without its `!`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is an exception.
    pub fn is_exception(&self) -> bool {
        self.exception
    }

    /// The pattern without a `/**` or `/*` at its end: the deepest directory it is certain of, when
    /// no other wildcard is in it.
    pub fn without_trailing_glob(&self) -> &str {
        let text = self.text.strip_suffix("/**").unwrap_or(&self.text);
        text.strip_suffix("/*").unwrap_or(text)
    }

    /// Whether the pattern matches the path itself; parents are not looked at.
    pub fn matches(&self, path: &[u8]) -> bool {
        let text = self.text.as_bytes();
        match &self.kind {
            Kind::Exact => path == text,
            Kind::Prefix(len) => path.starts_with(&text[..*len]),
            Kind::Suffix => {
                let suffix = &text[2..];
                path.ends_with(suffix) || suffix.strip_prefix(b"/") == Some(path)
            }
            Kind::Regex(regex) => regex.is_match(path),
            Kind::Never => false,
        }
    }

    fn new(pattern: &str) -> Result<Self, PatternError> {
        let cleaned = clean_path(pattern);
        let (exception, text) = match cleaned.strip_prefix('!') {
            Some("") => return Err(PatternError::EmptyException),
            Some(rest) => (true, rest.to_owned()),
            None => (false, cleaned),
        };
        validate_against_dot(&text)?;
        let kind = match compile(&text) {
            Some(kind) => kind,
            None if exception => Kind::Never,
            None => return Err(PatternError::Syntax),
        };
        Ok(Pattern {
            text,
            exception,
            kind,
        })
    }

    fn matches_or_parent(&self, path: &[u8]) -> bool {
        self.matches(path)
            || path
                .iter()
                .enumerate()
                .filter(|&(_, &byte)| byte == b'/')
                .any(|(at, _)| self.matches(&path[..at]))
            // Directly below `/`, moby asks for the root by its name too, otherwise only as "".
            || (path.first() == Some(&b'/') && !path[1..].contains(&b'/') && self.matches(b"/"))
    }
}

/// Decides how a pattern is matched: most are compared as strings, the rest become expressions.
/// Nothing when the expression is broken.
fn compile(pattern: &str) -> Option<Kind> {
    let mut moby = String::from("^");
    let mut kind = Kind::Exact;
    let mut is_regex = false;
    let mut chars = pattern.char_indices().peekable();
    while let Some((at, ch)) = chars.next() {
        match ch {
            '*' if chars.next_if(|&(_, next)| next == '*').is_some() => {
                chars.next_if(|&(_, next)| next == '/');
                if chars.peek().is_some() {
                    moby.push_str("(.*/)?");
                    is_regex = true;
                } else if matches!(kind, Kind::Exact) && !is_regex {
                    kind = Kind::Prefix(pattern.len() - 2);
                } else {
                    moby.push_str(".*");
                    is_regex = true;
                }
                if at == 0 {
                    kind = Kind::Suffix;
                    is_regex = false;
                }
            }
            '*' => moby.push_str("[^/]*"),
            '?' => moby.push_str("[^/]"),
            // Of `|`, `{` and `}` moby's table has lost the bit that escapes them.
            '.' | '+' | '(' | ')' | '$' => moby.extend(['\\', ch]),
            '\\' => {
                moby.push('\\');
                moby.extend(chars.next().map(|(_, next)| next));
            }
            ch => moby.push(ch),
        }
        is_regex |= matches!(ch, '?' | '\\' | '[' | ']') || moby.ends_with("[^/]*");
    }
    if !is_regex {
        return Some(kind);
    }
    moby.push('$');
    let expression = expression::translated(&moby)?;
    Regex::new(&expression).ok().map(Kind::Regex)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(patterns: &[&str], path: &str) -> bool {
        PatternMatcher::new(patterns)
            .unwrap()
            .matches(path.as_bytes())
    }

    #[test]
    fn single_patterns_match_as_dockers() {
        for (pattern, path, expected) in [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/", "file", true),
            ("**/", "dir/file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("dir/**", "dir", false),
            ("**/dir", "dir", true),
            ("**/dir", "dir/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/*", "dir/dir2/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir2/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**/file", "dir/dir/file", true),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/file*.txt*", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/file.txt", true),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a/*.txt", "a/dir/file.txt", false),
            ("a/*.txt", "a/file.txts", false),
            ("a/**/*.txt", "a/file.txt", true),
            ("a[b-d]e", "ace", true),
            ("a[b-d]e", "aze", false),
            ("a[^b-d]e", "aze", true),
            ("a[^b-d]e", "ace", false),
            ("a[\\-x]e", "a-e", true),
            ("abc.def", "abcdef", false),
            ("abc?def", "abc/def", false),
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
            ("*.md", "sub/readme.md", false),
            ("foo", "foo/bar/baz", true),
            ("*/b", "a/b/c", true),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            (
                "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
                "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
                true,
            ),
            (
                "dist/*.whl",
                "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
                true,
            ),
            ("日本*", "日本語", true),
            ("*", "a", true),
            ("/x", "x", false),
        ] {
            assert_eq!(matches(&[pattern], path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn rooted_paths_have_the_empty_path_above_them() {
        for (pattern, path, expected) in [
            ("*", "/", true),
            ("*", "/a", true),
            ("*", "/a/b", true),
            ("**", "/a", true),
            ("a", "/a", false),
            ("/a", "/a/b", true),
            ("/", "/a", true),
            ("/", "/a/b", false),
            ("?", "/a", false),
        ] {
            assert_eq!(matches(&[pattern], path), expected, "{pattern} {path}");
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
            assert_eq!(matcher.matches(path.as_bytes()), expected, "{path}");
        }
        assert!(matcher.has_exceptions());
    }

    #[test]
    fn later_patterns_override_earlier_ones() {
        assert!(!matches(&["**", "!util/docker/web"], "util/docker/web/foo"));
        assert!(matches(
            &["**", "!util/docker/web", "util/docker/web/foo"],
            "util/docker/web/foo"
        ));
        assert!(!matches(&["*", "!a.txt"], "a.txt"));
        assert!(!matches(&["!a.txt"], "a.txt"));
        assert!(matches(&["docs", "!docs/README.md"], "docs/other"));
        assert!(!matches(&["docs", "!docs/README.md"], "docs/README.md"));
        assert!(!matches(&["*", "!docs/*.md"], "docs/README.md"));
    }

    #[test]
    fn walking_with_parent_results_gives_the_same_verdicts() {
        let lists: [&[&str]; 5] = [
            &["**", "!a/b", "a/b/c"],
            &["a/*", "!a/b/c"],
            &["*", "!**/c"],
            &["a", "!a/b", "a/b/c"],
            &["**/c", "!a/b/c/d"],
        ];
        for list in lists {
            let matcher = PatternMatcher::new(list).unwrap();
            let mut parent = None;
            for path in ["a", "a/b", "a/b/c", "a/b/c/d", "a/b/c/d/e"] {
                let (matched, info) = matcher.matches_below(path.as_bytes(), parent.as_ref());
                assert_eq!(matched, matcher.matches(path.as_bytes()), "{list:?} {path}");
                parent = Some(info);
            }
        }
    }

    #[test]
    fn broken_patterns_are_refused() {
        assert_eq!(
            PatternMatcher::new(&["!"]).unwrap_err(),
            PatternError::EmptyException
        );
        for pattern in [
            "[", "[]", "[^", "[^]", "[a", "[a-", "[-]", "[x-]", "[-x]", "a[", "a[]b", "\\",
        ] {
            assert_eq!(
                PatternMatcher::new(&[pattern, "b"]).unwrap_err(),
                PatternError::Syntax,
                "{pattern}"
            );
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let matcher = PatternMatcher::new(&["*a".repeat(30).as_str()]).unwrap();
        assert!(!matcher.matches("a".repeat(5000).replace("aa", "ab").as_bytes()));
    }

    #[test]
    fn names_that_are_not_utf8_are_matched() {
        let matcher = PatternMatcher::new(&["*.bin"]).unwrap();
        assert!(matcher.matches(b"\xff\xfe.bin"));
    }
}
