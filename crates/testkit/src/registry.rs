//! Debian's `docker-registry`, plain or with TLS and passwords.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use oci::Digest;

use crate::Lab;
use crate::certificates::write_certificates;
use crate::lab::{end, wait_for};

/// Who may use a registry, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryAccess {
    /// Plain HTTP, anybody.
    Plain,
    /// TLS by a certificate authority of its own, and a password.
    TlsAndPassword,
}

/// A running registry.
pub struct Registry {
    address: String,
    directory: PathBuf,
    process: Child,
}

impl Registry {
    /// User of registries with a password.
    pub const USER: &'static str = "cooper";
    /// Their password.
    pub const PASSWORD: &'static str = "oak-staves";

    /// Starts one in the lab on all addresses, to be reached as `host:port`.
    pub fn start(lab: &Lab, access: RegistryAccess, host: &str, port: u16) -> Registry {
        let directory = lab.subdirectory(&format!("registry-{port}"));
        let mut lines = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {data}}}\n  \
             delete: {{enabled: true}}\nhttp:\n  addr: 0.0.0.0:{port}\n",
            data = directory.join("data").display(),
        );
        if access == RegistryAccess::TlsAndPassword {
            write_certificates(&directory, host);
            let passwords = directory.join("htpasswd");
            write_passwords(&passwords);
            lines += &format!(
                "  tls: {{certificate: {0}/server.pem, key: {0}/server.key}}\n\
                 auth:\n  htpasswd: {{realm: test, path: {1}}}\n",
                directory.display(),
                passwords.display(),
            );
        }
        let configuration = directory.join("config.yml");
        std::fs::write(&configuration, lines).expect("write the registry's configuration");
        let log = File::create(directory.join("log")).expect("make the registry's log");
        let process = lab
            .command("docker-registry")
            .arg("serve")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn()
            .expect("start docker-registry");
        let listening = || {
            let ready = lab
                .command("sh")
                .args(["-c", &format!("ss -Hltn 'sport = :{port}' | grep -q .")])
                .status();
            ready.is_ok_and(|status| status.success())
        };
        wait_for("docker-registry", Duration::from_secs(120), listening);
        Registry {
            address: format!("{host}:{port}"),
            directory,
            process,
        }
    }

    /// `host:port`, the first part of names in it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The certificate authority's certificate (PEM), for a registry with TLS.
    pub fn authority(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// Puts a blob into a plain registry. The calling thread must be in the lab's network.
    pub fn push_blob(&self, repository: &str, bytes: &[u8]) {
        let uploads = format!("/v2/{repository}/blobs/uploads/");
        let start = request(&self.address, "POST", &uploads, "", b"");
        let location = start
            .lines()
            .find_map(|line| line.strip_prefix("Location: "))
            .unwrap_or_else(|| panic!("no upload location in {start}"));
        let path = location.split_once("/v2/").expect("a registry path").1;
        let path = format!("/v2/{path}&digest={}", Digest::of(bytes));
        let end = request(
            &self.address,
            "PUT",
            &path,
            "application/octet-stream",
            bytes,
        );
        assert!(end.starts_with("HTTP/1.1 201"), "{end}");
    }

    /// Puts a manifest or an index into a plain registry, by a tag or its digest. What it names must
    /// be there. The calling thread must be in the lab's network.
    pub fn push_manifest(&self, repository: &str, name: &str, media_type: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/manifests/{name}");
        let answer = request(&self.address, "PUT", &path, media_type, bytes);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }

    /// What the registry stores, as docker-registry lays it out.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data/docker/registry/v2")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

fn write_passwords(path: &Path) {
    let output = Command::new("htpasswd")
        .args(["-Bbn", Registry::USER, Registry::PASSWORD])
        .output()
        .expect("run `htpasswd` (package apache2-utils)");
    assert!(output.status.success(), "htpasswd failed");
    std::fs::write(path, output.stdout).expect("write the passwords");
}

/// One plain HTTP request; the answer's head.
fn request(address: &str, method: &str, path: &str, content_type: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("reach the registry");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("send the request");
    stream.write_all(body).expect("send the body");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("read the answer");
    String::from_utf8_lossy(&answer).replace("\r\n", "\n")
}
