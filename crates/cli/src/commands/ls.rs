//! `ls`.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use builder::{Builder, BuilderError, LoadOptions, Node, format_in_groups, list_builders};
use clap::Args;
use futures::future::join_all;
use oci::Platform;
use serde_json::{Map, Value, json};

use super::orphans::{find_orphans, print_orphans};
use super::timeout;
use crate::app::App;
use crate::format::{TabWriter, Template, list_or_null, template_body};
use crate::printer;

const DEFAULT_TABLE: &str =
    "table {{.Name}}\t{{.DriverEndpoint}}\t{{.Status}}\t{{.Buildkit}}\t{{.Platforms}}";
const NODE_INDENT: &str = " \\_ ";
/// Platforms that are named before others where there is no room for all.
const MAJOR: &[&str] = &[
    "linux/amd64",
    "linux/arm64",
    "linux/arm",
    "linux/ppc64le",
    "linux/s390x",
    "linux/riscv64",
    "linux/mips64",
];
/// Platforms that are named where there is no room for all.
const SHOWN_MAX: usize = 4;

/// Flags of `ls`.
#[derive(Debug, Args)]
#[command(override_usage = "ls")]
pub(crate) struct LsArgs {
    /// Format the output
    #[arg(long, value_name = "string", default_value = "table")]
    format: String,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Override the default timeout for loading builder status
    #[arg(long, value_name = "duration", default_value = "20s", value_parser = timeout)]
    timeout: Duration,
    #[arg(hide = true)]
    pub(crate) arguments: Vec<String>,
}

/// Prints all builders and their nodes. Each node has the whole timeout; none waits for another.
pub(crate) async fn run(app: &App, args: &LsArgs) -> Result<(), diag::Error> {
    let format = OutputFormat::new(&args.format, !args.no_trunc)?;
    let current = match Builder::load(&app.docker, None) {
        Ok(builder) => builder.name().to_owned(),
        // The list shows which record it is.
        Err(BuilderError::CorruptRecord { name, .. }) => name,
        Err(error) => return Err(error.into()),
    };
    let mut builders = list_builders(&app.docker)?;
    let options = LoadOptions::with_status(args.timeout);
    join_all(
        builders
            .iter_mut()
            .filter(|builder| builder.error.is_none())
            .map(|builder| async move {
                // Kept with the builder.
                let _ = builder.load_nodes(options).await;
            }),
    )
    .await;
    builders.sort_by_key(|builder| builder.error.is_some());
    printer::out(format.render(&builders, &current)?);
    if format.is_table {
        print_errors(&builders);
        let orphans = find_orphans(&app.docker, &builders).await;
        print_orphans(&orphans);
    }
    Ok(())
}

fn print_errors(builders: &[Builder]) {
    let mut lines = Vec::new();
    for builder in builders {
        let name = builder.name();
        if let Some(error) = &builder.error {
            lines.push(format!("Cannot load builder {name}: {error}"));
            lines.extend(hints(error));
            continue;
        }
        for node in builder.nodes() {
            if let Some(error) = &node.error {
                let node = node.name();
                lines.push(format!("Failed to get status for {name} ({node}): {error}"));
                lines.extend(hints(error));
            }
        }
        if let Some(reason) = &builder.broken {
            lines.push(format!("Builder {name} is broken: {reason}"));
        }
    }
    if !lines.is_empty() {
        printer::err_line(format!("\n{}", lines.join("\n")));
    }
}

fn hints(error: &diag::Error) -> impl Iterator<Item = String> {
    error.hints().iter().map(|hint| format!("  hint: {hint}"))
}

struct OutputFormat {
    template: Template,
    is_table: bool,
    is_json: bool,
    truncates: bool,
}

impl OutputFormat {
    fn new(text: &str, truncates: bool) -> Result<Self, diag::Error> {
        let text = if text == "table" { DEFAULT_TABLE } else { text };
        let (is_table, is_json) = (text.starts_with("table"), text == "json");
        let body = if is_json { "{{json .}}" } else { text };
        Ok(OutputFormat {
            template: Template::parse(&template_body(body))?,
            is_table,
            is_json,
            truncates,
        })
    }

