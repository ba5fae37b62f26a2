//! Our server beside another `buildkitd`: one stock client, two builders, the same work in turn. Both
//! keep their state on one disk and are reached over sockets of their own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::{Engine, Lab, Peers, Registry, RegistryAccess, Release, Tool};

use crate::works;

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);
/// The unit in which the kernel tells programs of processor time.
const TICKS_PER_SECOND: u64 = 100;
/// How long a server has nothing to do before its memory is looked at, in seconds.
const IDLE_SECONDS: u64 = 12;

/// What work is done with.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) client: Tool,
    /// For what is loaded.
    pub(crate) engine: Engine,
    pub(crate) registry: Registry,
    pub(crate) rounds: usize,
    /// The other one first.
    pub(crate) servers: Vec<Server>,
}

/// A server that is measured.
pub(crate) struct Server {
    /// Also the name of its builder.
    pub(crate) name: &'static str,
    process: Child,
    log: PathBuf,
}

/// Runs it and prints a table; `peer` is any `buildkitd`, with what it needs in `$PATH`.
/// Only works whose names contain `filter` are done.
pub fn run(executable: &Path, peer: &Path, rounds: usize, filter: &str) {
    let lab = Lab::start();
    lab.enter_network();
    let engine = Engine::start(&lab, Release::Newest);
    let registry = Registry::start(&lab, RegistryAccess::Plain, "127.0.0.1", 5000);
    let home = lab.subdirectory("home");
    let client = lab
        .tool(&Peers::find().buildx(), &home)
        .env("DOCKER_HOST", engine.host());
    let mut ours = lab.command(executable);
    ours.arg("buildkitd");
    let servers = vec![
        Server::start(&lab, "peer", lab.command(peer), &registry),
        Server::start(&lab, "ours", ours, &registry),
    ];
    for server in &servers {
        let address = format!("unix://{}", socket(&lab, server.name).display());
        client.ok(&["create", "--name", server.name, "--driver=remote", &address]);
        client.ok(&["inspect", "--bootstrap", server.name]);
    }
    let scene = Scene {
        lab,
        client,
        engine,
        registry,
        rounds,
        servers,
    };
    scene.show_memory("idle, nothing built");
    works::run(&scene, filter);
    std::thread::sleep(Duration::from_secs(IDLE_SECONDS));
    scene.show_memory("idle after all of it");
}

impl Server {
    fn start(lab: &Lab, name: &'static str, mut command: Command, registry: &Registry) -> Server {
        let directory = lab.subdirectory(name);
        let configuration = directory.join("buildkitd.toml");
        let text = format!("[registry.\"{}\"]\n  http = true\n", registry.address());
        std::fs::write(&configuration, text).expect("write the configuration");
        let log = directory.join("log");
        let file = std::fs::File::create(&log).expect("make the server's log");
        let process = command
            .args(["--root".as_ref(), directory.join("root").as_os_str()])
            .args(["--config".as_ref(), configuration.as_os_str()])
            .arg("--addr")
            .arg(format!("unix://{}", socket(lab, name).display()))
            .env("HOME", &directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("start a server");
        let start = Instant::now();
        while !socket(lab, name).exists() {
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(
                start.elapsed() < PATIENCE,
                "{name} does not listen: {}",
                said()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Server { name, process, log }
    }

    /// A file of `/proc/PID`. `nsenter` has become its parent.
    fn proc_file(&self, name: &str) -> String {
        let id = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let child = children.unwrap_or_default();
        let child = child.split_whitespace().next().unwrap_or_default();
        std::fs::read_to_string(format!("/proc/{child}/{name}"))
            .unwrap_or_else(|_| panic!("{} has ended, see {}", self.name, self.log.display()))
    }

    /// A line of its `/proc/PID/status`, in MiB.
    fn memory_mib(&self, field: &str) -> f64 {
        let status = self.proc_file("status");
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or_default() / 1024.0
    }

    /// Processor time that it and what it started and has waited for have used.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = self.proc_file("stat");
        // The name, in parentheses, may contain anything.
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(4)
            .map(|field| field.parse::<u64>().expect("a number of ticks"))
            .sum();
        Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
    }
}

fn socket(lab: &Lab, name: &str) -> PathBuf {
    lab.directory().join(format!("{name}.sock"))
}

impl Scene {
    fn show_memory(&self, when: &str) {
        for server in &self.servers {
            let [all, own] = ["VmRSS:", "RssAnon:"].map(|field| server.memory_mib(field));
            let name = server.name;
            println!("memory of {name}, {when}: {all:.1} MiB, of it its own {own:.1} MiB");
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.process.kill();
            let _ = server.process.wait();
        }
    }
}
