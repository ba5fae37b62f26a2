//! From the text of one instruction to its keyword, flags and arguments as words.

use crate::parser::Node;
use crate::quote::{is_space, quoted};

/// The arguments of an instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// The words; of `ENV` and `LABEL` three for each pair: name, value, separator (`=` or empty).
    pub words: Vec<String>,
    /// Whether they were a JSON array.
    pub json: bool,
    /// For `ONBUILD`: the instruction in it.
    pub inner: Option<Box<Node>>,
}

/// A line cut in three.
pub(crate) struct Command {
    pub(crate) keyword: String,
    pub(crate) flags: Vec<String>,
    pub(crate) rest: String,
}

const BLANK: [char; 5] = ['\t', '\x0b', '\x0c', '\r', ' '];

/// Cuts a line into keyword, flags and the rest.
pub(crate) fn split_command(line: &str, escape: char) -> Command {
    let line = line.trim_matches(is_space);
    let (keyword, rest) = match line.find(BLANK) {
        Some(at) => (&line[..at], line[at..].trim_start_matches(BLANK)),
        None => (line, ""),
    };
    let (flags, rest) = split_flags(rest, escape);
    Command {
        keyword: keyword.to_owned(),
        flags,
        rest: rest.trim_matches(is_space).to_owned(),
    }
}

/// Reads the arguments in the form that the keyword asks for.
pub(crate) fn parse(keyword: &str, rest: &str, escape: char) -> Result<Arguments, String> {
    let words = |words: Vec<String>| Arguments {
        words,
        ..Arguments::default()
    };
    Ok(match keyword.to_ascii_lowercase().as_str() {
        "add" | "copy" | "volume" => match json_array(rest)? {
            Some(items) => items,
            None => words(split_blank(rest)),
        },
        "run" | "cmd" | "entrypoint" | "shell" => maybe_json(rest)?,
        "arg" => words(split_words(rest, escape)),
        "env" => words(name_values(rest, "ENV", escape)?),
        "label" => words(name_values(rest, "LABEL", escape)?),
        "expose" | "from" => words(split_blank(rest)),
        "healthcheck" => healthcheck(rest)?,
        "maintainer" | "stopsignal" | "user" | "workdir" => words(whole(rest)),
        _ => Arguments::default(),
    })
}

fn whole(rest: &str) -> Vec<String> {
    if rest.is_empty() {
        Vec::new()
    } else {
        vec![rest.to_owned()]
    }
}

fn maybe_json(rest: &str) -> Result<Arguments, String> {
    Ok(match json_array(rest)? {
        Some(items) => items,
        None => Arguments {
            words: whole(rest),
            ..Arguments::default()
        },
    })
}

/// The strings of a JSON array; none if the text is no JSON array at all.
fn json_array(rest: &str) -> Result<Option<Arguments>, String> {
    let rest = rest.trim_start_matches(is_space);
    if !rest.starts_with('[') {
        return Ok(None);
    }
    let Ok(items) = serde_json::from_str::<Vec<serde_json::Value>>(rest) else {
        return Ok(None);
    };
    let mut words = Vec::with_capacity(items.len());
    for item in items {
        match item {
            serde_json::Value::String(word) => words.push(word),
            _ => {
                return Err(
                    "when using JSON array syntax, arrays must be comprised of strings only"
                        .to_owned(),
                );
            }
        }
    }
    Ok(Some(Arguments {
        words,
        json: true,
        inner: None,
    }))
}

fn healthcheck(rest: &str) -> Result<Arguments, String> {
    let end = rest.find(is_space).unwrap_or(rest.len());
    if end == 0 {
        return Ok(Arguments::default());
    }
    let (kind, rest) = rest.split_at(end);
    let mut command = maybe_json(rest.trim_start_matches(is_space))?;
    command.words.insert(0, kind.to_owned());
    Ok(command)
}

fn split_blank(rest: &str) -> Vec<String> {
    if rest.is_empty() {
        return Vec::new();
    }
    let mut out = vec![String::new()];
    let mut in_blank = false;
    for c in rest.chars() {
        if BLANK.contains(&c) {
            if !in_blank {
                out.push(String::new());
            }
            in_blank = true;
        } else {
            in_blank = false;
            if let Some(last) = out.last_mut() {
                last.push(c);
            }
        }
    }
    out
}

/// `NAME value` or `NAME=value …` as name, value, separator.
fn name_values(rest: &str, keyword: &str, escape: char) -> Result<Vec<String>, String> {
    let words = split_words(rest, escape);
    let Some(first) = words.first() else {
        return Ok(Vec::new());
    };
    if !first.contains('=') {
        let Some(at) = rest.find(BLANK) else {
            return Err(format!("{keyword} must have two arguments"));
        };
        let value = rest[at..].trim_start_matches(BLANK);
        return Ok(vec![rest[..at].to_owned(), value.to_owned(), String::new()]);
    }
    let mut out = Vec::with_capacity(words.len() * 3);
    for word in &words {
        let Some((name, value)) = word.split_once('=') else {
            return Err(format!(
                "Syntax error - can't find = in {}. Must be of the form: name=value",
                quoted(word)
            ));
        };
        out.extend([name.to_owned(), value.to_owned(), "=".to_owned()]);
    }
    Ok(out)
}

