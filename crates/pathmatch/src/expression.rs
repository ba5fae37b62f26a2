//! Expressions as Go's `regexp` reads them, written for the crate `regex`.
//!
//! Moby hands the characters of a pattern on to Go's parser, and what that takes for syntax has its
//! meaning: `^` is the beginning, `\d` a digit, `|` an alternative, `{2}` a repetition, `*` and `?` in a class
//! become its characters. Only what can come
//! of a pattern is known here; the rest is nothing. Bytes that are not UTF-8 match where any
//! character does.

/// The expression in the crate's syntax; nothing when Go refuses it.
pub(crate) fn translated(go: &str) -> Option<String> {
    let mut out = String::with_capacity(go.len() + 16);
    let mut rest = go;
    while let Some(ch) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix(".*") {
            out.push_str(r"(?-u:[^\n])*");
            rest = after;
        } else if let Some(after) = rest.strip_prefix("[^/]*") {
            out.push_str("(?-u:[^/])*");
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            rest = class(after, &mut out)?;
        } else if let Some(after) = rest.strip_prefix('\\') {
            rest = escape(after, false, &mut out)?;
        } else if let Some(after) = repetition(rest) {
            // Go takes no repetition of a repetition.
            if go[..go.len() - rest.len()].ends_with(['*', '?']) || repetition(after).is_some() {
                return None;
            }
            out.push_str(&rest[..rest.len() - after.len()]);
            rest = after;
        } else {
            if matches!(ch, ']' | '{' | '}' | '&' | '-' | '~' | '#') {
                out.push('\\');
            }
            out.push(ch);
            rest = &rest[ch.len_utf8()..];
        }
    }
    Some(out)
}

/// What comes after `{2}`, `{2,}` or `{2,3}`; other braces stand for themselves.
fn repetition(rest: &str) -> Option<&str> {
    let end = rest.find('}')?;
    let inside = rest[..end].strip_prefix('{')?;
    let (least, most) = inside.split_once(',').unwrap_or((inside, inside));
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    (!least.is_empty() && number(least) && number(most)).then(|| &rest[end + 1..])
}

/// Writes what follows a backslash; gives what comes after it.
fn escape<'a>(rest: &'a str, in_class: bool, out: &mut String) -> Option<&'a str> {
    let ch = rest.chars().next()?;
    match ch {
        'd' => out.push_str("[0-9]"),
        'D' => out.push_str("[^0-9]"),
        'w' => out.push_str("[0-9A-Za-z_]"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        's' => out.push_str(r"[\t\n\x0C\r ]"),
        'S' => out.push_str(r"[^\t\n\x0C\r ]"),
        'a' => out.push_str(r"\x07"),
        'f' | 'n' | 'r' | 't' | 'v' => out.extend(['\\', ch]),
        'A' | 'z' if !in_class => out.extend(['\\', ch]),
        'b' if !in_class => out.push_str(r"(?-u:\b)"),
        'B' if !in_class => out.push_str(r"(?-u:\B)"),
        ch if ch.is_ascii() && !ch.is_ascii_alphanumeric() => literal(ch, out),
        _ => return None,
    }
    Some(&rest[ch.len_utf8()..])
}

/// Writes the class whose `[` has been read; gives what comes after its `]`.
fn class<'a>(mut rest: &'a str, out: &mut String) -> Option<&'a str> {
    out.push('[');
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    let mut first = true;
    loop {
        let ch = rest.chars().next()?;
        if ch == ']' && !first {
            out.push(']');
            return Some(&rest[1..]);
        }
        first = false;
        if rest.starts_with("[:") && rest[2..].contains(":]") {
            let end = rest.find(":]")? + 2;
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let is_set = rest
            .strip_prefix('\\')
            .is_some_and(|after| after.starts_with(['d', 'D', 'w', 'W', 's', 'S']));
        rest = class_char(rest, out)?;
        // A dash before the `]` stands for itself.
        let range = rest
            .strip_prefix('-')
            .filter(|after| !after.starts_with(']'));
        if let Some(after) = range.filter(|_| !is_set) {
            out.push('-');
            rest = class_char(after, out)?;
        }
    }
}

fn class_char<'a>(rest: &'a str, out: &mut String) -> Option<&'a str> {
    if let Some(after) = rest.strip_prefix('\\') {
        return escape(after, true, out);
    }
    let ch = rest.chars().next()?;
    literal(ch, out);
    Some(&rest[ch.len_utf8()..])
}

fn literal(ch: char, out: &mut String) {
    if ch.is_ascii_punctuation() && !matches!(ch, '<' | '>' | '/' | '_') {
        out.push('\\');
    }
    out.push(ch);
}
