//! Networks of addresses, written as an address and the length of a prefix.

use std::net::IpAddr;
use std::str::FromStr;

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    prefix_bits: u8,
}

/// The text is no network.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotANetwork;

impl Network {
    /// How many leading bits its addresses share.
    pub(crate) fn prefix_bits(self) -> u8 {
        self.prefix_bits
    }

    /// Whether an address is one of it; an IPv4 address in IPv6 clothes is one of IPv4's.
    pub(crate) fn contains(self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = u32::from(own) ^ u32::from(other);
                differing.leading_zeros() >= u32::from(self.prefix_bits)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = u128::from(own) ^ u128::from(other);
                differing.leading_zeros() >= u32::from(self.prefix_bits)
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, bits) = text.split_once('/').ok_or(NotANetwork)?;
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let prefix_bits: u8 = bits.parse().map_err(|_| NotANetwork)?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        match prefix_bits <= bits_max {
            true => Ok(Network {
                address,
                prefix_bits,
            }),
            false => Err(NotANetwork),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_belong_to_the_networks_whose_prefix_they_have() {
        for (network, address, inside) in [
            ("10.88.0.0/24", "10.88.0.1", true),
            ("10.88.0.0/24", "10.88.1.1", false),
            ("10.88.0.7/24", "10.88.0.1", true),
            ("10.0.0.0/0", "192.0.2.1", true),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("10.0.0.1/32", "10.0.0.2", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "10.0.0.1", false),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert_eq!(
                parsed.contains(address.parse().unwrap()),
                inside,
                "{network} {address}"
            );
        }
    }

    #[test]
    fn hosts_are_not_networks() {
        for text in ["a/8", "10.0.0.1", "10.0.0.0/33", "10.0.0.0/x", "r:5000/1"] {
            assert_eq!(text.parse::<Network>(), Err(NotANetwork), "{text}");
        }
    }
}
