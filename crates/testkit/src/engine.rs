//! Docker Engines: Debian's own, and newer ones unpacked beside.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::certificates::write_certificates;
use crate::lab::{end, wait_for};
use crate::{Lab, Peers};

/// Which Engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Debian 12's, 20.10, classic image store.
    Debian,
    /// The newest of Debian's suites, 28.x, classic image store.
    Newest,
    /// The newest with the containerd image store.
    NewestContainerd,
}

/// How an Engine differs from what a [`Release`] starts with.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions<'a> {
    /// Its `insecure-registries`.
    pub insecure: Vec<String>,
    /// URLs that serve images of docker.io.
    pub mirrors: Vec<String>,
    /// Also listens at this port of 127.0.0.1, for clients with a certificate; see
    /// [`Engine::certificates`].
    pub tls_port: Option<u16>,
    /// Whether steps of builds may ask for every right.
    pub insecure_steps: bool,
    /// Further arguments of `dockerd`.
    pub arguments: &'a [&'a str],
}

/// A running Engine: its socket, and the address containers reach the lab's servers at.
pub struct Engine {
    directory: PathBuf,
    process: Child,
}

impl Engine {
    /// Address of the lab's network as containers on the default bridge see it.
    pub const GATEWAY: &'static str = "10.88.0.1";

    /// Starts one in the lab that trusts the lab's registries, and waits until it answers.
    pub fn start(lab: &Lab, release: Release) -> Engine {
        let options = EngineOptions {
            insecure: vec![format!("{}/24", Self::GATEWAY)],
            ..EngineOptions::default()
        };
        Self::start_with(lab, release, &options)
    }

    /// The same with these options.
    pub fn start_with(lab: &Lab, release: Release, options: &EngineOptions) -> Engine {
        // Short, as the Engine makes sockets below.
        let directory = lab.subdirectory(match release {
            Release::Debian => "engine",
            Release::Newest => "engine-28",
            Release::NewestContainerd => "engine-c",
        });
        let (dockerd, path) = programs(release);
        let log = File::create(directory.join("log")).expect("make the Engine's log");
        let configuration = directory.join("daemon.json");
        std::fs::write(
            &configuration,
            configuration_for(&directory, release, options).to_string(),
        )
        .expect("write the Engine's configuration");
        let mut command = lab.command(&dockerd);
        command
            .arg("--config-file")
            .arg(&configuration)
            .arg("--host")
            .arg(format!(
                "unix://{}",
                directory.join("docker.sock").display()
            ))
            .arg("--data-root")
            .arg(directory.join("data"))
            // In the lab's own `/run`: the kernel limits the length of sockets' paths.
            .arg("--exec-root")
            .arg(format!("/run/docker-{release:?}").to_lowercase())
            .arg("--pidfile")
            .arg(directory.join("pid"))
            .args(["--bip", &format!("{}/24", Self::GATEWAY)])
            .args(options.arguments)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log);
        if let Some(port) = options.tls_port {
            let certificates = lab.subdirectory("engine-certificates");
            write_certificates(&certificates, "127.0.0.1");
            command.args(["--host", &format!("tcp://127.0.0.1:{port}"), "--tlsverify"]);
            for (flag, file) in [
                ("--tlscacert", "ca.pem"),
                ("--tlscert", "server.pem"),
                ("--tlskey", "server.key"),
            ] {
                command.arg(flag).arg(certificates.join(file));
            }
        }
        let mut process = command.spawn().expect("start the Engine");
        let socket = directory.join("docker.sock");
        wait_for(
            &format!("Docker Engine ({})", directory.join("log").display()),
            Duration::from_secs(180),
            || {
                if let Ok(Some(status)) = process.try_wait() {
                    let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
                    panic!("Docker Engine ended with {status}:\n{log}");
                }
                socket.exists() && ping(&socket)
            },
        );
        Engine { directory, process }
    }

    /// `unix://…`, as in `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.directory.join("docker.sock").display())
    }

    /// Where the certificates for clients of its TLS port are, as `DOCKER_CERT_PATH` wants them.
    pub fn certificates(lab: &Lab) -> PathBuf {
        lab.subdirectory("engine-certificates")
    }

    /// Runs `docker ARGS` against it and returns what it prints; panics when it fails.
    pub fn docker(&self, args: &[&str]) -> String {
        let output = self.docker_command(args).output().expect("run `docker`");
        assert!(
            output.status.success(),
            "docker {args:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    }

    /// `docker ARGS` against it, not yet run.
    pub fn docker_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .args(args)
            .env("DOCKER_HOST", self.host())
            .env_remove("DOCKER_CONTEXT");
        command
    }

    /// What the Engine wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The lab ends it when the test process does; an Engine dropped earlier ends now.
        end(&mut self.process);
    }
}

fn ping(socket: &Path) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(socket) else {
        return false;
    };
    let mut answer = [0; 15];
    let patience = Some(Duration::from_secs(1));
    stream.set_read_timeout(patience).is_ok()
        && stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer.ends_with(b"200 OK")
}

/// The Engine's program and the PATH it finds its parts in.
fn programs(release: Release) -> (PathBuf, String) {
    let system = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/bin:/sbin:/bin";
    match release {
        Release::Debian => (PathBuf::from("/usr/sbin/dockerd"), system),
        Release::Newest | Release::NewestContainerd => {
            let root = Peers::find().root().to_owned();
            let path = format!("{0}/usr/sbin:{0}/usr/bin:{system}", root.display());
            (root.join("usr/sbin/dockerd"), path)
        }
    }
}

fn configuration_for(
    directory: &Path,
    release: Release,
    options: &EngineOptions,
) -> serde_json::Value {
    let mut configuration = serde_json::json!({
        "insecure-registries": options.insecure,
        "registry-mirrors": options.mirrors,
        "default-address-pools": [{"base": "10.89.0.0/16", "size": 24}],
    });
    if needs_runtime_wrapper() {
        let runtime = wrap_runtime(directory);
        configuration["runtimes"] = serde_json::json!({"wrapped": {"path": runtime}});
        configuration["default-runtime"] = "wrapped".into();
    }
    if options.insecure_steps {
        configuration["builder"] = serde_json::json!({"entitlements": {"security-insecure": true}});
    }
    if release == Release::NewestContainerd {
        configuration["features"] = serde_json::json!({"containerd-snapshotter": true});
    }
    configuration
}

/// True on a machine that lacks a capability `--privileged` asks for.
fn needs_runtime_wrapper() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    let bounding = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let last: u32 = last.trim().parse().unwrap_or(40);
    bounding != u64::MAX >> (63 - last)
}

/// A runtime for the Engine that asks for no capability this machine lacks.
fn wrap_runtime(directory: &Path) -> PathBuf {
    let found = crate::program("oci-runtime");
    let copy = directory.join("oci-runtime");
    std::fs::copy(found, &copy).expect("copy the runtime wrapper");
    copy
}
