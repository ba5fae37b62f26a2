//! Numbers, names and pairs in flags.

use std::collections::BTreeMap;
use std::net::IpAddr;

use diag::{Context, Error};
use driver::parse_size;
use llb::ULIMIT_NAMES;
use oci::{Platform, Reference, ReferenceError};

use crate::csv;
use crate::environment::Environment;
use crate::spec::Attributes;

/// What `--allow` grants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entitlements {
    /// What the server is asked to grant.
    pub server: Vec<String>,
    /// Whether a local export may delete outside of the working directory.
    pub local_delete: bool,
}

const LOCAL_DELETE: &str = "buildx.local.delete";

/// The resources of `--resource` and the frontend's attribute of each.
const RESOURCES: [(&str, &str); 7] = [
    ("memory", "memory"),
    ("memory-swap", "memswap"),
    ("cpu-shares", "cpushares"),
    ("cpu-period", "cpuperiod"),
    ("cpu-quota", "cpuquota"),
    ("cpuset-cpus", "cpusetcpus"),
    ("cpuset-mems", "cpusetmems"),
];

/// `KEY=VALUE` pairs. Without `=` the value is the environment's if `from_env` (and the pair is left
/// out when there is none), else empty.
pub fn parse_key_values(
    values: &[String],
    from_env: Option<&Environment>,
) -> Result<BTreeMap<String, String>, Error> {
    let mut pairs = BTreeMap::new();
    for text in values {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (text.as_str(), None),
        };
        if key.is_empty() {
            return Err(Error::invalid(format!(
                "invalid key-value pair {text:?}: empty key"
            )));
        }
        let value = match (value, from_env) {
            (Some(value), _) => Some(value),
            (None, Some(env)) => env.get(key),
            (None, None) => Some(""),
        };
        if let Some(value) = value {
            pairs.insert(key.to_owned(), value.to_owned());
        }
    }
    Ok(pairs)
}

/// Platforms, several in a value separated by commas; `local` is this machine's.
pub fn parse_platforms(values: &[String]) -> Result<Vec<Platform>, Error> {
    values
        .iter()
        .flat_map(|value| value.split(','))
        .map(|text| match text.eq_ignore_ascii_case("local") {
            true => Ok(Platform::host()),
            false => text
                .parse::<Platform>()
                .map_err(|error| Error::invalid(error.to_string())),
        })
        .collect()
}

/// Checks names of images; gives them back as they were written.
pub fn parse_tags(values: &[String]) -> Result<Vec<String>, Error> {
    values
        .iter()
        .map(|tag| match tag.parse::<Reference>() {
            Ok(_) => Ok(tag.clone()),
            Err(error) => {
                let message = match error {
                    _ if tag.is_empty() => {
                        "repository name must have at least one component".to_owned()
                    }
                    // Said only where lower case would mend it.
                    ReferenceError::Uppercase(_)
                        if tag.to_ascii_lowercase().parse::<Reference>().is_ok() =>
                    {
                        "repository name must be lowercase".to_owned()
                    }
                    ReferenceError::Uppercase(_) => ReferenceError::Format.to_string(),
                    ReferenceError::HexName(_) => return Ok(tag.clone()),
                    other => other.to_string(),
                };
                Err(Error::invalid(message).context(format!("invalid tag {tag:?}")))
            }
        })
        .collect()
}

/// `NAME=WHERE` of `--build-context`; the names are normalised as image names are.
pub fn parse_context_names(values: &[String]) -> Result<BTreeMap<String, String>, Error> {
    let mut contexts = BTreeMap::new();
    for text in values.iter().filter(|text| !text.is_empty()) {
        let Some((name, place)) = text.split_once('=') else {
            return Err(Error::invalid(format!(
                "invalid context value: {text}, expected key=value"
            )));
        };
        let reference: Reference = name
            .parse()
            .map_err(|error: ReferenceError| Error::invalid(error.to_string()))
            .with_context(|| format!("invalid context name {name}"))?;
        let familiar = reference.familiar();
        let name = familiar.strip_suffix(":latest").unwrap_or(&familiar);
        contexts.insert(name.to_owned(), place.to_owned());
    }
    Ok(contexts)
}

/// The entitlements of `--allow`.
pub fn parse_entitlements(values: &[String]) -> Result<Entitlements, Error> {
    let mut entitlements = Entitlements::default();
    for text in values.iter().filter(|text| !text.is_empty()) {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (text.as_str(), None),
        };
        match (key, value) {
            (LOCAL_DELETE, Some(_)) => {
                return Err(Error::invalid(format!(
                    "{LOCAL_DELETE} does not accept a value"
                )));
            }
            (LOCAL_DELETE, None) => {
                entitlements.local_delete = true;
                continue;
            }
            ("device", value) => check_device(value.unwrap_or_default())?,
            ("security.insecure" | "network.host", None) => {}
            _ => return Err(Error::invalid(format!("unknown entitlement {text}"))),
        }
        entitlements.server.push(text.clone());
    }
    Ok(entitlements)
}

