//! The few words of netlink that a bridge needs.
//!
//! Sources: rtnetlink(7), `linux/rtnetlink.h`, `linux/if_link.h`.

use std::ffi::CString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;
/// What the outer ends of cables are called; the kernel puts a number that is free in.
const OUTSIDE: &str = "bk%d";
/// What a message answers with: 0 or a negative error number.
const ERROR: u16 = 2;
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
/// Set in the kind of attributes that consist of attributes.
const NESTED: u16 = 0x8000;

/// A message being put together.
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A message of that kind that asks for an answer, after which comes `head`.
    pub(super) fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        // Sequence number and sender: one question at a time needs neither.
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(head);
        Message(bytes)
    }

    /// One more attribute.
    pub(super) fn attribute(mut self, kind: u16, data: &[u8]) -> Self {
        put(&mut self.0, kind, data);
        self
    }

    /// One made of others.
    pub(super) fn nested(self, kind: u16, data: &[u8]) -> Self {
        self.attribute(kind | NESTED, data)
    }

    /// Its bytes, with their number in front.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0
    }
}

/// Appends an attribute.
pub(super) fn put(to: &mut Vec<u8>, kind: u16, data: &[u8]) {
    to.extend_from_slice(&(data.len() as u16 + 4).to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(data);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// A text with its end.
pub(super) fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// A new interface.
pub(super) enum Link<'a> {
    /// With a hardware address of its own: without one it takes the lowest of its cables', and what
    /// steps remember is wrong as soon as one of those comes or goes.
    Bridge { name: &'a str, hardware: [u8; 6] },
    /// One end here, in the bridge of that number, the other in another namespace.
    Cable {
        master: u32,
        inside: &'a str,
        namespace: BorrowedFd<'a>,
    },
}

/// A way to everywhere.
pub(super) struct Route {
    pub(super) gateway: Ipv4Addr,
    pub(super) index: u32,
}

/// A connection to the kernel of the network that the thread was in when it was made.
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// For interfaces, addresses and routes.
    pub(super) fn route() -> io::Result<Self> {
        Self::of(0)
    }

    /// For that part of the kernel.
    pub(super) fn of(protocol: u32) -> io::Result<Self> {
        let protocol = std::num::NonZeroU32::new(protocol).map(rustix::net::Protocol::from_raw);
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        Ok(Socket(socket))
    }

    pub(super) fn add(&self, link: &Link<'_>) -> io::Result<()> {
        let message = Message::new(NEW_LINK, ACK | CREATE | EXCL, &interface(0, 0));
        let message = match link {
            Link::Bridge { name, hardware } => {
                let mut info = Vec::new();
                put(&mut info, 1, b"bridge");
                message
                    .attribute(1, hardware)
                    .attribute(3, &text(name))
                    .nested(18, &info)
            }
            Link::Cable {
                master,
                inside,
                namespace,
            } => {
                let mut peer = interface(0, 0).to_vec();
                put(&mut peer, 3, &text(inside));
                put(&mut peer, 28, &namespace.as_raw_fd().to_ne_bytes());
                let mut data = Vec::new();
                put(&mut data, 1 | NESTED, &peer);
                let mut info = Vec::new();
                put(&mut info, 1, b"veth");
                put(&mut info, 2 | NESTED, &data);
                // Up from the start: nobody looks at it afterwards.
                let head = interface(0, libc::IFF_UP as u32);
                Message::new(NEW_LINK, ACK | CREATE | EXCL, &head)
                    .attribute(3, &text(OUTSIDE))
                    .attribute(10, &master.to_ne_bytes())
                    .nested(18, &info)
            }
        };
        self.ask(&message.finish(), 1)
    }

    pub(super) fn delete(&self, name: &str) -> io::Result<()> {
        let index = index_of(name)?;
        let message = Message::new(DELETE_LINK, ACK, &interface(index, 0));
        self.ask(&message.finish(), 1)
    }

    pub(super) fn up(&self, index: u32) -> io::Result<()> {
        let head = interface(index, libc::IFF_UP as u32);
        self.ask(&Message::new(NEW_LINK, ACK, &head).finish(), 1)
    }

    pub(super) fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut head = vec![libc::AF_INET as u8, prefix, 0, 0];
        head.extend_from_slice(&index.to_ne_bytes());
        let message = Message::new(NEW_ADDRESS, ACK | CREATE | EXCL, &head)
            .attribute(1, &address.octets())
            .attribute(2, &address.octets());
        self.ask(&message.finish(), 1)
    }

    pub(super) fn add_route(&self, route: &Route) -> io::Result<()> {
        // Main table, set at boot, everywhere, unicast.
        let head = [libc::AF_INET as u8, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        let message = Message::new(NEW_ROUTE, ACK | CREATE | EXCL, &head)
            .attribute(5, &route.gateway.octets())
            .attribute(4, &route.index.to_ne_bytes());
        self.ask(&message.finish(), 1)
    }

    /// Sends messages and takes in that many answers; the first error is the answer.
    pub(super) fn ask(&self, messages: &[u8], mut answers: usize) -> io::Result<()> {
        rustix::net::send(&self.0, messages, SendFlags::empty())?;
        let mut buffer = vec![0; 32 << 10];
        while answers > 0 {
            let (_, length) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..length];
            while rest.len() >= 20 {
                let word = |at: usize| [rest[at], rest[at + 1], rest[at + 2], rest[at + 3]];
                let size = (u32::from_ne_bytes(word(0)) as usize).next_multiple_of(4);
                if u16::from_ne_bytes([rest[4], rest[5]]) == ERROR {
                    let number = i32::from_ne_bytes(word(16));
                    if number != 0 {
                        return Err(io::Error::from_raw_os_error(-number));
                    }
                    answers = answers.saturating_sub(1);
                }
                rest = rest.get(size.max(16)..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// The number of an interface in the network of this thread.
pub(super) fn index_of(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: the text lives through the call and has an end.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Whether an interface is a bridge, by what its driver calls itself. `/sys` is not asked: it may
/// show another network.
pub(super) fn is_bridge(name: &str) -> io::Result<bool> {
    const GET_DRIVER: u32 = 3;
    /// The kernel's `struct ethtool_drvinfo`, of which only the start matters.
    #[repr(C)]
    struct Driver {
        command: u32,
        name: [u8; 32],
        rest: [u8; 160],
    }
    let mut driver = Driver {
        command: GET_DRIVER,
        name: [0; 32],
        rest: [0; 160],
    };
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut driver).cast();
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: the request and what it points to live through the call; the kernel writes at most
    // the structure, which is 196 bytes long.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) };
    crate::sys::check(rc.into())?;
    Ok(driver.name.starts_with(b"bridge\0"))
}

/// The head of messages on interfaces: which one, and the flags to be set.
fn interface(index: u32, flags: u32) -> [u8; 16] {
    let mut head = [0; 16];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    head[8..12].copy_from_slice(&flags.to_ne_bytes());
    head[12..].copy_from_slice(&flags.to_ne_bytes());
    head
}
