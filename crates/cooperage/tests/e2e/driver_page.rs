//! Every command of the driver's documentation page, in its order, with what it prints.

use testkit::{Engine, Registry, RegistryAccess, normalized};

use crate::workshop::{Workshop, text};

/// Compares with the snapshot of that name in `tests/e2e/snapshots`.
fn snapshot(name: &str, shop: &Workshop, output: &str) {
    let mut output = normalized(output);
    output = output.replace(&text(shop.lab.directory()), "LAB");
    for (pattern, replacement) in [
        (
            r"cooperage/buildkitd:[0-9a-z.-]+",
            "cooperage/buildkitd:VERSION",
        ),
        (r"v\d+\.\d+\.\d+\S*", "VERSION"),
        (r"linux/amd64[^\n]*", "PLATFORMS"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE"),
        (r"\b[0-9a-z]{25}\b", "WORKER"),
        (r"\b[0-9a-f]{12}\b", "SHORT"),
        (r" TIMEs done\b", " done"),
        (r" {2,}", "  "),
        (r"(?m)[ \t]+$", ""),
    ] {
        output = regex::Regex::new(pattern)
            .unwrap()
            .replace_all(&output, replacement)
            .into_owned();
    }
    let output = without_interim(&output);
    insta::with_settings!({prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!(name, output);
    });
}

/// Without the lines that tell how far something is which a later line says is done: how many of
/// them there are depends on time alone.
fn without_interim(output: &str) -> String {
    let sizes = regex::Regex::new(r"( SIZE)? / SIZE| SIZE| TIMEs").unwrap();
    let plain: Vec<String> = output
        .lines()
        .map(|line| sizes.replace_all(line, "").into_owned())
        .collect();
    let kept = output.lines().enumerate().filter(|(at, line)| {
        let done = format!("{} done", plain[*at]);
        !(line.starts_with('#') && plain[at + 1..].contains(&done))
    });
    kept.map(|(_, line)| format!("{line}\n")).collect()
}

#[test]
fn a_build_with_no_output_boots_the_builder_and_warns() {
    let shop = Workshop::open();
    let context = shop.context_with_busybox(
        "plain",
        &[(
            "Dockerfile",
            "FROM scratch\nCOPY busybox /bin/sh\nRUN echo in the cask\n",
        )],
    );
    shop.cooperage.ok(&[
        "create",
        "--name",
        "container",
        "--driver",
        "docker-container",
    ]);
    let build = shop.cooperage.ok(&[
        "build",
        "-t",
        "image",
        "--builder=container",
        "--progress=plain",
        &context,
    ]);
    assert_eq!(build.stdout, "");
    snapshot("build_without_output", &shop, &build.stderr);
}

#[test]
fn state_outlives_its_builder_with_keep_state() {
    let shop = Workshop::open();
    let create = [
        "create",
        "--name=container",
        "--driver=docker-container",
        "--use",
        "--bootstrap",
    ];
    let created = shop.cooperage.ok(&create);
    assert_eq!(created.stdout, "container\n");
    snapshot("create", &shop, &created.stderr);
    snapshot("ls", &shop, &shop.cooperage.ok(&["ls"]).stdout);
    let volumes = || {
        shop.engine
            .docker(&["volume", "ls", "--format={{.Driver}} {{.Name}}"])
    };
    assert_eq!(volumes(), "local buildx_buildkit_container0_state");

    let context = shop.context_with_busybox(
        "kept",
        &[(
            "Dockerfile",
            "FROM scratch AS made\nCOPY busybox /bin/sh\nRUN echo one > /one\nRUN echo two > /two\n\
             FROM scratch\nCOPY --from=made /one /two /\n",
        )],
    );
    let build = [
        "build",
        "--progress=plain",
        "-o",
        "type=tar,dest=/dev/null",
        &context,
    ];
    let first = shop.cooperage.ok(&build).stderr;
    assert!(!first.contains("CACHED"), "{first}");

    snapshot(
        "rm_keep_state",
        &shop,
        &shop
            .cooperage
            .ok(&["rm", "--keep-state", "container"])
            .stderr,
    );
    assert_eq!(volumes(), "local buildx_buildkit_container0_state");
    assert!(!shop.cooperage.ok(&["ls"]).stdout.contains("container0"));

    shop.cooperage.ok(&create);
    let second = shop.cooperage.ok(&build).stderr;
    assert_eq!(second.matches(" CACHED").count(), 4, "{second}");

    shop.cooperage.ok(&["rm", "container"]);
    assert_eq!(volumes(), "");
}

#[test]
fn a_builder_uses_the_network_it_was_given() {
    let shop = Workshop::open();
    shop.engine.docker(&["network", "create", "foonet"]);
    let made = shop.cooperage.ok(&[
        "create",
        "--use",
        "--name",
        "mybuilder",
        "--driver",
        "docker-container",
        "--driver-opt",
        "network=foonet",
    ]);
    assert_eq!(made.stdout, "mybuilder\n");
    let inspected = shop.cooperage.ok(&["inspect", "--bootstrap"]);
    snapshot("inspect_bootstrap", &shop, &inspected.stdout);
    let networks = shop.engine.docker(&[
        "inspect",
        "buildx_buildkit_mybuilder0",
        "--format={{.NetworkSettings.Networks}}",
    ]);
    assert!(networks.starts_with("map[foonet:0x"), "{networks}");
}

#[test]
fn steps_on_a_bridge_reach_containers_of_the_builders_network_by_name() {
    let shop = Workshop::open();
    let registry = shop.registry();
    let base = format!("{}/busybox", registry.address());
    shop.engine.docker(&["network", "create", "foonet"]);
    let neighbour = ["run", "-d", "--network=foonet", "--name=neighbour", &base];
    let serve = ["busybox", "httpd", "-f", "-h", "/etc"];
    shop.engine.docker(&[&neighbour[..], &serve].concat());
    let config = shop.lab.directory().join("bridge.toml");
    std::fs::write(&config, "[worker.oci]\n  networkMode = \"bridge\"\n").unwrap();
    shop.cooperage.ok(&[
        "create",
        "--name=c",
        "--use",
        "--driver-opt=network=foonet",
        "--buildkitd-config",
        &text(&config),
    ]);
    let dockerfile = format!(
        "FROM {base} AS run\n\
         RUN ip route > /routes; cat /etc/resolv.conf > /resolver\n\
         RUN nslookup neighbour && wget -q -O /fetched http://neighbour/passwd\n\
         FROM scratch\nCOPY --from=run /routes /resolver /fetched /\n"
    );
    let context = shop.context("names", &[("Dockerfile", &dockerfile)]);
    for (name, client) in [("ours", &shop.cooperage), ("stock", &shop.stock())] {
        let out = shop.lab.subdirectory(&format!("out-{name}"));
        let output = format!("type=local,dest={}", text(&out));
        client.ok(&[
            "build",
            "--builder=c",
            "--no-cache",
            "-o",
            &output,
            &context,
        ]);
        let read = |file: &str| std::fs::read_to_string(out.join(file)).unwrap();
        assert!(read("fetched").starts_with("root:x:0:0:"));
        let route = "default via 10.10.0.1 dev eth0";
        assert!(read("routes").starts_with(route), "{}", read("routes"));
        // The Engine's name server is at the loopback of the builder, which steps do not share.
        let resolver = read("resolver");
        assert!(resolver.contains("nameserver 10.10.0.1\n"), "{resolver}");
    }
}

#[test]
fn a_loaded_image_runs() {
    let shop = Workshop::open();
    let registry = shop.registry();
    let config = text(&shop.plain_http(&registry));
    let dockerfile = format!(
        "FROM {}/busybox\nRUN echo made by $(id -u) > /made\nCMD [\"cat\", \"/made\"]\n",
        registry.address()
    );
    let context = shop.context("load", &[("Dockerfile", &dockerfile)]);
    shop.cooperage.ok(&[
        "create",
        "--name",
        "c",
        "--use",
        "--buildkitd-config",
        &config,
    ]);
    let build = shop.cooperage.ok(&[
        "build",
        "--progress=plain",
        "--load",
        "-t",
        "made",
        &context,
    ]);
    // Two programs tell at once what happens here, so the order of lines is not fixed.
    for line in [
        "[1/2] FROM",
        "[2/2] RUN echo made by $(id -u) > /made",
        "exporting to docker image format",
        "importing to docker",
    ] {
        assert!(build.stderr.contains(line), "{line}\n{}", build.stderr);
    }
    assert_eq!(shop.engine.docker(&["run", "--rm", "made"]), "made by 0");
}

#[test]
fn two_platforms_are_built_pushed_pulled_and_run() {
    let shop = Workshop::open();
    let base = shop.registry();
    let target = Registry::start(
        &shop.lab,
        RegistryAccess::TlsAndPassword,
        Engine::GATEWAY,
        5443,
    );
    let config = shop.lab.directory().join("both.toml");
    let lines = format!(
        "[registry.\"{}\"]\n  http = true\n[registry.\"{}\"]\n  ca = [\"{}\"]\n",
        base.address(),
        target.address(),
        target.authority().display()
    );
    std::fs::write(&config, lines).unwrap();
    let mut login = shop.engine.docker_command(&[
        "login",
        "-u",
        Registry::USER,
        "-p",
        Registry::PASSWORD,
        target.address(),
    ]);
    let docker_config = shop.lab.subdirectory("home/.docker");
    let login = login.env("DOCKER_CONFIG", &docker_config).output().unwrap();
    assert!(
        login.status.success(),
        "{}",
        String::from_utf8_lossy(&login.stderr)
    );

    let dockerfile = format!(
        "FROM {}/busybox\nARG TARGETPLATFORM\nRUN echo $TARGETPLATFORM $(uname -m) > /made\n\
         CMD [\"cat\", \"/made\"]\n",
        base.address()
    );
    let context = shop.context("platforms", &[("Dockerfile", &dockerfile)]);
    let name = format!("{}/made:1", target.address());
    shop.cooperage.ok(&[
        "create",
        "--name",
        "c",
        "--use",
        "--buildkitd-config",
        &text(&config),
    ]);
    let build = shop.cooperage.ok(&[
        "build",
        "--progress=plain",
        "--platform=linux/amd64,linux/arm64",
        "-t",
        &name,
        "--push",
        &context,
    ]);
    let shown = build
        .stderr
        .replace(base.address(), "BASE")
        .replace(target.address(), "TARGET");
    assert!(
        shown.contains("pushing manifest for TARGET/made:1@sha256:"),
        "{shown}"
    );
    for (platform, expected) in [
        ("linux/amd64", "linux/amd64 x86_64"),
        ("linux/arm64", "linux/arm64 aarch64"),
    ] {
        let docker = |args: &[&str]| {
            let output = shop
                .engine
                .docker_command(args)
                .env("DOCKER_CONFIG", &docker_config)
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8(output.stdout).unwrap()
        };
        docker(&["pull", "--quiet", "--platform", platform, &name]);
        assert_eq!(
            docker(&["run", "--rm", "--platform", platform, &name]).trim(),
            expected
        );
    }
}

#[test]
fn a_context_comes_from_stdin_as_a_tar() {
    let shop = Workshop::open();
    let dockerfile = "FROM scratch\nCOPY data /data\n";
    let context = shop.context("tar", &[("Dockerfile", dockerfile), ("data", "in a tar\n")]);
    let tar = std::process::Command::new("tar")
        .args(["-C", &context, "-czf", "-", "."])
        .output()
        .unwrap();
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    for client in [shop.cooperage.clone(), shop.stock()] {
        let out = text(&shop.lab.directory().join("out"));
        let mut build = client
            .command(&["build", "--builder", "c", "-o", &out, "-"])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut build.stdin.take().unwrap(), &tar.stdout).unwrap();
        let output = build.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(
            std::fs::read_to_string(format!("{out}/data")).unwrap(),
            "in a tar\n"
        );
        std::fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn building_a_base_anew_leaves_what_stands_on_it_cached() {
    let shop = Workshop::open();
    let dockerfile = "FROM scratch AS base\nCOPY busybox /bin/sh\nRUN echo base\n\
                      FROM base\nRUN echo top\n";
    let context = shop.context_with_busybox("anew", &[("Dockerfile", dockerfile)]);
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    shop.cooperage.ok(&["build", &context]);
    let anew = [
        "build",
        "--progress=plain",
        "--no-cache",
        "--target=base",
        &context,
    ];
    let anew = shop.cooperage.ok(&anew).stderr;
    assert!(!anew.contains("CACHED"), "{anew}");
    let again = shop
        .cooperage
        .ok(&["build", "--progress=plain", &context])
        .stderr;
    assert_eq!(again.matches(" CACHED").count(), 3, "{again}");
}
