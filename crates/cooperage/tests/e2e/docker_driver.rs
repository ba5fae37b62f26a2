//! The `docker` driver: our client on the BuildKit inside Docker Engine.

use testkit::{Engine, Registry, RegistryAccess, Release};

use crate::workshop::Workshop;

#[test]
fn the_engines_own_builder_builds_what_then_runs() {
    for release in [Release::Debian, Release::Newest] {
        let shop = Workshop::with(release);
        let dockerfile = "FROM scratch\nCOPY busybox /bin/sh\nRUN echo made > /made\n\
                          CMD [\"/bin/sh\", \"-c\", \"read x < /made; echo $x\"]\n";
        let context = shop.context_with_busybox("own", &[("Dockerfile", dockerfile)]);
        let build = [
            "build",
            "--builder",
            "default",
            "--progress=plain",
            "-t",
            "made",
            &context,
        ];
        shop.cooperage.ok(&build);
        assert_eq!(shop.engine.docker(&["run", "--rm", "made"]), "made");
        let again = shop.cooperage.ok(&build).stderr;
        assert!(again.contains("CACHED"), "{again}");
    }
}

#[test]
fn the_engines_own_builder_pushes_also_from_the_classic_store() {
    for release in [Release::Debian, Release::Newest, Release::NewestContainerd] {
        let shop = Workshop::with(release);
        let plain = shop.registry();
        let secret = Registry::start(
            &shop.lab,
            RegistryAccess::TlsAndPassword,
            Engine::GATEWAY,
            5001,
        );
        let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\nCMD [\"/bin/busybox\"]\n";
        let context = shop.context_with_busybox("push", &[("Dockerfile", dockerfile)]);
        let name = |registry: &Registry| format!("{}/pushed:1", registry.address());
        let push = |tag: &str| {
            let tag = format!("-t={tag}");
            let file = shop.lab.directory().join("metadata.json");
            let metadata = format!("--metadata-file={}", file.display());
            let args = [
                "build",
                "--builder=default",
                "--progress=plain",
                "--push",
                &metadata,
                &tag,
                &context,
            ];
            let run = shop.cooperage.run(&args);
            (run, std::fs::read_to_string(file).unwrap_or_default())
        };
        let (pushed, metadata) = push(&name(&plain));
        assert_eq!(pushed.code, 0, "{release:?}: {}", pushed.stderr);
        if release != Release::NewestContainerd {
            let step = format!("pushing {} with docker", name(&plain));
            assert!(pushed.stderr.contains(&step), "{}", pushed.stderr);
        }
        let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
        let digest = metadata["containerimage.digest"].as_str().unwrap();
        let by_digest = format!("{}/pushed@{digest}", plain.address());
        shop.engine.docker(&["rmi", &name(&plain)]);
        shop.engine.docker(&["pull", &by_digest]);

        let (refused, _) = push(&name(&secret));
        assert_eq!(refused.code, 1, "{release:?}: {}", refused.stderr);
        let log_in = [
            "login",
            "-u",
            Registry::USER,
            "-p",
            Registry::PASSWORD,
            secret.address(),
        ];
        let home = shop.lab.subdirectory("home");
        let mut login = shop.engine.docker_command(&log_in);
        assert!(login.env("HOME", &home).output().unwrap().status.success());
        let (allowed, _) = push(&name(&secret));
        assert_eq!(allowed.code, 0, "{release:?}: {}", allowed.stderr);
        let manifests = secret.data().join("repositories/pushed/_manifests/tags/1");
        assert!(manifests.exists(), "{release:?}");
    }
}

#[test]
fn buildctl_reaches_a_server_in_a_container() {
    let shop = Workshop::open();
    shop.cooperage.ok(&["create", "--name", "c", "--bootstrap"]);
    let buildctl = shop.cooperage.clone().arg("buildctl");
    let at = |address: &str, arguments: &[&str]| {
        buildctl.run(&[&["--addr", address], arguments].concat())
    };
    let address = "docker-container://buildx_buildkit_c0";
    let workers = at(address, &["debug", "workers"]);
    assert_eq!(workers.code, 0, "{}", workers.stderr);
    assert!(workers.stdout.contains("linux/amd64"), "{}", workers.stdout);
    let elsewhere = format!("{address}?context=nowhere");
    let refused = at(&elsewhere, &["du"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("nowhere"), "{}", refused.stderr);
    let missing = at("docker-container://nobody", &["du"]);
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("nobody"), "{}", missing.stderr);
}
