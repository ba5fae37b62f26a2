//! Shell globs without `**`, as Go's `filepath.Match` knows them, and path cleaning.

use crate::PatternError;

/// Whether the whole of `name` matches the glob: `*` and `?` stop at `/`, `[a-z]` and `[^a-z]` are
/// classes, `\` takes the next character as it is.
pub fn glob_match(pattern: &str, name: &[u8]) -> Result<bool, PatternError> {
    validate_glob(pattern)?;
    Ok(match_from(pattern.as_bytes(), name))
}

/// Refuses globs whose syntax is broken.
pub fn validate_glob(pattern: &str) -> Result<(), PatternError> {
    let bytes = pattern.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if at + 1 >= bytes.len() => return Err(PatternError::Syntax),
            b'\\' => at += 2,
            b'[' => at += class_len(&bytes[at..]).ok_or(PatternError::Syntax)?,
            _ => at += 1,
        }
    }
    Ok(())
}

/// Refuses the patterns that moby's matcher refuses when it is made: those whose fault Go's
/// `filepath.Match` meets while it compares them with `.`, and it stops at the first part between
/// stars that does not match.
pub(crate) fn validate_against_dot(pattern: &str) -> Result<(), PatternError> {
    let (mut rest, mut name): (&str, &[u8]) = (pattern, b".");
    while !rest.is_empty() {
        let stripped = rest.trim_start_matches('*');
        let star = stripped.len() < rest.len();
        let (part, after) = stripped.split_at(part_len(stripped.as_bytes()));
        rest = after;
        if star && part.is_empty() {
            break;
        }
        validate_glob(part)?;
        name = match match_part(part.as_bytes(), name) {
            Some(left) if left.is_empty() || !rest.is_empty() => left,
            _ if star && !name.is_empty() => match match_part(part.as_bytes(), b"") {
                Some(left) => left,
                None => break,
            },
            _ => break,
        };
    }
    Ok(())
}

/// The length in bytes up to the first `*` outside a class.
fn part_len(pattern: &[u8]) -> usize {
    let (mut at, mut in_class) = (0, false);
    while at < pattern.len() {
        match pattern[at] {
            b'\\' => at += 1,
            b'[' => in_class = true,
            b']' => in_class = false,
            b'*' if !in_class => break,
            _ => {}
        }
        at += 1;
    }
    at.min(pattern.len())
}

/// What is left of the name after a part without stars, if the part fits its beginning.
fn match_part<'a>(part: &[u8], name: &'a [u8]) -> Option<&'a [u8]> {
    let (mut p, mut n) = (0, 0);
    while p < part.len() {
        (p, n) = step(part, p, name, n)?;
    }
    Some(&name[n..])
}

/// Whether the text holds a `*`, `?` or `[` that is not escaped.
pub fn has_wildcards(text: &[u8]) -> bool {
    let mut escaped = false;
    for &byte in text {
        if escaped {
            escaped = false;
        } else if byte == b'\\' {
            escaped = true;
        } else if matches!(byte, b'*' | b'?' | b'[') {
            return true;
        }
    }
    false
}

