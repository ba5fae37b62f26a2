//! Name servers that only the server itself can reach, such as `127.0.0.11` and `127.0.0.53`, for
//! steps that have a loopback of their own: questions to the bridge are passed on, answers back.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

const PORT: u16 = 53;
/// How long a name server has for an answer; who asks gives up earlier.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest question or answer over UDP, in bytes.
const DATAGRAM_MAX: usize = 4096;
/// Questions that wait for an answer at the same time.
const WAITING_MAX: usize = 256;

/// Passes questions on until it is dropped.
#[derive(Debug)]
pub(super) struct Forwarder(JoinHandle<()>);

impl Forwarder {
    /// Listens at that address, if the server's name server is at its loopback; `None` when there
    /// is nothing to be done or no way to do it.
    pub(super) fn start(address: Ipv4Addr) -> Option<Self> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let resolver = loopback_resolver(&own)?;
        let bound = bind(SocketAddr::from((address, PORT)));
        match bound {
            Ok((udp, tcp)) => Some(Forwarder(runtime.spawn(serve(
                udp,
                tcp,
                SocketAddr::from((resolver, PORT)),
            )))),
            Err(error) => {
                tracing::warn!(%error, %address, "steps cannot ask the name server at {resolver}");
                None
            }
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The first name server, if it is at the loopback.
fn loopback_resolver(resolv_conf: &str) -> Option<IpAddr> {
    let servers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok())?
    });
    servers.into_iter().find(IpAddr::is_loopback)
}

fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = std::net::UdpSocket::bind(address)?;
    let tcp = std::net::TcpListener::bind(udp.local_addr()?)?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
}

async fn serve(udp: UdpSocket, tcp: TcpListener, resolver: SocketAddr) {
    let (udp, waiting) = (Arc::new(udp), Arc::new(Semaphore::new(WAITING_MAX)));
    let mut question = [0; DATAGRAM_MAX];
    loop {
        let Ok(permit) = waiting.clone().acquire_owned().await else {
            return;
        };
        tokio::select! {
            received = udp.recv_from(&mut question) => {
                let Ok((length, from)) = received else { continue };
                let (udp, question) = (udp.clone(), question[..length].to_vec());
                tokio::spawn(async move {
                    let answer = tokio::time::timeout(PATIENCE, ask(&question, resolver)).await;
                    if let Ok(Ok(answer)) = answer {
                        let _ = udp.send_to(&answer, from).await;
                    }
                    drop(permit);
                });
            }
            accepted = tcp.accept() => {
                let Ok((mut client, _)) = accepted else { continue };
                tokio::spawn(async move {
                    let talk = async {
                        let mut server = TcpStream::connect(resolver).await?;
                        tokio::io::copy_bidirectional(&mut client, &mut server).await
                    };
                    let _ = tokio::time::timeout(PATIENCE, talk).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn ask(question: &[u8], resolver: SocketAddr) -> io::Result<Vec<u8>> {
    let any = match resolver {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut answer = vec![0; DATAGRAM_MAX];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn questions_are_passed_on_and_answers_come_back() {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (resolver, resolver_tcp) = bind(here).unwrap();
        let there = resolver.local_addr().unwrap();
        let answering = tokio::spawn(async move {
            let mut question = [0; 64];
            let (length, from) = resolver.recv_from(&mut question).await.unwrap();
            let answer = [&question[..length], b" answered"].concat();
            resolver.send_to(&answer, from).await.unwrap();
            let (mut client, _) = resolver_tcp.accept().await.unwrap();
            client.read_exact(&mut question[..2]).await.unwrap();
            client.write_all(b"by tcp").await.unwrap();
        });
        let (udp, tcp) = bind(here).unwrap();
        let address = udp.local_addr().unwrap();
        let forwarder = Forwarder(tokio::spawn(serve(udp, tcp, there)));
        assert_eq!(ask(b"name?", address).await.unwrap(), b"name? answered");
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"?!").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "by tcp");
        answering.await.unwrap();
        drop(forwarder);
    }

    #[test]
    fn only_a_resolver_at_the_loopback_needs_it() {
        assert_eq!(loopback_resolver("nameserver 10.0.0.1\n"), None);
        let found = loopback_resolver("search x\nnameserver 127.0.0.11\n");
        assert_eq!(found, Some("127.0.0.11".parse().unwrap()));
    }
}
