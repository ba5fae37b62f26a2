//! What a build gave, as plain facts that can be compared and stored.

use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::bases::Bases;
use super::bench::Run;
use super::case::Unit;
use super::image::Layout;
use super::tree::{self, Tree};

/// What a build gave.
pub struct Outcome {
    /// The client's standard error, with paths and ids replaced.
    pub output: String,
    /// `exit`, and of `error`, `location`, `warnings`, `call`, `image` and `files` what there is.
    pub facts: Map<String, Value>,
}

static FRAME: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?ms)^(\S[^\n]*):(\d+)\n-{10,}\n(.*?)\n-{10,}$"));
static WARNING: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?m)^ - (\w+): (.*?)(?: \(line (\d+)\))?$"));
static ERROR: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?ms)^ERROR: (.*)\z"));
static VIOLATIONS: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"lint violation found for rules: ([\w, ]+)"));
static NOT_STARTED: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"(?s)(process ".*" did not complete successfully:) exec: ".*$"#));
static MARKED: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?m)^\s*(\d+) \| >>>"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a valid pattern")
}

impl Outcome {
    pub(super) fn of(
        unit: &Unit,
        run: Run,
        out: &Path,
        source: &Path,
        context: &str,
        bases: &Bases,
    ) -> Result<Outcome, String> {
        let output = tidy(&run.stderr, source, context);
        let mut facts = Map::new();
        let Some(code) = run.code else {
            facts.insert("exit".into(), json!("timeout"));
            return Ok(Outcome { output, facts });
        };
        facts.insert("exit".into(), json!(code));
        let build = &unit.build;
        if unit.case.spec.expect.warnings {
            facts.insert("warnings".into(), warnings(&output));
        }
        if build.call.is_some() {
            let text = tidy(&run.stdout, source, context);
            facts.insert("call".into(), answer(&text));
        } else if code != 0 {
            error(&output, &mut facts);
        } else {
            let fail = |error: std::io::Error| error.to_string();
            match build.output() {
                "local" => {
                    let files = tree::folder(&out.join("files")).map_err(fail)?;
                    facts.insert("files".into(), Value::Object(stored(files, bases)));
                }
                "tar" => {
                    let mut tree = Tree::default();
                    tree.apply(&std::fs::read(out.join("files.tar")).map_err(fail)?)?;
                    facts.insert("files".into(), Value::Object(stored(tree.facts(), bases)));
                }
                _ => {
                    let image = images(&out.join("image.tar"), unit, bases)?;
                    facts.insert("image".into(), image);
                }
            }
        }
        Ok(Outcome { output, facts })
    }
}

