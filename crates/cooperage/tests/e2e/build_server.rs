//! Our server on this machine, outside any container.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use testkit::{Lab, Tool};

use crate::workshop::{executable, text};

/// A running server, killed when dropped.
pub struct BuildServer {
    process: Child,
    directory: PathBuf,
}

impl BuildServer {
    /// One whose state lives in the lab.
    pub fn start(lab: &Lab) -> BuildServer {
        Self::start_with(lab, &[], &[])
    }

    /// The same with more arguments and environment. A second one in a lab finds the state of the
    /// first.
    pub fn start_with(lab: &Lab, args: &[&str], environment: &[(&str, &str)]) -> BuildServer {
        let directory = lab.subdirectory("server");
        let mut server = BuildServer {
            process: Self::spawn(&directory, args, environment),
            directory,
        };
        wait_until("a server that answers", || {
            let ended = server.process.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}\n{}", server.log());
            UnixStream::connect(server.socket()).is_ok()
        });
        server
    }

    /// A server that does not come up: its exit code and what it wrote.
    pub fn refusal(lab: &Lab, args: &[&str]) -> (Option<i32>, String) {
        let directory = lab.subdirectory("server");
        let mut process = Self::spawn(&directory, args, &[]);
        let status = process.wait().unwrap();
        let log = std::fs::read_to_string(directory.join("log")).unwrap();
        (status.code(), log)
    }

    fn spawn(directory: &Path, args: &[&str], environment: &[(&str, &str)]) -> Child {
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let mut all = vec![
            "buildkitd".to_owned(),
            "--root".to_owned(),
            text(&directory.join("state")),
            "--addr".to_owned(),
            format!("unix://{}", text(&directory.join("buildkitd.sock"))),
        ];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let mut tool = Tool::new(executable(), directory);
        for (name, value) in environment {
            tool = tool.env(name, *value);
        }
        tool.command(&all)
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Its socket, always the first of its addresses.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("buildkitd.sock")
    }

    /// Its address, as drivers take it.
    pub fn address(&self) -> String {
        format!("unix://{}", text(&self.socket()))
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        let status = std::process::Command::new("kill")
            .args([&format!("-{name}"), &self.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for its end; panics if it does not come.
    pub fn wait(mut self) -> ExitStatus {
        let mut status = None;
        wait_until("end of the server", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for BuildServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits for something that is sure to come, looking often; panics when it does not.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "no {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
