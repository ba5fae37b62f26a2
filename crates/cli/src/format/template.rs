//! `--format`: the part of Go's `text/template` that people use there.
//!
//! Actions: `{{.Field.Sub}}`, `{{.}}`, pipelines, `if`/`else if`/`else`/`end`, `range`/`else`/`end`,
//! `with`/`end`, comments, and trimming with `{{-` and `-}}`. Functions: `json`, `lower`, `upper`,
//! `title`, `join`, `split`, `truncate`, `pad`, `len`, `index`, `eq`, `ne`, `lt`, `gt`, `le`, `ge`, `not`, `and`,
//! `or`, `print`, `println`, `printf` (with flags, width and precision). Not there: variables, nested
//! templates.

use serde_json::Value;

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

const FUNCTIONS: &[&str] = &[
    "json", "lower", "upper", "title", "join", "split", "truncate", "pad", "len", "index", "eq",
    "ne", "lt", "gt", "le", "ge", "not", "and", "or", "print", "println", "printf",
];

impl Template {
    /// Parses a template.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let tokens = tokenize(text)?;
        let mut parser = Parser { tokens, at: 0 };
        let (nodes, end) = parser.nodes()?;
        match end {
            None => Ok(Template { nodes }),
            Some(word) => Err(error(format!("unexpected {{{{{word}}}}}"))),
        }
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

fn error(text: impl AsRef<str>) -> TemplateError {
    TemplateError(format!("template: :1: {}", text.as_ref()))
}

enum Token {
    Text(String),
    Action(String),
}

/// Splits text from actions and trims as the actions say.
fn tokenize(text: &str) -> Result<Vec<Token>, TemplateError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    loop {
        let start = rest.find("{{");
        let mut literal = &rest[..start.unwrap_or(rest.len())];
        if trim_next {
            literal = literal.trim_start();
        }
        let Some(start) = start else {
            tokens.push(Token::Text(literal.to_owned()));
            return Ok(tokens);
        };
        let mut action = &rest[start + 2..];
        if let Some(trimmed) = action.strip_prefix("- ") {
            literal = literal.trim_end();
            action = trimmed;
        }
        tokens.push(Token::Text(literal.to_owned()));
        let end = end_of_action(action).ok_or_else(|| error("unclosed action"))?;
        rest = &action[end + 2..];
        let mut body = &action[..end];
        trim_next = body.ends_with(" -");
        if trim_next {
            body = &body[..body.len() - 2];
        }
        let body = body.trim();
        if !body.starts_with("/*") {
            tokens.push(Token::Action(body.to_owned()));
        }
    }
}

