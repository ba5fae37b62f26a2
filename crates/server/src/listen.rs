//! Where the server listens: unix sockets, TCP with mutual TLS, and sockets inherited from whoever
//! started it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use diag::{Context as _, Error, Result};
use futures::{Stream, StreamExt};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use crate::config::{GrpcConfig, TlsConfig};
use crate::idle::{Clients, Presence};
use crate::peer::Peer;

/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Numbers for the names that sockets have at first.
static HIDDEN: AtomicU32 = AtomicU32::new(0);

/// A place where clients connect.
pub struct Listener {
    /// As it is shown to people.
    pub address: String,
    kind: Kind,
    tls: Option<TlsAcceptor>,
    /// The socket file this listener made; removed when it is dropped.
    made: Option<Arc<SocketFile>>,
    /// Counts its clients, where somebody wants to know.
    clients: Option<Clients>,
}

enum Kind {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A socket file of ours, which can be hidden from those who do not know it yet.
pub(crate) struct SocketFile {
    path: PathBuf,
    hidden: PathBuf,
    /// Device and inode: another server may have put its own in place of ours.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: &Path, hidden: PathBuf) -> Self {
        SocketFile {
            path: path.to_owned(),
            hidden,
            identity: identity(path),
        }
    }

    /// Takes the file out of the way, if it is ours.
    pub(crate) fn hide(&self) {
        if identity(&self.path) == self.identity {
            let _ = std::fs::rename(&self.path, &self.hidden);
        }
    }

    /// Puts it back, unless there is another now.
    pub(crate) fn show(&self) {
        if !self.path.exists() {
            let _ = std::fs::rename(&self.hidden, &self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        for path in [&self.path, &self.hidden] {
            if self.identity.is_some() && identity(path) == self.identity {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Opens every listener of a configuration. Must run within a runtime.
pub fn listeners(config: &GrpcConfig) -> Result<Vec<Listener>> {
    if config.address.is_empty() {
        return Err(Error::invalid("--addr cannot be empty"));
    }
    let tls = tls_acceptor(&config.tls)?;
    let mut listeners = Vec::new();
    for address in &config.address {
        if tls.is_none() && address.starts_with("tcp://") {
            tracing::warn!(
                "TLS is not enabled for {address}. enabling mutual TLS authentication is highly recommended"
            );
        }
        let more = listen(address, config, tls.as_ref())
            .with_context(|| format!("failed to listen on {address}"))?;
        listeners.extend(more);
    }
    Ok(listeners)
}

impl Listener {
    /// A listener on a unix socket that only this user can reach.
    pub fn unix(path: &Path) -> Result<Self> {
        listen_unix(path, None, None)
    }

    /// Has its clients counted; gives its socket file, if it has one.
    pub(crate) fn count(&mut self, clients: Clients) -> Option<Arc<SocketFile>> {
        self.clients = Some(clients);
        self.made.clone()
    }

    /// Who counts its clients.
    #[cfg(test)]
    pub(crate) fn clients(&self) -> Clients {
        self.clients.clone().unwrap_or_default()
    }

    /// The connections that come in. A connection that fails its handshake is logged and is not the
    /// end of the stream.
    pub fn connections(self) -> impl Stream<Item = io::Result<Connection>> + Send {
        let tls = self.tls.clone();
        let accepted = futures::stream::unfold(self, |listener| async move {
            let accepted = match &listener.kind {
                Kind::Unix(unix) => unix.accept().await.map(|(io, _)| Plain::Unix(io)),
                Kind::Tcp(tcp) => tcp.accept().await.map(|(io, _)| {
                    let _ = io.set_nodelay(true);
                    Plain::Tcp(io)
                }),
            };
            let accepted = accepted.map(|io| (io, listener.clients.as_ref().map(Clients::enter)));
            if let Err(error) = &accepted {
                // Out of descriptors or the like: it passes, and a busy loop would not help.
                tracing::warn!("accept on {}: {error}", listener.address);
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            Some((accepted, listener))
        });
        accepted
            .filter_map(|accepted| async move { accepted.ok() })
            .map(move |(plain, presence)| handshake(plain, presence, tls.clone()))
            .buffer_unordered(64)
            .filter_map(|connection| async move { connection.map(Ok) })
    }
}

async fn handshake(
    plain: Plain,
    presence: Option<Presence>,
    tls: Option<TlsAcceptor>,
) -> Option<Connection> {
    let peer = Peer::of(&plain);
    let connection = |io| Connection {
        io,
        peer,
        _presence: presence,
    };
    let Some(tls) = tls else {
        return Some(connection(Io::Plain(plain)));
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(plain)).await {
        Ok(Ok(stream)) => Some(connection(Io::Tls(Box::new(stream)))),
        Ok(Err(error)) => {
            tracing::warn!("TLS handshake failed: {error}");
            None
        }
        Err(_) => {
            tracing::warn!("TLS handshake took too long");
            None
        }
    }
}

/// Listens on one address, with TLS if it is given and the address is of TCP.
pub(crate) fn listen(
    address: &str,
    config: &GrpcConfig,
    tls: Option<&TlsAcceptor>,
) -> Result<Vec<Listener>> {
    let (scheme, rest) = address.split_once("://").ok_or_else(|| {
        Error::invalid(format!(
            "address {address} does not contain proto, you meant unix://{address} ?"
        ))
    })?;
    match scheme {
        "unix" => {
            let listener = listen_unix(Path::new(rest), config.uid, config.gid)?;
            if tls.is_some() {
                tracing::warn!("TLS is disabled for {address}");
            }
            Ok(vec![listener])
        }
        "tcp" => {
            let std = bind_tcp(rest)?;
            std.set_nonblocking(true)?;
            Ok(vec![Listener {
                // With the port that was found free, if any was asked for.
                address: format!("tcp://{}", std.local_addr()?),
                kind: Kind::Tcp(TcpListener::from_std(std)?),
                tls: tls.cloned(),
                made: None,
                clients: None,
            }])
        }
        "fd" if rest.is_empty() => inherited(tls),
        "fd" => Err(Error::unimplemented(
            "choosing among sockets by number or name is not supported: fd:// takes them all",
        )),
        "vsock" | "npipe" => Err(Error::unimplemented(format!(
            "addr {address} not supported: unix, tcp and fd are"
        ))),
        _ => Err(Error::invalid(format!(
            "addr {address} not supported: unix, tcp and fd are"
        ))),
    }
}

/// Listens on `host:port`. No host means every address of this machine, as in Go.
fn bind_tcp(address: &str) -> Result<std::net::TcpListener> {
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err(Error::invalid(format!(
            "address {address}: missing port in address"
        )));
    };
    if !host.is_empty() {
        return Ok(std::net::TcpListener::bind(address)?);
    }
    // Both families, where there is more than one.
    match std::net::TcpListener::bind(format!("[::]:{port}")) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            Ok(std::net::TcpListener::bind(format!("0.0.0.0:{port}"))?)
        }
        bound => Ok(bound?),
    }
}

/// Takes a dead server's socket file out of the way; anything else that is there is left alone.
fn make_room(path: &Path) -> Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let exists = |text: &str| Err(Error::new(diag::Code::AlreadyExists, text));
    if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) {
        return exists("there is something else than a socket");
    }
    // One that answers is not ours to take.
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => exists("another server listens there"),
        Err(_) => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        },
    }
}

