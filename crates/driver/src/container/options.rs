//! `--driver-opt` of the docker-container driver: from text to values, with stock's refusals.

use std::collections::BTreeMap;

use engine_api::{DeviceRequest, RestartPolicy};

use crate::go_number::{parse_bool, parse_int, parse_size};
use crate::{DriverError, IMAGE_ORDER_OPTION, ImageOrder};

/// Options by their exact name; `env.<key>` stands beside them.
const NAMES: &[&str] = &[
    "allow-untrusted-image",
    "cgroup-parent",
    "cpu-period",
    "cpu-quota",
    "cpu-shares",
    "cpuset-cpus",
    "cpuset-mems",
    "default-load",
    IMAGE_ORDER_OPTION,
    "gpus",
    "image",
    "memory",
    "memory-swap",
    "network",
    "provenance-add-gha",
    "proxy",
    "restart-policy",
    "state",
];

/// True when the driver has an option of that name.
pub(crate) fn is_option(key: &str) -> bool {
    NAMES.contains(&key)
        || key
            .strip_prefix("env.")
            .is_some_and(|name| !name.is_empty())
}

/// What the options say; the documentation of each is in the table of the driver's manual.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ContainerOptions {
    pub(super) network: String,
    /// Image to pull instead of our own.
    pub(super) image: Option<String>,
    /// Bytes.
    pub(super) memory: i64,
    /// Bytes; -1 is no limit.
    pub(super) memory_swap: i64,
    pub(super) cpu_quota: i64,
    pub(super) cpu_period: i64,
    pub(super) cpu_shares: i64,
    pub(super) cpuset_cpus: String,
    pub(super) cpuset_mems: String,
    pub(super) cgroup_parent: Option<String>,
    pub(super) restart_policy: RestartPolicy,
    pub(super) env: BTreeMap<String, String>,
    pub(super) default_load: bool,
    pub(super) gpus: Option<DeviceRequest>,
    /// Volume to keep state in, instead of one named after the node.
    pub(super) state: Option<String>,
    /// False: no proxies are passed to the server.
    pub(super) inherit_proxies: bool,
}

impl ContainerOptions {
    pub(super) fn parse(options: &BTreeMap<String, String>) -> Result<Self, DriverError> {
        let mut parsed = ContainerOptions {
            restart_policy: RestartPolicy {
                name: "unless-stopped".to_owned(),
                maximum_retry_count: 0,
            },
            inherit_proxies: true,
            ..ContainerOptions::default()
        };
        for (key, value) in options {
            parsed.set(key, value).map_err(|reason| {
                DriverError::Option(if names_itself(key, &reason) {
                    reason
                } else {
                    format!("invalid value for driver option {key}: {reason}")
                })
            })?;
        }
        Ok(parsed)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let non_empty = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        match key {
            "network" => self.network = value.to_owned(),
            "image" => self.image = non_empty(value),
            "memory" => self.memory = parse_size(value)?,
            "memory-swap" if value == "-1" => self.memory_swap = -1,
            "memory-swap" => self.memory_swap = parse_size(value)?,
            "cpu-period" => self.cpu_period = parse_int(value)?,
            "cpu-quota" => self.cpu_quota = parse_int(value)?,
            "cpu-shares" => self.cpu_shares = parse_int(value)?,
            "cpuset-cpus" => self.cpuset_cpus = value.to_owned(),
            "cpuset-mems" => self.cpuset_mems = value.to_owned(),
            "cgroup-parent" => self.cgroup_parent = non_empty(value),
            "restart-policy" => self.restart_policy = restart_policy(value)?,
            "default-load" => self.default_load = parse_bool(value)?,
            "gpus" => self.gpus = Some(gpus(value)?),
            "state" => self.state = Some(volume_name(value)?),
            "proxy" => self.inherit_proxies = proxy(value)?,
            // Builds look at it, the container does not.
            IMAGE_ORDER_OPTION => {
                value.parse::<ImageOrder>()?;
            }
            // Both choose details of stock's own image and provenance that have no part here.
            "provenance-add-gha" | "allow-untrusted-image" => {
                parse_bool(value)?;
            }
            _ => match key.strip_prefix("env.") {
                Some("") => {
                    return Err(format!("invalid env option {key:?}, expecting env.FOO=bar"));
                }
                Some(name) => {
                    self.env.insert(name.to_owned(), value.to_owned());
                }
                None => {
                    return Err(format!(
                        "invalid driver option {key} for docker-container driver"
                    ));
                }
            },
        }
        Ok(())
    }
}

/// Sizes and whole options are refused in the words scripts know; elsewhere those words do not say
/// which option is meant.
fn names_itself(key: &str, reason: &str) -> bool {
    matches!(key, "memory" | "memory-swap") || reason.contains(key)
}

fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    let invalid = |what: &str| format!("invalid restart policy format: {what}");
    let (name, count) = match text.split_once(':') {
        Some(("", _)) => return Err(invalid("no policy provided before colon")),
        Some((name, count)) => (name, count),
        None => (text, ""),
    };
    let maximum_retry_count = if count.is_empty() {
        0
    } else {
        count
            .parse()
            .map_err(|_| invalid("maximum retry count must be an integer"))?
    };
    match name {
        "on-failure" if maximum_retry_count < 0 => {
            Err("invalid restart policy: maximum retry count cannot be negative".to_owned())
        }
        "" | "no" | "always" | "unless-stopped" if maximum_retry_count != 0 => Err(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
                .to_owned(),
        ),
        "" | "no" | "always" | "unless-stopped" | "on-failure" => Ok(RestartPolicy {
            name: name.to_owned(),
            maximum_retry_count,
        }),
        _ => Err(format!(
            "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', \
             'on-failure', or 'unless-stopped'"
        )),
    }
}

/// Docker's `--gpus`: `all`, a number, or `key=value` pieces of which a device list goes on after
/// its comma.
fn gpus(text: &str) -> Result<DeviceRequest, String> {
    let count = |text: &str| match text {
        "all" => Ok(-1),
        _ => text.parse::<i64>().map_err(|_| {
            format!(
                "invalid count ({text}): value must be either \"all\" or an integer: invalid syntax"
            )
        }),
    };
    let mut request = DeviceRequest {
        capabilities: vec![vec!["gpu".to_owned()]],
        ..DeviceRequest::default()
    };
    let mut counted = false;
    let mut listing: Option<&str> = None;
    for field in text.split(',').map(|field| field.trim_matches('"')) {
        match field.split_once('=') {
            Some(("driver", value)) => request.driver = value.to_owned(),
            Some(("count", value)) => {
                request.count = count(value)?;
                counted = true;
            }
            Some(("device", value)) => {
                request.device_ids = Some(vec![value.to_owned()]);
                listing = Some("device");
                continue;
            }
            Some(("capabilities", value)) => {
                request.capabilities = vec![vec![value.to_owned(), "gpu".to_owned()]];
                listing = Some("capabilities");
                continue;
            }
            Some((key, _)) => return Err(format!("unexpected key '{key}' in '{field}'")),
            None if listing == Some("device") => {
                request
                    .device_ids
                    .get_or_insert_default()
                    .push(field.to_owned());
                continue;
            }
            None if listing == Some("capabilities") => {
                request.capabilities[0].insert(0, field.to_owned());
                continue;
            }
            None => {
                request.count = count(field)?;
                counted = true;
            }
        }
        listing = None;
    }
    if !counted && request.device_ids.is_none() {
        request.count = 1;
    }
    Ok(request)
}

fn volume_name(text: &str) -> Result<String, String> {
    let mut bytes = text.bytes();
    let valid = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.len() > 0
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if valid {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "invalid driver option state={text:?}: expecting the name of a volume"
        ))
    }
}

fn proxy(text: &str) -> Result<bool, String> {
    match text {
        "none" => Ok(false),
        "inherit" => Ok(true),
        _ => Err(format!(
            "invalid driver option proxy={text:?}: expecting \"none\" or \"inherit\""
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<ContainerOptions, String> {
        let map = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        ContainerOptions::parse(&map).map_err(|e| e.to_string())
    }

    #[test]
    fn values_are_read() {
        let options = parse(&[
            ("memory", "512m"),
            ("memory-swap", "-1"),
            ("restart-policy", "on-failure:3"),
            ("env.A", "b=c"),
            ("default-load", "t"),
        ])
        .unwrap();
        assert_eq!(options.memory, 512 << 20);
        assert_eq!(options.memory_swap, -1);
        assert_eq!(options.restart_policy.maximum_retry_count, 3);
        assert_eq!(options.env["A"], "b=c");
        assert!(options.default_load);
        assert_eq!(parse(&[]).unwrap().restart_policy.name, "unless-stopped");
    }

    #[test]
    fn bad_values_are_refused_in_the_known_words() {
        for (key, value, words) in [
            ("memory", "abc", "invalid size: 'abc'"),
            (
                "bogus",
                "1",
                "invalid driver option bogus for docker-container driver",
            ),
            (
                "env.",
                "x",
                "invalid env option \"env.\", expecting env.FOO=bar",
            ),
            (
                "default-load",
                "maybe",
                "invalid value for driver option default-load: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
            (
                "cpu-quota",
                "x",
                "invalid value for driver option cpu-quota: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            (
                "restart-policy",
                ":3",
                "invalid value for driver option restart-policy: invalid restart policy format: no policy provided before colon",
            ),
            (
                "restart-policy",
                "sometimes",
                "invalid value for driver option restart-policy: invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
            ),
        ] {
            assert_eq!(parse(&[(key, value)]), Err(words.to_owned()));
        }
    }

    #[test]
    fn gpus_are_asked_for_only_when_named() {
        assert_eq!(parse(&[]).unwrap().gpus, None);
        assert_eq!(parse(&[("gpus", "all")]).unwrap().gpus.unwrap().count, -1);
        let devices = parse(&[("gpus", "device=0,1")]).unwrap().gpus.unwrap();
        assert_eq!(devices.device_ids, Some(vec!["0".into(), "1".into()]));
        assert!(parse(&[("gpus", "many")]).is_err());
    }
}
