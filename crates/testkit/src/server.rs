//! A build server as a process of its own on a private root, without any Docker Engine.
//!
//! [`ServerSetup`] says which and how; [`BuildServer`] is a running one. It is in the network of the
//! thread that starts it, or in all namespaces of a [`Lab`]; either way it ends when it is dropped.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::lab::{end, first_child, wait_for};
use crate::{Held, Lab, Tool};

/// How long a server may take to answer, and to end when asked to: it waits for the disk at both, which
/// others may keep busy.
const PATIENCE: Duration = Duration::from_secs(180);

/// How a server is started. Its directory gets `b.sock`, where it listens, `buildkitd.log` and
/// `root`, its state, which a later server in the same directory finds again.
#[derive(Clone, Debug)]
pub struct ServerSetup {
    executable: PathBuf,
    directory: PathBuf,
    tool: Tool,
    first: Option<&'static str>,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    /// Whether the process is a child of the one that is started, which enters a lab.
    in_lab: bool,
}

impl ServerSetup {
    /// `EXECUTABLE buildkitd`, which is ours.
    pub fn new(executable: &Path, directory: &Path) -> ServerSetup {
        ServerSetup {
            first: Some("buildkitd"),
            ..Self::stock(executable, directory)
        }
    }

    /// Another BuildKit: a program that is a server itself.
    pub fn stock(buildkitd: &Path, directory: &Path) -> ServerSetup {
        ServerSetup {
            executable: buildkitd.to_owned(),
            directory: directory.to_owned(),
            tool: Tool::new(buildkitd, directory),
            first: None,
            args: Vec::new(),
            environment: Vec::new(),
            in_lab: false,
        }
    }

    /// The same in all namespaces of a lab, with which it ends at the latest.
    #[must_use]
    pub fn in_lab(mut self, lab: &Lab) -> Self {
        self.tool = lab.tool(&self.executable, &self.directory);
        self.in_lab = true;
        self
    }

    /// The same with further arguments.
    #[must_use]
    pub fn args<S: AsRef<str>>(mut self, args: &[S]) -> Self {
        self.args
            .extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// The same with a variable set; it has `PATH`, `HOME` and `TZ` anyway.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it and waits until it answers; panics with its log if it ends instead.
    pub fn start(self) -> BuildServer {
        let mut server = self.start_without_waiting();
        server.wait_until_it_answers();
        server
    }

    /// Starts it; whether and when it answers is not waited for.
    pub fn start_without_waiting(self) -> BuildServer {
        BuildServer {
            process: self.spawn(),
            setup: self,
        }
    }

    /// Starts one that does not come up: how it ended and what it wrote.
    pub fn refusal(&self) -> (ExitStatus, String) {
        let before = self.log().len();
        let status = self.spawn().wait().expect("wait for the build server");
        (status, self.log().split_off(before))
    }

    fn spawn(&self) -> Child {
        std::fs::create_dir_all(&self.directory).expect("make the server's directory");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("make the server's log");
        self.command()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{:?}: {error}", self.tool))
    }

    fn command(&self) -> Command {
        let mut command = self.tool.command(self.first.as_slice());
        command
            .arg("--root")
            .arg(self.directory.join("root"))
            .arg("--addr")
            .arg(format!("unix://{}", self.socket().display()))
            .args(&self.args)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("b.sock")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("buildkitd.log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

/// A running server; dropping it ends it.
pub struct BuildServer {
    process: Child,
    setup: ServerSetup,
}

impl BuildServer {
    /// Ours with nothing special about it; see [`ServerSetup::new`].
    pub fn start(executable: &Path, directory: &Path) -> BuildServer {
        ServerSetup::new(executable, directory).start()
    }

    /// Another BuildKit is only waited for until it listens, which it does last.
    fn wait_until_it_answers(&mut self) {
        wait_for("the build server", PATIENCE, || {
            if let Ok(Some(status)) = self.process.try_wait() {
                panic!("the build server ended: {status}\n{}", self.log());
            }
            let listens = UnixStream::connect(self.setup.socket()).is_ok();
            let ours = self.setup.first.is_some();
            listens && (!ours || self.buildctl().run(&["debug", "info"]).code == 0)
        });
    }

    /// Where it listens, always the first of its addresses.
    pub fn socket(&self) -> PathBuf {
        self.setup.socket()
    }

    /// The same as clients and drivers take it: `unix://…`.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// `EXECUTABLE buildctl` for this server, which is ours.
    pub fn buildctl(&self) -> Tool {
        Tool::new(&self.setup.executable, &self.setup.directory)
            .arg("buildctl")
            .arg("--addr")
            .arg(&self.address())
    }

    /// Its root directory.
    pub fn root(&self) -> PathBuf {
        self.setup.directory.join("root")
    }

    /// What all servers in this directory wrote.
    pub fn log(&self) -> String {
        self.setup.log()
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        let started = self.process.id();
        match self.setup.in_lab {
            true => first_child(started).unwrap_or(started),
            false => started,
        }
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

    /// What it has of this machine now.
    pub fn held(&self) -> Held {
        Held::of(self.process_id(), &self.root())
    }

    /// The most bytes of memory it ever had resident.
    pub fn resident_bytes_most(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process_id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process_id() as i32).expect("a process id");
        kill_process(pid, signal).expect("send the build server a signal");
    }

    /// Waits for its end; panics if it does not come.
    pub fn wait(mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the end of the build server", PATIENCE, || {
            status = self.process.try_wait().expect("ask for the server's end");
            status.is_some()
        });
        status.expect("waited for")
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(self) {
        self.signal(Signal::TERM);
        self.wait();
    }

    /// Kills it at once, as the kernel does when memory is short.
    pub fn kill(mut self) {
        self.kill_now();
    }

    /// Kills it and starts it again, with these arguments more from now on.
    pub fn kill_and_restart(&mut self, more: &[&str]) {
        self.kill_now();
        self.setup = self.setup.clone().args(more);
        self.process = self.setup.spawn();
        self.wait_until_it_answers();
    }

    /// Ends it as an abort does, with nothing in the way of a core dump; whether there was one.
    pub fn abort(&mut self) -> bool {
        let pid = Pid::from_raw(self.process_id() as i32);
        let none = Rlimit {
            current: None,
            maximum: None,
        };
        prlimit(pid, Resource::Core, none).expect("allow a core dump");
        self.signal(Signal::ABORT);
        let status = self.process.wait().expect("wait for the build server");
        status.core_dumped()
    }

    fn kill_now(&mut self) {
        if let Some(pid) = Pid::from_raw(self.process_id() as i32) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

impl Drop for BuildServer {
    fn drop(&mut self) {
        if !matches!(self.process.try_wait(), Ok(None)) {
            return;
        }
        match self.setup.in_lab {
            true => end(&mut self.process),
            false => self.kill_now(),
        }
    }
}