/// `HOST=IP` or `HOST:IP` entries as the frontend takes them; `gateway` is what `host-gateway`
/// stands for.
pub fn parse_hosts(
    values: &[String],
    gateway: impl Fn() -> Result<IpAddr, Error>,
) -> Result<String, Error> {
    let mut hosts = Vec::new();
    for text in values {
        let invalid = || Error::invalid(format!("invalid host {text}"));
        let (host, addresses) = text
            .split_once('=')
            .or_else(|| text.split_once(':'))
            .filter(|(host, addresses)| !host.is_empty() && !addresses.is_empty())
            .ok_or_else(invalid)?;
        if addresses == "host-gateway" {
            let address = gateway().context("unable to derive the IP value for host-gateway")?;
            hosts.push(format!("{host}={address}"));
            continue;
        }
        for address in addresses.split(',') {
            let bare = address
                .strip_prefix('[')
                .and_then(|address| address.strip_suffix(']'))
                .unwrap_or(address);
            bare.parse::<IpAddr>().map_err(|_| invalid())?;
            hosts.push(format!("{host}={bare}"));
        }
    }
    Ok(hosts.join(","))
}

/// `NAME=SOFT[:HARD]` limits, one a name, sorted, as `NAME=SOFT:HARD`.
pub fn parse_ulimits(values: &[String]) -> Result<Vec<String>, Error> {
    let mut limits = BTreeMap::new();
    for text in values {
        let (name, soft, hard) = parse_ulimit(text).map_err(|message| {
            Error::invalid(format!(
                "invalid argument {text:?} for \"--ulimit\" flag: {message}"
            ))
        })?;
        limits.insert(name.to_owned(), format!("{name}={soft}:{hard}"));
    }
    Ok(limits.into_values().collect())
}

/// `KEY=VALUE` resource limits as attributes of the frontend; those that limit nothing are left out.
pub fn parse_resources(values: &[String]) -> Result<Attributes, Error> {
    let mut attributes = Attributes::new();
    for entry in values {
        let Some((key, value)) = entry.split_once('=') else {
            return Err(Error::invalid(format!(
                "invalid resource {entry:?}, expected key=value"
            )));
        };
        let (key, value) = (key.trim(), value.trim());
        let Some((_, attribute)) = RESOURCES.iter().find(|(known, _)| *known == key) else {
            return Err(Error::invalid(format!("unknown resource {key:?}")));
        };
        let invalid = |message: String| {
            Error::invalid(message).context(format!("invalid value {value:?} for resource {key}"))
        };
        let text = match key {
            "cpuset-cpus" | "cpuset-mems" => value.to_owned(),
            "memory-swap" if value == "-1" => value.to_owned(),
            "memory" | "memory-swap" => parse_size(value).map_err(invalid)?.to_string(),
            _ => parse_integer(value).map_err(invalid)?.to_string(),
        };
        let limits = !text.is_empty()
            && text != "0"
            && (!text.starts_with('-') || text == "-1" && key == "memory-swap");
        if limits {
            attributes.insert((*attribute).to_owned(), text);
        } else {
            attributes.remove(*attribute);
        }
    }
    Ok(attributes)
}

fn check_device(config: &str) -> Result<(), Error> {
    if config.is_empty() {
        return Ok(());
    }
    for field in csv::fields(config)?.iter().skip(1) {
        match field.split_once('=') {
            None => {
                return Err(Error::invalid(format!("invalid device config {field:?}")));
            }
            Some(("alias", _)) => {}
            Some((key, _)) => {
                return Err(Error::invalid(format!("unknown device config key {key:?}")));
            }
        }
    }
    Ok(())
}

