//! Recording: an outcome becomes the expectation.

use serde_json::{Map, Value};

use super::case::Case;
use super::outcome::Outcome;

/// What is stored of an outcome; an error where the case says that it must be another.
pub fn record(case: &Case, outcome: &Outcome) -> Result<Value, String> {
    let expect = &case.spec.expect;
    let facts = &outcome.facts;
    let got = if facts["exit"] == 0 { "ok" } else { "error" };
    let has_variants = !case.spec.variant.is_empty();
    let wanted = expect.result.as_deref().unwrap_or("ok");
    let problem = if got != wanted && !(has_variants && expect.result.is_none()) {
        Some(format!("the case says {wanted} but the build gave {got}"))
    } else if let Some(text) = expect
        .contains
        .iter()
        .find(|text| !outcome.output.contains(*text))
    {
        Some(format!("output lacks {text:?}"))
    } else if let Some(text) = expect
        .lacks
        .iter()
        .find(|text| outcome.output.contains(*text))
    {
        Some(format!("output contains {text:?}"))
    } else if expect.exit.is_some_and(|exit| facts["exit"] != exit) {
        Some(format!("exit status {}", facts["exit"]))
    } else {
        let lines = facts
            .get("location")
            .map(|location| location["lines"].clone());
        let wanted = expect.lines.clone().map(Value::from);
        (wanted.is_some() && wanted != lines).then(|| format!("lines {lines:?}"))
    };
    match problem {
        Some(problem) => Err(format!("{problem}; the output was\n{}", outcome.output)),
        None => Ok(as_recorded(outcome)),
    }
}

/// An outcome as recordings have it.
pub fn as_recorded(outcome: &Outcome) -> Value {
    renewed(&Value::Object(outcome.facts.clone()))
}

/// What newer BuildKits write in another way than the Engine's: `HEALTHCHECK` in the history.
fn renewed(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| match (key.as_str(), value) {
                    ("created_by", Value::String(text)) => (key.clone(), healthcheck(text).into()),
                    ("config_text", Value::String(text)) => (key.clone(), text.as_str().into()),
                    _ => (key.clone(), renewed(value)),
                });
            Value::Object(fields.collect())
        }
        Value::Array(items) => items.iter().map(renewed).collect(),
        other => other.clone(),
    }
}

/// `HEALTHCHECK &{["CMD" "a"] "5s" … '\x03'}` → `HEALTHCHECK {Test:[CMD a] Interval:5s … Retries:3}`.
fn healthcheck(text: &str) -> String {
    let old = regex::Regex::new(
        r#"^HEALTHCHECK &\{\[(.*)\] "(\S+)" "(\S+)" "(\S+)" "(\S+)" '\\x(..)'\}$"#,
    )
    .expect("a valid pattern");
    let Some(found) = old.captures(text) else {
        return text.to_owned();
    };
    let words: Vec<String> =
        serde_json::from_str(&format!("[{}]", found[1].replace("\" \"", "\",\"")))
            .unwrap_or_default();
    let retries = i64::from_str_radix(&found[6], 16).unwrap_or(0);
    format!(
        "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{retries}}}",
        words.join(" "),
        &found[2],
        &found[3],
        &found[4],
        &found[5]
    )
}

/// Writes `expect.json` of a case of what was recorded of its units, by variant.
pub fn write_recording(case: &Case, recorded: &[(Option<String>, Value)]) -> std::io::Result<()> {
    let whole = match recorded {
        [(None, facts)] => facts.clone(),
        _ => {
            let variants = recorded
                .iter()
                .map(|(name, facts)| (name.clone().unwrap_or_default(), facts.clone()));
            let variants: Map<String, Value> = variants.collect();
            serde_json::json!({ "variants": variants })
        }
    };
    std::fs::write(case.path.join("expect.json"), dump(&whole, 0) + "\n")
}

/// JSON with a line for each file of a tree, entry of a history and range.
fn dump(value: &Value, depth: usize) -> String {
    let pad = " ".repeat(depth + 1);
    let end = " ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() && !is_one_line(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| {
                    let key = Value::from(key.as_str());
                    format!("{pad}{key}: {}", dump(value, depth + 1))
                })
                .collect();
            format!("{{\n{}\n{end}}}", fields.join(",\n"))
        }
        Value::Array(items) if items.first().is_some_and(Value::is_object) => {
            let items = items
                .iter()
                .map(|item| pad.clone() + &dump(item, depth + 1));
            let items: Vec<String> = items.collect();
            format!("[\n{}\n{end}]", items.join(",\n"))
        }
        other => other.to_string(),
    }
}

fn is_one_line(fields: &Map<String, Value>) -> bool {
    let has = |key| fields.contains_key(key);
    (has("type") && has("mtime")) || has("created_by") || has("ranges") || has("rule")
}
