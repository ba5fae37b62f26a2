//! Which step has which address.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::subnet::Subnet;

/// The addresses of a bridge's steps. They are given out in turn, so that none comes back while others
/// still remember it, and never to two steps at once.
#[derive(Debug)]
pub(super) struct Addresses {
    subnet: Subnet,
    given: Arc<Mutex<Given>>,
}

#[derive(Debug, Default)]
struct Given {
    next: u32,
    in_use: BTreeSet<Ipv4Addr>,
}

/// An address of one step, which is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    /// The address.
    pub(super) address: Ipv4Addr,
    given: Arc<Mutex<Given>>,
}

impl Addresses {
    pub(super) fn new(subnet: Subnet) -> Self {
        Addresses {
            subnet,
            given: Arc::default(),
        }
    }

    /// The next one that no step has.
    pub(super) fn lease(&self) -> io::Result<Lease> {
        let mut given = self.given.lock();
        for _ in 0..self.subnet.steps() {
            let address = self.subnet.in_turn(given.next);
            given.next = given.next.wrapping_add(1);
            if given.in_use.insert(address) {
                return Ok(Lease {
                    address,
                    given: self.given.clone(),
                });
            }
        }
        Err(io::Error::other(format!(
            "all {} addresses of {} are in use: bridgeSubnet is too small",
            self.subnet.steps(),
            self.subnet
        )))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.given.lock().in_use.remove(&self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_steps_have_the_same_address() {
        let addresses = Addresses::new("192.168.7.8/29".parse().unwrap());
        let mut leases: Vec<Lease> = (0..5).map(|_| addresses.lease().unwrap()).collect();
        let different: BTreeSet<_> = leases.iter().map(|lease| lease.address).collect();
        assert_eq!(different.len(), 5);
        let error = addresses.lease().unwrap_err().to_string();
        assert!(
            error.starts_with("all 5 addresses of 192.168.7.8/29"),
            "{error}"
        );
        let freed = leases.remove(3).address;
        assert_eq!(addresses.lease().unwrap().address, freed);
    }
}