/// Where `}}` is, outside of quotes.
fn end_of_action(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut at = 0;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(b'"'), b'\\') => at += 1,
            (Some(q), b) if q == b => quote = None,
            (Some(_), _) => {}
            (None, b @ (b'"' | b'`')) => quote = Some(b),
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') => return Some(at),
            (None, _) => {}
        }
        at += 1;
    }
    None
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    /// Nodes up to the end or an action that ends a block, which is given too.
    fn nodes(&mut self) -> Result<(Vec<Node>, Option<String>), TemplateError> {
        let mut nodes = Vec::new();
        while self.at < self.tokens.len() {
            let token = std::mem::replace(&mut self.tokens[self.at], Token::Text(String::new()));
            self.at += 1;
            let action = match token {
                Token::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Token::Action(action) => action,
            };
            let (word, rest) = action
                .split_once(char::is_whitespace)
                .unwrap_or((action.as_str(), ""));
            match word {
                "end" | "else" => return Ok((nodes, Some(action))),
                "if" => nodes.push(self.conditional(rest)?),
                "range" => nodes.push(self.range(rest)?),
                "with" => {
                    let value = pipeline(rest)?;
                    let body = self.body_to_end()?;
                    nodes.push(Node::With { value, body });
                }
                _ => nodes.push(Node::Print(pipeline(&action)?)),
            }
        }
        Ok((nodes, None))
    }

    fn body_to_end(&mut self) -> Result<Vec<Node>, TemplateError> {
        match self.nodes()? {
            (nodes, Some(end)) if end == "end" => Ok(nodes),
            _ => Err(error("unexpected EOF")),
        }
    }

    fn conditional(&mut self, condition: &str) -> Result<Node, TemplateError> {
        let mut branches = Vec::new();
        let mut condition = pipeline(condition)?;
        loop {
            let (body, end) = self.nodes()?;
            branches.push((condition, body));
            match end.as_deref() {
                Some("end") => {
                    return Ok(Node::If {
                        branches,
                        otherwise: Vec::new(),
                    });
                }
                Some("else") => {
                    let otherwise = self.body_to_end()?;
                    return Ok(Node::If {
                        branches,
                        otherwise,
                    });
                }
                Some(action) if action.starts_with("else if ") => {
                    condition = pipeline(&action["else if ".len()..])?;
                }
                _ => return Err(error("unexpected EOF")),
            }
        }
    }

    fn range(&mut self, over: &str) -> Result<Node, TemplateError> {
        let over = pipeline(over)?;
        let (body, end) = self.nodes()?;
        let otherwise = match end.as_deref() {
            Some("end") => Vec::new(),
            Some("else") => self.body_to_end()?,
            _ => return Err(error("unexpected EOF")),
        };
        Ok(Node::Range {
            over,
            body,
            otherwise,
        })
    }
}

fn pipeline(text: &str) -> Result<Pipeline, TemplateError> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(error("missing value for command"));
    }
    let mut commands = vec![Vec::new()];
    while !rest.is_empty() {
        if let Some(more) = rest.strip_prefix('|') {
            commands.push(Vec::new());
            rest = more.trim_start();
            continue;
        }
        let (operand, more) = operand(rest)?;
        if let Some(command) = commands.last_mut() {
            command.push(operand);
        }
        rest = more.trim_start();
    }
    if commands.iter().any(Vec::is_empty) {
        return Err(error("missing value for command"));
    }
    Ok(Pipeline(commands))
}

fn operand(text: &str) -> Result<(Operand, &str), TemplateError> {
    if text.starts_with('"') || text.starts_with('`') {
        return string_literal(text);
    }
    if let Some(rest) = text.strip_prefix('(') {
        let end = closing_bracket(rest).ok_or_else(|| error("unclosed left paren"))?;
        return Ok((Operand::Nested(pipeline(&rest[..end])?), &rest[end + 1..]));
    }
    let end = text
        .find(|c: char| c.is_whitespace() || c == '|' || c == ')' || c == '(')
        .unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    if let Some(path) = word.strip_prefix('.') {
        let fields = path.split('.').filter(|part| !part.is_empty());
        return Ok((Operand::Field(fields.map(str::to_owned).collect()), rest));
    }
    let literal = match word {
        "true" => Some(Value::Bool(true)),
        "false" => Some(Value::Bool(false)),
        "nil" => Some(Value::Null),
        _ => word.parse::<i64>().ok().map(Value::from),
    };
    match literal {
        Some(value) => Ok((Operand::Literal(value), rest)),
        None if FUNCTIONS.contains(&word) => Ok((Operand::Function(word.to_owned()), rest)),
        None => Err(error(format!("function {word:?} not defined"))),
    }
}

