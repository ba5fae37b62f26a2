//! Sockets of all kinds.

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
        (
            "tcp://nowhere",
            "failed to listen on tcp://nowhere: address nowhere: missing port in address",
        ),
        ("unix:///", "there is no name of a socket in it"),
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
    issue_until(dir, name, ca, 4000)
}

/// One that ends with that year.
fn issue_until(
    dir: &Path,
    name: &str,
    ca: &rcgen::Issuer<'_, rcgen::KeyPair>,
    year: i32,
) -> (PathBuf, PathBuf) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(year, 12, 31);
    let certificate = params.signed_by(&key, ca).unwrap();
    let paths = (
        dir.join(format!("{name}.crt")),
        dir.join(format!("{name}.key")),
    );
    std::fs::write(&paths.0, certificate.pem()).unwrap();
    std::fs::write(&paths.1, key.serialize_pem()).unwrap();
    paths
}

/// Who signs certificates, with a certificate of its own.
fn authority() -> (rcgen::Issuer<'static, rcgen::KeyPair>, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (rcgen::Issuer::new(params, key), pem)
}

#[tokio::test]
async fn tcp_with_an_authority_lets_only_its_clients_in() {
    let dir = tempfile::tempdir().unwrap();
    let (issuer, pem) = authority();
    let ca = dir.path().join("ca.crt");
    std::fs::write(&ca, pem).unwrap();
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
    let showing = |(cert, key): (PathBuf, PathBuf)| {
        let certificates = read_certificates(&cert).unwrap();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let shown = builder.clone().with_client_auth_cert(certificates, key);
        shown.unwrap()
    };
    let known = showing(issue(dir.path(), "client", &issuer));
    let strange = showing(issue(dir.path(), "strange", &authority().0));
    let expired = showing(issue_until(dir.path(), "expired", &issuer, 2020));
    let unknown = builder.clone().with_no_client_auth();
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
    // Only the known client becomes a connection, though it comes last.
    let served = async {
        use tokio::io::AsyncWriteExt;
        let mut connection = connections.next().await.unwrap().unwrap();
        connection.write_u8(42).await.unwrap();
        connection.shutdown().await.unwrap();
    };
    let clients = async {
        for (config, why) in [(unknown, "certificate"), (strange, ""), (expired, "")] {
            let refused = connect(config).await.unwrap_err().to_string();
            assert!(refused.to_lowercase().contains(why), "{refused}");
        }
        assert_eq!(connect(known).await.unwrap(), 42);
    };
    tokio::join!(served, clients);
}

#[tokio::test]
async fn only_sockets_of_dead_servers_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("precious");
    std::fs::write(&file, "x").unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for path in [&file, &link, &dir.path().to_path_buf()] {
        let error = Listener::unix(path).err().unwrap().to_string();
        assert!(error.contains("something else than a socket"), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&link).unwrap(), "x");
}

#[tokio::test]
async fn a_path_may_be_as_long_as_clients_can_use() {
    let dir = tempfile::tempdir().unwrap();
    // What the kernel takes is 107 bytes.
    let fill = 107 - dir.path().as_os_str().len() - 1;
    let longest = dir.path().join("s".repeat(fill));
    let _listener = Listener::unix(&longest).unwrap();
    std::os::unix::net::UnixStream::connect(&longest).unwrap();
    let error = Listener::unix(&dir.path().join("s".repeat(fill + 1)));
    assert!(error.err().unwrap().to_string().contains("SUN_LEN"));
}

#[tokio::test]
async fn no_host_is_every_address() {
    let config = GrpcConfig {
        address: vec!["tcp://:0".into()],
        ..GrpcConfig::default()
    };
    let listener = listeners(&config).unwrap().remove(0);
    let (_, port) = listener.address.rsplit_once(':').unwrap();
    let here = format!("127.0.0.1:{port}");
    std::net::TcpStream::connect(here).unwrap();
}
