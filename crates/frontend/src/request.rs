//! Requests for something other than a build: `docker buildx build --call`.
//!
//! The answers are JSON and text in the formats that clients of the stock frontend read.

use std::collections::BTreeMap;

use base64::Engine as _;
use diag::{Error, Result, Unsupported};
use dockerfile::Dockerfile;
use dockerfile::lint::{LintConfig, LintWarning, Linter};
use serde_json::{Value, json};

use crate::build::warn;
use crate::client::{Client, Entrypoint};
use crate::convert::{Converted, Outline, convert, lint_config};
use crate::failure::fail;
use crate::plan::go_json;

const DESCRIBE: &str = "frontend.subrequests.describe";
const LINT: &str = "frontend.lint";
const OUTLINE: &str = "frontend.outline";
const TARGETS: &str = "frontend.targets";
const CONVERT: &str = "frontend.convertllb";

/// The metadata that answers a request.
pub(crate) async fn answer(
    client: &Client<'_>,
    entrypoint: &Entrypoint,
    name: &str,
) -> Result<BTreeMap<String, Vec<u8>>> {
    match name {
        DESCRIBE => describe(),
        LINT => lint(client, entrypoint).await,
        OUTLINE => outline(client, entrypoint).await,
        TARGETS => targets(entrypoint),
        CONVERT => convertllb(client, entrypoint).await,
        other => Err(Error::unsupported(Unsupported::Subrequest(
            other.to_owned(),
        ))),
    }
}

fn result(value: &Value, text: String) -> Result<BTreeMap<String, Vec<u8>>> {
    let json = serde_json::to_string_pretty(value).map_err(|e| Error::internal(e.to_string()))?;
    Ok(BTreeMap::from([
        ("result.json".to_owned(), go_json(&json).into_bytes()),
        ("result.txt".to_owned(), text.into_bytes()),
        ("version".to_owned(), b"1.0.0".to_vec()),
    ]))
}

