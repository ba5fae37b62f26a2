//! The embedded driver: builds on this machine without Docker.
//!
//! Each test has a lab: its own processes, its own `/run`, and no Docker Engine in it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use testkit::{Lab, Output, Tool};

use crate::workshop::{context_with_busybox, executable, text};

/// Longest wait for something that is certain to come.
const PATIENCE: Duration = Duration::from_secs(60);
const DOCKERFILE: &str = "FROM scratch AS made\nCOPY busybox /bin/sh\nRUN echo one > /one\n\
                          FROM scratch\nCOPY --from=made /one /two\n";
/// Tells that it has begun, and then goes on until it is ended.
const WAITING: &str = "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/sleep\n\
                       RUN echo kept > /kept\nRUN echo \"wai\"ting && sleep 600\n";

struct Machine {
    lab: Lab,
    cooperage: Tool,
}

impl Machine {
    fn open() -> Machine {
        let lab = Lab::start();
        let home = lab.subdirectory("home");
        let cooperage = lab
            .tool(&executable(), &home)
            .env("XDG_DATA_HOME", text(&lab.directory().join("data")));
        Machine { lab, cooperage }
    }

    /// With a builder `e` that is current.
    fn with_builder(options: &[&str]) -> Machine {
        let machine = Machine::open();
        let mut args = vec!["create", "--name=e", "--driver=embedded", "--use"];
        for option in options {
            args.extend(["--driver-opt", option]);
        }
        assert_eq!(machine.cooperage.ok(&args).stdout, "e\n");
        machine
    }

    fn base(&self) -> PathBuf {
        self.lab.directory().join("data/cooperage")
    }

    fn context(&self, name: &str, dockerfile: &str) -> String {
        context_with_busybox(&self.lab, name, &[("Dockerfile", dockerfile)])
    }

    fn build(&self, context: &str) -> String {
        let args = ["build", "--progress=plain", context];
        self.cooperage.ok(&args).stderr
    }

