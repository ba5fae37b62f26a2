//! A build server as a process of its own on a private root, without any Docker Engine.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::Tool;
use crate::lab::wait_for;

/// How long a server may take to answer, and to end when asked to: it waits for the disk at both, which
/// others may keep busy.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running server; dropping it kills it.
pub struct BuildServer {
    process: Child,
    directory: PathBuf,
    buildctl: Tool,
}

impl BuildServer {
    /// Starts the executable's `buildkitd` with its state in `<directory>/root` and waits until it
    /// answers. A root that is there is used again.
    pub fn start(executable: &Path, directory: &Path) -> BuildServer {
        Self::start_with(executable, directory, "")
    }

    /// The same with that text as its `buildkitd.toml`.
    pub fn start_with(executable: &Path, directory: &Path, configuration: &str) -> BuildServer {
        let process = Self::command(executable, directory, configuration)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", executable.display()));
        let buildctl = Tool::new(executable, directory)
            .arg("buildctl")
            .arg("--addr")
            .arg(&address(directory));
        let mut server = BuildServer {
            process,
            directory: directory.to_owned(),
            buildctl,
        };
        wait_for("the build server", PATIENCE, || {
            if let Ok(Some(status)) = server.process.try_wait() {
                panic!("the build server ended: {status}\n{}", server.log());
            }
            server.buildctl.run(&["debug", "info"]).code == 0
        });
        server
    }

    /// The command that [`BuildServer::start_with`] runs; what it says goes to `buildkitd.log`.
    pub fn command(executable: &Path, directory: &Path, configuration: &str) -> Command {
        std::fs::create_dir_all(directory).expect("make the server's directory");
        let file = directory.join("buildkitd.toml");
        std::fs::write(&file, configuration).expect("write the configuration");
        let log = File::options()
            .create(true)
            .append(true)
            .open(directory.join("buildkitd.log"))
            .expect("make the server's log");
        let mut command = Command::new(executable);
        command
            .arg("buildkitd")
            .arg("--root")
            .arg(directory.join("root"))
            .args(["--addr", &address(directory)])
            .arg("--config")
            .arg(file)
            .current_dir(directory)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        command
    }

    /// `buildctl` for this server.
    pub fn buildctl(&self) -> &Tool {
        &self.buildctl
    }

    /// Its root directory.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// What all servers in this directory said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("buildkitd.log")).unwrap_or_default()
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Bytes of memory it has resident.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// Bytes of memory it has resident that are its own: not files it has mapped, such as its code and
    /// its databases, which the kernel may take back.
    pub fn anonymous_bytes(&self) -> u64 {
        self.status_bytes("RssAnon:")
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id()));
        tasks.map_or(0, Iterator::count)
    }

    /// The most bytes of memory it ever had resident.
    pub fn resident_bytes_most(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Kills it at once, as the kernel does when memory is short.
    pub fn kill(mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(mut self) {
        if let Some(pid) = Pid::from_raw(self.process.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        wait_for("the end of the build server", PATIENCE, || {
            !matches!(self.process.try_wait(), Ok(None))
        });
    }
}

impl Drop for BuildServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn address(directory: &Path) -> String {
    format!("unix://{}/b.sock", directory.display())
}
