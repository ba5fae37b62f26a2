//! Debian's `docker-registry` as the real peer: plain, or with TLS and a user `tester`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running registry; it ends with the thread that started it or when it is dropped.
pub struct DockerRegistry {
    child: Child,
    dir: tempfile::TempDir,
    /// Host and port.
    pub host: String,
}

/// The only user of a registry with TLS.
pub const USER: &str = "tester";
/// Their password.
pub const PASSWORD: &str = "pass word";

impl DockerRegistry {
    /// Without TLS or authorisation.
    #[allow(dead_code, reason = "not every test file needs every kind")]
    pub fn plain() -> Self {
        Self::start(tempfile::tempdir().unwrap(), "", "")
    }

    /// With TLS by an authority of its own and htpasswd.
    #[allow(dead_code, reason = "not every test file needs every kind")]
    pub fn secured() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_cert = authority.self_signed(&authority_key).unwrap();
        std::fs::write(path("ca.crt"), authority_cert.pem()).unwrap();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let cert = rcgen::CertificateParams::new(names).unwrap();
        let cert = cert.signed_by(&key, &issuer).unwrap();
        std::fs::write(path("server.crt"), cert.pem()).unwrap();
        std::fs::write(path("server.key"), key.serialize_pem()).unwrap();
        let hashed = Command::new("htpasswd")
            .args(["-Bbn", USER, PASSWORD])
            .output()
            .unwrap();
        std::fs::write(path("htpasswd"), hashed.stdout).unwrap();
        let tls = format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            path("server.crt").display(),
            path("server.key").display()
        );
        let auth = format!(
            "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            path("htpasswd").display()
        );
        Self::start(dir, &tls, &auth)
    }

    /// The certificate of the authority, PEM.
    #[allow(dead_code, reason = "not every test file needs every kind")]
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Where the registry keeps its files.
    #[allow(dead_code, reason = "not every test file needs every kind")]
    pub fn storage(&self) -> &Path {
        self.dir.path()
    }

    fn start(dir: tempfile::TempDir, tls: &str, auth: &str) -> Self {
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:0\n{tls}{auth}",
            dir.path().join("data").display()
        );
        std::fs::File::create(&config)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .unwrap();
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            command.pre_exec(|| {
                let signal = Some(rustix::process::Signal::KILL);
                Ok(rustix::process::set_parent_process_death_signal(signal)?)
            });
        }
        let mut child = command.spawn().expect("docker-registry is installed");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let host = loop {
            let start = seen.len();
            let count = log.read_line(&mut seen).unwrap();
            assert!(count > 0, "docker-registry ended: {seen}");
            if let Some((_, rest)) = seen[start..].split_once("listening on ") {
                let end = rest.find([',', '"', ' ', '\n']).unwrap_or(rest.len());
                break rest[..end].to_owned();
            }
        };
        // Whoever does not read the log stops the registry when the pipe is full.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        DockerRegistry { child, dir, host }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
