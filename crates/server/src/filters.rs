//! The filter expressions of `du`, `prune`, workers and history: containerd's syntax.
//!
//! A filter is a list of selectors joined by commas, all of which must hold; several filters hold
//! when one of them does. A selector is a field with an operator and a value (`type==regular`,
//! `id!=x`, `description~=^pulled`), or a field alone, which must be present.
//! Values may be quoted as in Go, field parts may be quoted too (`labels."a.b"==x`).

use regex::Regex;

/// Some filters, any of which must hold; none at all always hold.
#[derive(Clone, Debug, Default)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Clone, Debug)]
struct Selector {
    field: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// A filter that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parse error: [{filter}]: {reason}")]
pub struct FilterError {
    filter: String,
    reason: String,
}

impl From<FilterError> for diag::Error {
    fn from(error: FilterError) -> Self {
        diag::Error::invalid(error.to_string())
    }
}

impl Filters {
    /// Reads filters.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, FilterError> {
        let parsed = filters
            .iter()
            .map(|filter| parse_filter(filter.as_ref()))
            .collect::<Result<_, _>>()?;
        Ok(Filters(parsed))
    }

    /// Whether something fits. `field` gives the value of a field by its path, `None` when it is
    /// not present.
    pub fn matches(&self, field: impl Fn(&[&str]) -> Option<String>) -> bool {
        let holds = |selector: &Selector| {
            let path: Vec<&str> = selector.field.iter().map(String::as_str).collect();
            let value = field(&path);
            match (&selector.test, value) {
                (Test::Present, value) => value.is_some(),
                (Test::Equal(wanted), value) => value.as_ref() == Some(wanted),
                (Test::NotEqual(wanted), value) => value.as_ref() != Some(wanted),
                (Test::Matches(regex), Some(value)) => regex.is_match(&value),
                (Test::Matches(_), None) => false,
            }
        };
        self.0.is_empty() || self.0.iter().any(|filter| filter.iter().all(holds))
    }
}

fn parse_filter(text: &str) -> Result<Vec<Selector>, FilterError> {
    let wrong = |reason: &str| FilterError {
        filter: text.to_owned(),
        reason: reason.to_owned(),
    };
    let mut selectors = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut field = Vec::new();
        loop {
            let (part, after) = word(rest, |c| c.is_alphanumeric() || "_-/".contains(c))
                .ok_or_else(|| wrong("expected field"))?;
            field.push(part);
            rest = after;
            match rest.strip_prefix('.') {
                Some(after) => rest = after,
                None => break,
            }
        }
        let mut test = Test::Present;
        for operator in ["==", "!=", "~="] {
            let Some(after) = rest.strip_prefix(operator) else {
                continue;
            };
            let (value, after) = value(after).ok_or_else(|| wrong("expected value"))?;
            rest = after;
            test = match operator {
                "==" => Test::Equal(value),
                "!=" => Test::NotEqual(value),
                _ => {
                    let regex = Regex::new(&value);
                    Test::Matches(regex.map_err(|error| wrong(&error.to_string()))?)
                }
            };
            break;
        }
        selectors.push(Selector { field, test });
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.is_empty() => {}
            None => return Err(wrong("expected a comma")),
        }
    }
    Ok(selectors)
}

/// A quoted word, or the longest run of allowed characters.
fn word(text: &str, allowed: impl Fn(char) -> bool) -> Option<(String, &str)> {
    if text.starts_with('"') {
        return quoted(text);
    }
    let end = text.find(|c| !allowed(c)).unwrap_or(text.len());
    (end > 0).then(|| (text[..end].to_owned(), &text[end..]))
}

/// A value: quoted, or up to the next comma.
fn value(text: &str) -> Option<(String, &str)> {
    if text.starts_with('"') {
        return quoted(text);
    }
    if let Some(delimiter) = text.chars().next().filter(|c| "/|".contains(*c))
        && let Some(end) = text[1..].find(delimiter)
    {
        return Some((text[1..=end].to_owned(), &text[end + 2..]));
    }
    let end = text.find(',').unwrap_or(text.len());
    Some((text[..end].to_owned(), &text[end..]))
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                c => out.push(c),
            },
            c => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(filters: &[&str]) -> bool {
        Filters::parse(filters).unwrap().matches(|path| match path {
            ["type"] => Some("regular".into()),
            ["id"] => Some("abc".into()),
            ["labels", "a.b"] => Some("x y".into()),
            ["description"] => Some("pulled from docker.io".into()),
            _ => None,
        })
    }

    #[test]
    fn filters_hold_as_containerd_says() {
        assert!(fits(&[]));
        assert!(fits(&["type==regular"]));
        assert!(!fits(&["type==internal"]));
        assert!(fits(&["type==internal", "id==abc"]));
        assert!(!fits(&["type==regular,id==x"]));
        assert!(fits(&["type==regular,id!=x"]));
        assert!(fits(&["description~=^pulled"]));
        assert!(fits(&["description~=\"docker\\\\.io$\""]));
        assert!(fits(&["labels.\"a.b\"==\"x y\""]));
        assert!(fits(&["id"]) && !fits(&["shared"]));
        assert!(fits(&["shared!=true"]));
        assert!(Filters::parse(&["==x"]).is_err());
        assert!(Filters::parse(&["a==\"x"]).is_err());
    }
}
