//! The parts of the test kit work together, and nothing is left of them.

use testkit::{Engine, Lab, Peers, Registry, RegistryAccess, Release, Tool, base_image};

#[test]
fn an_engine_pulls_from_a_registry_of_the_lab_and_runs_privileged() {
    for release in [Release::Debian, Release::NewestContainerd] {
        let lab = Lab::start();
        lab.enter_network();
        let engine = Engine::start(&lab, release);
        let registry = Registry::start(&lab, RegistryAccess::Plain, Engine::GATEWAY, 5000);
        let base = base_image(&lab.subdirectory("images"));
        base.push(&registry, "library/busybox", "latest");
        let name = format!("{}/library/busybox:latest", registry.address());
        let printed = engine.docker(&["run", "--rm", "--privileged", &name, "echo", "hello"]);
        assert_eq!(printed.lines().last(), Some("hello"));
        base.load(&engine, "busybox:test");
        assert_eq!(
            engine.docker(&["run", "--rm", "busybox:test", "id", "-u"]),
            "0"
        );
    }
}

#[test]
fn a_registry_with_tls_asks_for_its_password() {
    let lab = Lab::start();
    lab.enter_network();
    let registry = Registry::start(&lab, RegistryAccess::TlsAndPassword, "127.0.0.1", 5443);
    let url = format!("https://{}/v2/", registry.address());
    let authority = registry.authority();
    let curl = |more: &[&str]| {
        let output = lab
            .command("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"])
            .arg(&authority)
            .args(more)
            .arg(&url)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(curl(&[]), "401");
    let user = format!("{}:{}", Registry::USER, Registry::PASSWORD);
    assert_eq!(curl(&["-u", &user]), "200");
}

#[test]
fn a_lab_leaves_nothing_behind() {
    let lab = Lab::start();
    let directory = lab.directory().to_owned();
    let mut sleeper = lab.command("sleep").arg("1000").spawn().unwrap();
    drop(lab);
    let status = sleeper.wait().unwrap();
    assert!(!status.success(), "a process outlived its lab");
    let gone = || !directory.exists();
    for _ in 0..500 {
        if gone() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(gone(), "{} is still there", directory.display());
}

#[test]
fn the_stock_client_runs() {
    let home = tempfile::tempdir().unwrap();
    let version = Tool::new(Peers::find().buildx(), home.path()).ok(&["version"]);
    assert!(
        version.stdout.starts_with("github.com/docker/buildx "),
        "{}",
        version.stdout
    );
}
