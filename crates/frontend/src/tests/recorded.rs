//! What the stock frontend made of a corpus of Dockerfiles: configuration and history of the image,
//! or the error with its lines, or the answer to a call. The recording is `recorded.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::host::MemoryHost;
use crate::{BuildOptions, FrontendResult, build};

fn recording() -> Value {
    serde_json::from_str(include_str!("recorded.json")).unwrap()
}

pub(super) fn images() -> BTreeMap<String, Value> {
    let images = recording()["images"].as_object().unwrap().clone();
    images.into_iter().collect()
}

fn text<'a>(case: &'a Value, key: &str) -> Option<&'a str> {
    case.get(key).and_then(Value::as_str)
}

fn host_of(case: &Value) -> MemoryHost {
    let mut host = MemoryHost {
        images: images(),
        ..MemoryHost::default()
    };
    let filename = text(case, "filename").unwrap_or("Dockerfile");
    host.file(
        "dockerfile",
        filename,
        text(case, "dockerfile").unwrap().as_bytes(),
    );
    if let Some(ignore) = text(case, "own_ignore") {
        host.file(
            "dockerfile",
            &format!("{filename}.dockerignore"),
            ignore.as_bytes(),
        );
    }
    if let Some(ignore) = text(case, "ignore") {
        host.file("context", ".dockerignore", ignore.as_bytes());
    }
    host
}

fn options_of(case: &Value) -> BuildOptions {
    let mut attrs = BTreeMap::new();
    let mut set = |key: String, value: &str| attrs.insert(key, value.to_owned());
    for (key, prefix) in [("args", "build-arg:"), ("labels", "label:")] {
        for (name, value) in case
            .get(key)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            set(format!("{prefix}{name}"), value.as_str().unwrap());
        }
    }
    for (name, _) in case
        .get("contexts")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        set(format!("context:{name}"), &format!("local:{name}"));
    }
    if let Some(target) = text(case, "target") {
        set("target".into(), target);
    }
    if let Some(filename) = text(case, "filename") {
        set("filename".into(), filename);
    }
    if let Some(platforms) = case.get("platforms").and_then(Value::as_array) {
        let names: Vec<&str> = platforms.iter().map(|p| p.as_str().unwrap()).collect();
        set("platform".into(), &names.join(","));
    }
    if let Some(call) = text(case, "call") {
        let request = if call == "check" { "lint" } else { call };
        set("requestid".into(), &format!("frontend.{request}"));
    }
    BuildOptions::from_attrs(&attrs).unwrap()
}

/// Without what is empty, null or false, as the recording has it.
fn bare(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| (key.clone(), bare(value)));
            let kept = fields.filter(|(_, value)| match value {
                Value::Null | Value::Bool(false) => false,
                Value::String(text) => !text.is_empty(),
                Value::Array(items) => !items.is_empty(),
                Value::Object(fields) => !fields.is_empty(),
                _ => true,
            });
            Value::Object(kept.collect())
        }
        other => other.clone(),
    }
}

fn compare_images(name: &str, case: &Value, result: &FrontendResult, problems: &mut Vec<String>) {
    for (id, expected) in case["images"].as_object().unwrap() {
        let Some(built) = result.refs.iter().find(|built| built.id == *id) else {
            problems.push(format!("{name}: no image for {id}"));
            continue;
        };
        let mut config = serde_json::to_value(&built.config).unwrap();
        let fields = config.as_object_mut().unwrap();
        let history = fields.remove("history").unwrap();
        fields.remove("rootfs");
        // A set without a value means something: keep the names of ports and volumes.
        let mut wanted = expected["config"].clone();
        // The time of making is the exporter's to write.
        wanted.as_object_mut().unwrap().remove("created");
        if sorted(&bare_sets(&config)) != sorted(&bare_sets(&wanted)) {
            problems.push(format!("{name} {id}: config\n  {config}\n  {wanted}"));
        }
        let history = Value::Array(history.as_array().unwrap().iter().map(entry).collect());
        let wanted = expected["history"].as_array().unwrap();
        let wanted = Value::Array(wanted.iter().map(entry).collect());
        for (ours, theirs) in history
            .as_array()
            .unwrap()
            .iter()
            .zip(wanted.as_array().unwrap())
        {
            if ours != theirs {
                problems.push(format!("{name} {id}: history\n  {ours}\n  {theirs}"));
            }
        }
        if history.as_array().unwrap().len() != wanted.as_array().unwrap().len() {
            problems.push(format!("{name} {id}: history has another length"));
        }
    }
}

