//! Command lines.

use super::*;

fn flags(words: &[&str]) -> Flags {
    parse(words).unwrap()
}

fn parse(words: &[&str]) -> Result<Flags, clap::Error> {
    let args: Vec<OsString> = ["buildkitd"]
        .iter()
        .chain(words)
        .map(OsString::from)
        .collect();
    Flags::parse_from_args(&args)
}

/// Every flag of upstream's server on Linux, with a value that asks for nothing it would refuse;
/// without one where it is a switch.
const UPSTREAM: &[(&str, Option<&str>)] = &[
    ("rootless", None),
    ("config", Some("/dev/null")),
    ("debug", None),
    ("trace", None),
    ("root", Some("/r")),
    ("addr", Some("unix:///a")),
    ("log-format", Some("json")),
    ("log-level", Some("warn")),
    ("group", Some("0")),
    ("debugaddr", Some("127.0.0.1:0")),
    ("tlscert", Some("/c")),
    ("tlskey", Some("/k")),
    ("tlscacert", Some("/a")),
    ("allow-insecure-entitlement", Some("network.host")),
    ("otel-socket-path", Some("/o")),
    ("cdi-disabled", None),
    ("cdi-spec-dir", Some("/etc/cdi")),
    ("save-cache-debug", None),
    ("profile-cpu", Some("/p")),
    ("profile-memory", Some("/p")),
    ("profile-memoryrate", Some("1")),
    ("profile-block", Some("/p")),
    ("profile-mutex", Some("/p")),
    ("profile-trace", Some("/p")),
    ("oci-worker", Some("auto")),
    ("oci-worker-labels", Some("a=b")),
    ("oci-worker-snapshotter", Some("native")),
    ("oci-worker-proxy-snapshotter-path", Some("/s")),
    ("oci-worker-platform", Some("linux/amd64")),
    ("oci-worker-net", Some("host")),
    ("oci-cni-config-path", Some("/n")),
    ("oci-cni-binary-dir", Some("/n")),
    ("oci-cni-pool-size", Some("1")),
    ("oci-worker-binary", Some("crun")),
    ("oci-worker-apparmor-profile", Some("x")),
    ("oci-worker-selinux", None),
    ("oci-max-parallelism", Some("2")),
    ("oci-worker-rootless", None),
    ("oci-worker-no-process-sandbox", None),
    ("oci-worker-gc", None),
    ("oci-worker-gc-keepstorage", Some("100")),
    ("containerd-worker", Some("false")),
    ("containerd-worker-addr", Some("/c")),
    ("containerd-worker-labels", Some("a=b")),
    ("containerd-worker-platform", Some("linux/amd64")),
    ("containerd-worker-namespace", Some("n")),
    ("containerd-worker-runtime", Some("r")),
    ("containerd-worker-net", Some("auto")),
    ("containerd-cni-config-path", Some("/n")),
    ("containerd-cni-binary-dir", Some("/n")),
    ("containerd-cni-pool-size", Some("1")),
    ("containerd-worker-snapshotter", Some("s")),
    ("containerd-worker-apparmor-profile", Some("x")),
    ("containerd-worker-selinux", None),
    ("containerd-max-parallelism", Some("2")),
    ("containerd-worker-rootless", None),
    ("containerd-worker-gc", None),
    ("containerd-worker-gc-keepstorage", Some("100")),
];

