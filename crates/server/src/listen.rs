//! Where the server listens: unix sockets, TCP with mutual TLS, and sockets inherited from whoever
//! started it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
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
            let std = std::net::TcpListener::bind(rest)?;
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

fn listen_unix(path: &Path, uid: Option<u32>, gid: Option<u32>) -> Result<Listener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // A socket file that nobody listens on is a dead server's; one that answers is not ours to take.
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(Error::new(
                diag::Code::AlreadyExists,
                "another server listens there",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => std::fs::remove_file(path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?,
    }
    // The socket must never be open to others, not even between bind and chmod: it is made under
    // another name in the same directory.
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(format!(".{}", std::process::id()));
    let hidden = PathBuf::from(hidden);
    let _ = std::fs::remove_file(&hidden);
    let listener = std::os::unix::net::UnixListener::bind(&hidden)?;
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
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_private_and_a_live_one_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/b.sock");
        let listener = Listener::unix(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = Listener::unix(&path).err().unwrap();
        assert!(error.to_string().contains("another server listens"));
        drop(listener);
        assert!(!path.exists());
        // What a killed server leaves behind is replaced.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Listener::unix(&path).unwrap();
    }

    #[tokio::test]
    async fn a_group_may_be_given_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.sock");
        let config = GrpcConfig {
            address: vec![format!("unix://{}", path.display())],
            gid: Some(7),
            ..GrpcConfig::default()
        };
        let _listeners = listeners(&config).unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o777, found.gid()), (0o660, 7));
    }

    #[tokio::test]
    async fn addresses_that_cannot_be_used_are_explained() {
        for (address, expected) in [
            ("/run/x.sock", "you meant unix:///run/x.sock ?"),
            (
                "vsock://3:1",
                "addr vsock://3:1 not supported: unix, tcp and fd are",
            ),
            ("npipe:////./pipe/x", "not supported: unix, tcp and fd are"),
            ("carrier://pigeon", "not supported"),
            ("fd://3", "fd:// takes them all"),
            ("fd://", "no sockets found via socket activation"),
            ("tcp://nowhere", "failed to listen on tcp://nowhere"),
        ] {
            let config = GrpcConfig {
                address: vec![address.into()],
                ..GrpcConfig::default()
            };
            let error = listeners(&config).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn sockets_of_a_service_manager_are_taken_and_other_files_are_not() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let listener = passed_on(tcp.into(), None).unwrap();
        let mut connections = std::pin::pin!(listener.connections());
        let client = tokio::net::TcpStream::connect(address);
        let (accepted, client) = tokio::join!(connections.next(), client);
        assert!(accepted.unwrap().is_ok() && client.is_ok());
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let error = passed_on(one.into(), None).err().unwrap().to_string();
        assert!(error.contains("is no listening socket"), "{error}");
        let file = tempfile::tempfile().unwrap();
        assert!(passed_on(file.into(), None).is_err());
    }

    /// A certificate signed by `ca`, with its key, as PEM files.
    fn issue(dir: &Path, name: &str, ca: &rcgen::Issuer<'_, rcgen::KeyPair>) -> (PathBuf, PathBuf) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, ca).unwrap();
        let paths = (
            dir.join(format!("{name}.crt")),
            dir.join(format!("{name}.key")),
        );
        std::fs::write(&paths.0, certificate.pem()).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }

    #[tokio::test]
    async fn tcp_with_an_authority_lets_only_its_clients_in() {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let ca = dir.path().join("ca.crt");
        std::fs::write(&ca, authority.pem()).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        let (cert, key) = issue(dir.path(), "server", &issuer);
        let config = GrpcConfig {
            address: vec!["tcp://127.0.0.1:0".into()],
            tls: TlsConfig {
                cert: Some(cert),
                key: Some(key),
                ca: Some(ca.clone()),
            },
            ..GrpcConfig::default()
        };
        let listener = listeners(&config).unwrap().remove(0);
        let address = listener.address.strip_prefix("tcp://").unwrap().to_owned();

        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(read_certificates(&ca).unwrap().remove(0))
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let (cert, key) = issue(dir.path(), "client", &issuer);
        let known = builder
            .clone()
            .with_client_auth_cert(
                read_certificates(&cert).unwrap(),
                PrivateKeyDer::from_pem_file(key).unwrap(),
            )
            .unwrap();
        let unknown = builder.with_no_client_auth();
        let connect = |config: rustls::ClientConfig| {
            let (address, connector) = (
                address.clone(),
                tokio_rustls::TlsConnector::from(Arc::new(config)),
            );
            async move {
                use tokio::io::AsyncReadExt;
                let tcp = tokio::net::TcpStream::connect(address).await?;
                let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
                let mut stream = connector.connect(name, tcp).await?;
                stream.read_u8().await
            }
        };
        let mut connections = std::pin::pin!(listener.connections());
        // Only the known client becomes a connection, though it comes second.
        let served = async {
            use tokio::io::AsyncWriteExt;
            let mut connection = connections.next().await.unwrap().unwrap();
            connection.write_u8(42).await.unwrap();
            connection.shutdown().await.unwrap();
        };
        let clients = async {
            let refused = connect(unknown).await.unwrap_err().to_string();
            assert!(refused.to_lowercase().contains("certificate"), "{refused}");
            assert_eq!(connect(known).await.unwrap(), 42);
        };
        tokio::join!(served, clients);
    }
}
