//! Namespaces and a directory that end with the test process.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Tool;

/// What runs inside: loopback up, a `/run` of its own, then wait for the test process to end.
const INSIDE: &str = "ip link set lo up && mount -t tmpfs tmpfs /run && mkdir -p /run/lock \
                      && echo ready > \"$1/ready\" && exec docker-init -- cat > /dev/null";

/// What keeps it: when the inside is gone, so are its processes; then the traces go.
const KEEPER: &str = "unshare --net --pid --fork --kill-child=SIGKILL --mount \
                      --propagation private --mount-proc sh -c \"$2\" lab \"$1\"; \
                      for i in 1 2 3 4 5 6 7 8 9 10; do \
                        find /sys/fs/cgroup -depth -type d -path \"*/$3*\" -exec rmdir {} + 2>/dev/null; \
                        rm -rf \"$1\" 2>/dev/null && break; sleep 0.2; \
                      done";

/// Namespaces of a test and its directory.
pub struct Lab {
    directory: PathBuf,
    name: String,
    first_process: u32,
    _alive: ChildStdin,
    _keeper: Child,
}

impl Lab {
    /// Makes one. The directory is made below `$TMPDIR`, on a file system that overlay can use.
    pub fn start() -> Lab {
        let directory = tempfile::Builder::new()
            .prefix("cooperage-lab-")
            .tempdir_in(std::env::temp_dir())
            .expect("make a directory for the lab")
            .keep();
        let name = directory
            .file_name()
            .expect("a named directory")
            .to_string_lossy()
            .into_owned();
        let mut keeper = Command::new("setsid");
        keeper
            .args(["sh", "-c", KEEPER, "keeper"])
            .arg(&directory)
            .args([INSIDE, &name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(directory.join("lab.log")).expect("make the lab's log"));
        let mut keeper = keeper.spawn().expect("start `setsid` (package util-linux)");
        let alive = keeper.stdin.take().expect("a piped stdin");
        wait_for("the lab", Duration::from_secs(120), || {
            directory.join("ready").exists()
        });
        let first_process = innermost_child(keeper.id());
        Lab {
            directory,
            name,
            first_process,
            _alive: alive,
            _keeper: keeper,
        }
    }

    /// The directory, removed when the lab ends.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A name no other lab has, for cgroups and the like.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory of that name in the lab's, made if missing.
    pub fn subdirectory(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        std::fs::create_dir_all(&path).expect("make a directory in the lab");
        path
    }

    /// Moves the calling thread into the lab's network; what it starts afterwards is there too.
    pub fn enter_network(&self) {
        let path = format!("/proc/{}/ns/net", self.first_process);
        let namespace = File::open(path).expect("open the lab's network namespace");
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("enter the lab's network (needs root)");
    }

    /// A tool that runs in all of the lab's namespaces; what it starts ends with the lab.
    pub fn tool(&self, program: &Path, home: &Path) -> Tool {
        let mut tool = Tool::new("nsenter", home)
            .arg("--target")
            .arg(&self.first_process.to_string());
        for arg in ["--net", "--pid", "--mount", "--"] {
            tool = tool.arg(arg);
        }
        tool.arg(program.to_str().expect("a path in UTF-8"))
    }

    /// A command that runs in all of the lab's namespaces and ends with the lab.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.first_process.to_string(),
                "--net",
                "--pid",
                "--mount",
                "--",
            ])
            .arg(program);
        command
    }
}

/// Ends a process started by [`Lab::command`] and waits for it: asks, then after ten seconds kills.
pub(crate) fn end(process: &mut Child) {
    // `nsenter` stays outside the process namespace; its child is what was asked for.
    let Some(target) =
        first_child(process.id()).and_then(|pid| rustix::process::Pid::from_raw(pid as i32))
    else {
        let _ = process.wait();
        return;
    };
    let _ = rustix::process::kill_process(target, rustix::process::Signal::TERM);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if !matches!(process.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = rustix::process::kill_process(target, rustix::process::Signal::KILL);
    let _ = process.wait();
}

/// Waits until `done` says so, looking often; panics with what was waited for after `at_most`.
pub fn wait_for(what: &str, at_most: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < at_most,
            "{what} did not come up within {at_most:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The last process of the chain of first children below `process`.
fn innermost_child(process: u32) -> u32 {
    let mut innermost = process;
    while let Some(child) = first_child(innermost) {
        innermost = child;
    }
    innermost
}

pub(crate) fn first_child(process: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    children.ok()?.split_whitespace().next()?.parse().ok()
}