/// Words cut at unquoted white space; quotes and escapes stay for the expansion to remove.
fn split_words(rest: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut in_word = false;
    let mut has_quotes = false;
    let mut quote: Option<char> = None;
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && is_space(c) {
            if in_word && (has_quotes || !word.is_empty()) {
                words.push(std::mem::take(&mut word));
            }
            (in_word, has_quotes) = (false, false);
            continue;
        }
        in_word = true;
        let escapes = c == escape && quote != Some('\'');
        match quote {
            Some(open) if c == open => quote = None,
            None if matches!(c, '\'' | '"') => {
                quote = Some(c);
                has_quotes = true;
            }
            _ => {}
        }
        if !escapes {
            word.push(c);
            continue;
        }
        // An escape character that ends the text is dropped.
        let Some(escaped) = chars.next() else { break };
        word.push(c);
        word.push(escaped);
    }
    if in_word && (has_quotes || !word.is_empty()) {
        words.push(word);
    }
    words
}

/// The flags at the start of a text, unquoted, and what follows. Stock reads bytes and not
/// characters here, which shows for flags that are not ASCII.
fn split_flags(line: &str, escape: char) -> (Vec<String>, &str) {
    let bytes = line.as_bytes();
    let mut flags = Vec::new();
    let mut at = 0;
    loop {
        while at < bytes.len() && is_space(char::from(bytes[at])) {
            at += 1;
        }
        if !bytes[at..].starts_with(b"--") {
            return (flags, line.get(at..).unwrap_or_default());
        }
        let (word, has_quotes, end) = flag_word(bytes, at, escape);
        at = end;
        if word == "--" {
            return (flags, line.get(at..).unwrap_or_default());
        }
        if has_quotes || !word.is_empty() {
            flags.push(word);
        }
    }
}

/// One flag from `at` to white space: its text, whether it had quotes, and where it ends.
fn flag_word(bytes: &[u8], mut at: usize, escape: char) -> (String, bool, usize) {
    let mut word = String::new();
    let mut has_quotes = false;
    let mut quote: Option<char> = None;
    while at < bytes.len() {
        let c = char::from(bytes[at]);
        match quote {
            None if is_space(c) => break,
            None if matches!(c, '\'' | '"') => {
                quote = Some(c);
                has_quotes = true;
            }
            Some(open) if c == open => quote = None,
            _ if c == escape => {
                at += 1;
                match bytes.get(at) {
                    Some(escaped) => word.push(char::from(*escaped)),
                    None => break,
                }
            }
            _ => word.push(c),
        }
        at += 1;
    }
    (word, has_quotes, at.min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_unquoted_and_end_at_the_first_other_word() {
        let command = split_command("COPY --a=1 --b=\"x y\" --c=d\\ e src --not dst", '\\');
        assert_eq!(command.flags, ["--a=1", "--b=x y", "--c=d e"]);
        assert_eq!(command.rest, "src --not dst");
        let command = split_command("RUN --mount=x -- --y z", '\\');
        assert_eq!(
            (command.flags, command.rest.as_str()),
            (vec!["--mount=x".to_owned()], "--y z")
        );
        let command = split_command("RUN", '\\');
        assert_eq!(
            (command.keyword.as_str(), command.rest.as_str()),
            ("RUN", "")
        );
        split_command("RUN --é=\u{a0}ü x", '\\');
    }

    #[test]
    fn words_keep_quotes_and_escapes() {
        for (text, expected) in [
            ("a=b c=\"d e\"", vec!["a=b", "c=\"d e\""]),
            ("a=b\\ c d='e\\' f", vec!["a=b\\ c", "d='e\\'", "f"]),
            ("a=\"x\\\"y\" b=''", vec!["a=\"x\\\"y\"", "b=''"]),
            ("  ", vec![]),
            ("a\\", vec!["a"]),
        ] {
            assert_eq!(split_words(text, '\\'), expected, "{text}");
        }
    }

    #[test]
    fn json_arrays_are_strings_only_and_bad_json_is_plain_text() {
        let run = |text: &str| parse("RUN", text, '\\').map(|a| (a.words, a.json));
        assert_eq!(
            run("[\"a\", \"b c\"]"),
            Ok((vec!["a".into(), "b c".into()], true))
        );
        assert_eq!(run("[a]"), Ok((vec!["[a]".into()], false)));
        assert_eq!(run("[]"), Ok((vec![], true)));
        assert!(run("[1]").is_err());
    }

    #[test]
    fn names_and_values_in_both_forms() {
        let env = |text: &str| parse("env", text, '\\').map(|a| a.words);
        assert_eq!(
            env("a  b c "),
            Ok(vec!["a".into(), "b c ".into(), "".into()])
        );
        assert_eq!(
            env("a=b c="),
            Ok(["a", "b", "=", "c", "", "="].map(str::to_owned).to_vec())
        );
        assert_eq!(env("a"), Err("ENV must have two arguments".into()));
        assert_eq!(
            env("a=b c"),
            Err("Syntax error - can't find = in \"c\". Must be of the form: name=value".into())
        );
    }
}
