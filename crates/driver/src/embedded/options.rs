//! `--driver-opt` of the embedded driver.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::DriverError;
use crate::go_number::{parse_bool, parse_duration};

/// Options by their exact name; `env.<key>` stands beside them.
const NAMES: &[&str] = &["default-load", "idle-timeout", "proxy", "state"];
/// How long a server without clients lives unless the user says otherwise.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// True when the driver has an option of that name.
pub(crate) fn is_option(key: &str) -> bool {
    NAMES.contains(&key)
        || key
            .strip_prefix("env.")
            .is_some_and(|name| !name.is_empty())
}

/// What the options say.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct EmbeddedOptions {
    /// A build without an output loads its image into the Docker Engine.
    pub(super) default_load: bool,
    /// How long a server without clients lives; zero is for ever.
    pub(super) idle_timeout: Duration,
    /// Folder to keep state in, instead of one named after the node.
    pub(super) state: Option<PathBuf>,
    /// False: no proxies are passed to the server.
    pub(super) inherit_proxies: bool,
    /// Variables of the server.
    pub(super) env: BTreeMap<String, String>,
}

impl EmbeddedOptions {
    pub(super) fn parse(options: &BTreeMap<String, String>) -> Result<Self, DriverError> {
        let mut parsed = EmbeddedOptions {
            default_load: false,
            idle_timeout: IDLE_TIMEOUT,
            state: None,
            inherit_proxies: true,
            env: BTreeMap::new(),
        };
        for (key, value) in options {
            parsed.set(key, value).map_err(DriverError::Option)?;
        }
        Ok(parsed)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let wrong = |reason: String| format!("invalid value for driver option {key}: {reason}");
        match key {
            "default-load" => self.default_load = parse_bool(value).map_err(wrong)?,
            "idle-timeout" => self.idle_timeout = parse_duration(value).map_err(wrong)?,
            "state" if !Path::new(value).is_absolute() => {
                return Err(wrong(format!("{value:?} is not an absolute path")));
            }
            "state" => self.state = Some(value.into()),
            "proxy" => {
                self.inherit_proxies = match value {
                    "none" => false,
                    "inherit" => true,
                    _ => {
                        return Err(wrong(format!(
                            "{value:?}: expecting \"none\" or \"inherit\""
                        )));
                    }
                }
            }
            _ => match key.strip_prefix("env.") {
                Some("") => {
                    return Err(format!("invalid env option {key:?}, expecting env.FOO=bar"));
                }
                Some(name) => {
                    self.env.insert(name.to_owned(), value.to_owned());
                }
                None => return Err(format!("invalid driver option {key} for embedded driver")),
            },
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<EmbeddedOptions, String> {
        let map = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        EmbeddedOptions::parse(&map).map_err(|e| e.to_string())
    }

    #[test]
    fn values_are_read() {
        let options = parse(&[
            ("idle-timeout", "1m30s"),
            ("state", "/srv/s"),
            ("env.A", "b=c"),
            ("proxy", "none"),
        ])
        .unwrap();
        assert_eq!(options.idle_timeout, Duration::from_secs(90));
        assert_eq!(options.state, Some("/srv/s".into()));
        assert_eq!(options.env["A"], "b=c");
        assert!(!options.inherit_proxies);
        assert_eq!(parse(&[]).unwrap().idle_timeout, IDLE_TIMEOUT);
    }

    #[test]
    fn bad_values_are_refused_and_the_option_is_named() {
        for (key, value, words) in [
            (
                "idle-timeout",
                "soon",
                "invalid value for driver option idle-timeout: time: invalid duration \"soon\"",
            ),
            (
                "state",
                "here",
                "invalid value for driver option state: \"here\" is not an absolute path",
            ),
            (
                "default-load",
                "maybe",
                "invalid value for driver option default-load: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
            (
                "memory",
                "1g",
                "invalid driver option memory for embedded driver",
            ),
            (
                "env.",
                "x",
                "invalid env option \"env.\", expecting env.FOO=bar",
            ),
            (
                "proxy",
                "some",
                "invalid value for driver option proxy: \"some\": expecting \"none\" or \"inherit\"",
            ),
        ] {
            assert_eq!(parse(&[(key, value)]), Err(words.to_owned()));
        }
    }
}
