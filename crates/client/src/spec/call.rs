//! `--call`: something else than building.

use diag::{Context, Error};

use crate::csv;
use crate::spec::parse_bool;

/// What a frontend is asked for instead of a build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallFunction {
    /// `lint`, `outline`, `targets`, `subrequests.describe`, …
    pub name: String,
    /// How it is printed; `json`, or empty for text.
    pub format: String,
    /// Whether the exit code says nothing about the result.
    pub ignore_status: bool,
}

/// The function of `--call`; `None` for a build.
pub fn parse_call(text: &str) -> Result<Option<CallFunction>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut function = CallFunction::default();
    for field in csv::fields(text)? {
        match field.split_once('=') {
            Some(("format", value)) => function.format = value.to_owned(),
            Some(("ignorestatus", value)) => {
                function.ignore_status = parse_bool(value)
                    .with_context(|| format!("invalid ignorestatus print value: {value}"))?;
            }
            Some(_) => return Err(Error::invalid(format!("invalid print field: {field}"))),
            None if function.name.is_empty() => function.name = field,
            None => return Err(Error::invalid(format!("invalid print value: {text}"))),
        }
    }
    // `check` is what users call the request that frontends know as `lint`.
    if function.name == "check" {
        function.name = "lint".to_owned();
    }
    Ok((function.name != "build").then_some(function))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_read_with_their_options() {
        assert_eq!(parse_call("build").unwrap(), None);
        let check = parse_call("check,format=json,ignorestatus=true").unwrap();
        let expected = CallFunction {
            name: "lint".into(),
            format: "json".into(),
            ignore_status: true,
        };
        assert_eq!(check, Some(expected));
        let error = parse_call("a,b").unwrap_err().to_string();
        assert_eq!(error, "invalid print value: a,b");
    }
}
