//! `buildkitd` as a process: flags, configuration, signals, service managers, metrics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use rustix::process::Signal;
use testkit::{Lab, Tool};

use crate::workshop::{Remote, context_with_busybox, executable, server, text, wait_until};

/// Where the lab's servers give their metrics.
const DEBUG: &str = "127.0.0.1:6060";

/// The answer to a GET there: its status and its body.
fn get(path: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(DEBUG).unwrap();
    write!(
        connection,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Whether a process anywhere has that word among its arguments.
fn runs(word: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|p| std::fs::read(p.path().join("cmdline")).ok());
    lines.any(|line| {
        line.split(|byte| *byte == 0)
            .any(|arg| arg == word.as_bytes())
    })
}

#[test]
fn a_stopped_server_tells_its_clients_and_leaves_nothing_behind() {
    let remote = Remote::with(|_, server| server.args(&["--debugaddr", DEBUG]));
    let Remote {
        lab, server, stock, ..
    } = remote;
    let seconds = format!("98{}", std::process::id());
    let dockerfile = format!("FROM scratch\nCOPY busybox /bin/sh\nRUN sleep {seconds}\n");
    let context = context_with_busybox(&lab, "endless", &[("Dockerfile", &dockerfile)]);
    let build = stock
        .command(&["build", "--progress=plain", &context])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("a running step", || {
        let (_, metrics) = get("/metrics");
        metrics.contains("cooperage_step_start_seconds_count 1") && runs(&seconds)
    });
    server.signal(Signal::TERM);
    let status = server.wait();
    assert!(status.success(), "{status}");
    let build = build.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&build.stderr);
    assert!(!build.status.success());
    assert!(
        said.contains("the build was given up: the server is stopping"),
        "{said}"
    );
    assert!(!runs(&seconds));
    assert!(!lab.directory().join("server/b.sock").exists());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(lab.name()), "{mounts}");
}

#[test]
fn metrics_are_at_the_debug_address_and_profiles_are_not() {
    let lab = Lab::start();
    lab.enter_network();
    let server = server(&lab).env("BUILDKITD_DEBUGADDR", DEBUG).start();
    let (status, metrics) = get("/metrics");
    assert_eq!(status, 200);
    assert!(
        metrics.contains("\ncooperage_builds_running 0\n"),
        "{metrics}"
    );
    for (path, expected) in [
        ("/debug/pprof/", 404),
        ("/debug/vars", 404),
        ("/", 200),
        ("/x", 404),
    ] {
        let (status, said) = get(path);
        assert_eq!(status, expected, "{path}");
        assert!(said.contains("/metrics"), "{said}");
    }
    // It offers no TLS, so none is recommended.
    assert!(!server.log().contains("TLS"), "{}", server.log());
    server.signal(Signal::TERM);
    assert!(server.wait().success());
}

#[test]
fn service_managers_are_told_of_readiness_and_of_the_end() {
    let lab = Lab::start();
    lab.enter_network();
    let path = lab.directory().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let heard = || {
        let mut bytes = [0; 64];
        let count = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    let server = server(&lab).env("NOTIFY_SOCKET", &text(&path)).start();
    assert_eq!(heard(), "READY=1");
    server.signal(Signal::TERM);
    assert_eq!(heard(), "STOPPING=1");
    assert!(server.wait().success());
}

#[test]
fn the_log_names_what_a_configuration_gets_wrong_and_can_be_json() {
    let lab = Lab::start();
    lab.enter_network();
    let file = lab.directory().join("b.toml");
    let config = "[worker.oci]\n  max-paralelism = 2\n  binary = \"crun\"\n";
    std::fs::write(&file, config).unwrap();
    let file = text(&file);
    let args = [
        "--config",
        &file,
        "--log-format=json",
        "--oci-worker-no-process-sandbox",
    ];
    let server = server(&lab).args(&args).start();
    let log = server.log();
    for expected in [
        &format!(
            "{file}:2: unknown key `worker.oci.max-paralelism` is passed over: \
             did you mean `worker.oci.max-parallelism`?"
        ),
        &format!("{file}:3: `worker.oci.binary` has no effect: steps need no external runtime"),
        "--oci-worker-no-process-sandbox has no effect: \
         steps always have a process namespace of their own",
    ] {
        let found = log.lines().any(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["level"] == "warning" && line["msg"] == expected
        });
        assert!(found, "{expected}\n{log}");
    }
}

#[test]
fn servers_that_cannot_start_say_why() {
    let lab = Lab::start();
    lab.enter_network();
    let broken = lab.directory().join("broken.toml");
    std::fs::write(&broken, "[worker.oci]\nmax-parallelism = \"many\"\n").unwrap();
    let broken = text(&broken);
    for (args, expected) in [
        (&["--config", &broken][..], "line 2"),
        (&["--addr", "vsock://2:1"], "addr vsock://2:1 not supported"),
        (&["--log-level", "loud"], "unsupported log level: \"loud\""),
        (
            &["--containerd-worker=true"],
            "there is no containerd worker",
        ),
        (
            &["--tlscert", "/x"],
            "you must specify key and cert file if one is specified",
        ),
        (
            &["--debugaddr", "fd://"],
            "debug address fd:// not supported",
        ),
    ] {
        let (status, log) = server(&lab).args(args).refusal();
        assert_eq!(status.code(), Some(1), "{args:?}\n{log}");
        assert!(log.contains(expected), "{expected}\n{log}");
    }
}

#[test]
fn help_and_version_are_for_people_and_for_drivers() {
    let lab = Lab::start();
    let tool = Tool::new(executable(), lab.directory()).arg("buildkitd");
    let version = tool.ok(&["--version"]).stdout;
    let words: Vec<_> = version.trim_end().split(' ').collect();
    assert_eq!(words[..2], ["buildkitd", "github.com/moby/buildkit"]);
    assert!(words.len() == 4 && words[2].starts_with("v0."), "{version}");
    assert_eq!(tool.ok(&["-v"]).stdout, version);
    let help = tool.ok(&["--help"]).stdout;
    for expected in [
        "--addr",
        "--oci-max-parallelism",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ] {
        assert!(help.contains(expected), "{help}");
    }
    assert!(!help.contains("containerd"), "{help}");
}
