//! The patterns of `${name#pattern}`, `${name%pattern}` and `${name/pattern/text}`: `*`, `?` and
//! escapes, no brackets.

use regex::Regex;

/// Removes what the pattern matches from the start (`#`) or the end (`%`) of `value`. The
/// operator written twice, that is once more in front of the pattern, takes the longest match.
pub(crate) fn trim(word: &str, value: &str, operator: char) -> Result<String, String> {
    let (pattern, longest) = match word.strip_prefix(operator) {
        Some(rest) => (rest, true),
        None => (word, false),
    };
    let invalid = |pattern: &str, reason: String| {
        format!("invalid pattern ({pattern}) in substitution: {reason}")
    };
    if operator == '#' {
        let regex = compile(pattern, longest, true).map_err(|e| invalid(pattern, e))?;
        let cut = regex.find(value).map_or(0, |found| found.end());
        return Ok(value[cut..].to_owned());
    }
    // The shortest match at the end is the shortest one at the start of the reversed text.
    let reversed = reverse_pattern(pattern);
    let regex = compile(&reversed, longest, true).map_err(|e| invalid(&reversed, e))?;
    let backwards: String = value.chars().rev().collect();
    let cut = regex.find(&backwards).map_or(0, |found| found.end());
    Ok(backwards[cut..].chars().rev().collect())
}

/// Replaces the first match, or all of them, by `replacement`.
pub(crate) fn replace(
    pattern: &str,
    value: &str,
    replacement: &str,
    all: bool,
) -> Result<String, String> {
    let regex = compile(pattern, true, false)
        .map_err(|e| format!("invalid pattern ({pattern}) in substitution: {e}"))?;
    if all {
        return Ok(regex.replace_all(value, replacement).into_owned());
    }
    Ok(match regex.find(value) {
        Some(found) => format!(
            "{}{replacement}{}",
            &value[..found.start()],
            &value[found.end()..]
        ),
        None => value.to_owned(),
    })
}

fn compile(pattern: &str, longest: bool, anchored: bool) -> Result<Regex, String> {
    let mut out = String::with_capacity(pattern.len() + 4);
    if anchored {
        out.push('^');
    }
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' => out.push_str(if longest { ".*" } else { ".*?" }),
            '?' => out.push('.'),
            '\\' => {
                if matches!(chars.peek(), Some('}' | '/')) {
                    continue;
                }
                match chars.next() {
                    Some(c @ ('*' | '?' | '\\')) => out.extend(['\\', c]),
                    other => {
                        let shown = other.unwrap_or(char::REPLACEMENT_CHARACTER);
                        return Err(format!("invalid escape '\\{shown}'"));
                    }
                }
            }
            c => out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    Regex::new(&out).map_err(|error| error.to_string())
}

/// The pattern backwards, with each escape still in front of what it escapes.
fn reverse_pattern(pattern: &str) -> String {
    let mut pieces: Vec<Vec<char>> = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match (c, chars.clone().next()) {
            ('\\', Some(escaped)) => {
                pieces.push(vec![c, escaped]);
                chars.next();
            }
            _ => pieces.push(vec![c]),
        }
    }
    pieces.into_iter().rev().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortest_and_longest_matches_at_both_ends() {
        for (word, value, operator, expected) in [
            ("*/", "a/b/c", '#', "b/c"),
            ("#*/", "a/b/c", '#', "c"),
            ("/*", "a/b/c", '%', "a/b"),
            ("%/*", "a/b/c", '%', "a"),
            ("a\\*", "a*b", '#', "b"),
            ("\\**", "ab*c", '%', "ab"),
            ("?", "日本", '#', "本"),
            ("x", "", '#', ""),
        ] {
            assert_eq!(
                trim(word, value, operator),
                Ok(expected.to_owned()),
                "{word} {value}"
            );
        }
    }

    #[test]
    fn a_failing_pattern_names_itself() {
        assert!(trim("\\", "v", '#').is_err());
        assert_eq!(replace("a?c", "xabcabc", "-", true), Ok("x--".to_owned()));
    }
}
