//! The network of steps: which namespace, and the files that name hosts and name servers.
//!
//! A step shares the server's network namespace (its container's, when the server runs in one), so
//! the server's own resolver works for it as it is, `127.0.0.11` and `127.0.0.53` included, and no
//! public name server is ever put in. A step with [`llb::NetMode::None`] has a loopback only.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::ExecError;

/// The name a step's machine has when none is asked for.
pub(crate) const HOSTNAME_DEFAULT: &str = "buildkitsandbox";

/// What the executor's configuration says about networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Name servers instead of those of the server's `/etc/resolv.conf`.
    pub nameservers: Vec<String>,
    /// Search domains instead of its own.
    pub search: Vec<String>,
    /// Resolver options instead of its own.
    pub options: Vec<String>,
}

/// The `/etc/resolv.conf` of a step, from the server's (empty when it has none).
pub(crate) fn resolv_conf(config: &NetworkConfig, own: &str) -> String {
    let replaced = |keyword: &str| match keyword {
        "nameserver" => !config.nameservers.is_empty(),
        "search" | "domain" => !config.search.is_empty(),
        "options" => !config.options.is_empty(),
        _ => false,
    };
    let mut out = String::new();
    for line in own.lines() {
        let keyword = line.split_ascii_whitespace().next().unwrap_or_default();
        if !replaced(keyword) {
            out.push_str(line);
            out.push('\n');
        }
    }
    for server in &config.nameservers {
        out.push_str(&format!("nameserver {server}\n"));
    }
    if !config.search.is_empty() {
        out.push_str(&format!("search {}\n", config.search.join(" ")));
    }
    if !config.options.is_empty() {
        out.push_str(&format!("options {}\n", config.options.join(" ")));
    }
    out
}

/// The `/etc/hosts` of a step.
pub(crate) fn hosts(
    hostname: &str,
    extra: &[(String, String)],
    gateway: impl Fn() -> Option<IpAddr>,
) -> Result<String, ExecError> {
    let mut out =
        format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in extra {
        let valid = |c: char| !c.is_whitespace() && !c.is_control() && c != '#';
        if name.is_empty() || !name.chars().all(valid) {
            return Err(ExecError::InvalidSpec(format!(
                "invalid host name {name:?}"
            )));
        }
        let address: IpAddr = if address == "host-gateway" {
            gateway().ok_or_else(|| {
                ExecError::InvalidSpec(format!(
                    "host {name:?}: unable to derive the address of host-gateway: there is no default route"
                ))
            })?
        } else {
            address
                .trim_start_matches('[')
                .trim_end_matches(']')
                .parse()
                .map_err(|_| {
                    ExecError::InvalidSpec(format!(
                        "failed to parse IP {address:?} for host {name:?}"
                    ))
                })?
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{address}\t{name}");
    }
    Ok(out)
}

/// The gateway of this machine's (or container's) default route; IPv4 is preferred.
pub fn default_gateway() -> Option<IpAddr> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    gateway_v4(&read("/proc/net/route"))
        .map(IpAddr::V4)
        .or_else(|| gateway_v6(&read("/proc/net/ipv6_route")).map(IpAddr::V6))
}

/// Reads the kernel's IPv4 table: columns Iface, Destination, Gateway, Flags, RefCnt, Use, Metric,
/// Mask; numbers are in hexadecimal, addresses in this machine's byte order.
fn gateway_v4(table: &str) -> Option<Ipv4Addr> {
    let mut best: Option<(u32, Ipv4Addr)> = None;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let hex = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        let (Some(destination), Some(gateway), Some(mask)) = (hex(1), hex(2), hex(7)) else {
            continue;
        };
        let metric: u32 = fields[6].parse().unwrap_or(u32::MAX);
        if destination == 0 && mask == 0 && gateway != 0 {
            let address = Ipv4Addr::from(gateway.to_ne_bytes());
            if best.is_none_or(|(least, _)| metric < least) {
                best = Some((metric, address));
            }
        }
    }
    best.map(|(_, address)| address)
}

/// Reads the IPv6 table: destination, its prefix length, source, its prefix length, next hop, …
fn gateway_v6(table: &str) -> Option<Ipv6Addr> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_default = fields.first()?.bytes().all(|b| b == b'0') && *fields.get(1)? == "00";
        let next = u128::from_str_radix(fields.get(4)?, 16).ok()?;
        (is_default && next != 0).then(|| Ipv6Addr::from(next))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_resolver_is_kept_whatever_its_address() {
        let own = "# made by Docker\nnameserver 127.0.0.11\noptions ndots:0\n";
        assert_eq!(resolv_conf(&NetworkConfig::default(), own), own);
        let own = "nameserver 127.0.0.53\nsearch lan\n";
        assert_eq!(resolv_conf(&NetworkConfig::default(), own), own);
        assert_eq!(resolv_conf(&NetworkConfig::default(), ""), "");
    }

    #[test]
    fn configured_name_servers_replace_only_what_they_name() {
        let config = NetworkConfig {
            nameservers: vec!["10.0.0.1".into()],
            ..NetworkConfig::default()
        };
        assert_eq!(
            resolv_conf(&config, "nameserver 1.2.3.4\nsearch lan\n"),
            "search lan\nnameserver 10.0.0.1\n"
        );
    }

    #[test]
    fn host_gateway_is_the_gateway_of_the_default_route() {
        let extra = vec![
            ("me".to_owned(), "host-gateway".to_owned()),
            ("six".to_owned(), "[fd00::1]".to_owned()),
        ];
        let gateway = || Some(IpAddr::V4(Ipv4Addr::new(172, 17, 0, 1)));
        let text = hosts("h", &extra, gateway).unwrap();
        assert!(text.starts_with("127.0.0.1\tlocalhost h\n::1\tlocalhost ip6-localhost"));
        assert!(text.ends_with("172.17.0.1\tme\nfd00::1\tsix\n"));
        assert!(hosts("h", &extra, || None).is_err());
        let bad = vec![("a b".to_owned(), "1.2.3.4".to_owned())];
        assert!(hosts("h", &bad, || None).is_err());
    }

    #[test]
    fn the_default_route_with_the_smallest_metric_wins() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
            eth1\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\n\
            eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\n";
        assert_eq!(gateway_v4(table), Some(Ipv4Addr::new(172, 17, 0, 1)));
        let table = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n";
        assert_eq!(gateway_v6(table), "fd00::1".parse().ok());
    }
}
