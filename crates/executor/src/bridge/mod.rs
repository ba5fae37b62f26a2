//! A network of the steps' own: a bridge that the server makes, a namespace and an address for each
//! step, masquerading towards everything else.
//!
//! A step gets a namespace that no other step has had. Making one takes the kernel a while, so the
//! executor keeps a few ready. Nothing is run for it but system calls; it needs `CAP_NET_ADMIN` over
//! the server's own network and the kernel's nftables.
//!
//! Invariant: a namespace ends with the step that has it, its end of the cable with it; the bridge
//! and its rules end with the [`Bridge`], and a bridge that a killed server left is made anew.

mod dns;
mod nat;
mod netlink;
mod subnet;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use netlink::{Link, Route};
pub use subnet::Subnet;

/// The bridge's name unless another is configured.
pub const BRIDGE_NAME: &str = "buildkit0";
/// Longest name of an interface, in bytes.
const NAME_LENGTH_MAX: usize = 15;
/// What the step calls its end of the cable.
const INSIDE: &str = "eth0";

/// How a [`Bridge`] is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Its name; empty for [`BRIDGE_NAME`].
    pub name: String,
    /// Its addresses, as `10.10.0.0/16`; empty for a network that no route of the server knows.
    pub subnet: String,
}

/// A bridge with its rules.
#[derive(Debug)]
pub struct Bridge {
    name: String,
    subnet: Subnet,
    /// Addresses are given out in turn, so that none comes back while others still remember it.
    next: AtomicU32,
    forwarder: Option<dns::Forwarder>,
}

/// The network of one step.
#[derive(Debug)]
pub(crate) struct StepNetwork {
    /// Its namespace.
    pub(crate) namespace: OwnedFd,
}

impl Bridge {
    /// Makes the bridge in the network that the server is in.
    pub fn open(config: &BridgeConfig) -> io::Result<Self> {
        let name = match config.name.as_str() {
            "" => BRIDGE_NAME,
            name => name,
        };
        if name.len() > NAME_LENGTH_MAX || name.contains(['/', ' ']) {
            return Err(io::Error::other(format!("invalid bridge name {name:?}")));
        }
        let socket = netlink::Socket::route()?;
        if netlink::index_of(name).is_ok() {
            // A killed server's, or somebody else's: only a bridge is taken for ours.
            if !netlink::is_bridge(name)? {
                let text = format!("{name:?} already exists but is not a bridge");
                return Err(io::Error::other(text));
            }
            socket.delete(name)?;
        }
        let subnet = match config.subnet.as_str() {
            "" => Subnet::free(&std::fs::read_to_string("/proc/net/route")?)?,
            text => text.parse()?,
        };
        socket.add(&Link::Bridge { name })?;
        let mut bridge = Bridge {
            name: name.to_owned(),
            subnet,
            next: AtomicU32::new(0),
            forwarder: None,
        };
        let index = netlink::index_of(name)?;
        socket.add_address(index, bridge.gateway(), subnet.prefix)?;
        socket.up(index)?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        nat::masquerade(name, &subnet)?;
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
        nat::forget(&self.name);
        if let Ok(socket) = netlink::Socket::route() {
            // Not there is what is wanted.
            let _ = socket.delete(&self.name);
        }
    }

    /// Makes a namespace that is connected.
    pub(crate) fn connect(&self) -> io::Result<StepNetwork> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let address = self.subnet.in_turn(number);
        let outside = format!("bk{}n{number:x}", std::process::id() % 0x10000);
        let outside = outside[..outside.len().min(NAME_LENGTH_MAX)].to_owned();
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
                outside: &outside,
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
        Ok(StepNetwork { namespace })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.close();
    }
}
