//! Reading `WWW-Authenticate` headers (RFC 9110, section 11.6.1). Never fails: what is not
//! understood is left out.

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// One scheme that a server accepts, with its parameters (names in lower case).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// Lower case: `bearer`, `basic`.
    pub(crate) scheme: String,
    pub(crate) parameters: BTreeMap<String, String>,
}

impl Challenge {
    /// A parameter, empty if it was not given.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }
}

/// All challenges of a response, Bearer before Basic.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut all: Vec<Challenge> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(parse)
        .collect();
    all.sort_by_key(|challenge| challenge.scheme != "bearer");
    all
}

fn parse(text: &str) -> Vec<Challenge> {
    let mut all: Vec<Challenge> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        let trimmed = after.trim_start();
        if let Some(value_text) = trimmed.strip_prefix('=') {
            let (value, after) = value(value_text.trim_start());
            if let Some(last) = all.last_mut() {
                last.parameters.insert(word.to_ascii_lowercase(), value);
            }
            rest = after;
        } else {
            all.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: BTreeMap::new(),
            });
            rest = after;
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    all
}

/// The word at the start of the text and what follows it.
fn token(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '"'))
        .unwrap_or(text.len());
    text.split_at(end)
}

/// A word or quoted string at the start of the text and what follows it.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text
            .find(|c: char| c.is_whitespace() || c == ',')
            .unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut out = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (out, &quoted[at + 1..]),
            '\\' => out.extend(chars.next().map(|(_, escaped)| escaped)),
            other => out.push(other),
        }
    }
    (out, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_with_quotes_commas_and_several_schemes_are_read() {
        let read = parse(
            r#"Bearer realm="https://auth.example/token?a=b",service="r, \"x\"",scope="repository:a/b:pull,push" error=insufficient_scope, Basic realm="x""#,
        );
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].scheme, "bearer");
        assert_eq!(read[0].get("realm"), "https://auth.example/token?a=b");
        assert_eq!(read[0].get("service"), "r, \"x\"");
        assert_eq!(read[0].get("scope"), "repository:a/b:pull,push");
        assert_eq!(read[0].get("error"), "insufficient_scope");
        assert_eq!(read[1].scheme, "basic");
        assert_eq!(read[1].get("realm"), "x");
    }

    #[test]
    fn nonsense_gives_no_endless_loop() {
        for text in [
            "",
            "=",
            "\"",
            ",,,",
            "Bearer realm=",
            "Bearer =x",
            "Bearer realm=\"a",
        ] {
            let _ = parse(text);
        }
        assert!(parse("=x").is_empty());
    }
}
