//! Patterns and ignore files against what moby's own matcher and reader make of them.

use serde_json::{Value, json};

use crate::{ParentMatches, PatternMatcher, read_ignore_file};

/// A row for each list of patterns: the list, and either the error, or paths each followed by 1 if
/// the path or a parent is matched, plus 2 if a walk down to it, which hands the parents' results on,
/// finds it matched; -1 where the comparison fails.
const PATTERNS: &str = include_str!("pattern_table.jsonl");

/// A row for each ignore file: its text and its patterns.
const IGNORE_FILES: &str = include_str!("ignore_table.jsonl");

fn rows(table: &str) -> impl Iterator<Item = Vec<Value>> {
    table
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
}

fn walked(matcher: &PatternMatcher, path: &str) -> bool {
    let ends = path.match_indices('/').map(|(at, _)| at);
    let mut state: Option<ParentMatches> = None;
    let mut matched = false;
    for end in ends.chain([path.len()]) {
        let (found, next) = matcher.matches_below(&path.as_bytes()[..end], state.as_ref());
        matched = found;
        state = Some(next);
    }
    matched
}

#[test]
fn every_recorded_list_matches_what_moby_matches() {
    let mut different = Vec::new();
    for row in rows(PATTERNS) {
        let patterns: Vec<&str> = row[0]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(Value::as_str)
            .collect();
        let matcher = match PatternMatcher::new(&patterns) {
            Ok(matcher) => matcher,
            Err(error) => {
                // Moby refuses some when it first compares them with a path.
                let late = row.iter().any(|cell| *cell == -1);
                if !late && row[1..] != [json!(error.to_string())] {
                    different.push(format!("{patterns:?}: {error}"));
                }
                continue;
            }
        };
        if row.len() == 2 {
            different.push(format!("{patterns:?}: wanted {}", row[1]));
        }
        for pair in row[1..].chunks_exact(2) {
            let path = pair[0].as_str().unwrap();
            let got =
                i64::from(matcher.matches(path.as_bytes())) + 2 * i64::from(walked(&matcher, path));
            if pair[1] != got && pair[1] != -1 {
                different.push(format!(
                    "{patterns:?} {path:?}: wanted {}, got {got}",
                    pair[1]
                ));
            }
        }
    }
    assert!(
        different.is_empty(),
        "{} differ:\n{}",
        different.len(),
        different.join("\n")
    );
}

#[test]
fn every_recorded_ignore_file_is_read_as_moby_reads_it() {
    for row in rows(IGNORE_FILES) {
        let text = row[0].as_str().unwrap();
        assert_eq!(json!(read_ignore_file(text.as_bytes())), row[1], "{text:?}");
    }
}
