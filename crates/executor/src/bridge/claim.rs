//! Which server a bridge or a subnet is of: names of sockets that belong to a network, and end with who
//! has them.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Says that something is of this process, to all servers in the same network.
#[derive(Debug)]
pub(super) struct Claim(
    #[expect(dead_code, reason = "claimed as long as it is open")] UnixListener,
);

impl Claim {
    /// Claims the name of a bridge, or a subnet; `None` if another server has it.
    pub(super) fn take(what: &str) -> io::Result<Option<Self>> {
        let name = format!("cooperage-bridge-{what}");
        let address = SocketAddr::from_abstract_name(name)?;
        match UnixListener::bind_addr(&address) {
            Ok(socket) => Ok(Some(Claim(socket))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}
