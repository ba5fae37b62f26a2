//! A network of the steps' own: a bridge that the server makes, a namespace and an address for each
//! step, masquerading towards everything else.
//!
//! A step gets a namespace that no other step has had. Making one takes the kernel a while, so the
//! executor keeps a few ready. Nothing is run for it but system calls; it needs `CAP_NET_ADMIN` over
//! the server's own network and the kernel's nftables.
//!
//! Invariant: a namespace ends with the step that has it, its end of the cable with it; the bridge
//! and its rules end with the [`Bridge`], and a bridge that a killed server left is made anew.

mod addresses;
mod claim;
mod dns;
mod nat;
mod netlink;
mod subnet;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};

use addresses::Addresses;
pub(crate) use addresses::Lease;
use claim::Claim;
use netlink::{Link, Route};
pub use subnet::Subnet;

/// The bridge's name unless another is configured, with a number.
const BRIDGE_NAME: &str = "buildkit";
/// How many numbers are tried.
const BRIDGES_MAX: u32 = 64;
/// Longest name of an interface, in bytes.
const NAME_LENGTH_MAX: usize = 15;
/// The kernel's table of the network that this thread is in.
const ROUTES: &str = "/proc/thread-self/net/route";
/// What the step calls its end of the cable.
const INSIDE: &str = "eth0";

/// How a [`Bridge`] is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Its name; empty for `buildkit0`, or the next number that is free.
    pub name: String,
    /// Its addresses, as `10.10.0.0/16`; empty for a network that no route of the server knows.
    pub subnet: String,
}

/// A bridge with its rules.
#[derive(Debug)]
pub struct Bridge {
    name: String,
    subnet: Subnet,
    addresses: Addresses,
    forwarder: Option<dns::Forwarder>,
    /// Of its name, and of its subnet if that was chosen here. Given up last, when nothing of the
    /// bridge is left.
    _claims: Vec<Claim>,
}

/// The network of one step.
#[derive(Debug)]
pub(crate) struct StepNetwork {
    /// Its namespace.
    pub(crate) namespace: OwnedFd,
    /// Its address, to be kept until the step has ended.
    pub(crate) lease: Lease,
}

impl Bridge {
    /// Makes the bridge in the network that the server is in.
    pub fn open(config: &BridgeConfig) -> io::Result<Self> {
        if !config.name.is_empty() {
            return Self::make(&config.name, &config.subnet).map_err(explained);
        }
        (0..BRIDGES_MAX).for_each(|number| sweep(&format!("{BRIDGE_NAME}{number}")));
        for number in 0..BRIDGES_MAX {
            match Self::make(&format!("{BRIDGE_NAME}{number}"), &config.subnet) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map_err(explained),
            }
        }
        Err(io::Error::other("too many bridges are there already"))
    }

    /// Makes the bridge of that name.
    ///
    /// # Errors
    /// `AlreadyExists`, if it is another server's, or not of such a server at all.
    fn make(name: &str, subnet: &str) -> io::Result<Self> {
        // The kernel puts a number where `%d` is.
        let odd = |c: char| c.is_whitespace() || "/:%".contains(c);
        if name.len() > NAME_LENGTH_MAX || matches!(name, "." | "..") || name.contains(odd) {
            return Err(io::Error::other(format!("invalid bridge name {name:?}")));
        }
        let exists = |what: &str| {
            let text = format!("{name:?} already exists {what}: choose another bridgeName");
            io::Error::new(io::ErrorKind::AlreadyExists, text)
        };
        let claim = Claim::take(name)?.ok_or_else(|| exists("and is another server's"))?;
        let socket = netlink::Socket::route()?;
        if netlink::index_of(name).is_ok() {
            // One whose driver says nothing of itself is none either.
            if !netlink::is_bridge(name).unwrap_or(false) {
                return Err(exists("but is not a bridge"));
            }
            if !nat::is_there(name) {
                return Err(exists("and is somebody else's"));
            }
            socket.delete(name)?;
        }
        let mut claims = vec![claim];
        let subnet = match subnet {
            "" => {
                let (subnet, claim) = free_subnet()?;
                claims.push(claim);
                subnet
            }
            text => text.parse()?,
        };
        // The rules come before the bridge and go after it: where there are some, it is a server's.
        nat::masquerade(name, &subnet)?;
        let mut bridge = Bridge {
            name: name.to_owned(),
            subnet,
            addresses: Addresses::new(subnet),
            forwarder: None,
            _claims: claims,
        };
        let [a, b, c, d] = bridge.gateway().octets();
        // Locally administered; no two bridges of a machine have the same gateway.
        let hardware = [0x02, 0x42, a, b, c, d];
        socket.add(&Link::Bridge { name, hardware })?;
        let index = netlink::index_of(name)?;
        socket.add_address(index, bridge.gateway(), subnet.prefix)?;
        socket.up(index)?;
        forward()?;
        bridge.forwarder = dns::Forwarder::start(bridge.gateway());
        Ok(bridge)
    }

    /// The server's own address in it.
    pub fn gateway(&self) -> Ipv4Addr {
        self.subnet.address(1)
    }

    /// Its addresses.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// What steps read for the server's `/etc/resolv.conf`: a name server at the server's own
    /// loopback is reached through the bridge.
    pub(crate) fn resolv_conf(&self, own: &str) -> String {
        let is_loopback = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            words.next() == Some("nameserver")
                && words
                    .next()
                    .and_then(|address| address.parse::<IpAddr>().ok())
                    .is_some_and(|address| address.is_loopback())
        };
        let mut told = false;
        let mut out = String::new();
        for line in own.lines() {
            if !is_loopback(line) || self.forwarder.is_none() {
                out += line;
                out.push('\n');
            } else if !std::mem::replace(&mut told, true) {
                out += &format!("nameserver {}\n", self.gateway());
            }
        }
        out
    }

    /// Takes the bridge and its rules away.
    pub(crate) fn close(&self) {
        if let Ok(socket) = netlink::Socket::route() {
            // Not there is what is wanted.
            let _ = socket.delete(&self.name);
        }
        nat::forget(&self.name);
    }

    /// Makes a namespace that is connected.
    pub(crate) fn connect(&self) -> io::Result<StepNetwork> {
        let lease = self.addresses.lease()?;
        let address = lease.address;
        let (bridge, gateway, prefix) = (self.name.clone(), self.gateway(), self.subnet.prefix);
        // A thread that leaves the server's network cannot come back for sure: it ends instead.
        let thread = std::thread::Builder::new().name("network".to_owned());
        let made = thread.spawn(move || -> io::Result<OwnedFd> {
            let here = netlink::Socket::route()?;
            let master = netlink::index_of(&bridge)?;
            // SAFETY: only this thread's network changes; its sockets stay where they were made.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
            let namespace = OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net")?);
            here.add(&Link::Cable {
                master,
                inside: INSIDE,
                namespace: namespace.as_fd(),
            })?;
            let there = netlink::Socket::route()?;
            there.up(netlink::index_of("lo")?)?;
            let index = netlink::index_of(INSIDE)?;
            there.add_address(index, address, prefix)?;
            there.up(index)?;
            there.add_route(&Route { gateway, index })?;
            Ok(namespace)
        })?;
        let namespace = made
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("making a network crashed")))?;
        Ok(StepNetwork { namespace, lease })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.close();
    }
}

