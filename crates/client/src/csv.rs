//! One line of comma-separated values, as values of flags are written: RFC 4180 quoting.

use diag::Error;

/// The fields of a line. An empty line is an error (`EOF`), as stock has it.
pub fn fields(line: &str) -> Result<Vec<String>, Error> {
    let line = line.strip_suffix('\n').unwrap_or(line);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err(Error::invalid("EOF"));
    }
    let mut fields = Vec::new();
    let mut at = 0;
    loop {
        let (field, end) = if line[at..].starts_with('"') {
            quoted(line, at)?
        } else {
            plain(line, at)?
        };
        fields.push(field);
        if end == line.len() {
            return Ok(fields);
        }
        at = end + 1;
    }
}

/// `key=value` pairs as one line, quoted where it must be.
pub fn join<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let pieces: Vec<String> = pairs
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .map(|pair| match pair.contains([',', '"']) {
            true => format!("\"{}\"", pair.replace('"', "\"\"")),
            false => pair,
        })
        .collect();
    pieces.join(",")
}

/// A field without quotes and where it ends.
fn plain(line: &str, start: usize) -> Result<(String, usize), Error> {
    let end = line[start..].find(',').map_or(line.len(), |at| start + at);
    let field = &line[start..end];
    match field.find('"') {
        Some(at) => Err(parse_error(start + at, "bare \" in non-quoted-field")),
        None => Ok((field.to_owned(), end)),
    }
}

/// A field in quotes and where it ends; inside, two quotes stand for one.
fn quoted(line: &str, start: usize) -> Result<(String, usize), Error> {
    let mut field = String::new();
    let mut at = start + 1;
    loop {
        let Some(quote) = line[at..].find('"') else {
            return Err(parse_error(at, "extraneous or missing \" in quoted-field"));
        };
        field += &line[at..at + quote];
        at += quote + 1;
        match line[at..].bytes().next() {
            None | Some(b',') => return Ok((field, at)),
            Some(b'"') => {
                field.push('"');
                at += 1;
            }
            Some(_) => {
                return Err(parse_error(
                    at - 1,
                    "extraneous or missing \" in quoted-field",
                ));
            }
        }
    }
}

fn parse_error(at: usize, what: &str) -> Error {
    Error::invalid(format!("parse error on line 1, column {}: {what}", at + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_with_their_quotes() {
        for (line, expected) in [
            ("a", &["a"][..]),
            ("a,b=c,", &["a", "b=c", ""]),
            ("type=x,\"a=b,c\",d", &["type=x", "a=b,c", "d"]),
            ("\"say \"\"hi\"\"\"\n", &["say \"hi\""]),
        ] {
            assert_eq!(fields(line).unwrap(), expected, "{line}");
        }
        for (line, column) in [("a\"b", 2), ("\"a", 2), ("\"a\"b", 3)] {
            let error = fields(line).unwrap_err().to_string();
            let place = format!("parse error on line 1, column {column}: ");
            assert!(error.starts_with(&place), "{error}");
        }
        assert_eq!(fields("").unwrap_err().to_string(), "EOF");
    }

    #[test]
    fn what_is_joined_is_split_again() {
        let line = join([("a", "b"), ("c", "d,\"e\"")]);
        assert_eq!(line, "a=b,\"c=d,\"\"e\"\"\"");
        assert_eq!(fields(&line).unwrap(), ["a=b", "c=d,\"e\""]);
    }
}
