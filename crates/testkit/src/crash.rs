//! Killing a build server at random instants, and looking at what it left.
//!
//! Each round starts a server on the same root and builds with it, some of which is new: steps, files of
//! the client, of a web server and of a repository. It kills the server after a random time and checks: no
//! process of a step lives on, nothing stays mounted. Then a server
//! is started again, now and then killed in its first moments, and the same is built: everything that had
//! finished must be cached, every result whole, every blob the one it is named by, and the history readable.
//! Some rounds end with a server that is killed while it removes everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use oci::Digest;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::lab::wait_for;
use crate::{BuildServer, GitServer, GitServerOptions, GitWork, ServerSetup};

/// How many builds run at once.
const BUILDS: usize = 3;
/// How many files one of the steps writes.
const FILES: usize = 200;
/// Bytes of each file that is new in a round.
const NEW_BYTES: usize = 512 << 10;

/// What happened in a number of rounds.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrashReport {
    /// Steps that had finished when the server was killed, and were found cached afterwards.
    pub kept: usize,
    /// Builds that had ended before the server was killed.
    pub ended: usize,
    /// Builds that the kill took.
    pub cut_off: usize,
    /// Blobs whose digests were computed again.
    pub blobs: usize,
}

/// Kills a server so many times; panics at the first thing that is not as it should be, with the
/// round and the seed.
pub fn crash(executable: &Path, directory: &Path, seed: u64, rounds: usize) -> CrashReport {
    let mut random = StdRng::seed_from_u64(seed);
    let scene = Scene::new(executable, directory, seed);
    let mut report = CrashReport::default();
    let mut longest = scene.time_of_a_round();
    for round in 1..=rounds {
        let place = format!("seed {seed}, round {round}");
        scene.renew(round);
        let server = scene.server();
        let builds: Vec<Running> = (0..BUILDS)
            .map(|number| scene.start(&server, number, round, "first"))
            .collect();
        let share = random.random_range(0.0..1.1);
        std::thread::sleep(longest.mul_f64(share));
        server.kill();
        if random.random_range(0..4) == 0 {
            scene.kill_while_starting(Duration::from_millis(random.random_range(0..400)));
        }
        let mut finished = Vec::new();
        for build in builds {
            let (code, steps) = build.ended();
            match code {
                0 => report.ended += 1,
                _ => report.cut_off += 1,
            }
            finished.push(steps.done);
        }
        scene.check_nothing_lives_on(&place);
        let server = scene.server();
        scene.check_half_made_is_gone(&server, &place);
        let start = Instant::now();
        for (number, before) in finished.iter().enumerate() {
            let again = scene.start(&server, number, round, "again");
            let (code, steps) = again.ended();
            assert_eq!(code, 0, "{place}: build {number} fails:\n{}", steps.said);
            let lost: Vec<_> = before.difference(&steps.cached).collect();
            assert!(
                lost.is_empty(),
                "{place}: build {number} had finished {lost:?}, which ran again"
            );
            report.kept += before.len();
            scene.check_result(number, round, &place);
        }
        longest = longest.max(start.elapsed().min(2 * longest));
        report.blobs += check_blobs(&server.root(), &place);
        check_history(&server, &place);
        match random.random_range(0..3) {
            0 => server.kill(),
            1 => server.stop(),
            _ => kill_while_pruning(server, Duration::from_millis(random.random_range(0..100))),
        }
    }
    report
}

