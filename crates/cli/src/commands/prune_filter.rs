//! `--filter` of `du` and `prune`: from Docker's form to the server's.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::format::parse_duration;

/// What to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecordFilter {
    /// The server's filters; each entry is an alternative.
    pub(crate) filters: Vec<String>,
    /// Only what was not used for that long.
    pub(crate) unused_for: Duration,
}

impl RecordFilter {
    /// Reads `key=value` pieces.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, diag::Error> {
        let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for text in texts.iter().filter(|text| !text.is_empty()) {
            let (key, value) = filter_parts(text).map_err(diag::Error::invalid)?;
            let values = by_key.entry(key.trim().to_lowercase()).or_default();
            if !values.iter().any(|known| known == value.trim()) {
                values.push(value.trim().to_owned());
            }
        }
        let has = |key: &str| by_key.get(key).is_some_and(|values| !values.is_empty());
        if has("until") && has("unused-for") {
            return Err(diag::Error::invalid(
                "conflicting filters \"until\" and \"unused-for\"",
            ));
        }
        let until_key = if has("unused-for") {
            "unused-for"
        } else {
            "until"
        };
        let unused_for = match by_key.get(until_key).map(Vec::as_slice) {
            None | Some([]) => Duration::ZERO,
            Some([value]) => parse_duration(value).map_err(|error| {
                diag::Error::invalid(error).context(format!(
                    "{until_key:?} filter expects a duration (e.g., '24h')"
                ))
            })?,
            Some(_) => return Err(one_value(until_key)),
        };
        let mut filters = Vec::new();
        for (key, values) in by_key.iter().filter(|(key, _)| *key != until_key) {
            match values.as_slice() {
                [value] if value.is_empty() => filters.push(key.clone()),
                [value] if key == "id" => filters.push(format!("{key}~={value}")),
                [value] if key.ends_with('!') || key.ends_with('~') => {
                    filters.push(format!("{key}={value}"));
                }
                [value] => filters.push(format!("{key}=={value}")),
                _ => return Err(one_value(key)),
            }
        }
        Ok(RecordFilter {
            filters: vec![filters.join(",")],
            unused_for,
        })
    }
}

/// Checks a `--filter` as a flag.
pub(crate) fn filter(text: &str) -> Result<String, String> {
    match text.is_empty() {
        true => Ok(String::new()),
        false => filter_parts(text).map(|_| text.to_owned()),
    }
}

fn filter_parts(text: &str) -> Result<(&str, &str), String> {
    text.split_once('=')
        .ok_or_else(|| "bad format of filter (expected name=value)".to_owned())
}

fn one_value(key: &str) -> diag::Error {
    diag::Error::invalid(format!("{key:?} filter expects only one value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<RecordFilter, String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        RecordFilter::parse(&texts).map_err(|error| error.to_string())
    }

    #[test]
    fn filters_are_translated() {
        let filter = parse(&["type=exec.cachemount", "id=abc", "until=24h"]).unwrap();
        assert_eq!(filter.filters, ["id~=abc,type==exec.cachemount"]);
        assert_eq!(filter.unused_for, Duration::from_secs(86400));
        assert_eq!(parse(&[]).unwrap().filters, [""]);
        assert_eq!(parse(&[""]).unwrap().filters, [""]);
        assert_eq!(
            parse(&["description~=x"]).unwrap().filters,
            ["description~=x"]
        );
    }

    #[test]
    fn what_cannot_be_translated_is_refused() {
        assert_eq!(
            parse(&["until=1h", "unused-for=2h"]).unwrap_err(),
            "conflicting filters \"until\" and \"unused-for\""
        );
        assert_eq!(
            parse(&["foo"]).unwrap_err(),
            "bad format of filter (expected name=value)"
        );
        assert_eq!(
            parse(&["id=a", "id=b"]).unwrap_err(),
            "\"id\" filter expects only one value"
        );
        assert!(
            parse(&["until=x"])
                .unwrap_err()
                .starts_with("\"until\" filter expects a duration")
        );
    }
}
