//! The functions of templates.

use serde_json::Value;

use super::printf::printf;
use super::values::{is_true, text_of};
use super::{TemplateError, error};

/// Their names.
pub(super) const FUNCTIONS: &[&str] = &[
    "json", "lower", "upper", "title", "join", "split", "truncate", "pad", "len", "index", "eq",
    "ne", "lt", "gt", "le", "ge", "not", "and", "or", "print", "println", "printf",
];

/// The header that a function was given, whatever else it was given.
pub(super) fn header_of(arguments: &[Value]) -> Value {
    let header = arguments.iter().find(|value| value.is_string());
    header.cloned().unwrap_or(Value::Null)
}

/// Calls a function.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, TemplateError> {
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