    fn render(&self, builders: &[Builder], current: &str) -> Result<String, diag::Error> {
        let mut rows = String::new();
        for builder in builders {
            let is_current = builder.name() == current;
            let whole = self.template.is_whole_json();
            let json = builder_json(builder, is_current);
            let mut add = |row: Value| -> Result<(), diag::Error> {
                let value = if whole { &json } else { &row };
                rows.push_str(&self.template.render(value)?);
                rows.push('\n');
                Ok(())
            };
            add(self.builder_row(builder, is_current))?;
            if builder.error.is_some() || self.is_json {
                continue;
            }
            for node in builder.nodes() {
                add(self.node_row(node))?;
            }
        }
        if !self.is_table {
            return Ok(rows);
        }
        let headers = json!({
            "Name": "NAME/NODE",
            "DriverEndpoint": "DRIVER/ENDPOINT",
            "LastActivity": "LAST ACTIVITY",
            "Status": "STATUS",
            "Buildkit": "BUILDKIT",
            "Platforms": "PLATFORMS",
            "Error": "ERROR",
        });
        let mut writer = TabWriter::table();
        writer.line(self.template.render_header(&headers)?);
        writer.write(&rows);
        Ok(writer.finish())
    }

    fn builder_row(&self, builder: &Builder, is_current: bool) -> Value {
        let star = if is_current && self.is_table { "*" } else { "" };
        let error = builder.error.as_ref().map(ToString::to_string);
        json!({
            "Name": format!("{}{star}", builder.name()),
            "DriverEndpoint": builder.group.driver,
            "LastActivity": builder.last_activity.map(|time| time.to_string()).unwrap_or_default(),
            "Status": if error.is_some() { "error" } else { "" },
            "Buildkit": "",
            "Platforms": "",
            "Error": error.unwrap_or_default(),
        })
    }

    fn node_row(&self, node: &Node) -> Value {
        let indent = if self.is_table { NODE_INDENT } else { "" };
        let platforms = format_in_groups(&node.record.platforms, &node.platforms);
        let platforms = if self.truncates && self.is_table {
            shorten(&platforms)
        } else {
            platforms.join(", ")
        };
        let status = match (&node.error, node.status) {
            (Some(_), _) => "error".to_owned(),
            (None, Some(status)) => status.to_string(),
            (None, None) => String::new(),
        };
        json!({
            "Name": format!("{indent}{}", node.name()),
            "DriverEndpoint": format!("{indent}{}", node.record.endpoint),
            "LastActivity": "",
            "Status": status,
            "Buildkit": node.version,
            "Platforms": platforms,
            "Error": node.error.as_ref().map(ToString::to_string).unwrap_or_default(),
        })
    }
}

/// A builder as JSON, keys in order of the alphabet.
fn builder_json(builder: &Builder, is_current: bool) -> Value {
    let never = "0001-01-01T00:00:00Z".to_owned();
    let mut fields: BTreeMap<&str, Value> = BTreeMap::from([
        ("Current", is_current.into()),
        ("Driver", builder.group.driver.clone().into()),
        ("Dynamic", builder.group.dynamic.into()),
        (
            "LastActivity",
            builder
                .last_activity
                .map_or(never, |time| time.to_string())
                .into(),
        ),
        ("Name", builder.name().into()),
    ]);
    let nodes: Vec<Value> = builder.nodes().iter().map(node_json).collect();
    let nodes = if nodes.is_empty() && builder.error.is_some() {
        Value::Null
    } else {
        Value::Array(nodes)
    };
    fields.insert("Nodes", nodes);
    if let Some(error) = &builder.error {
        fields.insert("Err", error.to_string().into());
    }
    object(fields)
}

fn object(fields: BTreeMap<&str, Value>) -> Value {
    let map: Map<String, Value> = fields
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    Value::Object(map)
}

