//! Images into an Engine and from it: faults 27 and 28 of `docs/driver.md`.

use std::path::Path;

use testkit::{Release, Tool};

use crate::counted::CountedSocket;
use crate::workshop::Workshop;

/// Bytes of the layer that must not be sent twice; they do not compress.
const LARGE: usize = 24 << 20;
/// What a load may send besides layers: requests, manifests, the context's metadata.
const LITTLE: u64 = 512 << 10;
/// What it may get: an exporter sends up to a stream's window before it hears that nothing is needed.
const LITTLE_MORE: u64 = 2 << 20;

const DOCKERFILE: &str = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY large /large\n\
                          COPY note /note\nCMD [\"/bin/busybox\", \"cat\", \"/note\"]\n";

/// Bytes without any order, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A builder behind a counted socket, and a context with a large file.
fn counted_workshop(release: Release) -> (Workshop, Tool, CountedSocket, String) {
    let shop = Workshop::with(release);
    let socket = CountedSocket::before(&shop.engine.host(), shop.lab.directory());
    let client = shop.cooperage.clone().env("DOCKER_HOST", socket.host());
    client.ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    let context =
        shop.context_with_busybox("load", &[("Dockerfile", DOCKERFILE), ("note", "first")]);
    std::fs::write(Path::new(&context).join("large"), noise(LARGE)).unwrap();
    (shop, client, socket, context)
}

#[test]
fn fault_28_load_sends_only_the_layers_that_the_engine_lacks() {
    for release in [Release::Debian, Release::Newest, Release::NewestContainerd] {
        let (shop, client, socket, context) = counted_workshop(release);
        let load = |tag: &str| {
            let mut said = String::new();
            let passed = socket.during(|| {
                let args = ["build", "--progress=plain", "--load", "-t", tag, &context];
                said = client.ok(&args).stderr;
            });
            assert!(said.contains("importing to docker"), "{said}");
            (passed, said)
        };
        let (first, _) = load("noted:1");
        assert!(first.sent as usize > LARGE, "{release:?}: {first:?}");
        let run = |image: &str| shop.engine.docker(&["run", "--rm", image]);
        assert_eq!(run("noted:1"), "first");

        let (again, _) = load("noted:1");
        assert!(
            again.sent < LITTLE,
            "the same image: {release:?}: {again:?}"
        );
        assert!(again.received < LITTLE_MORE, "{release:?}: {again:?}");

        let (renamed, _) = load("noted:2");
        assert!(
            renamed.sent < LITTLE,
            "another name: {release:?}: {renamed:?}"
        );
        assert_eq!(run("noted:2"), "first");

        std::fs::write(Path::new(&context).join("note"), "second").unwrap();
        let (changed, said) = load("noted:1");
        assert!(
            changed.sent < LITTLE && changed.received < LITTLE_MORE,
            "a small layer: {release:?}: {changed:?}\n{said}"
        );
        assert_eq!(run("noted:1"), "second");
        assert_eq!(run("noted:2"), "first");
        // What was left out is really there.
        let saved = shop.lab.directory().join("saved.tar");
        let file = saved.to_str().unwrap();
        shop.engine.docker(&["save", "-o", file, "noted:1"]);
        assert!(std::fs::metadata(&saved).unwrap().len() as usize > LARGE);

        shop.engine.docker(&["rmi", "noted:1", "noted:2"]);
        let (gone, _) = load("noted:1");
        assert!(gone.sent as usize > LARGE, "{release:?}: {gone:?}");
        assert_eq!(run("noted:1"), "second");
    }
}

#[test]
fn fault_28_what_the_engine_has_in_other_blobs_is_sent_after_all() {
    let (shop, client, socket, context) = counted_workshop(Release::NewestContainerd);
    // The same files, packed otherwise: equal diff IDs, other digests.
    let archive = shop.lab.directory().join("plain.tar");
    let output = format!(
        "type=docker,dest={},name=other:1,compression=uncompressed,force-compression=true",
        archive.display()
    );
    // By another builder: this one would send the plain blobs again.
    client.ok(&["create", "--name", "d"]);
    client.ok(&["build", "--builder", "d", "-o", &output, &context]);
    shop.engine
        .docker(&["load", "-i", archive.to_str().unwrap()]);
    let mut said = String::new();
    let passed = socket.during(|| {
        let args = [
            "build",
            "--progress=plain",
            "--load",
            "-t",
            "noted",
            &context,
        ];
        said = client.ok(&args).stderr;
    });
    assert!(passed.sent as usize > LARGE, "{passed:?}");
    let loads = said
        .lines()
        .filter(|line| line.ends_with("importing to docker"));
    assert_eq!(loads.count(), 2, "with less, then whole:\n{said}");
    assert_eq!(shop.engine.docker(&["run", "--rm", "noted"]), "first");
    let saved = shop.lab.directory().join("saved.tar");
    let file = saved.to_str().unwrap();
    shop.engine.docker(&["save", "-o", file, "noted"]);
}

#[test]
fn fault_28_stock_clients_load_as_ever() {
    let shop = Workshop::with(Release::Newest);
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    let context =
        shop.context_with_busybox("stock", &[("Dockerfile", DOCKERFILE), ("note", "first")]);
    std::fs::write(Path::new(&context).join("large"), "small").unwrap();
    for _ in 0..2 {
        shop.stock()
            .ok(&["build", "--load", "-t", "noted", &context]);
        assert_eq!(shop.engine.docker(&["run", "--rm", "noted"]), "first");
    }
}

/// Makes an image that only the Engine has, under that name, whose `/note` says `text`.
fn only_in_engine(shop: &Workshop, name: &str, text: &str) {
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY note /note\n";
    let context = shop.context_with_busybox(text, &[("Dockerfile", dockerfile), ("note", text)]);
    let args = ["build", "--builder", "default", "-t", name, &context];
    shop.cooperage.ok(&args);
}

#[test]
fn fault_27_a_base_that_only_the_engine_has_is_served_from_there() {
    for release in [Release::Debian, Release::Newest, Release::NewestContainerd] {
        let shop = Workshop::with(release);
        let registry = shop.registry();
        let name = format!("{}/mine:1", registry.address());
        let tools = format!("{}/tools", registry.address());
        only_in_engine(&shop, &name, "of the Engine");
        only_in_engine(&shop, &tools, "tools");
        shop.cooperage
            .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
        let dockerfile = format!(
            "ARG BASE\nFROM $BASE\nCOPY --from={tools} /note /tools\n\
             CMD [\"/bin/busybox\", \"cat\", \"/note\", \"/tools\"]\n"
        );
        let context = shop.context("child", &[("Dockerfile", &dockerfile)]);
        let base = format!("BASE={name}");
        let build = |client: &Tool| {
            let args = [
                "build",
                "--progress=plain",
                "--build-arg",
                &base,
                "--load",
                "-t",
                "child",
                &context,
            ];
            client.run(&args)
        };
        // The registry is asked, does not have it, and then the Engine is.
        let built = build(&shop.cooperage);
        assert_eq!(built.code, 0, "{release:?}: {}", built.stderr);
        let loaded = format!("load {name} from the Docker Engine");
        assert!(built.stderr.contains(&loaded), "{}", built.stderr);
        let run = || shop.engine.docker(&["run", "--rm", "child"]);
        assert_eq!(run(), "of the Enginetools");
        // The server has the layers now: nothing is exported again.
        let again = build(&shop.cooperage);
        assert_eq!(again.code, 0, "{release:?}: {}", again.stderr);
        assert!(!again.stderr.contains(&loaded), "{}", again.stderr);
        // Another server has not.
        shop.cooperage.ok(&["prune", "--all", "--force"]);
        let anew = build(&shop.cooperage);
        assert_eq!(anew.code, 0, "{release:?}: {}", anew.stderr);
        assert!(anew.stderr.contains(&loaded), "{}", anew.stderr);
        assert_eq!(run(), "of the Enginetools");

        let off = shop.cooperage.clone().env("COOPERAGE_ENGINE_IMAGES", "off");
        let refused = build(&off);
        assert_eq!(refused.code, 1, "{release:?}");
        assert!(refused.stderr.contains("not found"), "{}", refused.stderr);
    }
}

#[test]
fn fault_27_the_order_is_an_option_of_the_builder() {
    let shop = Workshop::open();
    let registry = shop.registry();
    let name = format!("{}/busybox", registry.address());
    let context = shop.context(
        "child",
        &[(
            "Dockerfile",
            &format!("FROM {name}\nCMD [\"/bin/busybox\", \"cat\", \"/note\"]\n"),
        )],
    );
    // The registry has one of that name too, without `/note`.
    only_in_engine(&shop, &name, "of the Engine");
    let build = |builder: &str, order: &str| {
        let option = format!("engine-images={order}");
        shop.cooperage
            .ok(&["create", "--name", builder, "--driver-opt", &option]);
        let tag = format!("child-{builder}");
        let args = [
            "build",
            "--builder",
            builder,
            "--load",
            "-t",
            &tag,
            &context,
        ];
        shop.cooperage.ok(&args);
        let mut run = shop.engine.docker_command(&["run", "--rm", &tag]);
        String::from_utf8(run.output().unwrap().stdout).unwrap()
    };
    assert_eq!(build("first", "local-first"), "of the Engine");
    assert_eq!(build("second", "registry-first"), "");
    let refused = shop
        .cooperage
        .fails(&["create", "--driver-opt", "engine-images=never"]);
    assert!(refused.stderr.contains("local-first"), "{}", refused.stderr);
}
