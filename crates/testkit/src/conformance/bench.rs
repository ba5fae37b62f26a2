//! Building cases by a client with a builder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::bases::Bases;
use super::case::{Build, Unit};
use super::outcome::Outcome;
use super::prepare::prepare;
use super::servers::Servers;
use crate::Tool;

/// A build that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(180);

/// A client, and the name of the builder it uses.
#[derive(Clone, Debug)]
pub struct Builder {
    /// A client that takes `build …`.
    pub client: Tool,
    /// `--builder`.
    pub name: String,
}

/// The base images, the servers, and a folder to work in.
pub struct Bench {
    /// The images cases start from.
    pub bases: Bases,
    servers: Servers,
    folder: PathBuf,
    started: AtomicUsize,
}

/// What a client's run gave.
pub(super) struct Run {
    /// Exit status; `None` when patience was at its end.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Bench {
    /// Makes the bases and starts the servers in the calling thread's network.
    pub fn open(folder: &Path) -> Bench {
        let bases = Bases::make(&folder.join("bases"));
        let servers = Servers::start(&bases);
        Bench {
            bases,
            servers,
            folder: folder.to_owned(),
            started: AtomicUsize::new(0),
        }
    }

    /// A server configuration that makes the corpus's registry the mirror of docker.io.
    pub fn server_configuration(&self) -> PathBuf {
        let path = self.folder.join("buildkitd.toml");
        let address = format!("127.0.0.1:{}", super::REGISTRY_PORT);
        let text = format!(
            "[registry.\"docker.io\"]\n  mirrors = [\"{address}\"]\n\n\
             [registry.\"{address}\"]\n  http = true\n"
        );
        std::fs::write(&path, text).expect("write a server configuration");
        path
    }

    /// Builds a unit and looks at what came out.
    pub fn run(&self, unit: &Unit, builder: &Builder) -> Result<Outcome, String> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let work = self.folder.join(format!("run-{number}"));
        let (source, out) = (work.join("case"), work.join("out"));
        std::fs::create_dir_all(&out).map_err(|error| error.to_string())?;
        prepare(unit, &source);
        let context = format!("ctx-{number:06}");
        if source.join("ctx").exists() {
            std::fs::rename(source.join("ctx"), source.join(&context))
                .map_err(|error| error.to_string())?;
        }
        let case = &unit.case;
        self.servers.add(&case.name, &source, &case.spec.web);
        let mut command = builder
            .client
            .clone()
            .directory(&source)
            .command(&arguments(&unit.build, &builder.name, &out, &context));
        command.envs(&unit.build.env);
        let stdin = unit.build.stdin.as_ref().map(|name| source.join(name));
        let run = run(command, stdin.as_deref());
        self.servers.remove(&case.name, &source);
        let outcome = Outcome::of(unit, run?, &out, &source, &context, &self.bases);
        // What is left behind goes with the lab.
        let _ = std::fs::remove_dir_all(&work);
        outcome
    }
}

/// Does something with each item, several at a time, and gives the results in order.
pub fn run_all<T: Sync, R: Send>(
    items: &[T],
    jobs: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(number) else {
                        break;
                    };
                    let result = work(item);
                    let mut results = results
                        .lock()
                        .unwrap_or_else(|poisoned| poisoned.into_inner());
                    results.push((number, result));
                }
            });
        }
    });
    let mut results = results
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The client's command line; `context` is the name that the folder `ctx` goes by. It is new for
/// each build, because a server may keep a context's copy by its folder's name and only update it.
fn arguments(build: &Build, builder: &str, out: &Path, context: &str) -> Vec<String> {
    let at = |path: &str| match path.strip_prefix("ctx") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{context}{rest}"),
        _ => path.to_owned(),
    };
    let mut args: Vec<String> = ["build", "--builder", builder, "--progress=plain"]
        .map(str::to_owned)
        .to_vec();
    args.extend(["--provenance=false".to_owned(), "--sbom=false".to_owned()]);
    if let Some(call) = &build.call {
        args.push(format!("--call={call}"));
    } else {
        let (kind, name) = match build.output() {
            "image" => ("oci", "image.tar"),
            "docker" => ("docker", "image.tar"),
            "local" => ("local", "files"),
            "tar" => ("tar", "files.tar"),
            other => panic!("output `{other}` in case.toml"),
        };
        let mut output = format!("type={kind},dest={}", out.join(name).display());
        for option in &build.output_opts {
            output += &format!(",{option}");
        }
        args.extend(["--output".to_owned(), output]);
    }
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    if let Some(target) = &build.target {
        option("--target", target.clone());
    }
    if !build.platforms.is_empty() {
        option("--platform", build.platforms.join(","));
    }
    if let Some(dockerfile) = &build.dockerfile {
        option("-f", at(dockerfile));
    }
    for (key, value) in &build.args {
        option("--build-arg", format!("{key}={value}"));
    }
    for (key, value) in &build.contexts {
        option("--build-context", format!("{key}={}", at(value)));
    }
    for (key, value) in &build.labels {
        option("--label", format!("{key}={value}"));
    }
    for secret in &build.secrets {
        option("--secret", secret.clone());
    }
    args.extend(build.options.clone());
    args.push(at(build.context.as_deref().unwrap_or("ctx")));
    args
}

fn run(mut command: Command, stdin: Option<&Path>) -> Result<Run, String> {
    let stdin = match stdin {
        Some(path) => std::fs::File::open(path)
            .map_err(|error| format!("{}: {error}", path.display()))?
            .into(),
        None => Stdio::null(),
    };
    command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let read = |stream: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // A client that is killed leaves half a line.
                let _ = stream.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(
        child
            .stdout
            .take()
            .map(|s| Box::new(s) as Box<dyn std::io::Read + Send>),
    );
    let stderr = read(
        child
            .stderr
            .take()
            .map(|s| Box::new(s) as Box<dyn std::io::Read + Send>),
    );
    let start = Instant::now();
    let code = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status.code().unwrap_or(-1)),
            Ok(None) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
        }
    };
    let text = |reader: std::thread::JoinHandle<String>| reader.join().unwrap_or_default();
    Ok(Run {
        code,
        stdout: text(stdout),
        stderr: text(stderr),
    })
}
