//! Faults users report in the existing docker-container driver, one test each, numbered as in
//! `docs/driver.md`. Those shown by unit tests say where in that page's table.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use testkit::{Engine, EngineOptions, Release};

use crate::workshop::{Workshop, text};

const SLEEPER: &str = "FROM scratch\nCOPY busybox /bin/busybox\n\
                       RUN [\"/bin/busybox\", \"sleep\", \"600\"]\n";

fn container_id(shop: &Workshop, name: &str) -> String {
    shop.engine.docker(&["inspect", "--format={{.Id}}", name])
}

fn volumes(shop: &Workshop) -> String {
    shop.engine.docker(&["volume", "ls", "-q"])
}

/// Starts a build that sleeps, and returns when its step runs; all that it says comes over the
/// receiver, a line each.
fn start_sleeping_build(shop: &Workshop) -> (Child, Receiver<String>) {
    let context = shop.context_with_busybox("sleeper", &[("Dockerfile", SLEEPER)]);
    let mut build = shop
        .cooperage
        .command(&["build", "--progress=plain", &context])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(build.stderr.take().unwrap()).lines();
    let (sender, log) = channel();
    // Read to its end, so that the build is not stopped by a full pipe.
    std::thread::spawn(move || lines.for_each(|line| sender.send(line.unwrap()).unwrap_or(())));
    let mut seen = String::new();
    for line in &log {
        if line.contains("RUN [\"/bin/busybox\"") {
            return (build, log);
        }
        seen += &line;
        seen.push('\n');
    }
    let status = build.wait().unwrap();
    panic!("the build ended early ({status}):\n{seen}");
}

/// What a build says that fails now.
fn failure_of(mut build: Child, log: &Receiver<String>) -> String {
    let said: Vec<String> = log.iter().collect();
    assert_eq!(build.wait().unwrap().code(), Some(1), "{said:?}");
    said.join("\n")
}

#[test]
fn fault_01_rm_finds_the_volume_of_a_container_that_is_gone() {
    let shop = Workshop::open();
    shop.cooperage.ok(&["create", "--name", "c", "--bootstrap"]);
    shop.engine.docker(&["rm", "-f", "buildx_buildkit_c0"]);
    assert_eq!(volumes(&shop), "buildx_buildkit_c0_state");
    shop.cooperage.ok(&["rm", "c"]);
    assert_eq!(volumes(&shop), "");
}

#[test]
fn fault_02_a_removal_that_fails_keeps_the_record() {
    let shop = Workshop::open();
    let _registry = shop.registry();
    shop.cooperage.ok(&["create", "--name", "c", "--bootstrap"]);
    let image = format!("{}:5000/busybox", Engine::GATEWAY);
    shop.engine.docker(&[
        "run",
        "-d",
        "--name",
        "holder",
        "-v",
        "buildx_buildkit_c0_state:/state",
        &image,
        "sleep",
        "600",
    ]);
    let failed = shop.cooperage.fails(&["rm", "c"]);
    assert!(
        failed.stderr.contains("buildx_buildkit_c0_state"),
        "{}",
        failed.stderr
    );
    assert!(shop.cooperage.ok(&["ls"]).stdout.contains("c0"));
    shop.engine.docker(&["rm", "-f", "holder"]);
    shop.cooperage.ok(&["rm", "c"]);
    assert_eq!(volumes(&shop), "");
}

#[test]
fn a_removal_during_the_first_boot_leaves_nothing_behind() {
    let shop = Workshop::open();
    let containers = || shop.engine.docker(&["ps", "-aq"]);
    // From the moment on when the record, and when something of the builder, is there.
    let record = shop
        .lab
        .subdirectory("home")
        .join(".docker/buildx/instances/c");
    let has_record = || record.exists();
    let has_volume = || !volumes(&shop).is_empty();
    for there in [&has_record as &dyn Fn() -> bool, &has_volume] {
        let mut boot = shop
            .cooperage
            .command(&["create", "--name", "c", "--bootstrap"])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !there() {
            assert!(boot.try_wait().unwrap().is_none(), "it booted unseen");
            std::thread::sleep(Duration::from_millis(1));
        }
        shop.cooperage.ok(&["rm", "--force", "c"]);
        boot.wait().unwrap();
        assert_eq!((containers(), volumes(&shop)), Default::default());
        shop.engine.docker(&["image", "prune", "-af"]);
    }
}