fn describe() -> Result<BTreeMap<String, Vec<u8>>> {
    let named = |name: &str, description: &str| json!({"name": name, "description": description});
    let files = json!([named("result.json", ""), named("result.txt", "")]);
    let request = |name: &str, description: &str, opts: Value| {
        json!({
            "name": name, "version": "1.0.0", "type": "rpc", "description": description,
            "opts": opts, "inputs": null, "metadata": files, "refs": null,
        })
    };
    let all = [
        (
            OUTLINE,
            "List all parameters current build target supports",
            json!([named("target", "Target build stage")]),
        ),
        (
            TARGETS,
            "List all targets current build supports",
            json!([]),
        ),
        (DESCRIBE, "List available subrequest types", Value::Null),
    ];
    let mut rows = vec![
        ["NAME", "VERSION", "DESCRIPTION"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut list = Vec::new();
    for (name, description, opts) in all {
        let short = name.strip_prefix("frontend.").unwrap_or(name);
        rows.push(vec![
            short.to_owned(),
            "1.0.0".to_owned(),
            description.to_owned(),
        ]);
        list.push(request(name, description, opts));
    }
    result(&Value::from(list), table(&rows, 1))
}

fn targets(entrypoint: &Entrypoint) -> Result<BTreeMap<String, Vec<u8>>> {
    let read = Dockerfile::read(&entrypoint.file.data, &Linter::off())
        .map_err(|e| fail(e.message).at(entrypoint.file.at(e.lines)))?;
    let mut rows = vec![vec!["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    let mut list = Vec::new();
    for (index, stage) in read.stages.iter().enumerate() {
        let is_default = index + 1 == read.stages.len();
        let shown = match (stage.name.as_str(), is_default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        rows.push(vec![shown, stage.doc_comment.clone()]);
        let mut target = serde_json::Map::new();
        put_text(&mut target, "name", &stage.name);
        if is_default {
            target.insert("default".to_owned(), json!(true));
        }
        put_text(&mut target, "description", &stage.doc_comment);
        put_text(&mut target, "base", &stage.base_name);
        put_text(&mut target, "platform", &stage.platform);
        target.insert("location".to_owned(), location(&stage.lines.ranges()));
        list.push(Value::from(target));
    }
    let list = match list.as_slice() {
        [] => Value::Null,
        _ => Value::from(list),
    };
    let value = json!({"targets": list, "sources": [base64(&entrypoint.file.data)]});
    result(&value, table(&rows, 1))
}

async fn outline(
    client: &Client<'_>,
    entrypoint: &Entrypoint,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let outline = converted(client, entrypoint).await?.outline;
    let mut value = serde_json::Map::new();
    put_text(&mut value, "name", &outline.name);
    put_text(&mut value, "description", &outline.description);
    for (name, list) in [
        ("args", &outline.args),
        ("secrets", &outline.secrets),
        ("ssh", &outline.ssh),
    ] {
        let list: Vec<Value> = list
            .iter()
            .map(|parameter| {
                let mut value = serde_json::Map::new();
                value.insert("name".to_owned(), json!(parameter.name));
                put_text(&mut value, "description", &parameter.description);
                put_text(&mut value, "value", &parameter.value);
                if parameter.required {
                    value.insert("required".to_owned(), json!(true));
                }
                value.insert("location".to_owned(), location(&parameter.lines.ranges()));
                Value::from(value)
            })
            .collect();
        if !list.is_empty() {
            value.insert(name.to_owned(), Value::from(list));
        }
    }
    value.insert("sources".to_owned(), json!([base64(&entrypoint.file.data)]));
    result(&Value::from(value), outline_text(&outline))
}

fn outline_text(outline: &Outline) -> String {
    let mut text = String::new();
    let texts = |row: &[&str]| {
        row.iter()
            .map(|cell| (*cell).to_owned())
            .collect::<Vec<_>>()
    };
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = match outline.name.as_str() {
            "" => "(default)",
            name => name,
        };
        let mut rows = vec![texts(&["TARGET:", name])];
        if !outline.description.is_empty() {
            rows.push(texts(&["DESCRIPTION:", &outline.description]));
        }
        text.push_str(&table(&rows, 1));
        text.push('\n');
    }
    if !outline.args.is_empty() {
        let mut rows = vec![texts(&["BUILD ARG", "VALUE", "DESCRIPTION"])];
        let row = outline
            .args
            .iter()
            .map(|arg| texts(&[&arg.name, &arg.value, &arg.description]));
        rows.extend(row);
        text.push_str(&table(&rows, 3));
        text.push('\n');
    }
    for (title, list) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if list.is_empty() {
            continue;
        }
        let mut rows = vec![texts(&[title, "REQUIRED"])];
        let row = list.iter().map(|parameter| {
            let required = if parameter.required { "true" } else { "" };
            texts(&[&parameter.name, required])
        });
        rows.extend(row);
        text.push_str(&table(&rows, 3));
        text.push('\n');
    }
    text
}

/// The graph of the target as JSON, without running anything.
async fn convertllb(
    client: &Client<'_>,
    entrypoint: &Entrypoint,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let outcome = converted(client, entrypoint).await?;
    let value = llb::graph_json(&outcome.graph);
    let value = value.ok_or_else(|| Error::internal("the graph is no LLB"))?;
    let json = serde_json::to_string_pretty(&value).map_err(|e| Error::internal(e.to_string()))?;
    Ok(BTreeMap::from([
        ("result.json".to_owned(), go_json(&json).into_bytes()),
        ("version".to_owned(), b"0.1.0".to_vec()),
    ]))
}

/// The target as a graph; the client is warned of what rules find.
async fn converted(client: &Client<'_>, entrypoint: &Entrypoint) -> Result<Converted> {
    let linter = Linter::new(lint_config(client.options, &entrypoint.file.data)?);
    let converted = convert(client, &entrypoint.file, None, &linter, false).await;
    warn(client, entrypoint, linter.warnings()).await;
    converted
}

async fn lint(client: &Client<'_>, entrypoint: &Entrypoint) -> Result<BTreeMap<String, Vec<u8>>> {
    let config = lint_config(client.options, &entrypoint.file.data);
    let (linter, outcome) = match config {
        Ok(config) => {
            let linter = Linter::new(config);
            // Without a target every stage is looked at.
            let all = client.options.target.is_empty();
            let outcome = convert(client, &entrypoint.file, None, &linter, all).await;
            (linter, outcome.map(|_| ()))
        }
        Err(error) => (Linter::new(LintConfig::default()), Err(error)),
    };
    let warnings = linter.warnings();
    let error = outcome.err();
    let list: Vec<Value> = warnings.iter().map(warning_value).collect();
    let mut value = serde_json::Map::new();
    value.insert(
        "warnings".to_owned(),
        if list.is_empty() {
            Value::Null
        } else {
            Value::from(list)
        },
    );
    value.insert(
        "sources".to_owned(),
        json!([{
            "filename": entrypoint.file.name,
            "data": base64(&entrypoint.file.data),
            "language": "Dockerfile",
        }]),
    );
    if let Some(error) = &error {
        let ranges = error
            .locations()
            .iter()
            .flat_map(|l| l.ranges.iter().copied());
        let location = error_location(&merged(ranges.collect()));
        let message = error.to_string();
        value.insert(
            "buildError".to_owned(),
            json!({"message": message, "location": location}),
        );
    }
    let failed = error.is_some() || !warnings.is_empty();
    let mut answer = result(&Value::from(value), lint_text(entrypoint, warnings))?;
    let status = if failed { "1" } else { "0" };
    answer.insert("result.statuscode".to_owned(), status.as_bytes().to_vec());
    Ok(answer)
}

fn warning_value(warning: &LintWarning) -> Value {
    let mut value = serde_json::Map::new();
    value.insert("ruleName".to_owned(), json!(warning.rule.name()));
    put_text(&mut value, "description", warning.rule.description());
    put_text(&mut value, "url", &warning.rule.url());
    put_text(&mut value, "detail", &warning.message);
    value.insert("location".to_owned(), location(&warning.lines.ranges()));
    Value::from(value)
}

fn lint_text(entrypoint: &Entrypoint, mut warnings: Vec<LintWarning>) -> String {
    warnings.sort_by_key(|warning| warning.lines.first);
    let excerpts = diag::Excerpts::new(&entrypoint.file.name, &entrypoint.file.data);
    let mut text = String::new();
    for warning in warnings {
        text.push_str(&format!("\nWARNING: {}", warning.rule.name()));
        let url = warning.rule.url();
        if !url.is_empty() {
            text.push_str(&format!(" - {url}"));
        }
        text.push_str(&format!("\n{}\n", warning.message));
        text.push_str(&excerpts.at(&warning.lines.ranges()));
    }
    text
}

/// Ranges by line, those that touch the same lines joined.
fn merged(mut ranges: Vec<diag::Range>) -> Vec<diag::Range> {
    ranges.sort_by_key(|range| range.start.line);
    let mut out: Vec<diag::Range> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start.line <= last.end.line => {
                last.end.line = last.end.line.max(range.end.line);
            }
            _ => out.push(range),
        }
    }
    out
}

/// Ranges as JSON has them; what has no line in the file has no range.
fn location(ranges: &[diag::Range]) -> Value {
    location_of(ranges, false)
}

/// The same of an error: the line before the first one counts, it is that of a wrong directive there.
fn error_location(ranges: &[diag::Range]) -> Value {
    location_of(ranges, true)
}

fn location_of(ranges: &[diag::Range], with_line_zero: bool) -> Value {
    let position = |at: diag::Position| {
        let mut value = serde_json::Map::new();
        for (name, number) in [("line", at.line), ("character", at.character)] {
            if number != 0 {
                value.insert(name.to_owned(), json!(number));
            }
        }
        Value::from(value)
    };
    let ranges: Vec<Value> = ranges
        .iter()
        .filter(|range| with_line_zero || range.start.line > 0)
        .map(|range| json!({"start": position(range.start), "end": position(range.end)}))
        .collect();
    if ranges.is_empty() {
        return json!({});
    }
    json!({ "ranges": ranges })
}

fn put_text(value: &mut serde_json::Map<String, Value>, name: &str, text: &str) {
    if !text.is_empty() {
        value.insert(name.to_owned(), json!(text));
    }
}

fn base64(data: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(data)
}

/// Rows with their columns aligned, `gap` blanks between them.
fn table(rows: &[Vec<String>], gap: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0) + gap
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < row.len() {
                let blanks = widths[column] - cell.chars().count();
                text.extend(std::iter::repeat_n(' ', blanks));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_ranges_are_joined() {
        let one_line = |line| dockerfile::Lines::one(line).ranges();
        let mut ranges = one_line(5);
        ranges.extend(one_line(2));
        ranges.extend(one_line(5));
        assert_eq!(merged(ranges).len(), 2);
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [["A", "B"], ["long", "x"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows, 1), "A    B\nlong x\n");
    }
}
