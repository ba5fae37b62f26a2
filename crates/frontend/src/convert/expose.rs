//! The ports of `EXPOSE`: numbers and ranges with a protocol.

use std::net::IpAddr;

use diag::Result;
use dockerfile::Lines;
use dockerfile::lint::{Linter, Rule};
use dockerfile::quote::quoted;

use crate::failure::fail;

/// `port/protocol` for every port that a word means.
pub(super) fn ports(word: &str, lines: Lines, lint: &Linter) -> Result<Vec<String>> {
    let parts: Vec<&str> = word.split(':').collect();
    let (address, host_port, container) = match parts.as_slice() {
        [port] => (String::new(), "", *port),
        [host, port] => (String::new(), *host, *port),
        [address @ .., host, port] => (address.join(":"), *host, *port),
        [] => (String::new(), "", ""),
    };
    let (container, protocol) = split_protocol(container)
        .map_err(|reason| fail(reason).context(format!("invalid port: {}", quoted(word))))?;
    if protocol != protocol.to_lowercase() {
        let message =
            format!("Defined protocol '{word}' in EXPOSE instruction should be lowercase");
        lint.report(Rule::ExposeProtoCasing, lines, message);
    }
    if !address.is_empty() || !host_port.is_empty() {
        let message = format!(
            "EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'"
        );
        lint.report(Rule::ExposeInvalidFormat, lines, message);
    }
    check_address(&address)?;
    let (first, last) =
        range(container).ok_or_else(|| fail(format!("invalid containerPort: {container}")))?;
    if !host_port.is_empty() {
        let (host_first, host_last) =
            range(host_port).ok_or_else(|| fail(format!("invalid hostPort: {host_port}")))?;
        if last - first != host_last - host_first && last != first {
            return Err(fail(format!(
                "invalid ranges specified for container and host Ports: {container} and {host_port}"
            )));
        }
    }
    let protocol = protocol.to_lowercase();
    Ok((first..=last)
        .map(|port| format!("{port}/{protocol}"))
        .collect())
}

fn split_protocol(port: &str) -> Result<(&str, &str), String> {
    let (port, protocol) = port.split_once('/').unwrap_or((port, ""));
    if port.is_empty() {
        return Err("no port specified".to_owned());
    }
    match protocol.to_lowercase().as_str() {
        "" => Ok((port, "tcp")),
        "tcp" | "udp" | "sctp" => Ok((port, protocol)),
        _ => Err(format!("invalid proto: {protocol}")),
    }
}

fn check_address(address: &str) -> Result<()> {
    let bare = match address.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or_else(|| {
            fail(format!(
                "invalid IP address {address}: address {address}:: missing ']' in address"
            ))
        })?,
        None => address,
    };
    if !bare.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(fail(format!("invalid IP address: {bare}")));
    }
    Ok(())
}

fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.parse::<u16>().ok();
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let (start, end) = (number(start)?, number(end)?);
    (start <= end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges() {
        let lines = Lines::one(1);
        for (word, expected) in [
            ("80", vec!["80/tcp"]),
            ("53/UDP", vec!["53/udp"]),
            (
                "8000-8002/sctp",
                vec!["8000/sctp", "8001/sctp", "8002/sctp"],
            ),
            ("81:81", vec!["81/tcp"]),
            ("1.2.3.4:80:81", vec!["81/tcp"]),
            ("[::1]:80:81", vec!["81/tcp"]),
        ] {
            assert_eq!(
                ports(word, lines, &Linter::off()).unwrap(),
                expected,
                "{word}"
            );
        }
        for (word, message) in [
            ("x", "invalid containerPort: x"),
            ("80/x", "invalid port: \"80/x\": invalid proto: x"),
            ("/tcp", "invalid port: \"/tcp\": no port specified"),
            ("70000", "invalid containerPort: 70000"),
            ("3-1", "invalid containerPort: 3-1"),
            (
                "1-2:3-5",
                "invalid ranges specified for container and host Ports: 3-5 and 1-2",
            ),
            ("a:1:2", "invalid IP address: a"),
        ] {
            assert_eq!(
                ports(word, lines, &Linter::off()).unwrap_err().to_string(),
                message
            );
        }
    }
}
