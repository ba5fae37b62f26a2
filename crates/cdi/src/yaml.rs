//! YAML as a JSON value, in the way programs in Go read such files: plain scalars are typed by YAML
//! 1.2's core schema with the old octal numbers; a key may be there only once.
//!
//! JSON is YAML too.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// How many values a file may have, those that aliases repeat counted each time.
const VALUES_MAX: usize = 100_000;
/// How deep they may be within each other.
const DEPTH_MAX: usize = 64;

/// The first document of a text.
///
/// # Errors
/// In words, what is wrong.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader {
        events: Parser::new_from_str(text),
        anchors: HashMap::new(),
        values: 0,
    };
    loop {
        match reader.next()? {
            Event::StreamEnd => return Ok(Value::Null),
            Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
            first => return reader.value(first, 0),
        }
    }
}

struct Reader<'t> {
    events: Parser<'t, saphyr_parser::StrInput<'t>>,
    anchors: HashMap<usize, (Value, usize)>,
    values: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Event<'t>, String> {
        match self.events.next() {
            Some(Ok((event, _))) => Ok(event),
            Some(Err(error)) => Err(error.to_string()),
            None => Ok(Event::StreamEnd),
        }
    }

    fn count(&mut self, values: usize) -> Result<(), String> {
        self.values += values;
        match self.values > VALUES_MAX {
            true => Err(format!("more than {VALUES_MAX} values")),
            false => Ok(()),
        }
    }

    fn value(&mut self, event: Event<'t>, depth: usize) -> Result<Value, String> {
        if depth > DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} levels"));
        }
        self.count(1)?;
        let before = self.values;
        let (anchor, value) = match event {
            Event::Alias(anchor) => {
                let (value, values) = self.anchors.get(&anchor).cloned().unwrap_or_default();
                self.count(values)?;
                return Ok(value);
            }
            Event::Scalar(text, style, anchor, _) => (anchor, scalar(text, style)),
            Event::SequenceStart(anchor, _) => (anchor, self.sequence(depth)?),
            Event::MappingStart(anchor, _) => (anchor, self.mapping(depth)?),
            other => return Err(format!("unexpected {other:?}")),
        };
        if anchor > 0 {
            let values = self.values - before;
            self.anchors.insert(anchor, (value.clone(), values));
        }
        Ok(value)
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, String> {
        let mut all = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(Value::Array(all)),
                event => all.push(self.value(event, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, String> {
        let mut all = Map::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Ok(Value::Object(all)),
                event => match self.value(event, depth + 1)? {
                    Value::String(key) => key,
                    other => other.to_string(),
                },
            };
            let event = self.next()?;
            let value = self.value(event, depth + 1)?;
            if all.contains_key(&key) {
                return Err(format!("key {key:?} already set in map"));
            }
            all.insert(key, value);
        }
    }
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.into_owned());
    }
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        number => match integer(number) {
            Some(number) => Value::from(number),
            None => Value::String(text.into_owned()),
        },
    }
}

/// Decimal, hexadecimal, binary, or octal with `0o` or only `0` in front.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (digits, radix) = match digits.split_at_checked(2) {
        Some(("0x", digits)) => (digits, 16),
        Some(("0o", digits)) => (digits, 8),
        Some(("0b", digits)) => (digits, 2),
        _ if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        _ => (digits, 10),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let number = i64::from_str_radix(digits, radix).ok()?;
    Some(if negative { -number } else { number })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_are_typed_as_go_types_them() {
        let text = "a: 438\nb: 0666\nc: 0o17\nd: 0x1F\ne: yes\nf: true\ng: '12'\nh: ~\ni: 1.1.0\n\
                    j: -5\nk: \"x\\ty\"\nl: 08\nm: c\n";
        assert_eq!(
            parse(text).unwrap(),
            json!({"a": 438, "b": 438, "c": 15, "d": 31, "e": "yes", "f": true, "g": "12",
                "h": null, "i": "1.1.0", "j": -5, "k": "x\ty", "l": "08", "m": "c"})
        );
    }

    #[test]
    fn json_sequences_documents_and_aliases_are_read() {
        let json = r#"{"a": [1, "two", {"b": null}], "c": {}}"#;
        let value: Value = serde_json::from_str(json).unwrap();
        assert_eq!(parse(json).unwrap(), value);
        let text = "# first\n---\na: &x [1, 2]\nb: *x\n---\nsecond: 1\n";
        assert_eq!(parse(text).unwrap(), json!({"a": [1, 2], "b": [1, 2]}));
        assert_eq!(parse("").unwrap(), Value::Null);
    }

    #[test]
    fn what_is_wrong_or_too_much_is_an_error() {
        assert!(parse("a: [1").is_err());
        assert!(parse("a: 1\na: 2\n").unwrap_err().contains("already set"));
        let mut bomb = "a0: &a0 [x, x]\n".to_owned();
        for n in 1..40 {
            bomb += &format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1);
        }
        assert!(parse(&bomb).unwrap_err().contains("more than"));
        assert!(parse(&"[".repeat(1000)).is_err());
    }
}