#[test]
fn fault_04_stop_and_rm_refuse_while_a_build_runs() {
    let shop = Workshop::open();
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    let (mut build, log) = start_sleeping_build(&shop);
    for command in ["stop", "rm"] {
        let refused = shop.cooperage.fails(&[command, "c"]);
        assert!(
            refused.stderr.contains("--force"),
            "{command}: {}",
            refused.stderr
        );
    }
    assert!(
        build.try_wait().unwrap().is_none(),
        "the build was disturbed"
    );
    shop.cooperage.ok(&["stop", "--force", "c"]);
    let said = failure_of(build, &log);
    assert!(said.contains("was stopped"), "{said}");
    let (build, log) = start_sleeping_build(&shop);
    shop.cooperage.ok(&["rm", "--force", "c"]);
    let said = failure_of(build, &log);
    assert!(said.contains("was removed"), "{said}");
    assert_eq!(shop.engine.docker(&["ps", "-aq"]), "");
    assert_eq!(volumes(&shop), "");
}

#[test]
fn fault_05_du_and_prune_boot_a_stopped_builder() {
    let shop = Workshop::open();
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    shop.cooperage.ok(&["stop", "c"]);
    shop.cooperage.ok(&["du"]);
    shop.cooperage.ok(&["stop", "c"]);
    shop.cooperage.ok(&["prune", "--force"]);
}

#[test]
fn fault_06_state_can_be_kept_in_a_volume_of_any_name() {
    let shop = Workshop::open();
    let context = shop.context_with_busybox(
        "state",
        &[(
            "Dockerfile",
            "FROM scratch\nCOPY busybox /bin/sh\nRUN echo state\n",
        )],
    );
    let mut seen = Vec::new();
    for name in ["one", "two"] {
        shop.cooperage.ok(&[
            "create",
            "--name",
            name,
            "--use",
            "--driver-opt",
            "state=my-cache",
        ]);
        seen.push(
            shop.cooperage
                .ok(&["build", "--progress=plain", &context])
                .stderr,
        );
        shop.cooperage.ok(&["rm", "--keep-state", name]);
    }
    assert!(
        !seen[0].contains("CACHED") && seen[1].contains("CACHED"),
        "{seen:?}"
    );
    assert_eq!(volumes(&shop), "my-cache");
}

#[test]
fn fault_07_changed_options_reach_an_existing_container_and_keep_its_state() {
    let shop = Workshop::open();
    let context = shop.context_with_busybox(
        "changed",
        &[(
            "Dockerfile",
            "FROM scratch\nCOPY busybox /bin/sh\nRUN echo state\n",
        )],
    );
    shop.cooperage.ok(&[
        "create",
        "--name",
        "c",
        "--use",
        "--driver-opt",
        "env.COLOUR=red",
    ]);
    shop.cooperage.ok(&["build", &context]);
    let before = container_id(&shop, "buildx_buildkit_c0");
    shop.cooperage.ok(&["build", &context]);
    assert_eq!(container_id(&shop, "buildx_buildkit_c0"), before);
    shop.cooperage.ok(&[
        "create",
        "--name",
        "c",
        "--node",
        "c0",
        "--driver-opt",
        "memory=1g",
    ]);
    let build = shop
        .cooperage
        .ok(&["build", "--progress=plain", &context])
        .stderr;
    assert_ne!(container_id(&shop, "buildx_buildkit_c0"), before);
    assert!(build.contains("CACHED"), "{build}");
    let memory = [
        "inspect",
        "--format={{.HostConfig.Memory}}",
        "buildx_buildkit_c0",
    ];
    assert_eq!(shop.engine.docker(&memory), (1_u64 << 30).to_string());
    let env = shop
        .engine
        .docker(&["inspect", "--format={{.Config.Env}}", "buildx_buildkit_c0"]);
    assert!(
        env.contains("COLOUR=red"),
        "what was not named has changed: {env}"
    );
}

#[test]
fn fault_08_a_container_that_has_ended_is_booted() {
    let shop = Workshop::open();
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    shop.engine.docker(&["kill", "buildx_buildkit_c0"]);
    let inspected = shop.cooperage.ok(&["inspect", "--bootstrap"]).stdout;
    assert!(inspected.contains("running"), "{inspected}");
}