fn node_json(node: &Node) -> Value {
    let mut fields: BTreeMap<&str, Value> = BTreeMap::from([
        ("Name", node.name().into()),
        ("Endpoint", node.record.endpoint.clone().into()),
    ]);
    let mut add = |key: &'static str, value: Value| {
        let empty = match &value {
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !empty {
            fields.insert(key, value);
        }
    };
    let status = match (&node.error, node.status) {
        (Some(_), _) => "error".to_owned(),
        (None, Some(status)) => status.to_string(),
        (None, None) => String::new(),
    };
    let files: BTreeMap<&String, String> = node
        .record
        .files
        .iter()
        .map(|(name, data)| (name, base64::engine::general_purpose::STANDARD.encode(data)))
        .collect();
    let proxies: BTreeMap<&String, &String> = node
        .proxies
        .variables
        .iter()
        .filter(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect();
    let rules: Vec<Value> = node
        .gc_policy
        .iter()
        .map(|rule| {
            json!({
                "all": rule.all,
                "filter": list_or_null(&rule.filters),
                "keepDuration": rule.keep_duration.as_nanos() as i64,
                "maxUsedSpace": rule.max_used_space,
                "minFreeSpace": rule.min_free_space,
                "reservedSpace": rule.reserved_space,
            })
        })
        .collect();
    let platforms: Vec<String> = node.platforms.iter().map(Platform::to_string).collect();
    add("DriverOpts", json!(node.record.driver_opts));
    add(
        "Err",
        node.error
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default()
            .into(),
    );
    add("Files", json!(files));
    add("Flags", json!(node.record.flags));
    add("GCPolicy", rules.into());
    add("IDs", json!(node.ids));
    add("Labels", json!(node.labels));
    add("Platforms", json!(platforms));
    add("ProxyConfig", json!(proxies));
    add("Status", status.into());
    add("Version", node.version.clone().into());
    object(fields)
}

/// Platforms in a table: the major ones, each with its variants counted, and how many more.
fn shorten(platforms: &[String]) -> String {
    let mut groups: Vec<(String, Vec<&String>)> = Vec::new();
    let base_of = |text: &String| -> Option<String> {
        let platform: Platform = text.trim_end_matches('*').parse().ok()?;
        Some(format!("{}/{}", platform.os, platform.architecture))
    };
    let is_major = |base: &str| MAJOR.contains(&base);
    for major in [true, false] {
        let room = groups.len() < SHOWN_MAX;
        let mut found: Vec<(String, Vec<&String>)> = Vec::new();
        for text in platforms {
            let Some(base) = base_of(text).filter(|base| is_major(base) == major) else {
                continue;
            };
            match found.iter_mut().find(|(known, _)| *known == base) {
                Some((_, texts)) => texts.push(text),
                None => found.push((base, vec![text])),
            }
        }
        if major {
            found.sort_by_key(|(base, _)| MAJOR.iter().position(|name| name == base));
            found.truncate(SHOWN_MAX);
        } else {
            found.sort();
        }
        if room {
            groups.extend(found);
        }
    }
    groups.truncate(SHOWN_MAX);
    let mut count = 0;
    let mut shown: Vec<String> = Vec::new();
    for (base, texts) in &groups {
        count += texts.len();
        match texts.as_slice() {
            [one] => shown.push((*one).clone()),
            several => {
                let star = if several.iter().any(|text| text.ends_with('*')) {
                    "*"
                } else {
                    ""
                };
                shown.push(format!("{base}{star} (+{})", several.len()));
            }
        }
    }
    if count < platforms.len() {
        shown.push(format!("({} more)", platforms.len() - count));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(text: &str) -> String {
        let platforms: Vec<String> = text.split(", ").map(str::to_owned).collect();
        shorten(&platforms)
    }

    #[test]
    fn variants_are_counted_and_only_four_platforms_are_named() {
        assert_eq!(short("linux/amd64"), "linux/amd64");
        assert_eq!(
            short("linux/amd64, linux/amd64/v2, linux/386"),
            "linux/amd64 (+2), linux/386"
        );
        assert_eq!(
            short(
                "linux/amd64*, linux/amd64/v2, linux/arm64, linux/riscv64, linux/ppc64le, \
                 linux/s390x, linux/386"
            ),
            "linux/amd64* (+2), linux/arm64, linux/ppc64le, linux/s390x, (2 more)"
        );
    }
}