fn closing_bracket(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => return Some(at),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn string_literal(text: &str) -> Result<(Operand, &str), TemplateError> {
    let unterminated = || error("unterminated quoted string");
    if let Some(rest) = text.strip_prefix('`') {
        let end = rest.find('`').ok_or_else(unterminated)?;
        let value = Value::String(rest[..end].to_owned());
        return Ok((Operand::Literal(value), &rest[end + 1..]));
    }
    // JSON's strings are close enough to Go's for a format.
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<String>();
    match stream.next() {
        Some(Ok(value)) => {
            let read = stream.byte_offset();
            Ok((Operand::Literal(Value::String(value)), &text[read..]))
        }
        _ => Err(unterminated()),
    }
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

/// The header that a function was given, whatever else it was given.
fn header_of(arguments: &[Value]) -> Value {
    let header = arguments.iter().find(|value| value.is_string());
    header.cloned().unwrap_or(Value::Null)
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As Go's `%v` writes it.
fn text_of(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let texts: Vec<String> = items.iter().map(text_of).collect();
            format!("[{}]", texts.join(" "))
        }
        Value::Object(map) => {
            let texts: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{key}:{}", text_of(value)))
                .collect();
            format!("map[{}]", texts.join(" "))
        }
        other => other.to_string(),
    }
}

fn call(name: &str, arguments: &[Value]) -> Result<Value, TemplateError> {
    let wrong = || {
        error(format!(
            "executing \"\" at <{name}>: wrong number or type of args for {name}"
        ))
    };
    let text = |index: usize| {
        arguments
            .get(index)
            .and_then(Value::as_str)
            .ok_or_else(wrong)
    };
    let number = |index: usize| {
        arguments
            .get(index)
            .and_then(Value::as_u64)
            .map(|number| number as usize)
            .ok_or_else(wrong)
    };
    let any = |index: usize| arguments.get(index).ok_or_else(wrong);
    let compared = |accept: fn(std::cmp::Ordering) -> bool| {
        Ok(Value::Bool(accept(
            compare(any(0)?, any(1)?).ok_or_else(wrong)?,
        )))
    };
    match name {
        "json" => Ok(Value::String(any(0)?.to_string())),
        "lower" => Ok(Value::String(text(0)?.to_lowercase())),
        "upper" => Ok(Value::String(text(0)?.to_uppercase())),
        "title" => Ok(Value::String(title(text(0)?))),
        "join" => {
            let items = any(0)?.as_array().map(Vec::as_slice).unwrap_or_default();
            let texts: Vec<String> = items.iter().map(text_of).collect();
            Ok(Value::String(texts.join(text(1)?)))
        }
        "split" => {
            let parts = text(0)?.split(text(1)?);
            Ok(parts.map(|part| Value::String(part.to_owned())).collect())
        }
        "truncate" => {
            let cut: String = text(0)?.chars().take(number(1)?).collect();
            Ok(Value::String(cut))
        }
        "pad" => {
            let (value, before, after) = (text(0)?, number(1)?, number(2)?);
            Ok(Value::String(if value.is_empty() {
                String::new()
            } else {
                format!("{}{value}{}", " ".repeat(before), " ".repeat(after))
            }))
        }
        "len" => match any(0)? {
            Value::String(text) => Ok(text.len().into()),
            Value::Array(items) => Ok(items.len().into()),
            Value::Object(map) => Ok(map.len().into()),
            _ => Err(wrong()),
        },
        "index" => match (any(0)?, any(1)?) {
            (Value::Object(map), Value::String(key)) => Ok(map
                .get(key)
                .cloned()
                .unwrap_or(Value::String(String::new()))),
            (Value::Array(items), _) => items
                .get(number(1)?)
                .cloned()
                .ok_or_else(|| error("executing \"\" at <index>: index out of range")),
            _ => Err(wrong()),
        },
        "eq" => Ok(Value::Bool(
            arguments.len() > 1 && arguments[1..].contains(&arguments[0]),
        )),
        "ne" => Ok(Value::Bool(any(0)? != any(1)?)),
        "lt" => compared(|order| order.is_lt()),
        "le" => compared(|order| order.is_le()),
        "gt" => compared(|order| order.is_gt()),
        "ge" => compared(|order| order.is_ge()),
        "not" => Ok(Value::Bool(!is_true(any(0)?))),
        "and" => Ok(choose(arguments, false)),
        "or" => Ok(choose(arguments, true)),
        "print" => Ok(Value::String(arguments.iter().map(text_of).collect())),
        "println" => {
            let texts: Vec<String> = arguments.iter().map(text_of).collect();
            Ok(Value::String(format!("{}\n", texts.join(" "))))
        }
        "printf" => Ok(Value::String(printf(text(0)?, &arguments[1..]))),
        _ => Err(error(format!("function {name:?} not defined"))),
    }
}

/// The first argument whose truth is `wanted`, else the last.
fn choose(arguments: &[Value], wanted: bool) -> Value {
    let found = arguments.iter().find(|value| is_true(value) == wanted);
    found.or(arguments.last()).cloned().unwrap_or(Value::Null)
}

fn compare(a: &Value, b: &Value) -> Option<std::cmp::Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}