fn parse_integer(text: &str) -> Result<i64, String> {
    text.parse().map_err(|error: std::num::ParseIntError| {
        use std::num::IntErrorKind::{NegOverflow, PosOverflow};
        let what = match error.kind() {
            PosOverflow | NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        format!("strconv.ParseInt: parsing {text:?}: {what}")
    })
}

/// One limit, `NAME=SOFT[:HARD]`: its name and both values. The error is why it is none.
pub fn parse_ulimit(text: &str) -> Result<(&str, i64, i64), String> {
    let (name, limits) = text
        .split_once('=')
        .ok_or_else(|| format!("invalid ulimit argument: {text}"))?;
    if !ULIMIT_NAMES.contains(&name) {
        return Err(format!("invalid ulimit type: {name}"));
    }
    let parts: Vec<&str> = limits.split(':').collect();
    let (soft, hard) = match parts[..] {
        [soft] => (soft, soft),
        [soft, hard] => (soft, hard),
        _ => {
            return Err(format!(
                "too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`"
            ));
        }
    };
    let (hard, soft) = (parse_integer(hard)?, parse_integer(soft)?);
    let order = "ulimit soft limit must be less than or equal to hard limit";
    if hard != -1 && soft == -1 {
        return Err(format!("{order}: soft: -1 (unlimited), hard: {hard}"));
    }
    if hard != -1 && soft > hard {
        return Err(format!("{order}: {soft} > {hard}"));
    }
    Ok((name, soft, hard))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn pairs_take_missing_values_from_the_environment() {
        let env = Environment::new([("B", "2")]);
        let pairs = parse_key_values(&list(&["A=1=x", "B", "C"]), Some(&env)).unwrap();
        assert_eq!(
            pairs,
            [("A".into(), "1=x".into()), ("B".into(), "2".into())].into()
        );
        let labels = parse_key_values(&list(&["L"]), None).unwrap();
        assert_eq!(labels["L"], "");
        let error = parse_key_values(&list(&["=x"]), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid key-value pair \"=x\": empty key"
        );
    }

    #[test]
    fn tags_are_checked_and_kept() {
        assert_eq!(parse_tags(&list(&["a/b:c"])).unwrap(), ["a/b:c"]);
        for (tag, error) in [
            (
                "FOO",
                "invalid tag \"FOO\": repository name must be lowercase",
            ),
            ("a b", "invalid tag \"a b\": invalid reference format"),
            ("A b", "invalid tag \"A b\": invalid reference format"),
            (
                "",
                "invalid tag \"\": repository name must have at least one component",
            ),
        ] {
            assert_eq!(parse_tags(&list(&[tag])).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn hosts_have_addresses() {
        let gateway = || Ok("172.17.0.1".parse().unwrap());
        let values = list(&["a:1.2.3.4", "b=[::1],10.0.0.1", "c:host-gateway", "d:::1"]);
        assert_eq!(
            parse_hosts(&values, gateway).unwrap(),
            "a=1.2.3.4,b=::1,b=10.0.0.1,c=172.17.0.1,d=::1"
        );
        for bad in ["a", "a=", "=1.1.1.1", "a:x"] {
            let error = parse_hosts(&list(&[bad]), gateway).unwrap_err();
            assert_eq!(error.to_string(), format!("invalid host {bad}"));
        }
    }

    #[test]
    fn ulimits_are_checked_and_sorted() {
        let limits = parse_ulimits(&list(&["nproc=5:9", "nofile=3", "nofile=4"])).unwrap();
        assert_eq!(limits, ["nofile=4:4", "nproc=5:9"]);
        for (value, words) in [
            ("x", "invalid ulimit argument: x"),
            ("x=1", "invalid ulimit type: x"),
            (
                "core=9:1",
                "ulimit soft limit must be less than or equal to hard limit: 9 > 1",
            ),
        ] {
            let error = parse_ulimits(&list(&[value])).unwrap_err().to_string();
            assert!(error.ends_with(words), "{error}");
        }
    }

    #[test]
    fn resources_become_attributes() {
        let parsed =
            parse_resources(&list(&["memory=1g", "memory-swap=-1", "cpu-shares=0"])).unwrap();
        let expected = [("memory", "1073741824"), ("memswap", "-1")];
        assert_eq!(
            parsed,
            expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
        );
        let error = parse_resources(&list(&["cpu-quota=x"]))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "invalid value \"x\" for resource cpu-quota: strconv.ParseInt: parsing \"x\": invalid syntax"
        );
        let error = parse_resources(&list(&["foo=1"])).unwrap_err().to_string();
        assert_eq!(error, "unknown resource \"foo\"");
    }

    #[test]
    fn entitlements_are_known_words() {
        let parsed =
            parse_entitlements(&list(&["network.host", "buildx.local.delete", "device=a"]))
                .unwrap();
        assert!(parsed.local_delete);
        assert_eq!(parsed.server, ["network.host", "device=a"]);
        let error = parse_entitlements(&list(&["root"]))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "unknown entitlement root");
    }

    #[test]
    fn context_names_are_normalised() {
        let contexts =
            parse_context_names(&list(&["docker.io/library/alpine:latest=dir", "a=b=c"])).unwrap();
        assert_eq!(contexts["alpine"], "dir");
        assert_eq!(contexts["a"], "b=c");
    }
}