#[test]
fn fault_09_orphans_are_listed_and_pruned() {
    let shop = Workshop::open();
    shop.cooperage
        .ok(&["create", "--name", "lost", "--bootstrap"]);
    let record = shop
        .lab
        .directory()
        .join("home/.docker/buildx/instances/lost");
    std::fs::remove_file(record).unwrap();
    let listed = shop.cooperage.ok(&["ls"]);
    let said = listed.stdout + &listed.stderr;
    assert!(said.contains("buildx_buildkit_lost0"), "{said}");
    shop.cooperage.ok(&["prune", "--orphans", "--force"]);
    assert_eq!(shop.engine.docker(&["ps", "-aq"]), "");
    assert_eq!(volumes(&shop), "");
}

#[test]
fn fault_10_a_value_may_contain_commas() {
    let shop = Workshop::open();
    let option = "env.NO_PROXY=localhost,.example.org,10.0.0.0/8,env.OTHER=1";
    shop.cooperage.ok(&[
        "create",
        "--name",
        "c",
        "--driver-opt",
        option,
        "--bootstrap",
    ]);
    let env = shop.engine.docker(&[
        "inspect",
        "--format={{json .Config.Env}}",
        "buildx_buildkit_c0",
    ]);
    assert!(
        env.contains("\"NO_PROXY=localhost,.example.org,10.0.0.0/8\""),
        "{env}"
    );
    assert!(env.contains("\"OTHER=1\""), "{env}");
}

#[test]
fn fault_11_proxies_of_the_docker_configuration_reach_the_builder() {
    let shop = Workshop::open();
    let config = shop.lab.subdirectory("home/.docker").join("config.json");
    let proxies =
        r#"{"proxies": {"default": {"httpProxy": "http://127.0.0.1:3128", "noProxy": "x"}}}"#;
    std::fs::write(config, proxies).unwrap();
    let env = |name: &str| {
        let container = format!("buildx_buildkit_{name}0");
        shop.engine
            .docker(&["inspect", "--format={{json .Config.Env}}", &container])
    };
    shop.cooperage
        .ok(&["create", "--name", "with", "--bootstrap"]);
    assert!(
        env("with").contains("HTTP_PROXY=http://127.0.0.1:3128"),
        "{}",
        env("with")
    );
    let args = [
        "create",
        "--name",
        "without",
        "--driver-opt",
        "proxy=none",
        "--bootstrap",
    ];
    shop.cooperage.ok(&args);
    assert!(!env("without").contains("3128"), "{}", env("without"));
}

#[test]
fn fault_12_authorities_with_equal_file_names_are_both_kept() {
    let shop = Workshop::open();
    for name in ["a", "b"] {
        let folder = shop.lab.subdirectory(name);
        std::fs::write(folder.join("ca.pem"), format!("authority {name}\n")).unwrap();
    }
    let lab = shop.lab.directory().display();
    let config = shop.lab.directory().join("two.toml");
    let lines = format!(
        "[registry.\"a.test\"]\n  ca = [\"{lab}/a/ca.pem\"]\n\
         [registry.\"b.test\"]\n  ca = [\"{lab}/b/ca.pem\"]\n"
    );
    std::fs::write(&config, lines).unwrap();
    // Text that is no certificate must not keep the server from starting.
    shop.cooperage.ok(&[
        "create",
        "--name",
        "c",
        "--buildkitd-config",
        &text(&config),
        "--bootstrap",
    ]);
    let copied = shop.lab.directory().join("copied");
    shop.engine
        .docker(&["cp", "buildx_buildkit_c0:/etc/buildkit", &text(&copied)]);
    let found = std::process::Command::new("grep")
        .arg("-rh")
        .arg("authority")
        .arg(&copied)
        .output();
    let found = String::from_utf8(found.unwrap().stdout).unwrap();
    assert!(
        found.contains("authority a") && found.contains("authority b"),
        "{found}"
    );
}

#[test]
fn fault_13_insecure_registries_of_the_engine_are_the_builders() {
    let shop = Workshop::open();
    let registry = shop.registry();
    let dockerfile = format!("FROM {}/busybox\nRUN true\n", registry.address());
    let context = shop.context("insecure", &[("Dockerfile", &dockerfile)]);
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    shop.cooperage.ok(&["build", &context]);
    let inspected = shop.cooperage.ok(&["inspect", "c"]).stdout;
    assert!(inspected.contains("10.88.0.0/24"), "{inspected}");
}

