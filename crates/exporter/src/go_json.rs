//! JSON as Go's `encoding/json` writes it, so that equal values have equal digests: `<`, `>`, `&`
//! and the two line separators are escaped, and indented text has two spaces a level.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// The value on one line, as `json.Marshal` does.
///
/// # Errors
/// Only for values that have no JSON, such as maps with keys that are no strings.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Vec<u8>> {
    write(value, CompactFormatter)
}

/// The value over several lines, as `json.MarshalIndent` with two spaces does.
///
/// # Errors
/// As [`to_vec`].
pub fn to_vec_indented<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Vec<u8>> {
    write(value, PrettyFormatter::with_indent(b"  "))
}

fn write<T: Serialize + ?Sized>(value: &T, inner: impl Formatter) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, Escaping(inner));
    value.serialize(&mut serializer)?;
    Ok(out)
}

/// Passes everything on to another formatter except for parts of strings.
struct Escaping<F>(F);

macro_rules! pass_on {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {$(
        fn $name<W: ?Sized + Write>(&mut self, writer: &mut W $(, $argument: $kind)*) -> io::Result<()> {
            self.0.$name(writer $(, $argument)*)
        }
    )*};
}

impl<F: Formatter> Formatter for Escaping<F> {
    pass_on! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut start = 0;
        for (at, c) in fragment.char_indices() {
            if matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}') {
                writer.write_all(&fragment.as_bytes()[start..at])?;
                write!(writer, "\\u{:04x}", c as u32)?;
                start = at + c.len_utf8();
            }
        }
        writer.write_all(&fragment.as_bytes()[start..])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn characters_that_html_minds_are_escaped() {
        let value = json!({"a&b": "x && y > \u{2028}z \"q\" \u{1} é"});
        assert_eq!(
            String::from_utf8(to_vec(&value).unwrap()).unwrap(),
            r#"{"a\u0026b":"x \u0026\u0026 y \u003e \u2028z \"q\" \u0001 é"}"#
        );
    }

    #[test]
    fn indented_text_has_two_spaces_and_empty_lists_stay_short() {
        let value = json!({"a": [1, {"b": []}], "c": {}});
        assert_eq!(
            String::from_utf8(to_vec_indented(&value).unwrap()).unwrap(),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": []\n    }\n  ],\n  \"c\": {}\n}"
        );
    }
}
