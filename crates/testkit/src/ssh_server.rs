//! Debian's OpenSSH server and agent.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::lab::wait_for;

/// How a server is to be.
#[derive(Clone, Copy, Debug)]
pub struct SshServerOptions {
    /// Where it listens.
    pub address: &'static str,
    /// Its port; 0 for any that is free.
    pub port: u16,
    /// The types of its keys, as `ssh-keygen -t` takes them.
    pub host_keys: &'static [&'static str],
    /// Further lines of its configuration.
    pub configuration: &'static str,
}

impl Default for SshServerOptions {
    fn default() -> Self {
        SshServerOptions {
            address: "127.0.0.1",
            port: 0,
            host_keys: &["ed25519"],
            configuration: "",
        }
    }
}

/// A running server that lets keys in as root, at first one that an agent has.
///
/// It listens in a thread of this process, so it is in the network of the thread that started it; each
/// connection is a process of its own, which ends with the server.
pub struct SshServer {
    directory: PathBuf,
    address: SocketAddr,
    host_keys: &'static [&'static str],
    connections: Arc<Mutex<Vec<Child>>>,
    agent: SshAgent,
}

/// A running agent.
pub struct SshAgent {
    socket: PathBuf,
    process: Child,
}

impl SshServer {
    /// Starts both, with their files in `directory`.
    pub fn start(directory: &Path) -> SshServer {
        SshServer::start_with(directory, SshServerOptions::default())
    }

    /// The same with a server of another kind.
    pub fn start_with(directory: &Path, options: SshServerOptions) -> SshServer {
        std::fs::create_dir_all(directory).expect("make the server's directory");
        // Where the server's unprivileged part lives.
        std::fs::create_dir_all("/run/sshd").expect("make /run/sshd");
        let mut host_keys = String::new();
        for kind in options.host_keys {
            let path = directory.join(format!("host-{kind}"));
            make_key(&path, &["-t", kind]);
            host_keys.push_str(&format!("HostKey {}\n", path.display()));
        }
        let user = directory.join("user");
        make_key(&user, &["-t", "ed25519"]);
        std::fs::copy(user.with_extension("pub"), directory.join("authorized"))
            .expect("let the key in");
        let text = format!(
            "{host_keys}AuthorizedKeysFile {0}/authorized\n\
             PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPidFile none\n{1}\n",
            directory.display(),
            options.configuration
        );
        std::fs::write(directory.join("config"), text).expect("write the server's configuration");
        let listener = TcpListener::bind((options.address, options.port));
        let listener = listener.expect("bind the server's address");
        let address = listener.local_addr().expect("an address");
        let connections: Arc<Mutex<Vec<Child>>> = Arc::default();
        let (served, home) = (connections.clone(), directory.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // Held meanwhile, so that who has a connection finds it in the list.
                let mut served = served.lock().expect("no thread panics with the list");
                // Nothing can be served any more when the test's directory is gone.
                let Ok(child) = serve(&home, stream) else {
                    return;
                };
                served.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
                served.push(child);
            }
        });
        let agent = SshAgent::start(&directory.join("agent.sock"), &[&user]);
        SshServer {
            directory: directory.to_owned(),
            address,
            host_keys: options.host_keys,
            connections,
            agent,
        }
    }

    /// The address of a path of this machine's disk.
    pub fn url(&self, path: &Path) -> String {
        format!("ssh://root@{}{}", self.address, path.display())
    }

    /// Address and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The socket of the agent with the first key.
    pub fn agent(&self) -> PathBuf {
        self.agent.socket.clone()
    }

    /// The file with the first key, which the agent has.
    pub fn key(&self) -> PathBuf {
        self.directory.join("user")
    }

    /// The line of `known_hosts` with the first of the server's keys.
    pub fn known_hosts(&self) -> String {
        self.known_host(self.host_keys[0])
    }

    /// The line of `known_hosts` with the server's key of that type.
    pub fn known_host(&self, kind: &str) -> String {
        let key = std::fs::read_to_string(self.directory.join(format!("host-{kind}.pub")));
        let (host, port) = (self.address.ip(), self.address.port());
        let name = match port {
            22 => host.to_string(),
            port => format!("[{host}]:{port}"),
        };
        format!("{name} {}", key.expect("the host's key"))
    }

    /// Makes a key of that name, with further arguments of `ssh-keygen`; nobody is let in by it.
    pub fn make_key(&self, name: &str, args: &[&str]) -> PathBuf {
        let path = self.directory.join(name);
        make_key(&path, args);
        path
    }

    /// Lets a key in, or with `cert-authority` as options all that it has signed.
    pub fn let_in(&self, key: &Path, options: &str) {
        let path = self.directory.join("authorized");
        let known = std::fs::read_to_string(&path).expect("read the keys that are let in");
        let new = std::fs::read_to_string(key.with_extension("pub")).expect("read a key");
        std::fs::write(&path, format!("{known}{options} {new}")).expect("let a key in");
    }

    /// Has a key signed by another one as root's for a day, beside which the certificate is put.
    pub fn sign(&self, authority: &Path, key: &Path) {
        run(Command::new("ssh-keygen")
            .args(["-q", "-I", "test", "-n", "root", "-V", "-1d:+1d", "-s"])
            .arg(authority)
            .arg(key.with_extension("pub")));
    }

    /// Waits until all connections that were served have ended.
    pub fn wait_for_no_connections(&self) {
        wait_for(
            "the end of all connections",
            Duration::from_secs(120),
            || {
                let mut connections = self.connections.lock().expect("no thread panics with it");
                connections.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
                connections.is_empty()
            },
        );
    }

    /// Another agent, with these keys and their certificates.
    pub fn agent_with(&self, name: &str, keys: &[&Path]) -> SshAgent {
        SshAgent::start(&self.directory.join(format!("{name}.sock")), keys)
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        let connections = self.connections.lock();
        for process in connections
            .expect("no thread panics with the list")
            .iter_mut()
        {
            end(process);
        }
    }
}

impl SshAgent {
    fn start(socket: &Path, keys: &[&Path]) -> SshAgent {
        let process = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("start ssh-agent (package openssh-client)");
        let agent = SshAgent {
            socket: socket.to_owned(),
            process,
        };
        wait_for("ssh-agent", Duration::from_secs(120), || {
            std::os::unix::net::UnixStream::connect(socket).is_ok()
        });
        for key in keys {
            run(Command::new("ssh-add")
                .arg("-q")
                .arg(key)
                .env("SSH_AUTH_SOCK", socket));
        }
        agent
    }

    /// Where it is reached.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// Has a process serve a connection.
fn serve(directory: &Path, stream: TcpStream) -> std::io::Result<Child> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("log"))?;
    Command::new("/usr/sbin/sshd")
        .args(["-i", "-e", "-f"])
        .arg(directory.join("config"))
        .stdin(OwnedFd::from(stream.try_clone()?))
        .stdout(OwnedFd::from(stream))
        .stderr(log)
        .spawn()
}

/// Makes a pair of keys; those of RSA are small, because large ones take seconds.
fn make_key(path: &Path, args: &[&str]) {
    let size: &[&str] = match args.contains(&"rsa") {
        true => &["-b", "2048"],
        false => &[],
    };
    run(Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-f"])
        .arg(path)
        .args(args)
        .args(size));
}

fn end(process: &mut Child) {
    let _ = process.kill();
    let _ = process.wait();
}

fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "{command:?}");
}