#[test]
fn fault_14_and_15_names_of_the_builders_network_and_its_gateway_resolve_in_steps() {
    let shop = Workshop::open();
    let registry = shop.registry();
    let base = format!("{}/busybox", registry.address());
    shop.engine.docker(&["network", "create", "foonet"]);
    shop.engine.docker(&[
        "run",
        "-d",
        "--network",
        "foonet",
        "--name",
        "neighbour",
        &base,
        "sleep",
        "600",
    ]);
    let dockerfile =
        format!("FROM {base}\nRUN nslookup neighbour\nRUN grep gate.test /etc/hosts\n");
    let context = shop.context("names", &[("Dockerfile", &dockerfile)]);
    shop.cooperage.ok(&[
        "create",
        "--name",
        "c",
        "--use",
        "--driver-opt",
        "network=foonet",
    ]);
    let build = shop.cooperage.ok(&[
        "build",
        "--progress=plain",
        "--add-host",
        "gate.test:host-gateway",
        &context,
    ]);
    let gateway = shop.engine.docker(&[
        "network",
        "inspect",
        "--format={{(index .IPAM.Config 0).Gateway}}",
        "foonet",
    ]);
    assert!(
        build.stderr.contains(&gateway),
        "{gateway}\n{}",
        build.stderr
    );
}

