//! Bad input and broken surroundings: clear words, the right exit code, nothing lost or left behind.

use crate::workshop::{Workshop, text};

fn create(shop: &Workshop, option: &str) -> String {
    let failed = shop
        .cooperage
        .fails(&["create", "--name", "bad", "--driver-opt", option]);
    assert_eq!(failed.code, 1, "{option}");
    let listed = shop.cooperage.ok(&["ls"]).stdout;
    assert!(!listed.contains("bad"), "{option} left a record:\n{listed}");
    failed.stderr
}

#[test]
fn driver_options_that_are_wrong_are_refused_at_create() {
    let shop = Workshop::open();
    for (option, expected) in [
        (
            "bogus=1",
            "invalid driver option bogus for docker-container driver",
        ),
        ("memory=abc", "invalid size: 'abc'"),
        ("memory-swap=12x", "invalid suffix: 'x'"),
        ("cpu-quota=abc", "cpu-quota"),
        ("cpu-period=-x", "cpu-period"),
        ("cpu-shares=many", "cpu-shares"),
        ("default-load=perhaps", "default-load"),
        ("restart-policy=sometimes", "restart-policy"),
        ("restart-policy=on-failure:x", "restart-policy"),
        ("env.=1", "env."),
    ] {
        let said = create(&shop, option);
        assert!(said.contains(expected), "{option}: {said}");
        assert!(said.starts_with("ERROR: "), "{option}: {said}");
    }
    assert_eq!(shop.engine.docker(&["ps", "-aq"]), "");
    assert_eq!(shop.engine.docker(&["volume", "ls", "-q"]), "");
}

#[test]
fn options_that_only_the_engine_can_judge_fail_with_its_words() {
    let shop = Workshop::open();
    for (option, expected) in [
        ("cpuset-cpus=99", "99"),
        ("network=nowhere", "nowhere"),
        ("image=10.88.0.1:1/nothing:1", "10.88.0.1:1/nothing:1"),
    ] {
        let args = [
            "create",
            "--name",
            "bad",
            "--driver-opt",
            option,
            "--bootstrap",
        ];
        let failed = shop.cooperage.fails(&args);
        assert_eq!(failed.code, 1, "{option}");
        assert!(
            failed.stderr.contains(expected),
            "{option}: {}",
            failed.stderr
        );
        shop.cooperage.ok(&["rm", "--force", "bad"]);
        assert_eq!(shop.engine.docker(&["ps", "-aq"]), "", "{option}");
        assert_eq!(shop.engine.docker(&["volume", "ls", "-q"]), "", "{option}");
    }
}

#[test]
fn fault_03_an_engine_that_is_down_is_named_and_the_record_stays() {
    let shop = Workshop::open();
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    let Workshop {
        lab,
        engine,
        cooperage,
        ..
    } = shop;
    let host = engine.host();
    drop(engine);
    let context = lab.subdirectory("context");
    std::fs::write(
        context.join("Dockerfile"),
        "FROM scratch\nCOPY Dockerfile /\n",
    )
    .unwrap();
    for args in [
        vec!["inspect", "--bootstrap"],
        vec!["build", &text(&context)],
        vec!["rm", "c"],
    ] {
        let failed = cooperage.fails(&args);
        assert_eq!(failed.code, 1, "{args:?}");
        let socket = host.trim_start_matches("unix://");
        assert!(
            failed.stderr.contains(socket),
            "{args:?}: {}",
            failed.stderr
        );
    }
    assert!(cooperage.ok(&["ls"]).stdout.contains("c0"));
    cooperage.ok(&["rm", "--force", "c"]);
    assert!(!cooperage.ok(&["ls"]).stdout.contains("c0"));
}

#[test]
fn a_name_in_use_and_a_name_unknown_are_said_so() {
    let shop = Workshop::open();
    shop.cooperage.ok(&["create", "--name", "c"]);
    let again = shop.cooperage.fails(&[
        "create",
        "--name",
        "c",
        "--driver",
        "remote",
        "tcp://127.0.0.1:1",
    ]);
    assert!(
        again.stderr.contains("existing instance for \"c\""),
        "{}",
        again.stderr
    );
    let unknown = shop.cooperage.fails(&["inspect", "nobody"]);
    assert!(
        unknown.stderr.contains("no builder \"nobody\" found"),
        "{}",
        unknown.stderr
    );
    let bad = shop.cooperage.fails(&["create", "--name", "../c"]);
    assert!(bad.stderr.contains("invalid"), "{}", bad.stderr);
}

#[test]
fn a_corrupt_record_spoils_nothing_else() {
    let shop = Workshop::open();
    shop.cooperage.ok(&["create", "--name", "good"]);
    let instances = shop.lab.directory().join("home/.docker/buildx/instances");
    std::fs::write(
        instances.join("broken"),
        "{\"Name\": \"broken\", \"Nodes\": [",
    )
    .unwrap();
    let listed = shop.cooperage.run(&["ls"]);
    assert!(
        listed.stdout.contains("good"),
        "{}\n{}",
        listed.stdout,
        listed.stderr
    );
    let inspected = shop.cooperage.fails(&["inspect", "broken"]);
    assert!(inspected.stderr.contains("broken"), "{}", inspected.stderr);
    shop.cooperage.ok(&["rm", "--force", "broken"]);
    assert!(!instances.join("broken").exists());
}