/// The shortest path of the same meaning (Go's `path.Clean`): no `.`, no doubled or trailing slashes, `..` resolved
/// where there is something to leave; the empty path is `.`.
pub fn clean_path(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
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

/// The length in bytes of the class that starts at `[`, or nothing when it is malformed.
fn class_len(pattern: &[u8]) -> Option<usize> {
    let mut at = 1;
    if pattern.get(at) == Some(&b'^') {
        at += 1;
    }
    let mut ranges = 0;
    loop {
        if ranges > 0 && pattern.get(at) == Some(&b']') {
            return Some(at + 1);
        }
        at = class_char(pattern, at)?.1;
        if pattern.get(at) == Some(&b'-') {
            at = class_char(pattern, at + 1)?.1;
        }
        ranges += 1;
    }
}

/// One character of a class and where the next begins.
fn class_char(pattern: &[u8], at: usize) -> Option<(char, usize)> {
    let at = match *pattern.get(at)? {
        b'-' | b']' => return None,
        b'\\' => at + 1,
        _ => at,
    };
    let (ch, len) = first_char(pattern.get(at..).filter(|rest| !rest.is_empty())?);
    // A class cannot be the end of the pattern: the closing bracket must follow.
    (at + len < pattern.len()).then_some((ch, at + len))
}

/// The first character of bytes that need not be UTF-8, with its length.
fn first_char(bytes: &[u8]) -> (char, usize) {
    let longest = &bytes[..bytes.len().min(4)];
    let valid = match std::str::from_utf8(longest) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&longest[..error.valid_up_to()]).unwrap_or_default(),
    };
    match valid.chars().next() {
        Some(ch) => (ch, ch.len_utf8()),
        None => (char::REPLACEMENT_CHARACTER, 1),
    }
}

/// Matches a valid glob; a later `*` makes it unnecessary to try an earlier one again, because
/// neither can pass a `/` that the text between them must meet.
fn match_from(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() || p < pattern.len() {
        if let Some(next) = step(pattern, p, name, n) {
            (p, n) = next;
            continue;
        }
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, n));
            p += 1;
            continue;
        }
        match star {
            Some((after, from)) if from < name.len() && name[from] != b'/' => {
                star = Some((after, from + 1));
                (p, n) = (after, from + 1);
            }
            _ => return false,
        }
    }
    true
}

/// Matches one pattern element that is not `*` against the name, giving the places after both.
fn step(pattern: &[u8], p: usize, name: &[u8], n: usize) -> Option<(usize, usize)> {
    let &head = pattern.get(p)?;
    if head == b'*' || n >= name.len() {
        return None;
    }
    let (ch, len) = first_char(&name[n..]);
    match head {
        b'?' => (ch != '/').then_some((p + 1, n + len)),
        b'[' => {
            let class = &pattern[p..p + class_len(&pattern[p..])?];
            class_matches(class, ch).then_some((p + class.len(), n + len))
        }
        b'\\' => (pattern.get(p + 1) == name.get(n)).then_some((p + 2, n + 1)),
        byte => (byte == name[n]).then_some((p + 1, n + 1)),
    }
}

/// Whether a well-formed class holds the character.
fn class_matches(class: &[u8], ch: char) -> bool {
    let negated = class.get(1) == Some(&b'^');
    let mut at = if negated { 2 } else { 1 };
    let mut found = false;
    let mut first = true;
    while first || class.get(at) != Some(&b']') {
        first = false;
        let Some((low, next)) = class_char(class, at) else {
            return false;
        };
        let (high, next) = match class.get(next) {
            Some(b'-') => match class_char(class, next + 1) {
                Some(high) => high,
                None => return false,
            },
            _ => (low, next),
        };
        found |= low <= ch && ch <= high;
        at = next;
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_gos_filepath_match() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[^b-d]", "abc", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("a?b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[x\\-]", "-", true),
            ("*x", "xxx", true),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(
                glob_match(pattern, name.as_bytes()),
                Ok(expected),
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn broken_globs_are_refused() {
        for pattern in [
            "[]a]", "[-]", "[x-]", "[-x]", "[", "[^", "[^bc", "a[", "a\\", "[a-b-c]",
        ] {
            assert_eq!(
                validate_glob(pattern),
                Err(PatternError::Syntax),
                "{pattern}"
            );
        }
    }

    #[test]
    fn cleaning_resolves_dots_and_slashes() {
        for (path, expected) in [
            ("", "."),
            ("./a//b/", "a/b"),
            ("a/../b", "b"),
            ("../a/..", ".."),
            ("/../a", "/a"),
            ("/", "/"),
            ("a/b/../../..", ".."),
        ] {
            assert_eq!(clean_path(path), expected, "{path}");
        }
    }
}
