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
    for wrong in [
        "--oci-worker=maybe",
        "--containerd-worker=maybe",
        "--oci-worker-gc-keepstorage=1,2,3,4",
        "--oci-worker-gc-keepstorage=1,,3",
        "--oci-worker-labels=abc",
        "--oci-max-parallelism=few",
    ] {
        let wrong = flags(&["--config=", wrong]).configuration();
        assert!(matches!(wrong, Err(ConfigError::Invalid(_))));
    }
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

/// Values that stock takes in another way than one might think.
#[test]
fn values_mean_what_they_mean_to_stock() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b.toml");
    let text = "[worker.oci]\nreservedSpace = 1\nmaxUsedSpace = 2\n[grpc]\ngid = 5\n";
    std::fs::write(&file, text).unwrap();
    let config = |words: &[&str]| {
        let words = [&["--config", file.to_str().unwrap()], words].concat();
        let given = flags(&words);
        (given.configuration().unwrap().0, given.remarks().to_vec())
    };
    // A comma belongs to the value.
    let (commas, _) = config(&["--oci-worker-labels=a=b,c", "--addr", "unix:///a,b"]);
    assert_eq!(commas.worker.oci.labels["a"], "b,c");
    assert_eq!(commas.grpc.address, ["unix:///a,b"]);
    // Nothing is not given.
    let (empty, remarks) = config(&["--tlscert=", "--group=", "--debugaddr=", "--oci-worker="]);
    assert_eq!((empty.grpc.tls.cert, empty.grpc.gid), (None, Some(5)));
    assert!(remarks.is_empty());
    // One flag stands for three keys.
    let (storage, _) = config(&["--oci-worker-gc-keepstorage=3"]);
    assert_eq!(
        storage.worker.oci.reserved_space,
        DiskSpace::Bytes(3_000_000)
    );
    assert!(storage.worker.oci.max_used_space.is_unset());
    let (unlimited, _) = config(&["--oci-max-parallelism", "-1"]);
    assert_eq!(unlimited.worker.oci.max_parallelism, 0);
    // The value of a boolean must be joined to it; a word alone means nothing.
    let (debug, remarks) = config(&["--debug", "true", "--root", "/r"]);
    assert_eq!(debug.log.level, "debug");
    assert_eq!(debug.root.as_deref(), Some(Path::new("/r")));
    assert_eq!(
        remarks,
        ["the argument \"true\" is passed over: flags are all there is"]
    );
}
