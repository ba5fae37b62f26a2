//! Our server beside another `buildkitd`: one stock client, two builders, the same work in turn. Both
//! keep their state on one disk and are reached over sockets of their own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::{Lab, Peers, Registry, RegistryAccess, Tool};

use crate::contexts::fill;
use crate::{pair, report, timed};

/// The image that is pulled: so many layers of so many bytes each that do not compress.
const IMAGE_LAYERS: usize = 10;
const IMAGE_LAYER_BYTES: usize = 20 << 20;
/// The layer that is exported.
const EXPORT_BYTES: usize = 300 << 20;
/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a server has nothing to do before its memory is looked at, in seconds.
const IDLE_SECONDS: u64 = 12;

struct Scene {
    lab: Lab,
    client: Tool,
    rounds: usize,
    servers: Vec<Server>,
}

struct Server {
    /// Also the name of its builder.
    name: &'static str,
    process: Child,
    log: PathBuf,
}

/// Runs it and prints a table; `peer` is any `buildkitd`, with what it needs in `$PATH`.
pub fn run(executable: &Path, peer: &Path, rounds: usize) {
    let lab = Lab::start();
    let registry = Registry::start(&lab, RegistryAccess::Plain, "127.0.0.1", 5000);
    let home = lab.subdirectory("home");
    let client = lab.tool(&Peers::find().buildx(), &home);
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
        rounds,
        servers,
    };
    scene.show_memory("idle, nothing built");
    println!(
        "{:<44} {:>18} {:>18} {:>8}",
        "work", "peer (ms)", "ours (ms)", "ratio"
    );
    scene.cached_steps();
    scene.contexts();
    scene.pull(&registry);
    scene.export();
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

    /// A line of its `/proc/PID/status`, in MiB. `nsenter` has become its parent.
    fn memory_mib(&self, field: &str) -> f64 {
        let id = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let child = children.unwrap_or_default();
        let child = child.split_whitespace().next().unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or_else(|| panic!("{} has ended, see {}", self.name, self.log.display()))
            / 1024.0
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

    fn build(&self, server: &str, context: &Path, more: &[&str]) {
        let builder = format!("--builder={server}");
        let mut args = vec!["build", "--provenance=false", &builder];
        args.extend(more);
        args.push(context.to_str().expect("UTF-8"));
        self.client.ok(&args);
    }

    /// The same for both; `prepare` and `work` are told for whom.
    fn pair(&self, name: &str, prepare: impl Fn(&str, usize), work: impl Fn(&str)) {
        pair(name, self.rounds, |who, round| {
            let server = self.servers[who].name;
            prepare(server, round);
            timed(|| work(server))
        });
    }

    fn cached_steps(&self) {
        let context = self.lab.subdirectory("steps");
        std::fs::copy(Peers::find().busybox("amd64"), context.join("busybox")).expect("busybox");
        let mut text = "FROM scratch\nCOPY busybox /bin/sh\n".to_owned();
        for step in 0..9 {
            text += &format!("RUN echo {step} > /{step}\n");
        }
        std::fs::write(context.join("Dockerfile"), text).expect("write");
        let both = ["peer", "ours"];
        let [peer, ours] = both.map(|server| vec![timed(|| self.build(server, &context, &[]))]);
        report("ten steps, the first time (one round)", peer, ours);
        self.pair(
            "ten steps, all cached",
            |_, _| {},
            |server| self.build(server, &context, &[]),
        );
    }

    /// A folder of many files that is copied whole.
    fn contexts(&self) {
        let context = self.lab.subdirectory("context");
        fill(&context);
        std::fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /\n").expect("write");
        let build = |server: &str| self.build(server, &context, &[]);
        let both = ["peer", "ours"];
        let [peer, ours] = both.map(|server| vec![timed(|| build(server))]);
        report("COPY of 50000 files, the first (one round)", peer, ours);
        self.pair("COPY of 50000 files, unchanged", |_, _| {}, build);
        let change = |server: &str, round: usize| {
            let text = format!("changed for {server} {round}");
            std::fs::write(context.join("0/0"), text).expect("write");
        };
        self.pair("COPY of 50000 files, one changed", change, build);
    }

    fn pull(&self, registry: &Registry) {
        let context = self.lab.subdirectory("image");
        let mut text = "FROM scratch\n".to_owned();
        for layer in 0..IMAGE_LAYERS {
            let mut bytes = vec![0; IMAGE_LAYER_BYTES];
            let mut random = std::fs::File::open("/dev/urandom").expect("open");
            std::io::Read::read_exact(&mut random, &mut bytes).expect("read");
            std::fs::write(context.join(layer.to_string()), bytes).expect("write");
            text += &format!("COPY {layer} /\n");
        }
        std::fs::write(context.join("Dockerfile"), text).expect("write");
        let image = format!("{}/layers:1", registry.address());
        let output = format!("--output=type=image,push=true,name={image}");
        self.build("ours", &context, &[&output]);
        let context = self.lab.subdirectory("pull");
        let text = format!("FROM {image}\nCOPY Dockerfile /\n");
        std::fs::write(context.join("Dockerfile"), text).expect("write");
        self.pair(
            "pull of ten layers, 200 MiB",
            |server, _| {
                let builder = format!("--builder={server}");
                self.client.ok(&["prune", "--all", "--force", &builder]);
            },
            |server| self.build(server, &context, &[]),
        );
    }

    /// Only the export is timed: what is exported is there before.
    fn export(&self) {
        let context = self.lab.subdirectory("export");
        std::fs::copy(Peers::find().busybox("amd64"), context.join("busybox")).expect("busybox");
        write_text(&context.join("text"), EXPORT_BYTES);
        let write = |server: &str, round: usize| {
            let text = format!(
                "FROM scratch\nCOPY busybox /bin/sh\nRUN --mount=type=bind,target=/c \
                 /c/busybox cp /c/text /text; echo {server} {round} >> /text\n"
            );
            std::fs::write(context.join("Dockerfile"), text).expect("write");
            self.build(server, &context, &[]);
        };
        let output = format!("--output=type=oci,dest={}/out.tar", context.display());
        std::fs::write(context.join(".dockerignore"), "out.tar").expect("write");
        self.pair("gzip export of a layer of 300 MiB", write, |server| {
            self.build(server, &context, &[&output])
        });
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

/// Writes text that compresses about as well as programs do.
fn write_text(path: &Path, bytes: usize) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).expect("create"));
    let (mut written, mut state) = (0, 1_u64);
    while written < bytes {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let line = format!(
            "{:x} of the staves, {}\n",
            state >> 24,
            (state >> 40) % 1000
        );
        file.write_all(line.as_bytes()).expect("write");
        written += line.len();
    }
}
