//! Is an outcome what was recorded?

use serde_json::{Map, Value, json};

use super::bases::{BASE_MTIME, Bases};
use super::case::Unit;
use super::outcome::Outcome;

/// Nothing when the outcome is as recorded, else the first difference.
pub fn compare(unit: &Unit, wanted: &Value, got: &Outcome, bases: &Bases) -> Option<String> {
    let expect = &unit.case.spec.expect;
    let found = Value::Object(got.facts.clone());
    if wanted["exit"] != found["exit"] {
        let last = got.output.trim().lines().last().unwrap_or_default();
        let said = found["error"].as_str().unwrap_or(last);
        let (wanted, found) = (&wanted["exit"], &found["exit"]);
        return Some(format!(
            "exit status: expected {wanted}, got {found} ({said})"
        ));
    }
    for text in &expect.contains {
        if !got.output.contains(text.as_str()) {
            return Some(format!("output lacks {text:?}; it is\n{}", got.output));
        }
    }
    for text in &expect.lacks {
        if got.output.contains(text.as_str()) {
            return Some(format!("output must not contain {text:?}"));
        }
    }
    let mut keys = vec!["location", "call", "warnings"];
    if expect.strict {
        keys.push("error");
    }
    for key in keys {
        // Where stock points at no line, pointing at one is no fault.
        if wanted.get(key).is_none() {
            continue;
        }
        let (wanted, found) = (in_order(&wanted[key], key), in_order(&found[key], key));
        if let Some(difference) = first_difference(&wanted, &found, key) {
            return Some(difference);
        }
    }
    if let Some(files) = wanted["files"].as_object() {
        let found = found["files"].as_object().cloned().unwrap_or_default();
        return tree_difference(files, &found, "file");
    }
    image_difference(&wanted["image"], &found["image"], bases)
}

/// Warnings are a set.
fn in_order(value: &Value, key: &str) -> Value {
    let mut value = value.clone();
    if let Some(warnings) = value.as_array_mut().filter(|_| key == "warnings") {
        warnings.sort_by_key(|warning| {
            let line = warning["line"].as_u64().unwrap_or(0);
            (
                line,
                warning["rule"].to_string(),
                warning["text"].to_string(),
            )
        });
    }
    value
}

fn image_difference(wanted: &Value, found: &Value, bases: &Bases) -> Option<String> {
    let names = |image: &Value| -> Vec<String> {
        let platforms = image["platforms"].as_object();
        platforms.map_or(Vec::new(), |platforms| platforms.keys().cloned().collect())
    };
    if names(wanted) != names(found) {
        let (wanted, found) = (names(wanted), names(found));
        return Some(format!("platforms: expected {wanted:?}, got {found:?}"));
    }
    for name in names(wanted) {
        let (wanted, found) = (&wanted["platforms"][&name], &found["platforms"][&name]);
        for key in [
            "config",
            "config_text",
            "history",
            "layers",
            "annotations",
            "base",
        ] {
            let place = format!("{name} {key}");
            if let Some(difference) = first_difference(&wanted[key], &found[key], &place) {
                return Some(difference);
            }
        }
        let (wanted, found) = (whole_tree(wanted, bases), whole_tree(found, bases));
        if let Some(difference) = tree_difference(&wanted, &found, &format!("{name} file")) {
            return Some(difference);
        }
    }
    for key in ["tags", "index_annotations"] {
        if let Some(difference) = first_difference(&wanted[key], &found[key], key) {
            return Some(difference);
        }
    }
    None
}

/// The files of an image that is stored as changes to a base.
fn whole_tree(image: &Value, bases: &Bases) -> Map<String, Value> {
    let mut files = Map::new();
    if let Some(base) = image["base"].as_str().and_then(|name| bases.named(name)) {
        files = base.files.clone();
        bases.name_programs(&mut files);
        for gone in image["removed"].as_array().into_iter().flatten() {
            files.remove(gone.as_str().unwrap_or_default());
        }
    }
    files.extend(image["tree"].as_object().cloned().unwrap_or_default());
    files
}

fn tree_difference(
    wanted: &Map<String, Value>,
    found: &Map<String, Value>,
    what: &str,
) -> Option<String> {
    let mut paths: Vec<&String> = wanted.keys().chain(found.keys()).collect();
    paths.sort();
    paths.dedup();
    for path in paths {
        let (Some(wanted), Some(found)) = (wanted.get(path), found.get(path)) else {
            let (wanted, found) = (wanted.get(path), found.get(path));
            return Some(match wanted {
                Some(wanted) => format!("{what} {path}: missing, expected {wanted}"),
                None => format!(
                    "{what} {path}: not expected, got {}",
                    found.unwrap_or(&Value::Null)
                ),
            });
        };
        let (mut wanted, mut found) = (wanted.clone(), found.clone());
        // The time of a folder of a base differs between stock's own snapshotters.
        let is_base_folder = wanted["type"] == "dir" && wanted["mtime"] == json!(BASE_MTIME);
        let any_time = wanted["mtime"] == json!(-1) || is_base_folder;
        for facts in [&mut wanted, &mut found] {
            let Some(fields) = facts.as_object_mut() else {
                continue;
            };
            if any_time {
                fields.remove("mtime");
            }
            if fields.get("sha256") == fields.get("text") {
                fields.remove("text");
            }
        }
        let texts = (wanted["text"].take(), found["text"].take());
        if let Some(difference) = first_difference(&wanted, &found, &format!("{what} {path}")) {
            let more = if texts.0 == texts.1 {
                String::new()
            } else {
                format!(" (expected text {}, got {})", texts.0, texts.1)
            };
            return Some(difference + &more);
        }
    }
    None
}

/// Where two values differ first, in words; the order of fields does not count, and a field that is
/// missing is null.
pub fn first_difference(wanted: &Value, found: &Value, place: &str) -> Option<String> {
    match (wanted, found) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let value = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                first_difference(&value(a), &value(b), &format!("{place}.{key}"))
            })
        }
        (Value::Array(a), Value::Array(b)) => {
            let pairs = (0..).zip(a.iter().zip(b));
            let mut inner = pairs.filter_map(|(number, (a, b)): (usize, _)| {
                first_difference(a, b, &format!("{place}[{number}]"))
            });
            inner.next().or_else(|| {
                let longer = if a.len() > b.len() { a } else { b };
                let word = if a.len() > b.len() {
                    "missing"
                } else {
                    "not expected"
                };
                (a.len() != b.len()).then(|| {
                    let extra = &longer[a.len().min(b.len())];
                    format!(
                        "{place}: {} entries instead of {}; {word}: {extra}",
                        b.len(),
                        a.len()
                    )
                })
            })
        }
        _ if wanted == found => None,
        _ => Some(format!("{place}: expected {wanted}, got {found}")),
    }
}