#[test]
fn a_dockerfile_error_is_shown_with_its_line() {
    let shop = Workshop::open();
    shop.cooperage.ok(&["create", "--name", "c", "--use"]);
    let context = shop.context_with_busybox(
        "bad",
        &[
            ("Unknown", "FROM scratch\nFRUM x\n"),
            (
                "Fails",
                "FROM scratch\nCOPY busybox /bin/sh\nRUN echo before && exit 7\n",
            ),
            ("Missing", "FROM scratch\nCOPY nothing /\n"),
        ],
    );
    for (file, expected) in [
        (
            "Unknown",
            vec![
                "dockerfile parse error on line 2: unknown instruction: FRUM",
                "Unknown:2",
                ">>> FRUM x",
            ],
        ),
        (
            "Fails",
            vec![
                "exit code: 7",
                "Fails:3",
                ">>> RUN echo before && exit 7",
                "before",
            ],
        ),
        (
            "Missing",
            vec!["\"/nothing\": not found", "Missing:2", ">>> COPY nothing /"],
        ),
    ] {
        let path = format!("{context}/{file}");
        let failed = shop
            .cooperage
            .fails(&["build", "--progress=plain", "-f", &path, &context]);
        assert_eq!(failed.code, 1);
        for part in expected {
            assert!(
                failed.stderr.contains(part),
                "{file}: {part}\n{}",
                failed.stderr
            );
        }
    }
    let failed = shop
        .cooperage
        .fails(&["build", "-f", "/nowhere/Dockerfile", &context]);
    assert!(
        failed
            .stderr
            .contains("lstat /nowhere: no such file or directory"),
        "{}",
        failed.stderr
    );
    let failed = shop.cooperage.fails(&["build", "/nowhere"]);
    assert!(
        failed
            .stderr
            .contains("unable to prepare context: path \"/nowhere\" not found"),
        "{}",
        failed.stderr
    );
}

#[test]
fn fault_21_a_server_killed_during_a_build_is_explained_and_nothing_is_lost() {
    let shop = Workshop::open();
    shop.cooperage.ok(&[
        "create",
        "--name",
        "c",
        "--use",
        "--bootstrap",
        "--driver-opt",
        "restart-policy=no",
    ]);
    let dockerfile = "FROM scratch\nCOPY busybox /bin/sh\nRUN echo kept > /kept\n\
                      RUN echo waiting && sleep 600\n";
    let context = shop.context_with_busybox("killed", &[("Dockerfile", dockerfile)]);
    std::fs::copy(format!("{context}/busybox"), format!("{context}/sleep")).unwrap();
    std::fs::write(
        format!("{context}/Dockerfile"),
        dockerfile.replace(
            "COPY busybox /bin/sh",
            "COPY busybox /bin/sh\nCOPY busybox /bin/sleep",
        ),
    )
    .unwrap();
    let log = shop.lab.directory().join("build.log");
    let mut build = shop
        .cooperage
        .command(&["build", "--progress=plain", &context])
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let waiting = || std::fs::read_to_string(&log).unwrap().contains(" waiting");
    let start = std::time::Instant::now();
    while !waiting() {
        assert!(
            start.elapsed().as_secs() < 60,
            "{}",
            std::fs::read_to_string(&log).unwrap()
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    shop.engine
        .docker(&["update", "--restart=no", "buildx_buildkit_c0"]);
    shop.engine.docker(&["kill", "buildx_buildkit_c0"]);
    // The client boots the server again and goes on from its cache, once; the second kill ends it.
    let start = std::time::Instant::now();
    let code = loop {
        if let Some(status) = build.try_wait().unwrap() {
            break status.code();
        }
        let running = shop
            .engine
            .docker(&["ps", "-q", "--filter", "name=buildx_buildkit_c0"]);
        let text = std::fs::read_to_string(&log).unwrap();
        if !running.is_empty() && text.matches(" waiting").count() > 1 {
            shop.engine.docker(&["kill", "buildx_buildkit_c0"]);
        }
        assert!(start.elapsed().as_secs() < 60, "{text}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let said = std::fs::read_to_string(&log).unwrap();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("buildx_buildkit_c0"), "{said}");
    assert!(said.contains("137"), "the cause is not named:\n{said}");
    let whole = std::fs::read_to_string(format!("{context}/Dockerfile")).unwrap();
    std::fs::write(
        format!("{context}/Dockerfile"),
        whole.replace("sleep 600", "true"),
    )
    .unwrap();
    std::fs::write(
        format!("{context}/Dockerfile"),
        std::fs::read_to_string(format!("{context}/Dockerfile"))
            .unwrap()
            .replace("&& true", ""),
    )
    .unwrap();
    let again = shop
        .cooperage
        .ok(&["build", "--progress=plain", &context])
        .stderr;
    assert!(again.contains("CACHED"), "{again}");
}

#[test]
fn a_record_that_is_no_record_of_its_name_is_removed_by_force_alone() {
    let shop = Workshop::open();
    shop.cooperage.ok(&["create", "--name", "a", "--bootstrap"]);
    let records = shop
        .lab
        .subdirectory("home")
        .join(".docker/buildx/instances");
    std::fs::copy(records.join("a"), records.join("b")).unwrap();
    std::fs::create_dir_all(records.join("c/within")).unwrap();
    let listed = shop.cooperage.ok(&["ls"]).stdout;
    for name in ["a", "b", "c"] {
        assert!(
            listed.lines().any(|line| line.starts_with(name)),
            "{listed}"
        );
    }
    for (name, reason) in [("b", "that of builder \"a\""), ("c", "a directory")] {
        let refused = shop.cooperage.fails(&["rm", name]).stderr;
        assert!(refused.contains(reason), "{refused}");
        assert!(refused.contains(&format!("rm --force {name}")), "{refused}");
        shop.cooperage.ok(&["rm", "--force", name]);
        assert!(!records.join(name).exists());
    }
    // What `b` named belongs to `a`, and stays.
    assert!(
        shop.cooperage
            .ok(&["inspect", "a"])
            .stdout
            .contains("running")
    );
}