/// Takes away what a killed server left of its bridge.
fn sweep(name: &str) {
    if netlink::index_of(name).is_err() || !nat::is_there(name) {
        return;
    }
    let Ok(Some(_claim)) = Claim::take(name) else {
        return;
    };
    let removed = netlink::Socket::route().and_then(|socket| socket.delete(name));
    match removed {
        Ok(()) => drop(nat::forget(name)),
        Err(error) => tracing::warn!(%error, "the bridge {name} of a killed server stays"),
    }
}

/// A subnet that is nobody's, and the claim that keeps it from servers that start at the same time.
fn free_subnet() -> io::Result<(Subnet, Claim)> {
    for subnet in Subnet::free(&std::fs::read_to_string(ROUTES)?) {
        if let Some(claim) = Claim::take(&subnet.to_string())? {
            return Ok((subnet, claim));
        }
    }
    let text = "no private network is free: set bridgeSubnet";
    Err(io::Error::other(text))
}

/// Has the kernel pass packets on, which it may do already.
fn forward() -> io::Result<()> {
    const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
    match std::fs::read_to_string(SWITCH) {
        Ok(value) if value.trim() == "1" => Ok(()),
        _ => std::fs::write(SWITCH, "1").map_err(|error| {
            let text = format!("{SWITCH}: {}", crate::launch::reason(&error));
            io::Error::new(error.kind(), text)
        }),
    }
}

