//! A BuildKit server on this machine, outside any container.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::Lab;
use crate::lab::{end, wait_for};

/// How a server is started.
#[derive(Clone, Copy, Debug)]
pub(super) enum Program<'a> {
    /// Ours: `EXECUTABLE buildkitd …`.
    Ours(&'a Path),
    /// Another BuildKit: `BUILDKITD …`.
    Stock(&'a Path),
}

/// A running server; it ends when dropped, or with the lab.
pub struct Server {
    process: Child,
    address: String,
    log: std::path::PathBuf,
}

impl Server {
    /// Starts one in the lab with a configuration and waits until it listens.
    pub fn start(lab: &Lab, program: Program<'_>, configuration: &Path) -> Server {
        let (executable, name, words) = match program {
            Program::Ours(executable) => (executable, "server", &["buildkitd"][..]),
            Program::Stock(executable) => (executable, "stock-server", &[][..]),
        };
        let root = lab.subdirectory(name);
        let (socket, log) = (root.join("buildkitd.sock"), root.join("log"));
        let file = File::create(&log).expect("make the server's log");
        let address = format!("unix://{}", socket.display());
        let process = lab
            .command(executable)
            .args(words)
            .args(["--addr", &address, "--root"])
            .arg(root.join("state"))
            .arg("--config")
            .arg(configuration)
            .env("HOME", &root)
            .env_remove("TMPDIR")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("share the log"))
            .stderr(file)
            .spawn()
            .expect("start the server");
        let what = format!("the server ({})", log.display());
        wait_for(&what, Duration::from_secs(60), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        Server {
            process,
            address,
            log,
        }
    }

    /// `unix://…`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the server wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}
