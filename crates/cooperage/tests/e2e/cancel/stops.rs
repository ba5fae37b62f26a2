//! Servers that are asked to end, forced to, or killed: what they leave.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Buildctl, Ours, Running, Scene, Stock, hierarchies, running, word};
use crate::workshop::{server, wait_until};

/// A build whose step sleeps, in a control group of the scene's.
fn sleeping(scene: &Scene, word: &str) -> Running {
    let wanted = scene.context("sleeping", &format!("RUN sleep {word}"));
    let build = scene.start(Buildctl, &wanted);
    wait_until("a running step", || running(word) > 0);
    assert!(!scene.cgroups().is_empty());
    build
}

fn links(scene: &Scene) -> String {
    let output = scene
        .lab
        .command("ip")
        .args(["-o", "link"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_signal_that_comes_twice_is_one_and_the_third_forces_the_end() {
    let mut scene = Scene::open(&["--oci-worker-net=bridge"]);
    let build = sleeping(&scene, &word(1));
    // As `timeout` sends it: to its child, then to the group of both.
    scene.server().signal(Signal::TERM);
    scene.stop_server("twice", build, &word(1));

    let build = sleeping(&scene, &word(2));
    assert!(links(&scene).contains("buildkit0"));
    let forced = scene.server.take().unwrap();
    // A client that says nothing is waited for, but not now.
    let _silent = UnixStream::connect(forced.socket()).unwrap();
    let pid = Pid::from_raw(forced.process_id() as i32).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    // Those that come at once may be seen as one.
    let impatient = std::thread::spawn(move || {
        while pidfd_send_signal(&pidfd, Signal::INT).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let socket = forced.socket();
    assert_eq!(forced.wait().code(), Some(1));
    impatient.join().unwrap();
    let (_, code, said) = build.end();
    assert_ne!(code, 0, "{said}");
    // The kernel may take a moment, for which a forced end does not wait.
    wait_until("the end of the step", || running(&word(2)) == 0);
    assert_eq!(scene.cgroups(), [] as [PathBuf; 0]);
    assert!(!links(&scene).contains("buildkit0"));
    assert!(!socket.exists());
    let log = std::fs::read_to_string(socket.with_file_name("buildkitd.log")).unwrap();
    assert!(
        log.contains("got 3 SIGTERM/SIGINTs, forcing shutdown"),
        "{log}"
    );
}

#[test]
fn control_groups_made_for_a_parent_go_and_those_of_others_stay() {
    let mut scene = Scene::open(&[]);
    // Somebody else's, in one of the hierarchies; in the others it is made.
    let theirs = hierarchies()
        .into_iter()
        .map(|mount| mount.join(scene.lab.name()))
        .find(|dir| std::fs::create_dir(dir).is_ok())
        .expect("a hierarchy that can be written to");
    let wanted = scene.context("quick", "RUN true");
    for client in [Ours, Stock] {
        scene.start(client, &wanted).ends_well();
        assert_eq!(scene.cgroups(), std::slice::from_ref(&theirs));
    }
    // A killed server cannot clear up; the next one does, also what a killed supervisor left.
    let build = sleeping(&scene, &word(0));
    let left = scene.cgroups();
    let ours = left.iter().find(|dir| **dir != theirs).unwrap();
    let step = std::fs::read_dir(ours).unwrap().flatten();
    let step = step
        .map(|entry| entry.path())
        .find(|path| path.is_dir())
        .unwrap();
    let killed = scene.server.take().unwrap();
    killed.kill();
    build.end();
    // Supervisors end later than their steps.
    wait_until("the end of the step's control group", || !step.exists());
    assert_eq!(scene.cgroups(), left);
    std::fs::create_dir(step).unwrap();
    scene.server = Some(server(&scene.lab).start());
    assert_eq!(scene.cgroups(), std::slice::from_ref(&theirs));
    std::fs::remove_dir(&theirs).unwrap();
}
