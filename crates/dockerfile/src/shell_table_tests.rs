//! The lexer against what the stock shell lexer makes of the same texts.
//!
//! `shell_table.jsonl` has a row for each text: the settings as bits (1 raw quotes, 2 raw escapes,
//! 4 quotes are ordinary, 8 unset variables stay, 16 the escape character is a backtick), the text, and
//! either the error or the outcome, its words, and the variables that were set and that were not. Texts
//! whose words stock loses with what stands before a nested word are not in it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::shell::Lexer;

const TABLE: &str = include_str!("shell_table.jsonl");

/// What the table was recorded with.
const VARIABLES: [(&str, &str); 10] = [
    ("A", "abc"),
    ("B", ""),
    ("C", "a/b/c.tar.gz"),
    ("D", "x y  z"),
    ("E", "äöü"),
    ("F", "$A"),
    ("G", "a*b?c[d]"),
    ("H", "foobarfoo"),
    ("I_1", "'q'\"r\""),
    ("J", "\\x\\"),
];

#[test]
fn every_recorded_text_becomes_what_stock_makes_of_it() {
    let variables: BTreeMap<String, String> = VARIABLES
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let mut different = Vec::new();
    for line in TABLE.lines() {
        let row: Vec<Value> = serde_json::from_str(line).unwrap();
        let flags = row[0].as_u64().unwrap();
        let text = row[1].as_str().unwrap();
        let lexer = Lexer {
            escape: if flags & 16 == 0 { '\\' } else { '`' },
            raw_quotes: flags & 1 != 0,
            raw_escapes: flags & 2 != 0,
            skip_quotes: flags & 4 != 0,
            skip_unset: flags & 8 != 0,
        };
        let names = |names: BTreeSet<String>| json!(names);
        let got = match lexer.expand(text, &variables) {
            Ok(out) => json!([
                out.text,
                out.words,
                names(out.matched),
                names(out.unmatched)
            ]),
            Err(error) => json!([error.to_string()]),
        };
        let wanted = Value::from(row[2..].to_vec());
        if got != wanted {
            different.push(format!(
                "{flags} {text:?}\n  wanted {wanted}\n  got    {got}"
            ));
        }
    }
    assert!(
        different.is_empty(),
        "{} differ:\n{}",
        different.len(),
        different.join("\n")
    );
}
