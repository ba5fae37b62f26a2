//! The works that our server and another one are given in turn.

use std::io::Write;
use std::path::{Path, PathBuf};

use testkit::Peers;

use crate::contexts::fill;
use crate::servers::Scene;
use crate::{medians, timed};

/// Steps of a build of many.
const STEPS: usize = 50;
/// Stages of a build whose stages do not wait for each other.
const STAGES: usize = 16;
/// The image that is pushed and pulled: so many layers of so many bytes each that do not compress.
const IMAGE_LAYERS: usize = 10;
const IMAGE_LAYER_BYTES: usize = 20 << 20;
/// The layer that is exported.
const EXPORT_BYTES: usize = 300 << 20;

/// Does those works whose names contain `filter` and prints a line of each.
pub(crate) fn run(scene: &Scene, filter: &str) {
    println!(
        "{:<34} {:>18} {:>18} {:>7} {:>9} {:>9} {:>7}",
        "work", "peer (ms)", "ours (ms)", "ratio", "peer cpu", "ours cpu", "ratio"
    );
    let works = Works { scene, filter };
    works.steps();
    works.stages();
    works.contexts();
    works.stage_of_files();
    works.push();
    works.pull();
    works.export();
    works.load();
}

struct Works<'s> {
    scene: &'s Scene,
    filter: &'s str,
}