#[test]
fn every_flag_of_upstream_is_accepted_in_every_form() {
    for (name, value) in UPSTREAM {
        let forms: Vec<Vec<String>> = match value {
            Some(value) => vec![
                vec![format!("--{name}"), (*value).to_owned()],
                vec![format!("--{name}={value}")],
                vec![format!("-{name}={value}")],
                // The last one wins.
                vec![format!("--{name}={value}"), format!("--{name}={value}")],
            ],
            None => vec![
                vec![format!("--{name}")],
                vec![format!("-{name}")],
                vec![format!("--{name}=false"), format!("--{name}=true")],
                vec![format!("--{name}=0")],
            ],
        };
        for form in forms {
            let words: Vec<&str> = form.iter().map(String::as_str).collect();
            let parsed = parse(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
            let mut config = Config::default();
            parsed
                .apply(&mut config)
                .unwrap_or_else(|error| panic!("{words:?}: {error}"));
        }
    }
    let refused = parse(&["--proxy-network"]).unwrap();
    assert!(refused.apply(&mut Config::default()).is_err());
}

#[test]
fn flags_without_meaning_say_so_when_they_ask_for_something() {
    for unused in UNUSED {
        assert!(
            UPSTREAM.iter().any(|(name, _)| *name == unused.name),
            "{} is no flag of upstream's",
            unused.name
        );
    }
    let given = flags(&[
        "--oci-worker-binary=crun",
        "--rootless=false",
        "--oci-worker-selinux",
        "--trace",
        "--containerd-worker-addr=",
    ]);
    assert_eq!(
        given.remarks(),
        [
            "--oci-worker-binary has no effect: steps need no external runtime",
            "--oci-worker-selinux has no effect: no SELinux labels are applied to steps",
            "--trace is deprecated, use --log-level=trace instead",
        ]
    );
    assert!(flags(&[]).remarks().is_empty());
}

#[test]
fn flags_win_over_the_file_and_defaults_fill_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b.toml");
    std::fs::write(
        &file,
        "root = \"/a\"\n[worker.oci]\nmax-parallelism = 2\n[log]\nlevel = \"warn\"\n",
    )
    .unwrap();
    let path = file.to_str().unwrap();
    let given = flags(&[
        "--config",
        path,
        "-root",
        "/b",
        "--allow-insecure-entitlement=network.host,security.insecure",
        "--oci-max-parallelism=7",
        "--oci-worker-gc=false",
        "--oci-worker-gc-keepstorage=100,20%",
        "--debugaddr=127.0.0.1:6060",
    ]);
    let (config, remarks) = given.configuration().unwrap();
    assert!(remarks.is_empty());
    assert_eq!(config.root.as_deref(), Some(Path::new("/b")));
    assert_eq!(config.entitlements, ["network.host", "security.insecure"]);
    assert_eq!(config.worker.oci.max_parallelism, 7);
    assert_eq!(config.worker.oci.gc, Some(false));
    assert_eq!(config.log.level, "warn");
    assert_eq!(config.grpc.address, [DEFAULT_ADDRESS]);
    assert_eq!(config.grpc.debug_address, "127.0.0.1:6060");
    let debug = flags(&["--config", path, "--debug"]).configuration();
    assert_eq!(debug.unwrap().0.log.level, "debug");
    let both = flags(&["--config", path, "--debug", "--log-level=error"]).configuration();
    assert_eq!(both.unwrap().0.log.level, "error");
}

#[test]
fn what_is_not_offered_is_refused_and_what_is_missing_named() {
    for refused in [
        "--containerd-worker=true",
        "--oci-worker=false",
        "--proxy-network",
    ] {
        let refused = flags(&["--config", "/dev/null", refused]).configuration();
        assert!(matches!(refused, Err(ConfigError::Unsupported(_))));
    }
    let missing = flags(&["--config", "/no/such/file"]).configuration();
    assert!(matches!(missing, Err(ConfigError::Read { .. })));
    let wrong = ["--no-such-flag", "--debug=perhaps", "--oci-worker-gc=maybe"];
    assert!(wrong.iter().all(|flag| parse(&[flag]).is_err()));
}

#[test]
fn the_help_names_what_can_be_used_and_nothing_else() {
    let help = Flags::whole_command().render_help().to_string();
    for (name, _) in UPSTREAM {
        let shown = help.contains(&format!("--{name} ")) || help.contains(&format!("--{name}["));
        let unused = UNUSED.iter().any(|unused| unused.name == *name);
        let hidden = unused || ["trace", "containerd-worker"].contains(name);
        assert_eq!(shown, !hidden, "{name}\n{help}");
    }
}
