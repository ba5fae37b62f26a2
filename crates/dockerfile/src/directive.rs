//! Parser directives: `# name=value` comments at the very top of a file, before anything else.

use diag::Range;

use crate::quote::is_space;

/// A directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// `syntax`, `escape` or `check`, lower case.
    pub name: String,
    /// Its value, without white space around it.
    pub value: String,
    /// Its line, counted from 1.
    pub line: u32,
}

/// The frontend that a file asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syntax {
    /// The value's first word: an image.
    pub image: String,
    /// The whole value.
    pub command: String,
    /// Where it says so.
    pub range: Range,
}

const NAMES: [&str; 3] = ["syntax", "escape", "check"];

/// Reads directives line by line until a line is none.
#[derive(Clone, Debug)]
pub(crate) struct DirectiveReader {
    prefix: &'static str,
    line: u32,
    seen: Vec<String>,
    done: bool,
}

impl DirectiveReader {
    /// A reader of lines that start with `prefix`; the next line is line `line + 1`.
    pub(crate) fn new(prefix: &'static str, line: u32) -> Self {
        DirectiveReader {
            prefix,
            line,
            seen: Vec::new(),
            done: false,
        }
    }

    /// The directive of the next line, if it is one and all lines before were; the error is the
    /// message for a directive given twice.
    pub(crate) fn read(&mut self, line: &str) -> Result<Option<Directive>, String> {
        self.line += 1;
        if self.done {
            return Ok(None);
        }
        let Some((name, value)) = line
            .strip_prefix(self.prefix)
            .and_then(|rest| split_directive(rest.trim_start_matches(is_space)))
        else {
            self.done = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(format!("only one {name} parser directive can be used"));
        }
        self.seen.push(name.clone());
        Ok(Some(Directive {
            name,
            value,
            line: self.line,
        }))
    }
}

/// The frontend a file asks for: by `# syntax=`, by `// syntax=`, or by a JSON object's `syntax`.
/// A first line starting with `#!` is skipped.
pub fn detect_syntax(data: &[u8]) -> Option<Syntax> {
    let (data, first_line) = without_preamble(data);
    for prefix in ["#", "//"] {
        if let Some(found) = find(data, first_line, prefix, "syntax") {
            let image = found.value.split(' ').next().unwrap_or_default().to_owned();
            return Some(Syntax {
                image,
                range: Range::lines(found.line, found.line),
                command: found.value,
            });
        }
    }
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(data).ok()?;
    let value = object.get("syntax")?.as_str()?.to_owned();
    Some(Syntax {
        image: value.clone(),
        command: value,
        range: Range::lines(first_line, first_line),
    })
}

/// The value of the `# check=` directive.
pub fn check_directive(data: &[u8]) -> Option<Directive> {
    let (data, first_line) = without_preamble(data);
    find(data, first_line, "#", "check")
}

/// The value of a `check=…` comment that stands above an instruction.
pub(crate) fn check_comment(comment: &str) -> Option<String> {
    let found = DirectiveReader::new("", 0).read(comment).ok()??;
    let value = found.value.split(' ').next().unwrap_or_default();
    (found.name == "check").then(|| value.to_owned())
}

fn find(data: &[u8], first_line: u32, prefix: &'static str, name: &str) -> Option<Directive> {
    let mut reader = DirectiveReader::new(prefix, first_line);
    for line in data.split(|b| *b == b'\n') {
        if reader.done {
            return None;
        }
        let line = String::from_utf8_lossy(line);
        match reader.read(&line) {
            Ok(Some(found)) if found.name == name => return Some(found),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
    None
}

/// The text after a byte order mark and after a `#!` line, and how many lines were skipped.
fn without_preamble(data: &[u8]) -> (&[u8], u32) {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    if !data.starts_with(b"#!") {
        return (data, 0);
    }
    match data.iter().position(|b| *b == b'\n') {
        Some(end) => (&data[end + 1..], 1),
        None => (&[], 1),
    }
}

/// `name = value` with a name that is known.
fn split_directive(text: &str) -> Option<(String, String)> {
    let ascii_space = |c: char| matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ');
    let (name, value) = text.split_once('=')?;
    let name = name.trim_end_matches(ascii_space);
    let value = value.trim_matches(ascii_space);
    let name = name.to_ascii_lowercase();
    (NAMES.contains(&name.as_str()) && !value.is_empty()).then(|| (name, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frontend_is_found_in_every_form() {
        for (text, image, line) in [
            (
                "# syntax=docker/dockerfile:1\nFROM a",
                "docker/dockerfile:1",
                1,
            ),
            ("#SYNTAX = a/b:c  x\n", "a/b:c", 1),
            ("#!/bin/x\n# escape=`\n# syntax=a\n", "a", 3),
            ("\u{feff}# syntax=a\r\n", "a", 1),
            ("// syntax=hcl", "hcl", 1),
            ("{\"syntax\": \"json\"}", "json", 0),
        ] {
            let found = detect_syntax(text.as_bytes()).unwrap();
            assert_eq!(
                (found.image.as_str(), found.range.start.line),
                (image, line),
                "{text}"
            );
        }
        for text in [
            "",
            "\n# syntax=a",
            "# comment\n# syntax=a",
            "FROM a\n# syntax=b",
            "# syntax=",
        ] {
            assert_eq!(detect_syntax(text.as_bytes()), None, "{text}");
        }
    }
}
