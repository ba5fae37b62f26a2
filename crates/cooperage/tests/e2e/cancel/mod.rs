//! Builds that are given up: by clients that are interrupted or killed, and by a server that stops.
//!
//! Whatever was under way: nothing of the build runs, is mounted or has a control group any more, its
//! client has ended, its record says what happened, others go on, and the same build works afterwards.

mod steps;
mod stops;
mod toll;
mod transfers;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use testkit::{BuildServer, Lab, Peers, Tool};

use crate::workshop::{executable, server, text, wait_until};

/// Only guards against hanging.
const PATIENCE: Duration = Duration::from_secs(120);

/// Who asks for a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// Debian's `docker-buildx`.
    Stock,
    Ours,
    /// Our `buildctl`.
    Buildctl,
}

use Client::{Buildctl, Ours, Stock};

/// A server, and builders that lead to it.
struct Scene {
    lab: Lab,
    flags: Vec<String>,
    server: Option<BuildServer>,
}

/// A build to be started.
#[derive(Clone, Debug, Default)]
struct Wanted {
    context: String,
    output: String,
    /// `id=source` for secrets and `default=socket` for agents, if there are any.
    secret: String,
    ssh: String,
    /// Where the server is reached, if not at its own address.
    address: String,
}

/// A client that runs.
struct Running {
    client: Client,
    process: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Scene {
    fn open(flags: &[&str]) -> Scene {
        let lab = Lab::start();
        lab.enter_network();
        Self::of(lab, flags)
    }

    fn of(lab: Lab, flags: &[&str]) -> Scene {
        let server = Some(server(&lab).args(flags).start());
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Scene { lab, flags, server }
    }

    fn server(&self) -> &BuildServer {
        self.server.as_ref().unwrap()
    }

    /// A context with busybox as `/bin/sh` of an image in which `lines` follow.
    fn context(&self, name: &str, lines: &str) -> Wanted {
        let root = self.lab.subdirectory(name);
        let dockerfile = format!("FROM scratch\nCOPY busybox /bin/sh\n{lines}\n");
        std::fs::write(root.join("Dockerfile"), dockerfile).unwrap();
        std::fs::copy(Peers::find().busybox("amd64"), root.join("busybox")).unwrap();
        Wanted {
            context: text(&root),
            ..Wanted::default()
        }
    }

    /// The client, with a home in which the builder `far` is what it builds with.
    fn tool(&self, client: Client, address: &str) -> Tool {
        let own = self.server().address();
        let address = if address.is_empty() { &own } else { address };
        let home = self.lab.subdirectory(&format!("home-{client:?}"));
        let tool = match client {
            Stock => Tool::new(Peers::find().buildx(), &home),
            Ours => Tool::new(executable(), &home),
            Buildctl => {
                let tool = Tool::new(executable(), &home);
                return tool.arg("buildctl").arg("--addr").arg(address);
            }
        };
        let builder = if address == own { "far" } else { "behind" };
        let record = home.join(".docker/buildx/instances").join(builder);
        if !record.exists() {
            tool.ok(&["create", "--name", builder, "--driver", "remote", address]);
        }
        tool.env("BUILDX_BUILDER", builder)
    }

    fn start(&self, client: Client, wanted: &Wanted) -> Running {
        let mut args = vec!["build".to_owned(), "--progress=plain".to_owned()];
        let mut flag = |name: &str, value: &str| {
            if !value.is_empty() {
                args.extend([format!("--{name}"), value.to_owned()]);
            }
        };
        flag("output", &wanted.output);
        flag("secret", &wanted.secret);
        flag("ssh", &wanted.ssh);
        let parent = self.cgroup_parent();
        if client == Buildctl {
            flag("frontend", "dockerfile.v0");
            flag("opt", &format!("cgroup-parent={parent}"));
            for local in ["context", "dockerfile"] {
                flag("local", &format!("{local}={}", wanted.context));
            }
        } else {
            flag("cgroup-parent", &parent);
            args.push(wanted.context.clone());
        }
        let mut process = self
            .tool(client, &wanted.address)
            .command(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let (sender, receiver) = channel();
        // Read to its end, so that nobody waits for a full pipe.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Running {
            client,
            process,
            lines: receiver,
            said: Vec::new(),
        }
    }

    /// The parent of the control groups of this scene's steps, and of nobody else's.
    fn cgroup_parent(&self) -> String {
        format!("/{}", self.lab.name())
    }

    /// Where there are control groups of steps now.
    fn cgroups(&self) -> Vec<PathBuf> {
        let all = hierarchies()
            .into_iter()
            .map(|mount| mount.join(self.lab.name()));
        all.filter(|dir| dir.exists()).collect()
    }

    /// What is mounted in the server's name space.
    fn mounts(&self) -> Vec<String> {
        let path = format!("/proc/{}/mountinfo", self.server().process_id());
        let mounts = std::fs::read_to_string(path).unwrap();
        let ours = mounts.lines().filter(|line| line.contains(self.lab.name()));
        ours.map(str::to_owned).collect()
    }

    /// Waits until nothing is left of builds whose processes have `word` among their arguments. What is
    /// waited for is a matter of the kernel's, or of a client that did not wait for the server.
    fn nothing_is_left(&self, what: &str, word: &str) {
        wait_until(&format!("{what}: the end of its processes"), || {
            running(word) == 0
        });
        wait_until(&format!("{what}: the end of its mounts"), || {
            self.mounts().is_empty()
        });
        wait_until(&format!("{what}: the end of its cgroups"), || {
            self.cgroups().is_empty()
        });
        let sockets = self.server().root().join("v1/tmp/run");
        wait_until(&format!("{what}: the end of its sockets"), || {
            std::fs::read_dir(&sockets).map_or(0, Iterator::count) == 0
        });
    }

    /// Checks that the newest record says that its build ended so.
    fn record_says(&self, what: &str, status: &str) {
        assert_eq!(self.record_of_newest(what), status, "{what}");
    }

    /// Waits until the newest record says how its build ended.
    fn record_of_newest(&self, what: &str) -> String {
        let stock = self.tool(Stock, "");
        let mut said = String::new();
        wait_until(&format!("{what}: a record of its end"), || {
            let shown = stock
                .run(&["history", "inspect", "--format", "json"])
                .stdout;
            let shown: serde_json::Value = serde_json::from_str(&shown).unwrap_or_default();
            said = shown["Status"].as_str().unwrap_or_default().to_owned();
            !said.is_empty() && said != "running"
        });
        said
    }

    /// Waits until so many builds are under way.
    fn wait_for_builds(&self, count: usize) {
        let stock = self.tool(Stock, "");
        wait_until("builds under way", || {
            let listed = stock.ok(&["history", "ls", "--format={{.Status}}"]).stdout;
            listed.lines().filter(|line| *line == "Running").count() == count
        });
    }

    /// Stops the server while `build` is under way, and starts another one: the client is told,
    /// and nothing stays.
    fn stop_server(&mut self, what: &str, build: Running, word: &str) {
        let stopped = self.server.take().unwrap();
        let pid = stopped.process_id();
        stopped.signal(Signal::TERM);
        let status = stopped.wait();
        assert!(status.success(), "{what}: {status}");
        let (client, code, said) = build.end();
        assert_ne!(code, 0, "{what}: {said}");
        let told = said.contains("the build was given up: the server is stopping");
        assert!(told, "{what}, {client:?}: {said}");
        assert_eq!(running(word), 0, "{what}");
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(self.cgroups(), [] as [PathBuf; 0], "{what}");
        self.server = Some(server(&self.lab).args(&self.flags).start());
    }
}

impl Running {
    /// Reads on until a line has that text.
    fn wait_for(&mut self, expected: &str) {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.said.push(line);
            if self.said.last().is_some_and(|line| line.contains(expected)) {
                return;
            }
        }
        panic!("{:?}, without {expected:?}: {:#?}", self.client, self.said);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.process.id() as i32).unwrap(), signal).unwrap();
    }

    /// Waits for its end: who it was, its exit code (-1 for a signal), and what it said.
    fn end(mut self) -> (Client, i32, String) {
        let code = self.process.wait().unwrap().code().unwrap_or(-1);
        self.said.extend(self.lines.iter());
        (self.client, code, self.said.join("\n"))
    }

    /// Interrupts or kills it, and checks how it ends.
    fn give_up(self, signal: Signal) {
        self.signal(signal);
        let (client, code, said) = self.end();
        let expected = match (client, signal) {
            (_, Signal::KILL) => -1,
            (Buildctl, _) => 1,
            (Stock | Ours, _) => 130,
        };
        assert_eq!(code, expected, "{client:?}: {said}");
        if signal != Signal::KILL {
            // In front of it is what the client was at: its own build function, or the server's.
            let words = ": Canceled: context canceled";
            assert!(said.contains(words), "{client:?}: {said}");
        }
    }

    #[track_caller]
    fn ends_well(self) -> String {
        let (client, code, said) = self.end();
        assert_eq!(code, 0, "{client:?}: {said}");
        said
    }
}

/// Where this machine has hierarchies of control groups mounted.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = mounts.lines().filter(|line| line.contains(" - cgroup"));
    lines
        .filter_map(|line| Some(line.split(' ').nth(4)?.into()))
        .collect()
}

/// How many processes anywhere have that word among their arguments.
pub fn running(word: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|p| std::fs::read(p.path().join("cmdline")).ok());
    let has = |line: &Vec<u8>| {
        line.split(|byte| *byte == 0)
            .any(|arg| arg == word.as_bytes())
    };
    lines.filter(has).count()
}

/// A number of seconds that no other test sleeps.
pub fn word(number: usize) -> String {
    format!("97{}{number}", std::process::id())
}