fn tidy(text: &str, source: &Path, context: &str) -> String {
    static RULES: LazyLock<[(Regex, &str); 6]> = LazyLock::new(|| {
        [
            (pattern(r"\x1b\[[0-9;]*m"), ""),
            (pattern(r"ref [a-z0-9]{25}(::[a-z0-9]{25})?"), "ref <id>"),
            (pattern(r"\b[a-z0-9]{25}::[a-z0-9]{25}\b"), "<id>"),
            (
                pattern(r#"/[^\s:"]*/(buildkit-mount|cachemounts/buildkit)\d+"#),
                "<mount>",
            ),
            // Where the Engine has a step's root; errors of ours say paths as the step sees them.
            (pattern(r#"<mount>|/[^\s:"]*/snapshots/\d+/fs"#), ""),
            (
                pattern(r"no match for platform in manifest sha256:[0-9a-f]{64}"),
                "no match for platform in manifest",
            ),
        ]
    });
    let mut text = text
        .replace("\r\n", "\n")
        .replace(&source.display().to_string(), "<case>")
        .replace(context, "ctx");
    for (rule, with) in RULES.iter() {
        text = rule.replace_all(&text, *with).into_owned();
    }
    text
}

fn warnings(output: &str) -> Value {
    let found = WARNING.captures_iter(output).map(|found| {
        let line = found
            .get(3)
            .and_then(|line| line.as_str().parse::<u64>().ok());
        json!({"rule": &found[1], "text": &found[2], "line": line})
    });
    found.collect()
}

fn error(output: &str, facts: &mut Map<String, Value>) {
    let text = match ERROR.captures(output) {
        Some(found) => found[1]
            .trim()
            .split("\n\n")
            .next()
            .unwrap_or_default()
            .to_owned(),
        None => output.trim().lines().last().unwrap_or_default().to_owned(),
    };
    // A hint is more than stock says.
    let hint = text.find("\nhint: ").unwrap_or(text.len());
    // Why a program cannot be started stock says only in the step's log.
    let text = NOT_STARTED.replace(&text[..hint], "$1 exit code: 1");
    // Stock's client hears of an error by two ways, and says which came first.
    let text = text.replacen("failed to run Build function: ", "failed to solve: ", 1);
    facts.insert("error".into(), json!(in_order(&text)));
    if let Some(frame) = FRAME.captures_iter(output).last() {
        let lines = MARKED.captures_iter(&frame[3]);
        let lines: Vec<u64> = lines.filter_map(|line| line[1].parse().ok()).collect();
        facts.insert(
            "location".into(),
            json!({"file": &frame[1], "lines": lines}),
        );
    }
}

/// Stock names the rules that were violated in any order.
fn in_order(text: &str) -> String {
    let sorted = VIOLATIONS.replace_all(text, |found: &regex::Captures<'_>| {
        let mut rules: Vec<&str> = found[1].split(", ").collect();
        rules.sort_unstable();
        format!("lint violation found for rules: {}", rules.join(", "))
    });
    sorted.into_owned()
}

/// An answer to `--call`: JSON where it is, with what differs from run to run left out and in an
/// order of its own.
fn answer(text: &str) -> Value {
    let text = in_order(text);
    let Ok(mut answer) = serde_json::from_str::<Value>(&text) else {
        return json!(text);
    };
    if let Some(warnings) = answer.get_mut("warnings").and_then(Value::as_array_mut) {
        warnings.sort_by_key(|warning| {
            let key = json!([warning["location"], warning["ruleName"], warning["detail"]]);
            key.to_string()
        });
    }
    for source in answer
        .get_mut("sources")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(fields) = source.as_object_mut() {
            fields.remove("definition");
        }
    }
    answer
}

fn images(archive: &Path, unit: &Unit, bases: &Bases) -> Result<Value, String> {
    let (images, tags, annotations) = Layout::read(archive)?.images()?;
    let fixed = unit.build.has_fixed_times();
    let mut platforms = Map::new();
    for image in images {
        let mut name = image.platform();
        while platforms.contains_key(&name) {
            name += " again";
        }
        let mut facts = Map::new();
        facts.insert("config".into(), image.config_facts(fixed));
        facts.insert("history".into(), image.history_facts(fixed));
        facts.insert("layers".into(), json!(image.diff_ids.len()));
        if !image.annotations().is_null() {
            facts.insert("annotations".into(), image.annotations());
        }
        let base = bases.below(&image.diff_ids);
        if unit.case.spec.expect.bytes {
            let ids = base.map_or(&[][..], |base| &base.diff_ids[..]);
            facts.insert("config_text".into(), json!(image.config_text(ids)));
        }
        let mut files = image.files;
        if let Some(base) = base {
            let gone: Vec<&String> = base
                .files
                .keys()
                .filter(|path| !files.contains_key(*path))
                .collect();
            facts.insert("base".into(), json!(base.name));
            facts.insert("removed".into(), json!(gone));
            files.retain(|path, facts| base.files.get(path) != Some(facts));
        }
        facts.insert("tree".into(), Value::Object(stored(files, bases)));
        platforms.insert(name, Value::Object(facts));
    }
    let mut all = json!({"platforms": platforms, "tags": tags});
    if !annotations.is_empty() {
        all["index_annotations"] = Value::Object(annotations);
    }
    Ok(all)
}

/// Times of the run itself are no facts: -1 stands for them. Nor are the bytes of busybox.
fn stored(mut files: Map<String, Value>, bases: &Bases) -> Map<String, Value> {
    let recent = tree::now() - 86400;
    for facts in files.values_mut() {
        if facts["mtime"].as_i64().is_some_and(|time| time > recent) {
            facts["mtime"] = json!(-1);
        }
    }
    bases.name_programs(&mut files);
    files
}