fn title(text: &str) -> String {
    let mut out = String::new();
    let mut starts_word = true;
    for c in text.chars() {
        if starts_word {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
        starts_word = !c.is_alphanumeric();
    }
    out
}

fn printf(format: &str, arguments: &[Value]) -> String {
    let mut out = String::new();
    let mut next = arguments.iter();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let (verb, after) = Verb::parse(&rest[at + 1..]);
        rest = after;
        match verb.letter {
            Some('%') => out.push('%'),
            Some(_) => out.push_str(&verb.format(next.next())),
            None => out.push_str("%!(NOVERB)"),
        }
    }
    out.push_str(rest);
    out
}

/// One `%` of a format: flags, width, precision, letter.
#[derive(Debug, Default)]
struct Verb {
    left: bool,
    zeros: bool,
    plus: bool,
    width: usize,
    precision: Option<usize>,
    letter: Option<char>,
}

/// More than this many columns are taken as a slip.
const WIDTH_MAX: usize = 1 << 16;

impl Verb {
    /// Reads what comes after a `%`; gives the rest.
    fn parse(text: &str) -> (Verb, &str) {
        let mut verb = Verb::default();
        let flags = text.len() - text.trim_start_matches(['-', '0', '+', ' ', '#']).len();
        verb.left = text[..flags].contains('-');
        verb.zeros = text[..flags].contains('0') && !verb.left;
        verb.plus = text[..flags].contains('+');
        let (width, text) = digits(&text[flags..]);
        verb.width = width.unwrap_or(0).min(WIDTH_MAX);
        let text = match text.strip_prefix('.') {
            Some(text) => {
                let (precision, text) = digits(text);
                verb.precision = Some(precision.unwrap_or(0));
                text
            }
            None => text,
        };
        let mut chars = text.chars();
        verb.letter = chars.next();
        (verb, chars.as_str())
    }

    fn format(&self, value: Option<&Value>) -> String {
        let letter = self.letter.unwrap_or('v');
        let Some(value) = value else {
            return format!("%!{letter}(MISSING)");
        };
        let mut text = match (letter, value.as_i64()) {
            ('x', Some(number)) => format!("{number:x}"),
            ('X', Some(number)) => format!("{number:X}"),
            ('d' | 'v', Some(number)) if self.plus => format!("{number:+}"),
            ('q', _) => format!("{:?}", text_of(value)),
            _ => text_of(value),
        };
        if let (Some(precision), 's' | 'v' | 'q', true) =
            (self.precision, letter, value.is_string())
        {
            text = text.chars().take(precision).collect();
        }
        let missing = self.width.saturating_sub(text.chars().count());
        match (self.left, self.zeros) {
            (true, _) => text + &" ".repeat(missing),
            (false, true) => "0".repeat(missing) + &text,
            (false, false) => " ".repeat(missing) + &text,
        }
    }
}

/// The number that a text begins with, and the rest.
fn digits(text: &str) -> (Option<usize>, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    (text[..end].parse().ok(), &text[end..])
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
