//! `--format`: the part of Go's `text/template` that people use there.
//!
//! Actions: `{{.Field.Sub}}`, `{{.}}`, pipelines, `if`/`else if`/`else`/`end`, `range`/`else`/`end`,
//! `with`/`end`, comments, and trimming with `{{-` and `-}}`. Functions: `json`, `lower`, `upper`,
//! `title`, `join`, `split`, `truncate`, `pad`, `len`, `index`, `eq`, `ne`, `lt`, `gt`, `le`, `ge`, `not`, `and`,
//! `or`, `print`, `println`, `printf` (with flags, width and precision). Not there: variables, nested
//! templates.

mod functions;
mod parse;
mod printf;
mod values;

use serde_json::Value;

use functions::{call, header_of};
use values::{is_true, text_of};

/// Why a template cannot be used; the text is Go's as far as possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplateError(pub(crate) String);

impl From<TemplateError> for diag::Error {
    fn from(error: TemplateError) -> Self {
        diag::Error::invalid(format!("template parsing error: {}", error.0))
    }
}

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

#[derive(Debug)]
enum Node {
    Text(String),
    Print(Pipeline),
    If {
        branches: Vec<(Pipeline, Vec<Node>)>,
        otherwise: Vec<Node>,
    },
    Range {
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        value: Pipeline,
        body: Vec<Node>,
    },
}

/// Commands of which each gets the value of the one before as its last argument.
#[derive(Debug)]
struct Pipeline(Vec<Vec<Operand>>);

#[derive(Debug)]
enum Operand {
    /// `.a.b`; empty is `.` itself.
    Field(Vec<String>),
    Literal(Value),
    Function(String),
    Nested(Pipeline),
}

impl Template {
    /// Parses a template.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let nodes = parse::parse(text)?;
        Ok(Template { nodes })
    }

    /// True for `{{json .}}`: the value itself is asked for and not its fields.
    pub(crate) fn is_whole_json(&self) -> bool {
        self.nodes.iter().any(|node| match node {
            Node::Print(Pipeline(commands)) => matches!(
                commands.first().map(Vec::as_slice),
                Some([Operand::Function(name), Operand::Field(path)])
                    if name == "json" && path.is_empty()
            ),
            _ => false,
        })
    }

    /// Fills it in. A field that the value does not have is an error.
    pub(crate) fn render(&self, value: &Value) -> Result<String, TemplateError> {
        let mut out = String::new();
        Scope { is_header: false }.render(&self.nodes, value, &mut out)?;
        Ok(out)
    }

    /// Fills it in with headers: functions leave their text as it is.
    pub(crate) fn render_header(&self, headers: &Value) -> Result<String, TemplateError> {
        let mut out = String::new();
        Scope { is_header: true }.render(&self.nodes, headers, &mut out)?;
        Ok(out)
    }
}

/// The template in a `--format`: without `table`, with escapes for tabs and line ends.
pub(crate) fn template_body(format: &str) -> String {
    let body = format.strip_prefix("table").unwrap_or(format);
    body.trim_matches(' ')
        .replace("\\t", "\t")
        .replace("\\n", "\n")
}

fn error(text: impl AsRef<str>) -> TemplateError {
    TemplateError(format!("template: :1: {}", text.as_ref()))
}

struct Scope {
    is_header: bool,
}

