//! Speed beside stock: the same work by both in turn, medians and ratios.
//!
//! usage: `bench EXECUTABLE [ROUNDS]`, `bench EXECUTABLE memory [BUILDS]`, `bench EXECUTABLE many [BUILDS]`,
//! `bench EXECUTABLE --peer-server BUILDKITD [ROUNDS [WORK]]` for our server beside that one (of works only
//! those with that in their name),
//! `bench EXECUTABLE cancel [ROUNDS]` for how fast a cancelled step is gone,
//! and `bench EXECUTABLE contexts [ROUNDS]` for contexts read in place beside contexts sent through
//! the session, which needs no stock programs
#![expect(clippy::print_stdout, reason = "a program that reports")]

mod cancel;
mod contexts;
mod endurance;
mod servers;
mod works;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use testkit::{Engine, Lab, Peers, Release, Tool};

struct Bench {
    lab: Lab,
    engine: Engine,
    ours: Tool,
    stock: Tool,
    rounds: usize,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let executable = args.next().unwrap_or_else(|| {
        println!(
            "usage: bench EXECUTABLE [cancel|contexts|memory|many|--peer-server BUILDKITD] [COUNT]"
        );
        std::process::exit(1)
    });
    let executable = std::fs::canonicalize(executable).expect("the executable");
    let second = args.next();
    let peer = match second.as_deref() {
        Some("--peer-server") => args.next(),
        _ => None,
    };
    let count = args.next().and_then(|count| count.parse().ok());
    match second.as_deref() {
        Some("memory") => return endurance::memory(&executable, count.unwrap_or(500)),
        Some("many") => return endurance::many(&executable, count.unwrap_or(64)),
        Some("cancel") => return cancel::run(&executable, count.unwrap_or(20)),
        Some("contexts") => return contexts::run(&executable, count.unwrap_or(7)),
        Some("--peer-server") => {
            let peer = peer.expect("the path of a buildkitd after --peer-server");
            let peer = std::fs::canonicalize(peer).expect("the peer");
            let work = args.next().unwrap_or_default();
            return servers::run(&executable, &peer, count.unwrap_or(5), &work);
        }
        _ => {}
    }
    let rounds = second.and_then(|rounds| rounds.parse().ok()).unwrap_or(7);
    let lab = Lab::start();
    lab.enter_network();
    let engine = Engine::start(&lab, Release::Newest);
    let tool = |program: PathBuf, home: &str| {
        Tool::new(program, &lab.subdirectory(home)).env("DOCKER_HOST", engine.host())
    };
    let (ours, stock) = (
        tool(executable, "ours"),
        tool(Peers::find().buildx(), "stock"),
    );
    let bench = Bench {
        lab,
        engine,
        ours,
        stock,
        rounds,
    };
    println!(
        "{:<44} {:>18} {:>18} {:>8}",
        "work", "stock (ms)", "ours (ms)", "ratio"
    );
    bench.boot();
    bench.start();
    bench.builds();
}

impl Bench {
    fn boot(&self) {
        let create = ["create", "--name", "cask", "--bootstrap"];
        let start = Instant::now();
        self.ours.ok(&create);
        println!(
            "{:<44} {:>18} {:>18.0}",
            "create and boot, Engine empty",
            "-",
            start.elapsed().as_secs_f64() * 1e3
        );
        let format = "--format={{.Config.Image}}";
        let image = self
            .engine
            .docker(&["inspect", format, "buildx_buildkit_cask0"]);
        self.ours.ok(&["rm", "cask"]);
        let option = format!("image={image}");
        let (mut stock, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let boot = [
                "create",
                "--name",
                "cask",
                "--driver-opt",
                &option,
                "--bootstrap",
            ];
            stock.push(timed(|| drop(self.stock.ok(&boot))));
            self.stock.ok(&["rm", "cask"]);
            ours.push(timed(|| drop(self.ours.ok(&create))));
            self.ours.ok(&["rm", "cask"]);
        }
        report("create and boot, image in the Engine", stock, ours);
    }

    fn start(&self) {
        for (name, args) in [
            ("version", vec!["version"]),
            ("ls without builders", vec!["ls"]),
        ] {
            self.pair(
                name,
                || drop(self.stock.ok(&args)),
                || drop(self.ours.ok(&args)),
            );
        }
    }

    fn builds(&self) {
        self.ours
            .ok(&["create", "--name", "cask", "--use", "--bootstrap"]);
        let context = self.lab.subdirectory("context");
        std::fs::copy(Peers::find().busybox("amd64"), context.join("busybox")).expect("busybox");
        let mut cached = "FROM scratch\nCOPY busybox /bin/sh\n".to_owned();
        for step in 0..9 {
            cached += &format!("RUN echo {step} > /{step}\n");
        }
        let build = |file: &Path| {
            [
                "build",
                "-f",
                file.to_str().expect("UTF-8"),
                context.to_str().expect("UTF-8"),
            ]
            .map(str::to_owned)
        };
        let file = context.join("cached");
        std::fs::write(&file, cached).expect("write");
        let args = build(&file);
        self.stock.ok(&args);
        self.ours.ok(&args);
        self.pair(
            "ten steps, all cached",
            || drop(self.stock.ok(&args)),
            || drop(self.ours.ok(&args)),
        );
        let file = context.join("fresh");
        let round = std::cell::Cell::new(0);
        let fresh = |who: &str| {
            round.set(round.get() + 1);
            let mut text = "FROM scratch\nCOPY busybox /bin/sh\n".to_owned();
            for step in 0..50 {
                text += &format!("RUN echo {who} {} {step} > /x\n", round.get());
            }
            std::fs::write(&file, text).expect("write");
            build(&file)
        };
        self.pair(
            "fifty small steps",
            || drop(self.stock.ok(&fresh("stock"))),
            || drop(self.ours.ok(&fresh("ours"))),
        );
    }

    fn pair(&self, name: &str, mut stock: impl FnMut(), mut ours: impl FnMut()) {
        pair(name, self.rounds, |who, _| match who {
            0 => timed(&mut stock),
            _ => timed(&mut ours),
        });
    }
}

/// Lets both sides do something in turn, each the first one in every other round, and reports.
/// `work` is told which side (0 for stock, 1 for ours) and which round, and says how long it took.
fn pair(name: &str, rounds: usize, mut work: impl FnMut(usize, usize) -> Duration) {
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for turn in 0..2 {
            let who = (round + turn) % 2;
            times[who].push(work(who, round));
        }
    }
    let [stock, ours] = times;
    report(name, stock, ours);
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Prints medians with the fastest and slowest, and the ratio of medians.
fn report(name: &str, stock: Vec<Duration>, ours: Vec<Duration>) {
    let ([stock, ours], ratio) = medians(&mut [stock, ours]);
    println!("{name:<44} {stock:>18} {ours:>18} {ratio:>7.1}x");
}

/// Sorts times of both sides; medians with the fastest and slowest in milliseconds, and the ratio of
/// medians.
fn medians(times: &mut [Vec<Duration>; 2]) -> ([String; 2], f64) {
    times.iter_mut().for_each(|times| times.sort());
    let ms = |who: usize, at: usize| times[who][at].as_secs_f64() * 1e3;
    let text = |who: usize| {
        let last = times[who].len() - 1;
        let (low, middle, high) = (ms(who, 0), ms(who, last.div_ceil(2)), ms(who, last));
        format!("{middle:.0} ({low:.0}-{high:.0})")
    };
    let middle = |who: usize| ms(who, times[who].len() / 2);
    ([text(0), text(1)], middle(0) / middle(1).max(0.001))
}