/// Makes a listening socket in a directory. The name it has at first may make its path longer than
/// a socket's can be, so the directory is named by its descriptor.
fn bind_in(dir: &Path, name: &str) -> Result<std::os::unix::net::UnixListener> {
    let dir = std::fs::File::open(dir)?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
    Ok(std::os::unix::net::UnixListener::bind(short.join(name))?)
}

fn listen_unix(path: &Path, uid: Option<u32>, gid: Option<u32>) -> Result<Listener> {
    if path.file_name().is_none() {
        return Err(Error::invalid("there is no name of a socket in it"));
    }
    // Clients could not connect to it.
    std::os::unix::net::SocketAddr::from_pathname(path)?;
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(dir)?;
    make_room(path)?;
    // The socket must never be open to others, not even between bind and chmod: it is made under
    // another name, a short one, in the same directory.
    let number = HIDDEN.fetch_add(1, Ordering::Relaxed);
    let hidden = format!(".sock-{}-{number}", std::process::id());
    let _ = std::fs::remove_file(dir.join(&hidden));
    let listener = bind_in(dir, &hidden)?;
    let hidden = dir.join(hidden);
    let mode = if gid.is_some() { 0o660 } else { 0o600 };
    let prepared = std::os::unix::fs::chown(&hidden, uid, gid)
        .and_then(|()| std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(mode)))
        .and_then(|()| std::fs::rename(&hidden, path))
        .and_then(|()| listener.set_nonblocking(true));
    if let Err(error) = prepared {
        let _ = std::fs::remove_file(&hidden);
        return Err(error.into());
    }
    Ok(Listener {
        address: format!("unix://{}", path.display()),
        kind: Kind::Unix(UnixListener::from_std(listener)?),
        tls: None,
        made: Some(Arc::new(SocketFile::new(path, hidden))),
        clients: None,
    })
}