#[test]
fn fault_16_a_builder_makes_no_subnet_that_could_collide() {
    let shop = Workshop::open();
    let registry = shop.registry();
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    // What users have: networks where others put their fixed subnets.
    let ip = |args: &[&str]| {
        let output = shop.lab.command("ip").args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for subnet in ["10.10.0.0/16", "172.16.0.0/12", "192.168.0.0/16"] {
        ip(&["route", "add", subnet, "dev", "lo"]);
    }
    let addresses = || (ip(&["-o", "route"]), ip(&["-o", "-4", "addr"]));
    let image = format!("{}/busybox", registry.address());
    let seen_by_builder = || {
        let command = "cat /proc/net/route; ls /sys/class/net";
        let network = "--network=container:buildx_buildkit_c0";
        shop.engine
            .docker(&["run", "--rm", network, &image, "sh", "-c", command])
    };
    let before = (addresses(), seen_by_builder());
    let dockerfile =
        format!("FROM {image}\nRUN (cat /proc/net/route; ls /sys/class/net) > /seen\n");
    let context = shop.context("routes", &[("Dockerfile", &dockerfile)]);
    shop.cooperage
        .ok(&["build", "--load", "-t", "routes", &context]);
    let step = shop
        .engine
        .docker(&["run", "--rm", "routes", "cat", "/seen"]);
    assert_eq!(
        step, before.1,
        "a step has a network other than its builder"
    );
    assert_eq!((addresses(), seen_by_builder()), before);
}

#[test]
fn fault_17_a_cgroup_parent_reaches_an_engine_with_systemd() {
    let shop = Workshop::with_engine(&EngineOptions {
        arguments: &["--exec-opt", "native.cgroupdriver=systemd"],
        ..EngineOptions::default()
    });
    let driver = shop.engine.docker(&["info", "-f", "{{.CgroupDriver}}"]);
    assert_eq!(driver, "systemd");
    // Where systemd does not run, the container is made, which is when the Engine checks the slice,
    // and cannot be started.
    let systemd_runs = std::path::Path::new("/run/systemd/system").exists();
    let create = ["create", "--name", "c", "--bootstrap"];
    let option = ["--driver-opt", "cgroup-parent=/build/ci"];
    let run = shop.cooperage.run(&[create.as_slice(), &option].concat());
    assert_eq!(run.code == 0, systemd_runs, "{}", run.stderr);
    let parent = shop.engine.docker(&[
        "inspect",
        "--format={{.HostConfig.CgroupParent}}",
        "buildx_buildkit_c0",
    ]);
    assert_eq!(parent, "build-ci.slice");

    let option = ["--driver-opt", "cgroup-parent=/not/a slice"];
    let create = ["create", "--name", "d", "--bootstrap"];
    let refused = shop.cooperage.fails(&[create.as_slice(), &option].concat());
    assert!(
        refused.stderr.contains("cannot be honoured") && refused.stderr.contains("systemd"),
        "{}",
        refused.stderr
    );
}

#[test]
fn fault_18_a_step_that_eats_the_memory_is_named_and_the_server_lives() {
    let shop = Workshop::open();
    let dockerfile = "FROM scratch\nCOPY busybox /bin/sh\n\
                      RUN x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done\n";
    let context = shop.context_with_busybox("hungry", &[("Dockerfile", dockerfile)]);
    shop.cooperage.ok(&[
        "create",
        "--name",
        "c",
        "--use",
        "--driver-opt",
        "memory=300m",
        "--bootstrap",
    ]);
    let before = container_id(&shop, "buildx_buildkit_c0");
    let failed = shop
        .cooperage
        .fails(&["build", "--progress=plain", &context])
        .stderr;
    assert!(failed.contains("memory"), "{failed}");
    assert!(
        failed.contains("the builder's limit is 300 MiB"),
        "the limit is not named:\n{failed}"
    );
    assert!(
        failed.contains("the step's peak was "),
        "the peak is not named:\n{failed}"
    );
    assert!(
        failed.contains("process \"/bin/sh -c x=aaaaaaaaaaaaaaaa;")
            && failed.contains(">>> RUN x=aaaaaaaaaaaaaaaa;"),
        "the step is not named:\n{failed}"
    );
    assert!(
        failed.contains("hint: "),
        "no word on what to do:\n{failed}"
    );
    assert_eq!(container_id(&shop, "buildx_buildkit_c0"), before);
    let restarts = [
        "inspect",
        "--format={{.RestartCount}}",
        "buildx_buildkit_c0",
    ];
    assert_eq!(shop.engine.docker(&restarts), "0");
}

#[test]
fn fault_19_and_26_create_makes_one_container_and_pulls_nothing() {
    let shop = Workshop::open();
    let since = shop.engine.docker(&["info", "--format={{.SystemTime}}"]);
    shop.cooperage.ok(&["create", "--name", "c", "--bootstrap"]);
    let until = shop.engine.docker(&["info", "--format={{.SystemTime}}"]);
    let events = |filters: &[&str]| {
        let mut args = vec!["events", "--since", &since, "--until", &until];
        args.extend(filters);
        shop.engine.docker(&args)
    };
    assert_eq!(
        events(&["--filter", "type=container", "--filter", "event=create"])
            .lines()
            .count(),
        1
    );
    assert_eq!(events(&["--filter", "event=pull"]), "");
}

#[test]
fn fault_20_two_boots_at_once_both_succeed() {
    let shop = Workshop::open();
    shop.cooperage.ok(&["create", "--name", "c", "--use"]);
    let boots: Vec<_> = (0..4)
        .map(|_| {
            shop.cooperage
                .command(&["inspect", "--bootstrap", "c"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for boot in boots {
        let output = boot.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert_eq!(shop.engine.docker(&["ps", "-q"]).lines().count(), 1);
}

#[test]
fn fault_22_a_node_that_does_not_answer_holds_up_no_other() {
    let shop = Workshop::open();
    shop.cooperage
        .ok(&["create", "--name", "good", "--bootstrap"]);
    // A socket that accepts and never answers.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", deaf.local_addr().unwrap());
    shop.cooperage
        .ok(&["create", "--name", "deaf", "--driver", "remote", &address]);
    let start = Instant::now();
    let listed = shop.cooperage.ok(&["ls"]).stdout;
    assert!(start.elapsed() < Duration::from_secs(40), "ls hangs");
    assert!(
        listed.contains("good0") && listed.contains("running"),
        "{listed}"
    );
    assert!(listed.contains("deaf0"), "{listed}");
}

#[test]
fn fault_23_tls_from_the_environment_is_kept_with_the_builder() {
    let shop = Workshop::with_engine(&EngineOptions {
        tls_port: Some(2376),
        ..EngineOptions::default()
    });
    let certificates = text(&Engine::certificates(&shop.lab));
    let address = "tcp://127.0.0.1:2376";
    let with_tls = shop
        .cooperage
        .clone()
        .env("DOCKER_HOST", address)
        .env("DOCKER_TLS_VERIFY", "1")
        .env("DOCKER_CERT_PATH", &certificates);
    with_tls.ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    // The Engine is named by the record alone, with what opens it.
    let without = shop.cooperage.clone().env("DOCKER_HOST", "unix:///nowhere");
    let context = shop.context_with_busybox("tls", &[("Dockerfile", "FROM scratch\nCOPY . /\n")]);
    without.ok(&["build", "--builder", "c", &context]);
    let inspected = without.ok(&["inspect", "c"]).stdout;
    assert!(inspected.contains(address), "{inspected}");
    assert!(inspected.contains("running"), "{inspected}");
    // Without a certificate the Engine turns clients away, so the one of the record was used.
    let bare = shop.cooperage.clone().env("DOCKER_HOST", address);
    bare.fails(&["create", "--name", "d", "--bootstrap"]);
    without.ok(&["rm", "c"]);
    assert_eq!(volumes(&shop), "");
}

#[test]
fn fault_24_the_context_is_stored_by_name() {
    let shop = Workshop::open();
    let docker = |args: &[&str]| {
        let home = shop.lab.subdirectory("home/.docker");
        let output = std::process::Command::new("docker")
            .args(args)
            .env("DOCKER_CONFIG", home)
            .env_remove("DOCKER_HOST")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let endpoint = format!("host={}", shop.engine.host());
    docker(&["context", "create", "yard", "--docker", &endpoint]);
    docker(&["context", "use", "yard"]);
    let tool = testkit::Tool::new(
        crate::workshop::executable(),
        &shop.lab.subdirectory("home"),
    );
    tool.ok(&["create", "--name", "c", "--bootstrap"]);
    let record = shop.lab.directory().join("home/.docker/buildx/instances/c");
    let record = std::fs::read_to_string(record).unwrap();
    assert!(record.contains("\"Endpoint\":\"yard\""), "{record}");
}

#[test]
fn fault_25_a_home_that_cannot_be_written_to_does_not_stop_a_build() {
    let shop = Workshop::open();
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    let context = shop.context(
        "home",
        &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")],
    );
    let home = text(&shop.lab.subdirectory("home"));
    let script = format!(
        "mount --bind {home} {home} && mount -o remount,bind,ro {home} && \
         HOME={home} DOCKER_HOST={} {} build {context}",
        shop.engine.host(),
        crate::workshop::executable().display()
    );
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn fault_29_several_platforms_on_the_classic_store_load_the_engines_own() {
    let shop = Workshop::with(Release::Debian);
    let context = shop.context(
        "several",
        &[(
            "Dockerfile",
            "FROM scratch\nARG TARGETARCH\nCOPY Dockerfile /$TARGETARCH\n",
        )],
    );
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    let build = shop.cooperage.ok(&[
        "build",
        "--progress=plain",
        "--platform=linux/amd64,linux/arm64",
        "--load",
        "-t",
        "several",
        &context,
    ]);
    assert!(build.stderr.contains("linux/amd64"), "{}", build.stderr);
    let architecture = shop
        .engine
        .docker(&["inspect", "--format={{.Architecture}}", "several"]);
    assert_eq!(architecture, "amd64");
}

#[test]
fn fault_30_a_program_for_another_machine_is_named_as_such() {
    let shop = Workshop::open();
    let context = shop.context(
        "foreign",
        &[(
            "Dockerfile",
            "FROM scratch\nCOPY foreign /foreign\nRUN [\"/foreign\"]\n",
        )],
    );
    // An ELF header for a machine that no emulator here runs (AVR).
    let mut elf = vec![0u8; 64];
    elf[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 1, 1, 1]);
    elf[16] = 2;
    elf[18] = 83;
    elf[20] = 1;
    let path = format!("{context}/foreign");
    std::fs::write(&path, elf).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    let failed = shop
        .cooperage
        .fails(&["build", "--progress=plain", &context])
        .stderr;
    assert!(failed.contains("exec format error"), "{failed}");
    assert!(failed.contains("emulat"), "no word on emulators:\n{failed}");
    assert!(failed.contains("unknown machine (number 83"), "{failed}");
    // One that an emulator is known for; on a machine that has it, what is wrong is the file.
    let mut elf = std::fs::read(&path).unwrap();
    (elf[5], elf[18], elf[19]) = (2, 0, 22);
    std::fs::write(&path, elf).unwrap();
    let failed = shop
        .cooperage
        .fails(&["build", "--progress=plain", &context])
        .stderr;
    assert!(
        failed.contains("hint: no emulator for s390x") || failed.contains("damaged"),
        "{failed}"
    );
}
