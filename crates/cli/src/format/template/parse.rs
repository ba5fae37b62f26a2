//! Parsing templates.

use serde_json::Value;

use super::functions::FUNCTIONS;
use super::{Node, Operand, Pipeline, TemplateError, error};

/// The nodes of a whole template.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, TemplateError> {
    let tokens = tokenize(text)?;
    let mut parser = Parser { tokens, at: 0 };
    let (nodes, end) = parser.nodes()?;
    match end {
        None => Ok(nodes),
        Some(word) => Err(error(format!("unexpected {{{{{word}}}}}"))),
    }
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
