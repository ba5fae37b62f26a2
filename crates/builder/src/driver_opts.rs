//! `--driver-opt`: `k=v` pieces with commas between.
//!
//! A piece that starts no option belongs to the value before it, where that may hold commas: so
//! `env.NO_PROXY=a,b` and `cpuset-cpus=0,2` mean what they say.

use std::collections::BTreeMap;

use crate::BuilderError;

/// Reads options for that driver.
pub(crate) fn parse_driver_opts(
    driver: &str,
    texts: &[String],
) -> Result<BTreeMap<String, String>, BuilderError> {
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    for text in texts {
        let mut last: Option<String> = None;
        for field in csv_fields(text)? {
            let split = field.split_once('=');
            let starts_option = split.is_some_and(|(key, _)| driver::is_option(driver, key));
            let continues = match &last {
                Some(key) if key.starts_with("env.") => !starts_option,
                Some(key) => split.is_none() && takes_list(key),
                None => false,
            };
            if let (true, Some(key)) = (continues, &last) {
                let value = options.entry(key.clone()).or_default();
                value.push(',');
                value.push_str(&field);
                continue;
            }
            let Some((key, value)) = split else {
                return Err(BuilderError::Invalid(format!(
                    "invalid value {field:?}, expecting k=v"
                )));
            };
            last = Some(key.to_owned());
            options.insert(key.to_owned(), value.to_owned());
        }
    }
    Ok(options)
}

fn takes_list(key: &str) -> bool {
    matches!(key, "cpuset-cpus" | "cpuset-mems" | "gpus")
}

/// Splits a line at its commas; a field that starts with a quote ends with one.
fn csv_fields(line: &str) -> Result<Vec<String>, BuilderError> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let field;
        (field, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(line, quoted)?,
            None => match rest.find(',') {
                Some(end) => (rest[..end].to_owned(), &rest[end..]),
                None => (rest.to_owned(), ""),
            },
        };
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok(fields),
        }
    }
}

fn quoted_field<'a>(line: &str, text: &'a str) -> Result<(String, &'a str), BuilderError> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let Some(end) = rest.find('"') else {
            return Err(BuilderError::Invalid(format!(
                "invalid value {line:?}: extraneous or missing \" in quoted-field"
            )));
        };
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None if rest.is_empty() || rest.starts_with(',') => return Ok((field, rest)),
            None => {
                return Err(BuilderError::Invalid(format!(
                    "invalid value {line:?}: extraneous or missing \" in quoted-field"
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<Vec<(String, String)>, String> {
        let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
        parse_driver_opts("docker-container", &texts)
            .map(|map| map.into_iter().collect())
            .map_err(|error| error.to_string())
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn a_piece_without_a_known_key_belongs_to_the_value_before_it() {
        assert_eq!(
            parse(&["env.NO_PROXY=a,b,.c=d,network=host"]).unwrap(),
            [pair("env.NO_PROXY", "a,b,.c=d"), pair("network", "host")]
        );
        assert_eq!(
            parse(&["cpuset-cpus=0,2,memory=1g"]).unwrap(),
            [pair("cpuset-cpus", "0,2"), pair("memory", "1g")]
        );
        assert_eq!(
            parse(&["\"env.A=x,y\"", "image=i"]).unwrap(),
            [pair("env.A", "x,y"), pair("image", "i")]
        );
    }

    #[test]
    fn what_is_no_pair_is_refused_and_an_unknown_key_is_left_to_the_driver() {
        assert_eq!(
            parse(&["network=a,b"]),
            Err("invalid value \"b\", expecting k=v".to_owned())
        );
        assert_eq!(
            parse(&["x"]),
            Err("invalid value \"x\", expecting k=v".to_owned())
        );
        assert_eq!(
            parse(&["network=a,bogus=1"]).unwrap(),
            [pair("bogus", "1"), pair("network", "a")]
        );
        assert!(parse(&["\"a=b"]).is_err());
    }
}