fn bare_sets(config: &Value) -> Value {
    let mut config = config.clone();
    for key in ["ExposedPorts", "Volumes"] {
        if let Some(set) = config.pointer_mut(&format!("/config/{key}"))
            && let Some(fields) = set.as_object()
        {
            *set = fields.keys().cloned().collect::<Vec<_>>().into();
        }
    }
    bare(&config)
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<_, _> =
                fields.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            Value::Object(sorted.into_iter().collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

fn entry(entry: &Value) -> Value {
    let mut entry = entry.as_object().unwrap().clone();
    entry.remove("created");
    sorted(&bare(&Value::Object(entry)))
}

async fn check(case: &Value, problems: &mut Vec<String>) {
    let name = text(case, "name").unwrap();
    let host = host_of(case);
    let outcome = build(&host, options_of(case)).await;
    if let Some(error) = text(case, "error") {
        match outcome {
            Ok(_) => problems.push(format!("{name}: no error, expected {error}")),
            Err(ours) => {
                if ours.to_string() != error {
                    problems.push(format!("{name}: error\n  {ours}\n  {error}"));
                }
                let lines = ours.locations().first().map(|location| {
                    location
                        .ranges
                        .iter()
                        .map(|range| range.start.line)
                        .collect::<Vec<_>>()
                });
                let wanted: Option<Vec<u32>> = case
                    .get("lines")
                    .map(|l| serde_json::from_value(l.clone()).unwrap());
                if lines != wanted {
                    problems.push(format!("{name}: error at {lines:?}, expected {wanted:?}"));
                }
            }
        }
        return;
    }
    let result = match outcome {
        Ok(result) => result,
        Err(error) => return problems.push(format!("{name}: {error}")),
    };
    if case.get("images").is_some() {
        compare_images(name, case, &result, problems);
    }
    if let Some(warnings) = case.get("warnings").and_then(Value::as_array) {
        let ours: Vec<String> = host
            .warnings
            .lock()
            .unwrap()
            .iter()
            .map(|w| w.short.clone())
            .collect();
        let theirs: Vec<String> = warnings
            .iter()
            .map(|w| {
                format!(
                    "{}: {} (line {})",
                    w["rule"].as_str().unwrap(),
                    w["text"].as_str().unwrap(),
                    w["line"]
                )
            })
            .collect();
        if ours != theirs {
            problems.push(format!("{name}: warnings\n  {ours:?}\n  {theirs:?}"));
        }
    }
    if let Some(answer) = case.get("answer") {
        compare_answer(name, answer, &result, problems);
    }
}

fn compare_answer(name: &str, answer: &Value, result: &FrontendResult, problems: &mut Vec<String>) {
    let mut ours: Value = serde_json::from_slice(&result.metadata["result.json"]).unwrap();
    let mut theirs = answer.clone();
    for value in [&mut ours, &mut theirs] {
        if let Some(warnings) = value.get_mut("warnings").and_then(Value::as_array_mut) {
            warnings.sort_by_key(|w| {
                (
                    w["location"]["ranges"][0]["start"]["line"].as_u64(),
                    w["ruleName"].to_string(),
                    w["detail"].to_string(),
                )
            });
        }
        // How sources are written down is the client's matter.
        value.as_object_mut().unwrap().remove("sources");
    }
    if sorted(&ours) != sorted(&theirs) {
        problems.push(format!("{name}: answer\n  {ours}\n  {theirs}"));
    }
}

#[tokio::test]
async fn every_recorded_dockerfile_gives_what_stock_made_of_it() {
    let recording = recording();
    let mut problems = Vec::new();
    for case in recording["cases"].as_array().unwrap() {
        check(case, &mut problems).await;
    }
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
}
