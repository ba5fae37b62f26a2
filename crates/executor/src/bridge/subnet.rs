//! Which addresses the bridge has.

use std::io;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Its first address, as a number.
    base: u32,
    /// How many bits are the same in all of them.
    pub(super) prefix: u8,
}

impl Subnet {
    const fn new(a: u8, b: u8, prefix: u8) -> Self {
        Subnet {
            base: (a as u32) << 24 | (b as u32) << 16,
            prefix,
        }
    }

    /// Those of some private networks that share no address with a route in the kernel's table
    /// (`/proc/…/net/route`), in the order of preference; the default route does not count.
    pub(super) fn free(routes: &str) -> impl Iterator<Item = Self> + use<> {
        let taken: Vec<Subnet> = routes.lines().skip(1).filter_map(route).collect();
        // Stock's own first, then others nobody has by default.
        let candidates = (10..=250).step_by(16).map(|b| Subnet::new(10, b, 16));
        let more = (20..=31).map(|b| Subnet::new(172, b, 16));
        candidates
            .chain(more)
            .filter(move |subnet| !taken.iter().any(|other| other.overlaps(subnet)))
    }

    /// The address at that place.
    pub(super) fn address(&self, at: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base.wrapping_add(at))
    }

    /// The addresses of steps, one after the other and again from the start: not the network's,
    /// the gateway's and the broadcast one.
    pub(super) fn in_turn(&self, number: u32) -> Ipv4Addr {
        self.address(2 + number % self.steps())
    }

    /// How many steps can have one at once.
    pub(super) fn steps(&self) -> u32 {
        self.size() - 3
    }

    /// The bits that are the same in all addresses.
    pub(super) fn mask(&self) -> u32 {
        !(self.size() - 1)
    }

    fn size(&self) -> u32 {
        1 << (32 - self.prefix)
    }

    fn overlaps(&self, other: &Subnet) -> bool {
        let mask = self.mask() & other.mask();
        self.base & mask == other.base & mask
    }
}

impl FromStr for Subnet {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let bad = || io::Error::other(format!("invalid bridge subnet {text:?}: as 10.10.0.0/16"));
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if !(8..=29).contains(&prefix) {
            return Err(bad());
        }
        let mut subnet = Subnet { base: 0, prefix };
        subnet.base = u32::from(address) & subnet.mask();
        Ok(subnet)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address(0), self.prefix)
    }
}

/// A line of the kernel's table: columns Iface, Destination, Gateway, Flags, RefCnt, Use, Metric,
/// Mask; addresses are in hexadecimal and this machine's byte order.
fn route(line: &str) -> Option<Subnet> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let hex = |at: usize| {
        let number = u32::from_str_radix(fields.get(at)?, 16).ok()?;
        Some(u32::from(Ipv4Addr::from(number.to_ne_bytes())))
    };
    let (base, mask) = (hex(1)?, hex(7)?);
    let prefix = mask.count_ones() as u8;
    (prefix > 0).then_some(Subnet { base, prefix })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n";

    #[test]
    fn a_network_that_a_route_knows_is_not_taken() {
        let free = |routes: &str| {
            let mut free = Subnet::free(&format!("{HEAD}{routes}"));
            free.next().map(|subnet| subnet.to_string())
        };
        let default = "eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\n";
        assert_eq!(free(default).unwrap(), "10.10.0.0/16");
        // 10.10.5.0/24
        let inside = "eth0\t00050A0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n";
        assert_eq!(free(inside).unwrap(), "10.26.0.0/16");
        // 10.0.0.0/8
        let around = "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\n";
        assert_eq!(free(around).unwrap(), "172.20.0.0/16");
    }

    #[test]
    fn addresses_of_steps_stay_between_the_gateway_and_the_broadcast_address() {
        let subnet: Subnet = "192.168.7.9/29".parse().unwrap();
        assert_eq!(subnet.to_string(), "192.168.7.8/29");
        let given: Vec<String> = (0..6).map(|n| subnet.in_turn(n).to_string()).collect();
        assert_eq!(given[0], "192.168.7.10");
        assert_eq!(given[4], "192.168.7.14");
        assert_eq!(given[5], given[0]);
        for bad in ["", "10.0.0.0", "10.0.0.0/31", "10.0.0.0/7", "x/16"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }
}
