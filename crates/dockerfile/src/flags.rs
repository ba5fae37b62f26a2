//! The `--name=value` words of an instruction, checked against those it knows.

use std::collections::BTreeMap;

use crate::suggest;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagKind {
    /// Nothing, `true` or `false`.
    Bool,
    /// One value.
    Text,
    /// One value each time it is given.
    List,
}

/// The flags that were given.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    given: BTreeMap<&'static str, Vec<String>>,
}

impl Flags {
    /// Checks the words against the flags that are known; the error is stock's message.
    pub(crate) fn parse(
        words: &[String],
        known: &[(&'static str, FlagKind)],
    ) -> Result<Flags, String> {
        let mut flags = Flags::default();
        for word in words {
            let Some(body) = word.strip_prefix("--") else {
                return Err(format!("arg should start with -- : {word}"));
            };
            if body.is_empty() {
                break;
            }
            let (name, value) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (body, None),
            };
            let Some((name, kind)) = known.iter().find(|(known, _)| *known == name) else {
                let names = known.iter().map(|(name, _)| *name);
                let message = format!("unknown flag: --{name}");
                return Err(suggest::with_suggestion(message, name, names, true));
            };
            if *kind != FlagKind::List && flags.given.contains_key(name) {
                return Err(format!("duplicate flag specified: --{name}"));
            }
            let value = flag_value(name, *kind, value)?;
            flags.given.entry(name).or_default().push(value);
        }
        Ok(flags)
    }

    /// The value of a text flag; empty if it was not given.
    pub(crate) fn text(&mut self, name: &str) -> String {
        self.list(name).pop().unwrap_or_default()
    }

    /// The values of a list flag.
    pub(crate) fn list(&mut self, name: &str) -> Vec<String> {
        self.given.remove(name).unwrap_or_default()
    }

    /// The value of a boolean flag, if it was given.
    pub(crate) fn boolean(&mut self, name: &str) -> Option<bool> {
        self.list(name).pop().map(|value| value == "true")
    }
}

fn flag_value(name: &str, kind: FlagKind, value: Option<&str>) -> Result<String, String> {
    let missing = || format!("missing a value on flag: --{name}");
    if kind != FlagKind::Bool {
        return value.map(str::to_owned).ok_or_else(missing);
    }
    match value {
        None => Ok("true".to_owned()),
        Some("") => Err(missing()),
        Some(value) => match value.to_lowercase().as_str() {
            "true" => Ok("true".to_owned()),
            "false" => Ok("false".to_owned()),
            _ => Err(format!(
                "expecting boolean value for flag --{name}, not: {value}"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_checked() {
        let known = [
            ("link", FlagKind::Bool),
            ("chown", FlagKind::Text),
            ("exclude", FlagKind::List),
        ];
        let parse = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            Flags::parse(&words, &known)
        };
        let mut flags = parse(&["--link", "--chown=a=b", "--exclude=1", "--exclude=2"]).unwrap();
        assert_eq!(flags.boolean("link"), Some(true));
        assert_eq!(flags.text("chown"), "a=b");
        assert_eq!(flags.list("exclude"), ["1", "2"]);
        for (words, message) in [
            (
                &["--chow=1"][..],
                "unknown flag: --chow (did you mean chown?)",
            ),
            (&["--nothing"][..], "unknown flag: --nothing"),
            (&["--chown"][..], "missing a value on flag: --chown"),
            (&["--link="][..], "missing a value on flag: --link"),
            (
                &["--link=x"][..],
                "expecting boolean value for flag --link, not: x",
            ),
            (
                &["--chown=a", "--chown=b"][..],
                "duplicate flag specified: --chown",
            ),
        ] {
            assert_eq!(parse(words).unwrap_err(), message);
        }
    }
}