impl Scope {
    fn render(&self, nodes: &[Node], dot: &Value, out: &mut String) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Print(pipeline) => out.push_str(&text_of(&self.evaluate(pipeline, dot)?)),
                Node::If {
                    branches,
                    otherwise,
                } => {
                    let mut chosen = otherwise;
                    for (condition, body) in branches {
                        if is_true(&self.evaluate(condition, dot)?) {
                            chosen = body;
                            break;
                        }
                    }
                    self.render(chosen, dot, out)?;
                }
                Node::Range {
                    over,
                    body,
                    otherwise,
                } => {
                    let items: Vec<Value> = match self.evaluate(over, dot)? {
                        Value::Array(items) => items,
                        Value::Object(map) => map.into_iter().map(|(_, value)| value).collect(),
                        _ => Vec::new(),
                    };
                    if items.is_empty() {
                        self.render(otherwise, dot, out)?;
                    }
                    for item in &items {
                        self.render(body, item, out)?;
                    }
                }
                Node::With { value, body } => {
                    let value = self.evaluate(value, dot)?;
                    if is_true(&value) {
                        self.render(body, &value, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn evaluate(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut last = None;
        for command in &pipeline.0 {
            last = Some(self.command(command, dot, last)?);
        }
        Ok(last.unwrap_or(Value::Null))
    }

    fn command(
        &self,
        command: &[Operand],
        dot: &Value,
        last: Option<Value>,
    ) -> Result<Value, TemplateError> {
        let Some((first, rest)) = command.split_first() else {
            return Ok(Value::Null);
        };
        let Operand::Function(name) = first else {
            return self.operand(first, dot);
        };
        let mut arguments = Vec::new();
        for operand in rest {
            arguments.push(self.operand(operand, dot)?);
        }
        arguments.extend(last);
        if self.is_header {
            return Ok(header_of(&arguments));
        }
        call(name, &arguments)
    }

    fn operand(&self, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Nested(pipeline) => self.evaluate(pipeline, dot),
            Operand::Function(name) => call(name, &[]),
            Operand::Field(path) => {
                let mut value = dot;
                for field in path {
                    value = field_of(value, field).ok_or_else(|| {
                        error(format!(
                            "executing \"\" at <.{}>: can't evaluate field {field}",
                            path.join(".")
                        ))
                    })?;
                }
                Ok(value.clone())
            }
        }
    }
}

/// A field by the name it has here, or by that of Go's structure, of which the values are the JSON:
/// `.ID` is `id`, `.BuildkitVersion` is `buildkitVersion`.
fn field_of<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let exact = value.get(name);
    if exact.is_some() || !name.starts_with(|first: char| first.is_ascii_uppercase()) {
        return exact;
    }
    let mut fields = value.as_object()?.iter();
    let is_json_name = |key: &str| key.starts_with(|first: char| first.is_ascii_lowercase());
    let named = fields.find(|(key, _)| is_json_name(key) && key.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> Result<String, String> {
        let value = serde_json::json!({
            "Name": "box",
            "Parents": ["a", "b"],
            "Empty": [],
            "Flag": true,
            "Sub": {"Key": "v"},
            "Count": 3,
            "id": 7,
            "lastUsed": "then",
        });
        Template::parse(template)
            .and_then(|template| template.render(&value))
            .map_err(|error| error.0)
    }

    #[test]
    fn templates_are_filled_in() {
        for (template, text) in [
            ("{{.Name}}", "box"),
            ("a{{ .Sub.Key }}b", "avb"),
            ("{{json .Parents}}", r#"["a","b"]"#),
            ("{{.Name | upper | printf \"<%s>\"}}", "<BOX>"),
            ("{{.Name | printf \"%-6s|%5s|\" \"ab\"}}", "ab    |  box|"),
            (
                "{{printf \"%03d %+d %x %.1s %q %%\" .Count .Count 255 .Name .Name}}",
                "003 +3 ff b \"box\" %",
            ),
            (
                "{{printf \"%s %\" .Name}}{{printf \"%s\"}}",
                "box %!(NOVERB)%!s(MISSING)",
            ),
            ("{{if .Flag}}y{{else}}n{{end}}", "y"),
            ("{{if .Empty}}y{{else if eq .Name \"box\"}}z{{end}}", "z"),
            ("{{range .Parents}}[{{.}}]{{end}}", "[a][b]"),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            ("x \n{{- .Name -}}\n y", "xboxy"),
            ("{{join .Parents \",\"}} {{len .Parents}}", "a,b 2"),
            ("{{(index .Parents 1)}}{{/* no */}}", "b"),
            ("{{gt .Count 2}} {{not .Flag}}", "true false"),
            ("{{truncate .Name 2}}{{title .Name}}", "boBox"),
            ("{{.Sub}}", "map[Key:v]"),
            ("{{with .Sub}}{{.Key}}{{end}}", "v"),
            ("{{.ID}} {{.id}} {{.LastUsed}}", "7 7 then"),
        ] {
            assert_eq!(render(template).as_deref(), Ok(text), "{template}");
        }
    }

    #[test]
    fn what_cannot_be_filled_in_is_an_error() {
        assert_eq!(
            render("{{.Nope}}").unwrap_err(),
            "template: :1: executing \"\" at <.Nope>: can't evaluate field Nope"
        );
        for bad in [
            "{{",
            "{{if .Flag}}",
            "{{end}}",
            "{{foo}}",
            "{{}}",
            "{{.Name |}}",
        ] {
            assert!(render(bad).is_err(), "{bad}");
        }
    }
}
