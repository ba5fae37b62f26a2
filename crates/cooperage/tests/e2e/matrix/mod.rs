//! The same LLB on our server and on the Engine's own BuildKit, outputs compared.
//!
//! A case is a graph made with `llb::GraphBuilder`; our `buildctl` sends it to both servers and
//! asks for the result as a tar, which keeps owners, modes and times. What the cases write into
//! their result is what is compared: names, kinds, modes, owners, links, contents, and times where
//! they are not "now".

mod build_op;
mod cache;
mod dockerfile;
mod exec;
mod file;
mod generated;
mod git;
mod graph;
mod hostile;
mod http;
mod images;
mod layers;
mod network;
mod places;
mod policies;
pub mod secrets;
mod site;
mod sources;
mod tree;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use llb::{Edge, Graph};
use proto::prost::Message;
use testkit::{BuildServer, Output, Registry, Release, ServerSetup, Tool};

use crate::workshop::{Workshop, executable, text};
use graph::Llb;

/// Names another BuildKit to compare with than the Engine's own.
const STOCK: &str = "COOPERAGE_STOCK_BUILDKITD";

/// Both servers, and what the cases build from.
pub struct Matrix {
    pub shop: Workshop,
    pub ours: Peer,
    pub stock: Option<Peer>,
    pub server: BuildServer,
    /// Another BuildKit than the Engine's.
    other: Option<BuildServer>,
    pub registry: Registry,
    pub base: String,
    started: u64,
}

/// A server as its clients see it.
pub struct Peer {
    client: Tool,
    directory: PathBuf,
}

/// What is built, and with which flags of `buildctl build`.
pub struct Case {
    name: String,
    graph: Graph,
    flags: Vec<String>,
    /// Whether only that both fail is compared, the reasons being told in other words on purpose.
    own_words: bool,
    look: Option<Look>,
    export: Export,
}

/// As what a result is exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Export {
    #[default]
    Tar,
    /// Files in a directory.
    Folder,
    /// An OCI layout, of which each layer is compared.
    Layers,
}

/// Lines about the directory of a result, from the list of what is in it.
type Look = fn(&Path, Vec<String>) -> Vec<String>;

impl Case {
    pub fn new(name: &str, graph: Graph) -> Case {
        Case {
            name: name.to_owned(),
            graph,
            flags: Vec::new(),
            own_words: false,
            look: None,
            export: Export::Tar,
        }
    }

    /// A graph made on the spot; the base image is at hand in it.
    pub fn of(name: &str, matrix: &Matrix, make: impl FnOnce(&mut Llb) -> Edge) -> Case {
        let mut llb = Llb::new(&matrix.base);
        let root = make(&mut llb);
        Case::new(name, llb.finish(root))
    }

    /// If it fails it does so on both servers, for a reason that they tell in their own words.
    pub fn in_own_words(mut self) -> Case {
        self.own_words = true;
        self
    }

    /// What is compared is what this sees of the result.
    pub fn seen_by(mut self, look: Look) -> Case {
        self.look = Some(look);
        self
    }

    pub fn exported_as(mut self, export: Export) -> Case {
        self.export = export;
        self
    }

    pub fn flags(mut self, flags: &[&str]) -> Case {
        self.flags
            .extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }
}

/// What one server made of a case.
pub type Built = Result<Vec<String>, String>;

impl Matrix {
    /// Our server beside the newest Engine, whose image store can do merge and diff; or beside another
    /// BuildKit, whose `buildkitd` is named by `$COOPERAGE_STOCK_BUILDKITD`.
    pub fn start(flags: &[&str]) -> Matrix {
        Self::alone(Release::NewestContainerd, flags).beside_stock()
    }

    fn beside_stock(mut self) -> Matrix {
        let directory = self.shop.lab.subdirectory("stock-peer");
        let address = if let Some(buildkitd) = std::env::var_os(STOCK) {
            let config = text(&self.shop.lab.directory().join("buildkitd.toml"));
            let setup = ServerSetup::stock(Path::new(&buildkitd), &directory);
            let setup = setup.args(&["--config", &config]);
            let server = setup.args(exec::ALLOW).start();
            let address = server.address();
            self.other = Some(server);
            address
        } else {
            let socket = directory.join("grpc.sock");
            testkit::serve_build_server(&self.shop.engine, &socket);
            format!("unix://{}", text(&socket))
        };
        self.stock = Some(Peer::new(&address, directory));
        self
    }

