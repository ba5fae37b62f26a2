//! Debian's OpenSSH server and agent.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::lab::wait_for;

/// A running server that lets one key in as root, and an agent that has it.
pub struct SshServer {
    directory: PathBuf,
    port: u16,
    server: Child,
    agent: Child,
}

impl SshServer {
    /// Starts both, with their files in `directory`.
    pub fn start(directory: &Path) -> SshServer {
        std::fs::create_dir_all(directory).expect("make the server's directory");
        // Where the server's unprivileged part lives.
        std::fs::create_dir_all("/run/sshd").expect("make /run/sshd");
        for key in ["host", "user"] {
            run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(directory.join(key)));
        }
        // A port nobody has: found, and left for the server.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let text = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/user.pub\n\
             PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPidFile none\n",
            directory.display()
        );
        std::fs::write(directory.join("config"), text).expect("write the server's configuration");
        let server = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(directory.join("config"))
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(directory.join("log")).expect("make a log"))
            .spawn()
            .expect("start sshd (package openssh-server)");
        let socket = directory.join("agent.sock");
        let agent = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("start ssh-agent (package openssh-client)");
        wait_for("ssh-agent", Duration::from_secs(120), || socket.exists());
        std::fs::set_permissions(directory.join("user"), PermissionsExt::from_mode(0o600))
            .expect("protect the key");
        run(Command::new("ssh-add")
            .arg("-q")
            .arg(directory.join("user"))
            .env("SSH_AUTH_SOCK", &socket));
        wait_for("sshd", Duration::from_secs(120), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        SshServer {
            directory: directory.to_owned(),
            port,
            server,
            agent,
        }
    }

    /// The address of a path of this machine's disk.
    pub fn url(&self, path: &Path) -> String {
        format!("ssh://root@127.0.0.1:{}{}", self.port, path.display())
    }

    /// The agent's socket.
    pub fn agent(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    /// The line of `known_hosts` with the server's key.
    pub fn known_hosts(&self) -> String {
        let key = std::fs::read_to_string(self.directory.join("host.pub"));
        format!("[127.0.0.1]:{} {}", self.port, key.expect("the host's key"))
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        for process in [&mut self.server, &mut self.agent] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "{command:?}");
}