/// Says what is missing where the kernel only says that something is.
fn explained(error: io::Error) -> io::Error {
    let needs = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "CAP_NET_ADMIN",
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT) => "nftables in the kernel",
        _ => return error,
    };
    let text = format!("{}: it needs {needs}", crate::launch::reason(&error));
    io::Error::new(error.kind(), text)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use rustix::thread::{LinkNameSpaceType, UnshareFlags};

    use super::*;

    /// Runs it on a thread with a network of its own.
    fn in_a_network_of_its_own(work: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            // SAFETY: only this thread's network changes.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            let lo = netlink::index_of("lo").unwrap();
            netlink::Socket::route().unwrap().up(lo).unwrap();
            work();
        });
        thread.join().unwrap();
    }

    #[test]
    fn servers_in_one_network_have_bridges_of_their_own() {
        in_a_network_of_its_own(|| {
            let anywhere = BridgeConfig::default();
            let named = |name: &str| BridgeConfig {
                name: name.to_owned(),
                ..BridgeConfig::default()
            };
            let first = Bridge::open(&anywhere).unwrap();
            let second = Bridge::open(&anywhere).unwrap();
            assert_eq!(names(&[&first, &second]), ["buildkit0", "buildkit1"]);
            assert_ne!(first.subnet(), second.subnet());
            let taken = Bridge::open(&named("buildkit0")).unwrap_err().to_string();
            assert!(taken.contains("is another server's"), "{taken}");
            // Both have cables; their names are the kernel's choice.
            let steps = [first.connect().unwrap(), second.connect().unwrap()];
            // Somebody else's is left alone, whatever else it is.
            let socket = netlink::Socket::route().unwrap();
            for name in ["theirs", "buildkit2"] {
                let hardware = [2, 0, 0, 0, 0, 1];
                socket.add(&Link::Bridge { name, hardware }).unwrap();
            }
            let theirs = Bridge::open(&named("theirs")).unwrap_err().to_string();
            assert!(theirs.contains("is somebody else's"), "{theirs}");
            let other = Bridge::open(&named("lo")).unwrap_err().to_string();
            assert!(other.contains("is not a bridge"), "{other}");
            let fourth = Bridge::open(&anywhere).unwrap();
            assert_eq!(names(&[&fourth]), ["buildkit3"]);
            drop((steps, first, second, fourth));
            for gone in ["buildkit0", "buildkit1", "buildkit3"] {
                assert!(netlink::index_of(gone).is_err(), "{gone}");
                assert!(!nat::forget(gone), "{gone}");
            }
            assert!(netlink::index_of("buildkit2").is_ok());
        });
    }

    #[test]
    fn subnets_are_claimed_before_they_are_in_use() {
        in_a_network_of_its_own(|| {
            let (first, _claim) = free_subnet().unwrap();
            let (second, _other) = free_subnet().unwrap();
            assert_ne!(first, second);
        });
    }

    #[test]
    fn bridges_of_killed_servers_go_whatever_their_number_is() {
        in_a_network_of_its_own(|| {
            let first = Bridge::open(&BridgeConfig::default()).unwrap();
            let mut killed = Bridge::open(&BridgeConfig::default()).unwrap();
            killed._claims.clear();
            std::mem::forget(killed);
            drop(first);
            let next = Bridge::open(&BridgeConfig::default()).unwrap();
            assert_eq!(names(&[&next]), ["buildkit0"]);
            assert!(netlink::index_of("buildkit1").is_err() && !nat::is_there("buildkit1"));
        });
    }

    #[test]
    fn odd_names_are_refused() {
        for name in ["%d", "..", "a b", "a/b", "sixteen-letters-"] {
            let refused = Bridge::make(name, "").unwrap_err().to_string();
            assert!(refused.starts_with("invalid bridge name"), "{refused}");
        }
    }

    #[test]
    fn a_killed_servers_bridge_is_made_anew() {
        in_a_network_of_its_own(|| {
            let mut killed = Bridge::open(&BridgeConfig::default()).unwrap();
            // What the kernel does for a process that dies.
            killed._claims.clear();
            let subnet = killed.subnet();
            std::mem::forget(killed);
            let next = Bridge::open(&BridgeConfig::default()).unwrap();
            assert_eq!(names(&[&next]), ["buildkit0"]);
            assert_eq!(next.subnet(), subnet);
            next.connect().unwrap();
        });
    }

    fn names<'b>(bridges: &[&'b Bridge]) -> Vec<&'b str> {
        bridges.iter().map(|bridge| bridge.name.as_str()).collect()
    }

    #[test]
    fn steps_reach_the_bridge_while_others_come_and_go() {
        in_a_network_of_its_own(|| {
            let config = BridgeConfig {
                subnet: "10.77.0.0/16".to_owned(),
                ..BridgeConfig::default()
            };
            let bridge = Bridge::open(&config).unwrap();
            let server = TcpListener::bind((bridge.gateway(), 0)).unwrap();
            let address = server.local_addr().unwrap();
            let step = bridge.connect().unwrap();
            std::thread::scope(|scope| {
                let (asked, asks) = std::sync::mpsc::channel();
                let (done, reached) = std::sync::mpsc::channel();
                scope.spawn(move || {
                    let kind = Some(LinkNameSpaceType::Network);
                    rustix::thread::move_into_link_name_space(step.namespace.as_fd(), kind)
                        .unwrap();
                    for () in asks {
                        // Shorter than the step remembers where the bridge is.
                        let reach = TcpStream::connect_timeout(&address, Duration::from_secs(10));
                        done.send(reach.map(drop)).unwrap();
                    }
                });
                let reach = || {
                    asked.send(()).unwrap();
                    reached.recv().unwrap().unwrap();
                };
                reach();
                // Each cable has an address by chance; a bridge without one takes the lowest.
                let others: Vec<_> = (0..24).map(|_| bridge.connect().unwrap()).collect();
                reach();
                drop(others);
                reach();
                drop(asked);
            });
        });
    }
}
