//! Transfers that stand still in their middle.

use std::path::Path;

use rustix::process::Signal;
use testkit::{GitServer, GitServerOptions, GitWork, Lab, Registry, RegistryAccess, base_image};

use super::toll::{Toll, Upstream, Way};
use super::{Buildctl, Client, Ours, Running, Scene, Stock, Wanted, word};
use crate::workshop::text;

const FILE_BYTES: usize = 4 << 20;
/// What passes of it, and of all that is said beside, before it stands still; less than the base image.
const PASSES_BYTES: usize = 128 << 10;

/// Bytes that no compression makes fewer.
fn noise(path: &Path, bytes: usize) {
    let mut source =
        std::io::Read::take(std::fs::File::open("/dev/urandom").unwrap(), bytes as u64);
    let mut file = std::fs::File::create(path).unwrap();
    std::io::copy(&mut source, &mut file).unwrap();
}

const WAYS: [(Client, Signal); 3] = [
    (Stock, Signal::INT),
    (Ours, Signal::INT),
    (Buildctl, Signal::KILL),
];

/// Starts a build and returns when it stands still at the toll.
fn held(scene: &Scene, client: Client, wanted: &Wanted, toll: &Toll, way: Way) -> Running {
    toll.arm(way, PASSES_BYTES);
    let build = scene.start(client, wanted);
    toll.wait_until_it_holds();
    build
}

/// Gives a build up by each way while it stands still, and last by stopping the server.
fn give_up_each_way(scene: &mut Scene, what: &str, wanted: &Wanted, toll: &Toll, way: Way) {
    for (client, signal) in WAYS {
        let what = format!("{what}, {client:?}, {signal:?}");
        held(scene, client, wanted, toll, way).give_up(signal);
        scene.nothing_is_left(&what, &word(0));
        scene.record_says(&what, "canceled");
        toll.cut();
    }
    let build = held(scene, Stock, wanted, toll, way);
    scene.stop_server(what, build, &word(0));
    toll.cut();
    scene.start(Ours, wanted).ends_well();
}

#[test]
fn downloads_that_stand_still_can_be_cancelled() {
    let lab = Lab::start();
    lab.enter_network();
    let root = lab.subdirectory("web");
    std::fs::create_dir(root.join("files")).unwrap();
    noise(&root.join("files/big"), FILE_BYTES);
    let work = GitWork::init(&root.join("work"), &[]);
    noise(&root.join("work/big"), FILE_BYTES);
    work.commit("one");
    work.git(&["clone", "-q", "--bare", ".", &text(&root.join("big.git"))]);
    let web = GitServer::start(&root, "127.0.0.1:0", GitServerOptions::default());
    let port = web
        .url("")
        .rsplit(':')
        .next()
        .unwrap()
        .trim_end_matches('/')
        .parse()
        .unwrap();
    let toll = Toll::before(Upstream::Port(port));
    let at = format!("http://127.0.0.1:{}", toll.port());
    let mut scene = Scene::of(lab, &[]);
    for (what, source) in [("http", "files/big"), ("git", "big.git")] {
        let wanted = scene.context(what, &format!("ADD {at}/{source} /x"));
        give_up_each_way(&mut scene, what, &wanted, &toll, Way::Down);
    }
}

#[test]
fn pushes_and_pulls_that_stand_still_can_be_cancelled() {
    let lab = Lab::start();
    lab.enter_network();
    let registry = Registry::start(&lab, RegistryAccess::Plain, "127.0.0.1", 5000);
    base_image(&lab.subdirectory("images")).push(&registry, "busybox", "latest");
    let toll = Toll::before(Upstream::Port(5000));
    let at = format!("127.0.0.1:{}", toll.port());
    let config = lab.directory().join("buildkitd.toml");
    std::fs::write(&config, format!("[registry.\"{at}\"]\n  http = true\n")).unwrap();
    let mut scene = Scene::of(lab, &["--config", &text(&config)]);
    let mut wanted = scene.context("push", "COPY big /");
    noise(&Path::new(&wanted.context).join("big"), FILE_BYTES);
    wanted.output = format!("type=image,push=true,name={at}/out:1");
    give_up_each_way(&mut scene, "push", &wanted, &toll, Way::Up);
    let mut wanted = scene.context("pull", "");
    let dockerfile = format!("FROM {at}/busybox\nRUN echo pulled\n");
    std::fs::write(Path::new(&wanted.context).join("Dockerfile"), dockerfile).unwrap();
    wanted.output.clear();
    give_up_each_way(&mut scene, "pull", &wanted, &toll, Way::Down);
    drop(registry);
}

#[test]
fn contexts_and_outputs_that_stand_still_can_be_cancelled() {
    let scene = Scene::open(&[]);
    let toll = Toll::before(Upstream::Socket(scene.server().socket()));
    let address = format!("tcp://127.0.0.1:{}", toll.port());
    let mut wanted = scene.context("sent", "COPY big /");
    wanted.address = address;
    noise(&Path::new(&wanted.context).join("big"), FILE_BYTES);
    // A client that is cut off from its server takes seconds to end; one that is killed does not.
    let give_up = |scene: &Scene, what: &str, wanted: &Wanted, way: Way| {
        for client in [Stock, Ours, Buildctl] {
            held(scene, client, wanted, &toll, way).give_up(Signal::KILL);
            toll.open();
            scene.nothing_is_left(what, &word(0));
            // Its connection may break before its call is seen to be given up.
            let said = scene.record_of_newest(what);
            assert!(["canceled", "failed"].contains(&&*said), "{what}: {said}");
        }
        scene.start(Ours, wanted).ends_well();
    };
    give_up(&scene, "context", &wanted, Way::Up);
    for kind in ["local", "docker", "tar"] {
        let dest = scene.lab.directory().join(format!("out-{kind}"));
        wanted.output = format!("type={kind},dest={}", text(&dest));
        give_up(&scene, kind, &wanted, Way::Down);
        assert!(dest.exists(), "{kind}");
    }
}
