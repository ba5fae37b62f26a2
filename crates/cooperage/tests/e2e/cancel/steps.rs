//! Steps that run, or wait for their turn.

use rustix::process::Signal;

use super::toll::Gate;
use super::{Buildctl, Ours, Scene, Stock, running, word};
use crate::workshop::{text, wait_until};

/// Ignores what can be ignored, and has children that left its session.
fn stubborn(word: &str) -> String {
    format!(
        "RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t \
         --mount=type=secret,id=s,target=/s,required --mount=type=ssh,required \
         trap '' TERM INT HUP QUIT; touch /t/x /c/x; cat /s; \
         setsid sh -c 'trap \"\" TERM; (sleep {word} & sleep {word}) & sleep {word}' & \
         (setsid sleep {word} &) ; sleep {word}"
    )
}

#[test]
fn a_cancelled_step_is_gone_whatever_it_does() {
    let mut scene = Scene::open(&[]);
    let socket = scene.lab.directory().join("agent.sock");
    let mut agent = scene.lab.command("ssh-agent");
    let agent = agent.arg("-D").arg("-a").arg(&socket);
    let mut agent = agent.stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_until("an agent", || socket.exists());
    let secret = scene.lab.directory().join("secret");
    std::fs::write(&secret, "s3cret").unwrap();
    let ways = [
        (Stock, Signal::INT),
        (Stock, Signal::KILL),
        (Ours, Signal::INT),
        (Ours, Signal::KILL),
        (Buildctl, Signal::INT),
        (Stock, Signal::TERM),
    ];
    for (number, (client, signal)) in ways.into_iter().enumerate() {
        let (what, word) = (format!("{client:?}, {signal:?}"), word(number));
        let mut wanted = scene.context("stubborn", &stubborn(&word));
        wanted.secret = format!("id=s,src={}", text(&secret));
        wanted.ssh = format!("default={}", text(&socket));
        let build = scene.start(client, &wanted);
        wait_until(&what, || running(&word) == 5);
        assert!(!scene.mounts().is_empty(), "{what}");
        assert!(!scene.cgroups().is_empty(), "{what}");
        if number == ways.len() - 1 {
            scene.stop_server(&what, build, &word);
        } else {
            build.give_up(signal);
            scene.nothing_is_left(&what, &word);
            scene.record_says(&what, "canceled");
        }
    }
    let _ = agent.kill();
    let _ = agent.wait();
}

#[test]
fn who_shares_a_step_goes_on_when_others_are_cancelled() {
    let scene = Scene::open(&[]);
    let gate = Gate::new();
    let wanted = scene.context("shared", &format!("RUN echo begun; {}", gate.command()));
    let mut remaining = scene.start(Ours, &wanted);
    let step = gate.wait_for_step();
    remaining.wait_for(" begun");
    for (client, signal) in [(Stock, Signal::INT), (Buildctl, Signal::KILL)] {
        let mut leaving = scene.start(client, &wanted);
        // Told to those who join late, too.
        leaving.wait_for(" begun");
        leaving.give_up(signal);
    }
    drop(step);
    remaining.ends_well();
    let again = scene.start(Stock, &wanted).ends_well();
    assert!(again.contains("CACHED"), "{again}");
    // Nobody wants it any more: it does not go on for its own sake.
    let other = format!("RUN echo more; {}", gate.command());
    let wanted = scene.context("shared", &other);
    let mut builds = [scene.start(Stock, &wanted), scene.start(Ours, &wanted)];
    let step = gate.wait_for_step();
    builds.iter_mut().for_each(|build| build.wait_for(" more"));
    builds
        .into_iter()
        .for_each(|build| build.give_up(Signal::INT));
    scene.nothing_is_left("both gone", &word(0));
    drop(step);
    // And the same works afterwards.
    let build = scene.start(Stock, &wanted);
    drop(gate.wait_for_step());
    build.ends_well();
}

#[test]
fn who_waits_for_a_locked_cache_or_for_a_slot_can_be_cancelled() {
    let locked = "RUN --mount=type=cache,target=/c,sharing=locked";
    for flags in [&[][..], &["--oci-max-parallelism=1"]] {
        let mut scene = Scene::open(flags);
        let gate = Gate::new();
        let holds = scene.context("holds", &format!("{locked} {}", gate.command()));
        let holder = scene.start(Ours, &holds);
        let step = gate.wait_for_step();
        let waits = scene.context("waits", &format!("{locked} echo waited"));
        for (client, signal) in [
            (Stock, Signal::INT),
            (Ours, Signal::KILL),
            (Buildctl, Signal::INT),
        ] {
            let what = format!("{client:?}, {signal:?}, {flags:?}");
            let mut waiting = scene.start(client, &waits);
            match flags.is_empty() {
                true => waiting.wait_for("] RUN"),
                // Whatever it begins with takes a slot.
                false => scene.wait_for_builds(2),
            }
            waiting.give_up(signal);
            scene.record_says(&what, "canceled");
        }
        drop(step);
        holder.ends_well();
        scene.start(Stock, &waits).ends_well();
        // A server that stops gives both up.
        let holds = scene.context("holds", &format!("{locked} echo 2; {}", gate.command()));
        let holder = scene.start(Ours, &holds);
        let _step = gate.wait_for_step();
        let waits = scene.context("waits", &format!("{locked} echo waited again"));
        let mut waiting = scene.start(Stock, &waits);
        match flags.is_empty() {
            true => waiting.wait_for("] RUN"),
            false => scene.wait_for_builds(2),
        }
        scene.stop_server("a step and one that waits", holder, &word(0));
        let (_, code, _) = waiting.end();
        assert_ne!(code, 0);
    }
}