    /// Only our server.
    pub fn alone(release: Release, flags: &[&str]) -> Matrix {
        let shop = Workshop::granting(release);
        let registry = shop.registry();
        let base = format!("{}/busybox:latest", registry.address());
        let config = text(&shop.plain_http(&registry));
        let mut all = vec!["--debug", "--config", &config];
        all.extend_from_slice(flags);
        let server = crate::workshop::server(&shop.lab).args(&all).start();
        let ours = Peer::new(&server.address(), shop.lab.subdirectory("our-peer"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Matrix {
            shop,
            ours,
            stock: None,
            server,
            other: None,
            registry,
            base,
            started: now.as_secs() - 2,
        }
    }

    /// One more of our servers, with these variables, and its client.
    pub fn another(&self, name: &str, environment: &[(&str, &str)]) -> (BuildServer, Peer) {
        let config = text(&self.shop.lab.directory().join("buildkitd.toml"));
        let directory = self.shop.lab.subdirectory(name);
        let mut setup = ServerSetup::new(&executable(), &directory).args(&["--config", &config]);
        for (name, value) in environment {
            setup = setup.env(name, value);
        }
        let server = setup.start();
        let peer = Peer::new(
            &server.address(),
            self.shop.lab.subdirectory(&format!("{name}-peer")),
        );
        (server, peer)
    }

    /// Builds the cases on both servers; every difference is told at the end.
    pub fn compare(&self, cases: &[Case]) {
        self.compare_all(&[("", &self.ours)], cases);
    }

    /// Builds the cases on several of our servers (by what is special about each) and on stock.
    pub fn compare_all(&self, all: &[(&str, &Peer)], cases: &[Case]) {
        let stock = self.stock.as_ref().expect("a server to compare with");
        let mut differences = Vec::new();
        for case in cases {
            let theirs = stock.tree(case, self);
            for (special, peer) in all {
                let ours = peer.tree(case, self);
                let both_fail = case.own_words && ours.is_err() && theirs.is_err();
                assert!(!is_gone(&theirs), "{}: {}", case.name, self.stock_log());
                if !both_fail && !alike(&ours, &theirs) {
                    differences.push(told(&format!("{} {special}", case.name), &ours, &theirs));
                }
            }
        }
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }

    /// Builds on ours and on stock, if there is one, where both must have this outcome: of a failure,
    /// what the client says contains the text.
    pub fn compare_to(&self, case: &Case, expected: Result<&[&str], &str>) {
        for peer in std::iter::once(&self.ours).chain(&self.stock) {
            let built = peer.tree(case, self);
            assert!(!is_gone(&built), "{}: {}", case.name, self.stock_log());
            let fits = match (&built, expected) {
                (Ok(tree), Ok(lines)) => {
                    let same = |(a, b): (&String, &&str)| same_line(a, b);
                    tree.len() == lines.len() && tree.iter().zip(lines).all(same)
                }
                (Err(said), Err(text)) => said.contains(text),
                _ => false,
            };
            assert!(fits, "{}: {built:#?} and not {expected:#?}", case.name);
        }
    }

    /// What stock wrote last.
    fn stock_log(&self) -> String {
        let log = match &self.other {
            Some(server) => server.log(),
            None => self.shop.engine.log(),
        };
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Builds on ours and returns what is in the result's files, as `path: content` of text files.
    pub fn build(&self, case: &Case) -> Built {
        self.ours.tree(case, self)
    }
}

impl Peer {
    fn new(address: &str, directory: PathBuf) -> Peer {
        let client = Tool::new(executable(), &directory)
            .arg("buildctl")
            .arg("--addr")
            .arg(address)
            .env("MATRIX_SECRET", "from the environment");
        Peer { client, directory }
    }

    /// The client's command for a case, with `--output` as given; its input is still to be written.
    pub fn command(&self, case: &Case, output: &str) -> std::process::Command {
        let mut arguments = vec!["build".to_owned(), "--progress=plain".to_owned()];
        if !output.is_empty() {
            arguments.push(format!("--output={output}"));
        }
        arguments.extend(case.flags.iter().cloned());
        self.client.command(&arguments)
    }

    /// Runs a case and returns what the client said.
    pub fn run(&self, case: &Case, output: &str) -> Output {
        let child = self.start(case, output);
        let ended = child.wait_with_output().unwrap();
        Output {
            code: ended.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&ended.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&ended.stderr).into_owned(),
        }
    }

    /// Starts a case.
    pub fn start(&self, case: &Case, output: &str) -> std::process::Child {
        // A file, so that nobody waits for a pipe.
        let path = self.directory.join(format!("definition-{}", new_number()));
        std::fs::write(&path, llb::to_proto(&case.graph).encode_to_vec()).unwrap();
        self.command(case, output)
            .stdin(std::fs::File::open(&path).unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn tree(&self, case: &Case, matrix: &Matrix) -> Built {
        let number = new_number();
        let made = self.directory.join(format!("made-{number}"));
        let kind = match case.export {
            Export::Tar => "type=tar",
            Export::Folder => "type=local",
            Export::Layers => "type=oci,tar=false,compression=uncompressed,force-compression=true",
        };
        let output = self.run(case, &format!("{kind},dest={}", text(&made)));
        if output.code != 0 {
            return Err(output.stderr);
        }
        let directory = self.directory.join(format!("result-{number}"));
        let tree = match case.export {
            Export::Tar => tree::of_archive(&made, &directory, matrix.started),
            Export::Folder => tree::of_directory(&made, matrix.started),
            Export::Layers => layers::of_layout(&made, &directory, matrix.started),
        };
        let tree = match case.look {
            Some(look) => look(&directory, tree),
            None => tree,
        };
        for path in [&made, &directory] {
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            }
        }
        let _ = std::fs::remove_file(&made);
        Ok(tree)
    }
}

fn new_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Whether both have the same tree, or failed with the same last words. Of a process that stock
/// could not even start, only that it failed: the reason is its runtime's, in its log.
fn alike(ours: &Built, stock: &Built) -> bool {
    match (ours, stock) {
        (Ok(ours), Ok(stock)) => {
            let pairs = ours.iter().zip(stock);
            ours.len() == stock.len() && pairs.fold(true, |all, (a, b)| all & same_line(a, b))
        }
        (Err(ours), Err(stock)) if stock.contains("runc run failed: ") => {
            ours.contains("\" did not complete successfully: ")
        }
        (Err(ours), Err(stock)) => error_line(ours) == error_line(stock),
        _ => false,
    }
}

/// Whether there was no answer at all, which would pass for a failure.
fn is_gone(built: &Built) -> bool {
    let gone = ["transport error", "Broken pipe", "Connection refused"];
    matches!(built, Err(said) if gone.iter().any(|words| error_line(said).contains(words)))
}

/// Stock gives a directory its time and then changes what is in it, so the time it has is that of the
/// build; ours keeps the time it was given.
fn same_line(ours: &str, stock: &str) -> bool {
    let is_now = stock.ends_with(" @now directory");
    let untimed = |line: &str| line.split(" @").next().map(str::to_owned);
    ours == stock || (is_now && ours.ends_with(" directory") && untimed(ours) == untimed(stock))
}

/// The client's last line with what is different in every run replaced.
fn error_line(stderr: &str) -> String {
    let line = stderr
        .lines()
        .rev()
        .find(|line| line.starts_with("error: "));
    let line = line.unwrap_or(stderr);
    let rules = [
        (r"sha256:[0-9a-f]{64}", "sha256:DIGEST"),
        // Stock shows where it has mounted what it works on.
        (
            r"/[^ ]*/((buildkit-mount|buildkit)[0-9]+|snapshots/[0-9]+/fs)",
            "",
        ),
        (r"\b([0-9a-z]{25}::)?[0-9a-z]{25}\b", "REF"),
    ];
    let mut line = line.to_owned();
    for (pattern, replacement) in rules {
        let pattern = regex::Regex::new(pattern).unwrap();
        line = pattern.replace_all(&line, replacement).into_owned();
    }
    line
}

/// What the client said without the steps that went well.
fn error_lines(stderr: &str) -> String {
    let ends = stderr.find("------\n").unwrap_or(0);
    stderr[ends..].trim_end().to_owned()
}

fn told(name: &str, ours: &Built, stock: &Built) -> String {
    let mut text = format!("== {name}\n");
    match (ours, stock) {
        (Ok(ours), Ok(stock)) => {
            for line in ours
                .iter()
                .filter(|a| !stock.iter().any(|b| same_line(a, b)))
            {
                text += &format!("  ours:  {line}\n");
            }
            for line in stock
                .iter()
                .filter(|b| !ours.iter().any(|a| same_line(a, b)))
            {
                text += &format!("  stock: {line}\n");
            }
        }
        _ => {
            for (who, built) in [("ours", ours), ("stock", stock)] {
                match built {
                    Ok(tree) => text += &format!("  {who}:  built {tree:#?}\n"),
                    Err(stderr) => text += &format!("  {who}:  {}\n", error_lines(stderr)),
                }
            }
        }
    }
    text
}

/// The lab's registry, as both servers reach it.
pub const REGISTRY: &str = "10.88.0.1:5000";