fn kill_while_pruning(server: BuildServer, after: Duration) {
    let mut pruning = server
        .buildctl()
        .command(&["prune", "--all"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start a client");
    std::thread::sleep(after);
    server.kill();
    let _ = pruning.wait();
}

/// Builds that have ended are listed, also those of servers before; a line is the header.
fn check_history(server: &BuildServer, place: &str) {
    let listed = server.buildctl().ok(&["debug", "histories"]).stdout;
    assert!(listed.lines().count() > BUILDS, "{place}: {listed}");
}

/// Digests every blob of a state directory again; how many there are.
pub fn check_blobs(root: &Path, place: &str) -> usize {
    let blobs = root.join("v1/content/blobs/sha256");
    let mut count = 0;
    for entry in std::fs::read_dir(&blobs).expect("list the blobs") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let bytes = match std::fs::read(&path) {
            // The server that runs has removed it meanwhile, as nothing names it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.expect("read a blob"),
        };
        assert_eq!(Digest::of(&bytes).hex(), name, "{place}: a blob is damaged");
        count += 1;
    }
    count
}

/// Where it happens, and what is built.
struct Scene {
    executable: PathBuf,
    directory: PathBuf,
    context: PathBuf,
    /// What the web server serves: `files` and `repo.git`.
    www: PathBuf,
    web: GitServer,
    /// In the environment of every step, by which they are found.
    mark: String,
}

/// A build that runs, as a process.
struct Running {
    client: Child,
    log: PathBuf,
}

/// What became of the steps of a build, as its client was told.
struct Steps {
    done: BTreeSet<String>,
    cached: BTreeSet<String>,
    said: String,
}

impl Scene {
    fn new(executable: &Path, directory: &Path, seed: u64) -> Self {
        let context = directory.join("context");
        std::fs::create_dir_all(&context).expect("make the context");
        std::fs::copy("/bin/busybox", context.join("busybox"))
            .expect("busybox-static is installed");
        let www = directory.join("www");
        std::fs::create_dir_all(www.join("files")).expect("make a directory");
        let scene = Scene {
            executable: executable.to_owned(),
            directory: directory.to_owned(),
            context,
            web: GitServer::start(&www, "127.0.0.1:0", GitServerOptions::default()),
            www,
            mark: format!("{seed}-{}", std::process::id()),
        };
        scene.renew(0);
        scene
    }

    /// Other files in the context, on the web server and in the repository than in the round before.
    fn renew(&self, round: usize) {
        let noise = new_bytes(round);
        std::fs::write(self.context.join("noise"), &noise).expect("write");
        std::fs::write(self.www.join("files/noise"), &noise).expect("write");
        let repository = self.www.join("repo.git");
        let work = match repository.exists() {
            true => GitWork::at(&repository),
            false => GitWork::init(&repository, &[]),
        };
        work.put("noise", &noise);
        work.commit("another");
    }

    /// A server that is killed before, or soon after, it can be used.
    fn kill_while_starting(&self, after: Duration) {
        let setup = ServerSetup::new(&self.executable, &self.directory);
        let server = setup.start_without_waiting();
        std::thread::sleep(after);
        server.kill();
    }

    fn server(&self) -> BuildServer {
        BuildServer::start(&self.executable, &self.directory)
    }

    /// How long the builds of a round take when nobody disturbs them.
    fn time_of_a_round(&self) -> Duration {
        let server = self.server();
        let start = Instant::now();
        let builds: Vec<Running> = (0..BUILDS)
            .map(|number| self.start(&server, number, 0, "first"))
            .collect();
        for build in builds {
            let (code, steps) = build.ended();
            assert_eq!(code, 0, "the first build fails:\n{}", steps.said);
        }
        let taken = start.elapsed();
        server.stop();
        taken
    }

    /// Steps that all builds of a round share, steps of each alone, and results of many files.
    fn dockerfile(&self, number: usize, round: usize) -> String {
        let mark = &self.mark;
        let (file, repository) = (self.web.url("files/noise"), self.web.url("repo.git"));
        // Clients with one shared key are told apart by size and time of their files, and these are
        // written in one tick of the clock.
        let size = "#".repeat(number + 1);
        format!(
            "{size}\nFROM scratch AS base\n\
             ENV COOPERAGE_CRASH={mark}\n\
             COPY busybox /bin/busybox\n\
             RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
             FROM base AS shared\n\
             RUN seq 1 20000 > /shared-{round}; sleep 0.1\n\
             FROM shared AS files\n\
             RUN mkdir /d && for i in $(seq 1 {FILES}); do echo {number} {round} $i > /d/$i; done\n\
             FROM shared AS kept\n\
             RUN --mount=type=cache,target=/c,sharing=locked echo x >> /c/log; \
                 seq 1 50000 > /kept-{number}-{round}\n\
             FROM base\n\
             COPY noise /noise\n\
             ADD {file} /web\n\
             ADD {repository} /repo\n\
             COPY --from=files /d /d\n\
             COPY --from=kept /kept-{number}-{round} /kept\n\
             COPY --from=shared /shared-{round} /shared\n\
             RUN ls /d | wc -l > /count; rm /bin/yes; sleep 0.05\n"
        )
    }

    fn start(&self, server: &BuildServer, number: usize, round: usize, pass: &str) -> Running {
        let files = self.directory.join(format!("file-{number}"));
        std::fs::create_dir_all(&files).expect("make a directory");
        std::fs::write(files.join("Dockerfile"), self.dockerfile(number, round)).expect("write");
        let out = self.out(number);
        let _ = std::fs::remove_dir_all(&out);
        let archive = self.directory.join(format!("image-{number}.tar"));
        // The first time each exports another way; afterwards all are looked into.
        let output = match (pass, number) {
            ("first", 1) => format!("type=oci,dest={}", archive.display()),
            ("first", 2) => format!("type=docker,dest={}", archive.display()),
            _ => format!("type=local,dest={}", out.display()),
        };
        let log = self.directory.join(format!("{pass}-{number}.json"));
        let client = server
            .buildctl()
            .command(&[
                "build",
                "--frontend=dockerfile.v0",
                "--progress=rawjson",
                &format!("--local=context={}", self.context.display()),
                &format!("--local=dockerfile={}", files.display()),
                "--output",
                &output,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("make a log"))
            .spawn()
            .expect("start a client");
        Running { client, log }
    }

    fn out(&self, number: usize) -> PathBuf {
        self.directory.join(format!("out-{number}"))
    }

    /// Steps end with the server, and mounts with both.
    fn check_nothing_lives_on(&self, place: &str) {
        let mark = format!("COOPERAGE_CRASH={}", self.mark);
        let mounts = format!("{}/root/", self.directory.display());
        wait_for(
            &format!("{place}: the end of all steps and mounts"),
            Duration::from_secs(10),
            || {
                processes().all(|process| {
                    let environment = std::fs::read(process.join("environ")).unwrap_or_default();
                    let mounted = std::fs::read_to_string(process.join("mountinfo"));
                    !String::from_utf8_lossy(&environment).contains(&mark)
                        && !mounted.unwrap_or_default().contains(&mounts)
                })
            },
        );
    }

    /// A server that has started keeps nothing that was half made.
    fn check_half_made_is_gone(&self, server: &BuildServer, place: &str) {
        for path in [
            "v1/layers/new",
            "v1/layers/mounts",
            "v1/content/ingest",
            "v1/tmp/staging",
        ] {
            let entries = std::fs::read_dir(server.root().join(path));
            let left: Vec<_> = entries.into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{place}: {path} has {left:?}");
        }
    }

    fn check_result(&self, number: usize, round: usize, place: &str) {
        let out = self.out(number);
        let read = |path: &str| {
            std::fs::read_to_string(out.join(path))
                .unwrap_or_else(|error| panic!("{place}: build {number}: {path}: {error}"))
        };
        let numbers = |to: usize| (1..=to).map(|n| format!("{n}\n")).collect::<String>();
        assert_eq!(read("count").trim(), FILES.to_string(), "{place}");
        for file in 1..=FILES {
            let expected = format!("{number} {round} {file}\n");
            assert_eq!(read(&format!("d/{file}")), expected, "{place}");
        }
        assert!(read("kept") == numbers(50000), "{place}: kept is not whole");
        assert!(
            read("shared") == numbers(20000),
            "{place}: shared is not whole"
        );
        for path in ["noise", "web", "repo/noise"] {
            let found = std::fs::read(out.join(path)).unwrap_or_default();
            assert!(found == new_bytes(round), "{place}: {path} is not whole");
        }
        assert!(!out.join("bin/yes").exists(), "{place}: bin/yes came back");
        assert!(
            out.join("bin/true").is_symlink(),
            "{place}: bin/true is gone"
        );
    }
}

impl Running {
    /// Waits for it: its exit code, and what it was told of its steps.
    fn ended(mut self) -> (i32, Steps) {
        let status = self.client.wait().expect("wait for a client");
        let said = std::fs::read_to_string(&self.log).expect("read a log");
        let mut vertices: BTreeMap<String, (String, bool, bool)> = BTreeMap::new();
        for line in said.lines() {
            let Ok(Value::Object(event)) = serde_json::from_str(line) else {
                continue;
            };
            for vertex in event
                .get("vertexes")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                let text = |key: &str| vertex[key].as_str().unwrap_or_default().to_owned();
                let done = vertex["completed"].is_string() && text("error").is_empty();
                let cached = vertex["cached"].as_bool().unwrap_or(false);
                vertices.insert(text("digest"), (text("name"), done, cached));
            }
        }
        let named = |wanted: fn(&(String, bool, bool)) -> bool| {
            vertices
                .values()
                .filter(|vertex| wanted(vertex))
                .map(|(name, _, _)| name.clone())
                .filter(|name| name.starts_with('[') && !name.starts_with("[internal]"))
                .collect()
        };
        let steps = Steps {
            done: named(|(_, done, _)| *done),
            cached: named(|(_, _, cached)| *cached),
            said,
        };
        (status.code().unwrap_or(-1), steps)
    }
}

/// What files hold that are new in a round.
fn new_bytes(round: usize) -> Vec<u8> {
    let mut bytes = vec![0; NEW_BYTES];
    StdRng::seed_from_u64(round as u64).fill(bytes.as_mut_slice());
    bytes
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir("/proc").expect("list processes");
    entries.flatten().map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.bytes().all(|byte| byte.is_ascii_digit())
    })
}