    /// The processes of servers in this lab, by what they were started with.
    fn servers(&self) -> Vec<Pid> {
        let mark = text(&self.base());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            if command.starts_with("buildkitd\0") && command.contains(&mark) {
                let pid = entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse().ok());
                found.extend(pid.and_then(Pid::from_raw));
            }
        }
        found
    }

    #[track_caller]
    fn server(&self) -> Pid {
        let servers = self.servers();
        assert_eq!(servers.len(), 1, "{servers:?}");
        servers[0]
    }

    /// A build that has come to its waiting step, and its output.
    fn start_waiting_build(&self) -> (Child, PathBuf) {
        let context = self.context("waiting", WAITING);
        let log = self.lab.directory().join("build.log");
        let child = self
            .cooperage
            .command(&["build", "--progress=plain", &context])
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        wait_for_text(&log, " waiting", 1);
        (child, log)
    }

    /// Nothing is left of any builder.
    fn assert_clean(&self) {
        assert_eq!(self.servers(), []);
        assert!(!self.base().exists(), "{}", self.listing("/run/cooperage"));
        assert_eq!(self.listing("/run/cooperage"), "");
        let mounts = self.run("cat", &["/proc/mounts"]);
        assert!(!mounts.contains(&text(&self.base())), "{mounts}");
    }

    fn listing(&self, path: &str) -> String {
        self.run("find", &[path, "-mindepth", "1"])
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        let mut command: Command = self.lab.command(program);
        let output = command.args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

fn wait_for_text(log: &Path, wanted: &str, times: usize) {
    let start = Instant::now();
    loop {
        let said = std::fs::read_to_string(log).unwrap();
        if said.matches(wanted).count() >= times {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The client itself: what was started is `nsenter`, which waits for it.
fn child_of(process: &Child) -> Pid {
    let id = process.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    Pid::from_raw(children.trim().parse().unwrap()).unwrap()
}

/// Waits until a process has ended.
fn wait_for_end(process: Pid) {
    let Ok(descriptor) = pidfd_open(process, PidfdFlags::empty()) else {
        return;
    };
    let mut fds = [PollFd::new(&descriptor, PollFlags::IN)];
    let timeout = rustix::event::Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    let ended = poll(&mut fds, Some(&timeout)).unwrap();
    assert_eq!(ended, 1, "the server lives on");
}

/// Everything that could be was cached.
#[track_caller]
fn assert_cached(said: &str) {
    assert_eq!(said.matches(" CACHED").count(), 3, "{said}");
    assert!(!said.contains("RUN echo one > /one\n#6 0."), "{said}");
}

#[test]
fn a_builder_needs_no_docker_from_create_to_rm() {
    let machine = Machine::with_builder(&["idle-timeout=1h"]);
    let listed = machine.cooperage.ok(&["ls"]).stdout;
    assert!(listed.contains("e*"), "{listed}");
    assert!(listed.contains("embedded"), "{listed}");
    assert!(listed.contains("inactive"), "{listed}");
    let context = machine.context("c", DOCKERFILE);
    let said = machine.build(&context);
    assert!(said.contains("booting buildkit"), "{said}");
    assert!(!said.contains("CACHED"), "{said}");
    let server = machine.server();
    let said = machine.build(&context);
    assert!(!said.contains("booting buildkit"), "{said}");
    assert_cached(&said);
    let out = machine.lab.directory().join("out");
    let output = format!("type=local,dest={}", text(&out));
    machine.cooperage.ok(&["build", "-o", &output, &context]);
    assert_eq!(std::fs::read_to_string(out.join("two")).unwrap(), "one\n");
    assert_eq!(machine.server(), server);

    let inspected = machine.cooperage.ok(&["inspect"]).stdout;
    for line in [
        "Driver:", "embedded", "Socket:", "State:", "Log:", "running",
    ] {
        assert!(inspected.contains(line), "{line}: {inspected}");
    }
    let used = machine.cooperage.ok(&["du"]).stdout;
    assert!(used.contains("Total:"), "{used}");
    machine.cooperage.ok(&["prune", "--force", "--all"]);
    let said = machine.build(&context);
    assert!(!said.contains("CACHED"), "{said}");

    machine.cooperage.ok(&["stop"]);
    assert_eq!(machine.servers(), []);
    assert!(machine.cooperage.ok(&["ls"]).stdout.contains("stopped"));
    let said = machine.build(&context);
    assert!(said.contains("booting buildkit"), "{said}");
    assert_cached(&said);
    machine.cooperage.ok(&["rm", "e"]);
    machine.assert_clean();
}

#[test]
fn the_server_is_private_and_has_nothing_of_the_terminal_that_started_it() {
    let machine = Machine::with_builder(&["env.NOTE=told"]);
    let with_secret = machine.cooperage.clone().env("MY_PASSWORD", "hunter2");
    with_secret.ok(&["inspect", "--bootstrap"]);
    let server = machine.server();
    let proc = PathBuf::from(format!("/proc/{}", server.as_raw_pid()));
    let environment = std::fs::read(proc.join("environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(environment.contains("NOTE=told"), "{environment}");
    assert!(!environment.contains("hunter2"), "{environment}");
    assert_eq!(
        std::fs::read_link(proc.join("cwd")).unwrap(),
        Path::new("/")
    );
    let stat = std::fs::read_to_string(proc.join("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // State, parent, group, session: it leads both, and has no terminal.
    assert_eq!(fields[2], fields[3], "{stat}");
    assert_eq!(fields[4], "0", "{stat}");
    let standard = |number: &str| std::fs::read_link(proc.join("fd").join(number)).unwrap();
    assert_eq!(standard("0"), Path::new("/dev/null"));
    let log = machine.base().join("buildx_buildkit_e0/buildkitd.log");
    assert_eq!((standard("1"), standard("2")), (log.clone(), log));
    let modes = machine.run("find", &["/run/cooperage", "-printf", "%m %y\n"]);
    for mode in modes.lines() {
        assert!(matches!(mode, "700 d" | "600 s" | "600 f"), "{modes}");
    }
    let mode = std::fs::metadata(machine.base()).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o700);
    machine.cooperage.ok(&["rm", "e"]);
    machine.assert_clean();
}

#[test]
fn clients_that_start_at_once_share_one_server() {
    let machine = Machine::with_builder(&[]);
    let context = machine.context("c", DOCKERFILE);
    let builds: Vec<Child> = (0..6)
        .map(|_| {
            let mut command = machine
                .cooperage
                .command(&["build", "--progress=plain", &context]);
            command.stdin(Stdio::null()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for build in builds {
        let output = build.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
    }
    machine.server();
    let log = machine.base().join("buildx_buildkit_e0/buildkitd.log");
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("running server on").count(), 1, "{log}");
    machine.cooperage.ok(&["rm", "e"]);
    machine.assert_clean();
}

#[test]
fn a_killed_server_is_started_again_and_nothing_is_lost() {
    let machine = Machine::with_builder(&[]);
    let context = machine.context("c", DOCKERFILE);
    machine.build(&context);
    let server = machine.server();
    kill_process(server, Signal::KILL).unwrap();
    wait_for_end(server);
    assert!(
        machine.listing("/run/cooperage").contains("buildkitd.sock"),
        "a stale socket is part of this test"
    );
    assert!(machine.cooperage.ok(&["ls"]).stdout.contains("stopped"));
    assert_cached(&machine.build(&context));
    machine.cooperage.ok(&["rm", "e"]);
    machine.assert_clean();
}

#[test]
fn a_server_killed_during_a_build_is_explained_and_the_build_goes_on() {
    let machine = Machine::with_builder(&[]);
    let (mut build, log) = machine.start_waiting_build();
    kill_process(machine.server(), Signal::KILL).unwrap();
    wait_for_text(&log, " waiting", 2);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("RUN echo kept > /kept"), "{said}");
    assert!(said.contains(" CACHED"), "{said}");
    // Once: the second time it is the end.
    kill_process(machine.server(), Signal::KILL).unwrap();
    assert!(!build.wait().unwrap().success());
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("was killed or crashed"), "{said}");
    assert!(said.contains("buildkitd.log"), "{said}");
    machine.cooperage.ok(&["rm", "e"]);
    machine.assert_clean();
}

#[test]
fn a_server_that_nobody_uses_ends() {
    let machine = Machine::with_builder(&["idle-timeout=300ms"]);
    let context = machine.context("c", DOCKERFILE);
    machine.build(&context);
    for _ in 0..2 {
        for server in machine.servers() {
            wait_for_end(server);
        }
        assert!(!machine.listing("/run/cooperage").contains("buildkitd.sock"));
        assert_cached(&machine.build(&context));
    }
    machine.cooperage.ok(&["rm", "e"]);
    machine.assert_clean();
}

#[test]
fn stop_and_rm_refuse_while_a_build_runs() {
    let machine = Machine::with_builder(&[]);
    let (mut build, log) = machine.start_waiting_build();
    for command in ["stop", "rm"] {
        let refused = machine.cooperage.fails(&[command, "e"]);
        assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    }
    assert!(build.try_wait().unwrap().is_none(), "it was disturbed");
    machine.cooperage.ok(&["stop", "--force", "e"]);
    assert!(!build.wait().unwrap().success());
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("was stopped during the build"), "{said}");
    assert_eq!(machine.servers(), []);
    let (mut build, log) = machine.start_waiting_build();
    machine.cooperage.ok(&["rm", "--force", "e"]);
    assert!(!build.wait().unwrap().success());
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("was removed during the build"), "{said}");
    machine.assert_clean();
}

#[test]
fn a_server_with_other_options_is_replaced_when_no_build_runs_on_it() {
    let machine = Machine::with_builder(&[]);
    let (mut build, _) = machine.start_waiting_build();
    let busy = machine.server();
    let change = [
        "create",
        "--name=e",
        "--node=e0",
        "--driver-opt=idle-timeout=1h",
    ];
    machine.cooperage.ok(&change);
    let context = machine.context("c", DOCKERFILE);
    machine.build(&context);
    assert_eq!(machine.server(), busy);
    kill_process(child_of(&build), Signal::INT).unwrap();
    assert!(!build.wait().unwrap().success());
    let said = machine.build(&context);
    assert!(said.contains("replacing the server"), "{said}");
    assert_cached(&said);
    assert_ne!(machine.server(), busy);
    let same = machine.server();
    machine.build(&context);
    assert_eq!(machine.server(), same);
    machine.cooperage.ok(&["rm", "e"]);
    machine.assert_clean();
}

#[test]
fn state_is_kept_on_request_and_where_the_user_says() {
    let machine = Machine::with_builder(&[]);
    let context = machine.context("c", DOCKERFILE);
    machine.build(&context);
    machine.cooperage.ok(&["rm", "--keep-state", "e"]);
    assert_eq!(machine.servers(), []);
    let create = ["create", "--name=e", "--driver=embedded", "--use"];
    machine.cooperage.ok(&create);
    assert_cached(&machine.build(&context));
    machine.cooperage.ok(&["rm", "e"]);
    machine.assert_clean();
    let state = machine.lab.directory().join("kept");
    let option = format!("state={}", text(&state));
    for name in ["one", "two"] {
        let name_flag = format!("--name={name}");
        let create = [
            "create",
            &name_flag,
            "--driver=embedded",
            "--use",
            "--driver-opt",
            &option,
        ];
        machine.cooperage.ok(&create);
        let said = machine.build(&context);
        assert_eq!(said.contains("CACHED"), name == "two", "{said}");
        machine.cooperage.ok(&["rm", name]);
        machine.assert_clean();
        assert!(state.join("v1").exists());
    }
}

#[test]
fn without_a_docker_engine_a_build_needs_no_builder() {
    let machine = Machine::open();
    let context = machine.context("c", DOCKERFILE);
    let said = machine.build(&context);
    let notice = "No Docker Engine answers at unix:///var/run/docker.sock: using a build server of \
                  this machine (driver embedded).";
    assert!(said.starts_with(notice), "{said}");
    assert_cached(&machine.build(&context));
    let listed = machine.cooperage.ok(&["ls"]).stdout;
    assert!(listed.contains("default*"), "{listed}");
    assert!(listed.contains("embedded"), "{listed}");
    let used = machine.cooperage.ok(&["du"]);
    assert!(used.stderr.contains(notice), "{}", used.stderr);
    assert!(
        machine
            .cooperage
            .ok(&["rm", "default"])
            .stderr
            .contains("default removed")
    );
    machine.assert_clean();
}

#[test]
fn an_engine_or_a_builder_that_was_chosen_is_never_replaced() {
    let machine = Machine::open();
    let context = machine.context("c", DOCKERFILE);
    let host = "unix:///nowhere/docker.sock";
    let elsewhere = machine.cooperage.clone().env("DOCKER_HOST", host);
    let failed = elsewhere.fails(&["build", &context]);
    assert!(
        failed
            .stderr
            .contains("Cannot connect to the Docker daemon at unix:///nowhere/docker.sock"),
        "{}",
        failed.stderr
    );
    assert!(
        failed.stderr.contains("--driver embedded"),
        "{}",
        failed.stderr
    );
    let instances = machine.lab.subdirectory("home/.docker/buildx/instances");
    let record = r#"{"Name":"c","Driver":"docker-container","Nodes":[{"Name":"c0",
        "Endpoint":"unix:///var/run/docker.sock"}]}"#;
    std::fs::write(instances.join("c"), record).unwrap();
    machine.cooperage.ok(&["use", "c"]);
    let failed = machine.cooperage.fails(&["build", &context]);
    assert!(
        failed.stderr.contains("Cannot connect"),
        "{}",
        failed.stderr
    );
    assert!(
        !failed.stderr.contains("using a build server"),
        "{}",
        failed.stderr
    );
    assert_eq!(machine.servers(), []);
}

#[test]
fn wrong_options_are_refused_at_create() {
    let machine = Machine::open();
    let create = |args: &[&str]| -> Output {
        let mut all = vec!["create", "--name=e", "--driver=embedded"];
        all.extend(args);
        machine.cooperage.fails(&all)
    };
    for (args, words) in [
        (
            &["--driver-opt=memory=1g"][..],
            "invalid driver option memory for embedded driver",
        ),
        (
            &["--driver-opt=idle-timeout=soon"],
            "invalid value for driver option idle-timeout: time: invalid duration \"soon\"",
        ),
        (
            &["--driver-opt=state=here"],
            "invalid value for driver option state: \"here\" is not an absolute path",
        ),
        (
            &["--buildkitd-flags=--root=/x"],
            "buildkit flag --root=/x cannot be used with the embedded driver",
        ),
        (
            &["tcp://127.0.0.1:1"],
            "invalid endpoint \"tcp://127.0.0.1:1\" for embedded driver",
        ),
    ] {
        let failed = create(args);
        assert!(failed.stderr.contains(words), "{args:?}: {}", failed.stderr);
        assert!(
            machine
                .cooperage
                .fails(&["inspect", "e"])
                .stderr
                .contains("no builder")
        );
    }
    machine.assert_clean();
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let machine = Machine::open();
    let config = machine.lab.directory().join("b.toml");
    std::fs::write(&config, "[worker.oci]\n  snapshotter = \"bogus\"\n").unwrap();
    let config = format!("--buildkitd-config={}", text(&config));
    machine
        .cooperage
        .ok(&["create", "--name=e", "--driver=embedded", "--use", &config]);
    let context = machine.context("c", DOCKERFILE);
    let failed = machine.cooperage.fails(&["build", &context]);
    for words in ["ended at once", "unsupported snapshotter", "buildkitd.log"] {
        assert!(failed.stderr.contains(words), "{words}: {}", failed.stderr);
    }
    machine.cooperage.ok(&["rm", "e"]);
    machine.assert_clean();
}

#[test]
fn a_user_who_is_not_root_is_told_what_to_do() {
    let machine = Machine::open();
    // Where everybody may read: the lab's own folder is root's.
    let program = "/run/program";
    machine.run("cp", &[&text(&executable()), program]);
    machine.run("mkdir", &["-m", "777", "/run/home"]);
    let mut command: Command = machine.lab.command("setpriv");
    let mut as_nobody = |args: &[&str]| {
        let output = command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", program])
            .args(args)
            .env("HOME", "/run/home")
            .env_remove("DOCKER_HOST")
            .output()
            .unwrap();
        command = machine.lab.command("setpriv");
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = as_nobody(&["create", "--name=e", "--driver=embedded"]);
    assert!(
        said.contains("runs its server on this machine, which needs root"),
        "{said}"
    );
    assert!(said.contains("sudo"), "{said}");
    let said = as_nobody(&["inspect", "--bootstrap"]);
    assert!(
        said.contains("Cannot connect to the Docker daemon"),
        "{said}"
    );
    assert!(
        said.contains("as root (`sudo`) a build runs without Docker"),
        "{said}"
    );
}

#[test]
fn contexts_are_read_where_they_are() {
    let machine = Machine::open();
    machine.cooperage.ok(&[
        "create",
        "--name=e",
        "--driver=embedded",
        "--use",
        "--buildkitd-flags=--debug",
    ]);
    let context = machine.context("c", "FROM scratch\nCOPY . /\n");
    std::fs::create_dir(Path::new(&context).join("d")).unwrap();
    std::fs::write(Path::new(&context).join("d/f"), "first").unwrap();
    let out = machine.lab.directory().join("out");
    let output = format!("type=local,dest={}", text(&out));
    let build = ["build", "--progress=plain", "-o", &output, &context];
    machine.cooperage.ok(&build);
    assert_eq!(std::fs::read_to_string(out.join("d/f")).unwrap(), "first");
    let log = machine.base().join("buildx_buildkit_e0/buildkitd.log");
    let said = std::fs::read_to_string(log).unwrap();
    let place = format!("context is read in place: {context}");
    assert!(said.contains(&place), "{said}");
    // Stock's protocol over the same socket gives what is found to be the same.
    let inspected = machine.cooperage.ok(&["inspect"]).stdout;
    let socket = inspected
        .lines()
        .find_map(|line| line.strip_prefix("Socket:"));
    let address = format!("unix://{}", socket.unwrap().trim());
    machine
        .cooperage
        .ok(&["create", "--name=r", "--driver=remote", &address]);
    let same = ["build", "--builder=r", "--progress=plain", &context];
    let said = machine.cooperage.ok(&same).stderr;
    assert!(said.contains("COPY . /\n#4 CACHED"), "{said}");
    std::fs::write(Path::new(&context).join("d/f"), "second").unwrap();
    machine.cooperage.ok(&build);
    assert_eq!(std::fs::read_to_string(out.join("d/f")).unwrap(), "second");
    let said = machine.cooperage.ok(&same).stderr;
    assert!(said.contains("COPY . /\n#4 CACHED"), "{said}");
    machine.cooperage.ok(&["rm", "e"]);
}