/// The sockets that systemd or another parent passed on: `LISTEN_FDS` of them from descriptor 3.
fn inherited(tls: Option<&TlsAcceptor>) -> Result<Vec<Listener>> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    let ours = number("LISTEN_PID").is_none_or(|pid| pid == std::process::id() as i32);
    let count = number("LISTEN_FDS").filter(|_| ours).unwrap_or(0);
    if count <= 0 {
        return Err(Error::invalid(
            "no sockets found via socket activation: make sure the service was started by systemd",
        ));
    }
    (3..3 + count)
        .map(|fd| {
            // SAFETY: LISTEN_FDS says that the parent opened this descriptor for us, and nothing
            // in this process opened or closes it before.
            let owned = unsafe { OwnedFd::from_raw_fd(fd) };
            passed_on(owned, tls)
        })
        .collect()
}

/// A socket that somebody else opened, and listens on.
fn passed_on(socket: OwnedFd, tls: Option<&TlsAcceptor>) -> Result<Listener> {
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).map_err(io::Error::from)?;
    let address = format!("fd://{}", socket.as_raw_fd());
    let accepts = rustix::net::sockopt::socket_acceptconn(&socket).map_err(io::Error::from);
    if !accepts.with_context(|| address.clone())? {
        return Err(Error::invalid(format!("{address} is no listening socket")));
    }
    let domain = rustix::net::getsockname(&socket)
        .map_err(io::Error::from)?
        .address_family();
    let kind = if domain == rustix::net::AddressFamily::UNIX {
        let std = std::os::unix::net::UnixListener::from(socket);
        std.set_nonblocking(true)?;
        Kind::Unix(UnixListener::from_std(std)?)
    } else {
        let std = std::net::TcpListener::from(socket);
        std.set_nonblocking(true)?;
        Kind::Tcp(TcpListener::from_std(std)?)
    };
    let tls = match &kind {
        Kind::Tcp(_) => tls.cloned(),
        Kind::Unix(_) => None,
    };
    Ok(Listener {
        address,
        kind,
        tls,
        made: None,
        clients: None,
    })
}

fn tls_acceptor(config: &TlsConfig) -> Result<Option<TlsAcceptor>> {
    let (cert, key) = match (&config.cert, &config.key) {
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => (cert, key),
        _ => {
            return Err(Error::invalid(
                "you must specify key and cert file if one is specified",
            ));
        }
    };
    let certificates = read_certificates(cert)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| {
        Error::invalid(format!("could not load key {}: {error}", key.display()))
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal(error.to_string()))?;
    let builder = match &config.ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in read_certificates(ca)? {
                roots
                    .add(certificate)
                    .map_err(|_| Error::invalid("failed to append ca cert"))?;
            }
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                    .build()
                    .map_err(|error| Error::invalid(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder
        .with_single_cert(certificates, key)
        .map_err(|error| Error::invalid(format!("could not load server key pair: {error}")))?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |reason: String| {
        Error::invalid(format!(
            "could not load certificate {}: {reason}",
            path.display()
        ))
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("no certificate in it".to_owned()));
    }
    Ok(certificates)
}

/// A client's connection.
pub struct Connection {
    io: Io,
    peer: Peer,
    /// The client is there as long as this is.
    _presence: Option<Presence>,
}

enum Io {
    /// As it is.
    Plain(Plain),
    /// Under TLS.
    Tls(Box<tokio_rustls::server::TlsStream<Plain>>),
}

/// A connection without TLS.
pub enum Plain {
    /// Over a unix socket.
    Unix(tokio::net::UnixStream),
    /// Over TCP.
    Tcp(tokio::net::TcpStream),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

macro_rules! delegate_io {
    ($type:ident, |$this:ident| $io:expr, $kind:ident { $($variant:ident),* }) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                let $this = self.get_mut();
                match $io {
                    $($kind::$variant(io) => Pin::new(io).poll_read(cx, buffer),)*
                }
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                data: &[u8],
            ) -> Poll<io::Result<usize>> {
                let $this = self.get_mut();
                match $io {
                    $($kind::$variant(io) => Pin::new(io).poll_write(cx, data),)*
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                data: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let $this = self.get_mut();
                match $io {
                    $($kind::$variant(io) => Pin::new(io).poll_write_vectored(cx, data),)*
                }
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $this = self.get_mut();
                match $io {
                    $($kind::$variant(io) => Pin::new(io).poll_flush(cx),)*
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $this = self.get_mut();
                match $io {
                    $($kind::$variant(io) => Pin::new(io).poll_shutdown(cx),)*
                }
            }
        }
    };
}

delegate_io!(Plain, |this| this, Plain { Unix, Tcp });
delegate_io!(Connection, |this| &mut this.io, Io { Plain, Tls });

#[cfg(test)]
mod tests;