impl Works<'_> {
    fn wants(&self, name: &str) -> bool {
        name.contains(self.filter)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.scene.lab.subdirectory(name)
    }

    /// A context with a shell.
    fn folder_with_shell(&self, name: &str) -> PathBuf {
        let folder = self.folder(name);
        std::fs::copy(Peers::find().busybox("amd64"), folder.join("busybox")).expect("busybox");
        folder
    }

    fn build(&self, server: &str, context: &Path, more: &[&str]) {
        let builder = format!("--builder={server}");
        let mut args = vec!["build", "--provenance=false", &builder];
        args.extend(more);
        args.push(context.to_str().expect("UTF-8"));
        self.scene.client.ok(&args);
    }

    fn prune(&self, server: &str) {
        let builder = format!("--builder={server}");
        self.scene
            .client
            .ok(&["prune", "--all", "--force", &builder]);
    }

    /// The same for both, in turn; `prepare`, which does not count, and `work` are told for whom.
    fn pair(&self, name: &str, prepare: impl Fn(&str, usize), work: impl Fn(&str)) {
        if !self.wants(name) {
            return;
        }
        let (mut times, mut used) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for round in 0..self.scene.rounds {
            for turn in 0..2 {
                let who = (round + turn) % 2;
                let server = &self.scene.servers[who];
                prepare(server.name, round);
                let before = server.processor_time();
                times[who].push(timed(|| work(server.name)));
                used[who].push(server.processor_time() - before);
            }
        }
        let (walls, ratio) = medians(&mut times);
        let (_, used_ratio) = medians(&mut used);
        let middle = |who: usize| used[who][used[who].len() / 2].as_millis();
        println!(
            "{name:<34} {:>18} {:>18} {ratio:>6.1}x {:>9} {:>9} {used_ratio:>6.1}x",
            walls[0],
            walls[1],
            middle(0),
            middle(1)
        );
    }

    fn steps(&self) {
        let context = self.folder_with_shell("steps");
        let write = |steps: usize, of: &str| {
            let mut text = "FROM scratch\nCOPY busybox /bin/sh\n".to_owned();
            for step in 0..steps {
                text += &format!("RUN echo {of} {step} > /{step}\n");
            }
            std::fs::write(context.join("Dockerfile"), text).expect("write");
        };
        let build = |server: &str| self.build(server, &context, &[]);
        let fresh = |server: &str, round: usize| write(STEPS, &format!("{server} {round}"));
        self.pair("fifty small steps", fresh, build);
        let built = |server: &str, _: usize| {
            write(9, "");
            build(server);
        };
        self.pair("ten steps, all cached", built, build);
    }

    fn stages(&self) {
        let context = self.folder_with_shell("stages");
        let fresh = |server: &str, round: usize| {
            let mut text = "FROM scratch AS base\nCOPY busybox /bin/sh\n".to_owned();
            let mut last = "FROM scratch\n".to_owned();
            for stage in 0..STAGES {
                text += &format!("FROM base AS s{stage}\nRUN echo {server} {round} > /{stage}\n");
                last += &format!("COPY --from=s{stage} /{stage} /\n");
            }
            std::fs::write(context.join("Dockerfile"), text + &last).expect("write");
        };
        self.pair("sixteen stages at once", fresh, |server| {
            self.build(server, &context, &[])
        });
    }

    /// A folder of many files that is copied whole.
    fn contexts(&self) {
        let name = |what: &str| format!("COPY of 50000 files, {what}");
        let names = ["new", "unchanged", "one changed"].map(name);
        if !names.iter().any(|name| self.wants(name)) {
            return;
        }
        let context = self.folder("context");
        fill(&context);
        std::fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /\n").expect("write");
        let build = |server: &str| self.build(server, &context, &[]);
        let [new, unchanged, changed] = &names;
        self.pair(new, |server, _| self.prune(server), build);
        for server in &self.scene.servers {
            build(server.name);
        }
        self.pair(unchanged, |_, _| {}, build);
        let change = |server: &str, round: usize| {
            let text = format!("changed for {server} {round}");
            std::fs::write(context.join("0/0"), text).expect("write");
        };
        self.pair(changed, change, build);
    }

    /// Files that one stage has from another one.
    fn stage_of_files(&self) {
        let name = "COPY of a stage of 50000 files";
        if !self.wants(name) {
            return;
        }
        let context = self.folder_with_shell("files");
        fill(&context);
        let fresh = |server: &str, round: usize| {
            let text = format!(
                "FROM scratch AS files\nCOPY busybox /bin/sh\nCOPY . /files\n\
                 FROM files AS changed\nRUN echo {server} {round} > /files/0/0\n"
            );
            std::fs::write(context.join("Dockerfile"), &text).expect("write");
            self.build(server, &context, &[]);
            let text = text + "FROM files\nCOPY --from=changed /files /files\n";
            std::fs::write(context.join("Dockerfile"), text).expect("write");
        };
        let ignored = "Dockerfile\n.dockerignore\n";
        std::fs::write(context.join(".dockerignore"), ignored).expect("write");
        self.pair(name, fresh, |server| self.build(server, &context, &[]));
    }

    /// A context of files that do not compress, and a layer of each.
    fn layers(&self, folder: &str) -> PathBuf {
        let context = self.folder(folder);
        let mut text = "FROM scratch\n".to_owned();
        for layer in 0..IMAGE_LAYERS {
            random_file(&context.join(layer.to_string()));
            text += &format!("COPY {layer} /\n");
        }
        std::fs::write(context.join("Dockerfile"), text).expect("write");
        context
    }

    /// Only the push is timed, with the packing of layers: what is pushed is there before.
    fn push(&self) {
        let (first, again) = ("push of ten layers, 200 MiB", "push, everything there");
        if !self.wants(first) && !self.wants(again) {
            return;
        }
        let context = self.layers("push");
        let name = |server: &str| format!("{}/{server}:1", self.scene.registry.address());
        let fresh = |server: &str, _: usize| {
            for layer in 0..IMAGE_LAYERS {
                random_file(&context.join(layer.to_string()));
            }
            self.build(server, &context, &[]);
        };
        self.pair(first, fresh, |server| {
            let output = format!("--output=type=image,push=true,name={}", name(server));
            self.build(server, &context, &[&output])
        });
        self.pair(
            again,
            |_, _| {},
            |server| {
                let output = format!("--output=type=image,push=true,name={}", name(server));
                self.build(server, &context, &[&output])
            },
        );
    }

    fn pull(&self) {
        if !self.wants("pull of ten layers, 200 MiB") {
            return;
        }
        let context = self.layers("image");
        let image = format!("{}/layers:1", self.scene.registry.address());
        let output = format!("--output=type=image,push=true,name={image}");
        self.build("ours", &context, &[&output]);
        let context = self.folder("pull");
        let text = format!("FROM {image}\nCOPY Dockerfile /\n");
        std::fs::write(context.join("Dockerfile"), text).expect("write");
        self.pair(
            "pull of ten layers, 200 MiB",
            |server, _| self.prune(server),
            |server| self.build(server, &context, &[]),
        );
    }

    /// Makes a big layer of text that was not there before.
    fn write_big(&self, context: &Path, of: &str, server: &str, round: usize) {
        let text = format!(
            "FROM scratch\nCOPY busybox /bin/sh\nRUN --mount=type=bind,target=/c \
             /c/busybox cp /c/text /text; echo {of} {server} {round} >> /text\n\
             COPY Dockerfile /\n"
        );
        std::fs::write(context.join("Dockerfile"), text).expect("write");
        self.build(server, context, &[]);
    }

    /// Only the export is timed: what is exported is there before.
    fn export(&self) {
        let name = |kind: &str| format!("{kind} export of a layer of 300 MiB");
        let kinds = ["gzip", "zstd", "uncompressed"];
        if !kinds.iter().any(|kind| self.wants(&name(kind))) {
            return;
        }
        let context = self.folder_with_shell("export");
        write_text(&context.join("text"), EXPORT_BYTES);
        std::fs::write(context.join(".dockerignore"), "out.tar").expect("write");
        for compression in kinds {
            let output = format!(
                "--output=type=oci,compression={compression},force-compression=true,dest={}",
                context.join("out.tar").display()
            );
            let fresh =
                |server: &str, round: usize| self.write_big(&context, compression, server, round);
            self.pair(&name(compression), fresh, |server| {
                self.build(server, &context, &[&output])
            });
        }
    }

    /// Into an Engine.
    fn load(&self) {
        let (first, again) = ("load of a layer of 300 MiB", "load, unchanged");
        if !self.wants(first) && !self.wants(again) {
            return;
        }
        let context = self.folder_with_shell("load");
        write_text(&context.join("text"), EXPORT_BYTES);
        let load = |server: &str| {
            let tag = format!("--tag={server}");
            self.build(server, &context, &["--load", &tag])
        };
        let fresh = |server: &str, round: usize| self.write_big(&context, "load", server, round);
        self.pair(first, fresh, load);
        self.pair(again, |_, _| {}, load);
        for server in &self.scene.servers {
            self.scene
                .engine
                .docker(&["image", "rm", "--force", server.name]);
        }
    }
}

fn random_file(path: &Path) {
    let mut bytes = vec![0; IMAGE_LAYER_BYTES];
    let mut random = std::fs::File::open("/dev/urandom").expect("open");
    std::io::Read::read_exact(&mut random, &mut bytes).expect("read");
    std::fs::write(path, bytes).expect("write");
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
