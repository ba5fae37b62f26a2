//! What a server takes of memory and disk: over many builds one after the other, and with many at once.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use testkit::BuildServer;

/// How often memory is looked at, in builds.
const REPORT_EVERY: usize = 50;
/// What comes before this many builds is the filling of caches, and no growth.
const WARM_UP: usize = 100;

/// Memory and databases over so many builds: half of each are known, half are new; every tenth exports
/// an image.
pub fn memory(executable: &Path, builds: usize) {
    let scene = Scene::new();
    let server = BuildServer::start(executable, scene.directory());
    println!(
        "{:>8} {:>12} {:>12} {:>12} {:>10} {:>12} {:>12}  held",
        "builds", "own MiB", "with code", "most MiB", "keys KiB", "history KiB", "layers KiB"
    );
    let report = |done: usize| {
        let size = |name: &str| {
            let of = |suffix: &str| {
                let path = server.root().join(format!("v1/{name}{suffix}"));
                path.metadata().map_or(0, |meta| meta.len())
            };
            (of("") + of("-wal")) >> 10
        };
        let own = mib(server.anonymous_bytes());
        println!(
            "{done:>8} {own:>12.1} {:>12.1} {:>12.1} {:>10} {:>12} {:>12}  {}",
            mib(server.resident_bytes()),
            mib(server.resident_bytes_most()),
            size("keys.db"),
            size("history.db"),
            size("layers/layers.db"),
            server.held(),
        );
        own
    };
    let mut seen = vec![(0, report(0))];
    for number in 0..builds {
        let file = scene.dockerfile("one", number / 2, 12);
        let export = number % 10 == 0;
        scene.wait(scene.start(&server, &file, number, export));
        if (number + 1) % REPORT_EVERY == 0 {
            seen.push((number + 1, report(number + 1)));
        }
    }
    // What ended builds said is kept for clients that come late.
    std::thread::sleep(Duration::from_secs(12));
    print!("idle: ");
    report(builds);
    let warm: Vec<_> = seen.into_iter().filter(|(at, _)| *at >= WARM_UP).collect();
    if let Some(slope) = slope(&warm) {
        println!(
            "growth after build {WARM_UP}: {:+.2} MiB a hundred builds",
            slope * 100.0
        );
    }
    server.stop();
}

/// The slope of the line that fits the points best; `None` of fewer than two.
fn slope(points: &[(usize, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean = |of: &dyn Fn(&(usize, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(&|point| point.0 as f64), mean(&|point| point.1));
    let spread = points
        .iter()
        .map(|point| (point.0 as f64 - x).powi(2))
        .sum::<f64>();
    let together = points
        .iter()
        .map(|point| (point.0 as f64 - x) * (point.1 - y))
        .sum::<f64>();
    (points.len() > 1).then(|| together / spread)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// So many builds at once that share most of their graph, beside one of them alone.
pub fn many(executable: &Path, builds: usize) {
    let scene = Scene::new();
    let server = BuildServer::start(executable, scene.directory());
    let alone = scene.dockerfile("alone", 0, 12);
    let start = Instant::now();
    scene.wait(scene.start(&server, &alone, 0, false));
    println!("one build alone: {:.2} s", start.elapsed().as_secs_f64());
    println!("resident after it: {:.1} MiB", mib(server.resident_bytes()));
    let files: Vec<PathBuf> = (0..builds)
        .map(|number| scene.dockerfile(&format!("many{number}"), number, 12))
        .collect();
    let start = Instant::now();
    let clients: Vec<Child> = files
        .iter()
        .enumerate()
        .map(|(number, file)| scene.start(&server, file, number + 1, false))
        .collect();
    for client in clients {
        scene.wait(client);
    }
    println!(
        "{builds} builds at once: {:.2} s, resident at most {:.1} MiB, afterwards {:.1} MiB",
        start.elapsed().as_secs_f64(),
        mib(server.resident_bytes_most()),
        mib(server.resident_bytes())
    );
    server.stop();
}

struct Scene {
    directory: tempfile::TempDir,
    context: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let directory = tempfile::tempdir().expect("a directory");
        let context = directory.path().join("context");
        std::fs::create_dir(&context).expect("make the context");
        std::fs::copy("/bin/busybox", context.join("busybox"))
            .expect("busybox-static is installed");
        Scene { directory, context }
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A folder with a Dockerfile of `shared` steps that all have, and two of its own.
    fn dockerfile(&self, folder: &str, own: usize, shared: usize) -> PathBuf {
        let folder = self.directory().join(folder);
        std::fs::create_dir_all(&folder).expect("make a directory");
        let mut text = "FROM scratch\nCOPY busybox /bin/busybox\n\
                        RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n"
            .to_owned();
        for step in 0..shared {
            text += &format!("RUN seq 1 2000 > /{step}; seq 1 100\n");
        }
        text += &format!("RUN echo {own} > /own; seq 1 100\nRUN cat /own > /copy\n");
        std::fs::write(folder.join("Dockerfile"), text).expect("write");
        folder
    }

    fn start(&self, server: &BuildServer, file: &Path, number: usize, export: bool) -> Child {
        let context = format!("--local=context={}", self.context.display());
        let dockerfile = format!("--local=dockerfile={}", file.display());
        let archive = self.directory().join(format!("{number}.tar"));
        let output = format!("--output=type=oci,dest={}", archive.display());
        let mut args = vec!["build", "--frontend=dockerfile.v0", "--progress=plain"];
        args.extend([context.as_str(), dockerfile.as_str()]);
        if export {
            args.push(&output);
        }
        let mut command = server.buildctl().command(&args);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
            .stderr(Stdio::null())
            .spawn()
            .expect("start a client")
    }

    fn wait(&self, mut client: Child) {
        let status = client.wait().expect("wait for a client");
        assert!(status.success(), "a build failed: {status}");
    }
}
