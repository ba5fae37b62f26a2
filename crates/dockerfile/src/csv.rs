//! One line of comma-separated fields with CSV quoting, as flags such as `--mount` have it.

/// The fields of a line, or Go's message about its quoting. An empty line is the message `EOF`.
pub fn fields(line: &str) -> Result<Vec<String>, String> {
    let line = line
        .strip_suffix('\n')
        .map_or(line, |l| l.strip_suffix('\r').unwrap_or(l));
    if line.is_empty() {
        return Err("EOF".to_owned());
    }
    let mut out = Vec::new();
    let mut rest = line;
    loop {
        let position = line.len() - rest.len();
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, tail) = match rest.split_once(',') {
                Some((field, tail)) => (field, Some(tail)),
                None => (rest, None),
            };
            if let Some(at) = field.find('"') {
                return Err(message(position + at, "bare \" in non-quoted-field"));
            }
            out.push(field.to_owned());
            match tail {
                Some(tail) => rest = tail,
                None => return Ok(out),
            }
            continue;
        };
        let (field, tail) = quoted_field(quoted, line.len())?;
        out.push(field);
        match tail {
            Some(tail) => rest = tail,
            None => return Ok(out),
        }
    }
}

/// The rest of a quoted field after its opening quote, and what follows its comma.
fn quoted_field(text: &str, line_len: usize) -> Result<(String, Option<&str>), String> {
    let wrong = |rest: &str| {
        message(
            line_len - rest.len(),
            "extraneous or missing \" in quoted-field",
        )
    };
    let mut field = String::new();
    let mut rest = text;
    loop {
        let Some(at) = rest.find('"') else {
            return Err(wrong(rest));
        };
        field.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        match after.as_bytes().first() {
            None => return Ok((field, None)),
            Some(b',') => return Ok((field, Some(&after[1..]))),
            Some(b'"') => {
                field.push('"');
                rest = &after[1..];
            }
            Some(_) => return Err(wrong(&rest[at..])),
        }
    }
}

fn message(position: usize, what: &str) -> String {
    format!("parse error on line 1, column {}: {what}", position + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_may_be_quoted() {
        for (line, expected) in [
            ("a,b", vec!["a", "b"]),
            ("a,", vec!["a", ""]),
            ("\"a,b\",c", vec!["a,b", "c"]),
            ("\"a\"\"b\"", vec!["a\"b"]),
            (
                "type=bind,\"source=a b\"\n",
                vec!["type=bind", "source=a b"],
            ),
        ] {
            assert_eq!(
                fields(line),
                Ok(expected.iter().map(|s| (*s).to_owned()).collect()),
                "{line}"
            );
        }
        assert_eq!(
            fields("a\"b"),
            Err("parse error on line 1, column 2: bare \" in non-quoted-field".into())
        );
        assert!(fields("\"a").is_err());
        assert!(fields("\"a\"b").is_err());
        assert_eq!(fields(""), Err("EOF".into()));
    }
}
