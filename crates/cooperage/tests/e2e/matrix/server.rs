//! Our server on this machine, outside any container.

use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use testkit::Tool;

use crate::workshop::{Workshop, executable, text};

/// A running server, killed when dropped.
pub struct Server {
    process: Child,
    pub socket: PathBuf,
    root: PathBuf,
    command: Vec<String>,
}

impl Server {
    pub fn start(shop: &Workshop, flags: &[&str]) -> Server {
        let root = shop.lab.subdirectory("matrix-server");
        let socket = root.join("buildkitd.sock");
        let mut command = vec![
            "buildkitd".to_owned(),
            "--debug".to_owned(),
            "--root".to_owned(),
            text(&root.join("state")),
            "--addr".to_owned(),
            format!("unix://{}", socket.display()),
        ];
        command.extend(flags.iter().map(|flag| (*flag).to_owned()));
        Server {
            process: spawn(&root, &socket, &command),
            socket,
            root,
            command,
        }
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// All that it has written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("log")).unwrap()
    }

    /// One more flag from the next start on.
    pub fn add_flag(&mut self, flag: &str) {
        self.command.push(flag.to_owned());
    }

    /// Kills it as the kernel does when memory is short, and starts it again.
    pub fn kill_and_restart(&mut self) {
        self.end();
        let _ = std::fs::remove_file(&self.socket);
        self.process = spawn(&self.root, &self.socket, &self.command);
    }

    /// Ends it as an abort does, with nothing in the way of a core dump; whether there was one.
    pub fn abort(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        let pid = rustix::process::Pid::from_raw(self.process.id() as i32);
        let none = rustix::process::Rlimit {
            current: None,
            maximum: None,
        };
        rustix::process::prlimit(pid, rustix::process::Resource::Core, none).unwrap();
        rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::ABORT).unwrap();
        self.process.wait().unwrap().core_dumped()
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(root: &std::path::Path, socket: &std::path::Path, command: &[String]) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(root.join("log"))
        .unwrap();
    let process = Tool::new(executable(), root)
        .command(command)
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let start = Instant::now();
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "no server:\n{}",
            std::fs::read_to_string(root.join("log")).unwrap()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    process
}
