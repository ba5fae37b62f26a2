//! Ends: cancelling, dying servers, many at once.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{Bench, block_on, no_streams};
use executor::{ExecError, Executor, ExecutorConfig, MountSource, ProcessMount, ProcessSpec};
use tokio_util::sync::CancellationToken;

crate::harness::tests![
    cancelling_kills_everything_and_leaves_nothing,
    dropping_the_future_kills_the_step,
    children_do_not_outlive_the_step,
    a_hundred_at_once,
    a_killed_server_takes_its_step_along,
    signals_reach_the_process,
    what_dead_servers_left_is_swept,
    starting_is_quick,
];

/// Makes the test binary a server with one step that never ends.
pub const SERVER_ARGUMENT: &str = "serve-one-step";

/// Where a process of that namespace pid runs, until it does not: waits for its end.
fn wait_gone(pid: i32) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else {
        return;
    };
    let flags = rustix::process::PidfdFlags::empty();
    let Ok(pidfd) = rustix::process::pidfd_open(pid, flags) else {
        return;
    };
    let mut polled = [rustix::event::PollFd::new(
        &pidfd,
        rustix::event::PollFlags::IN,
    )];
    let limit = rustix::event::Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    assert_eq!(
        rustix::event::poll(&mut polled, Some(&limit)).unwrap(),
        1,
        "{pid:?} still runs"
    );
}

/// The version 1 cgroups of ours that the process is in.
fn cgroups_of(pid: i32) -> Vec<std::path::PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.lines()
        .filter(|line| line.contains("/cooperage/"))
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let top = Path::new("/sys/fs/cgroup").join(fields.next()?);
            Some(top.join(fields.next()?.trim_start_matches('/')))
        })
        .collect()
}

fn cancelling_kills_everything_and_leaves_nothing() {
    let bench = Bench::new();
    let mut spec = bench.script("trap '' TERM; sleep 1000 & (sleep 1000 & sleep 1000) & wait");
    spec.mounts = vec![ProcessMount::new(MountSource::Tmpfs { size: 0 }, "/t")];
    block_on(async {
        let cancel = CancellationToken::new();
        let mut process = bench
            .executor
            .start("cancelled-step", spec.clone(), no_streams())
            .await
            .unwrap();
        let pid = process.started().await.unwrap().unwrap();
        let cgroups = cgroups_of(pid);
        process.kill();
        let status = process.wait().await.unwrap();
        assert_eq!((status.code, status.signal), (137, Some(9)));
        wait_gone(pid);
        assert!(cgroups.iter().all(|dir| !dir.exists()), "{cgroups:?}");
        let run = bench
            .executor
            .run("cancelled-step", spec, no_streams(), cancel.clone());
        let (ended, ()) = tokio::join!(run, async { cancel.cancel() });
        assert!(matches!(ended, Err(ExecError::Canceled)));
    });
    assert_eq!(bench.left_in_root(), ["/dev", "/etc", "/proc", "/sys"]);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(bench.dir.path().to_str().unwrap()),
        "{mounts}"
    );
}

fn dropping_the_future_kills_the_step() {
    let bench = Bench::new();
    let pid = block_on(async {
        let spec = bench.script("sleep 1000");
        let mut process = bench
            .executor
            .start("dropped", spec, no_streams())
            .await
            .unwrap();
        process.started().await.unwrap().unwrap()
    });
    wait_gone(pid);
}

fn children_do_not_outlive_the_step() {
    let bench = Bench::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let stdio = executor::Stdio {
        stdin: None,
        stdout: writer.try_clone().unwrap().into(),
        stderr: writer.into(),
    };
    let spec = bench.script("sleep 1000 & setsid sleep 1000 & echo done");
    let run = bench
        .executor
        .run("step", spec, stdio, CancellationToken::new());
    assert!(block_on(run).unwrap().success());
    // Only ends when every holder of the other end is gone.
    assert_eq!(std::io::read_to_string(reader).unwrap(), "done\n");
}

fn a_hundred_at_once() {
    let bench = Bench::new();
    block_on(async {
        let runs = (0..100).map(|n| {
            let bench = &bench;
            async move {
                let mut spec = bench.script("echo $N; test $$ = 1");
                spec.env.push(format!("N={n}"));
                // As builds have it, each in a root of its own.
                spec.mounts = vec![ProcessMount::bind(bench.root().join("bin"), "/bin").readonly()];
                spec.rootfs = bench.dir.path().join(format!("root-{n}"));
                std::fs::create_dir(&spec.rootfs).unwrap();
                let outcome = bench.run_async(&format!("many-{n}"), spec).await;
                assert_eq!(outcome.ok(), format!("{n}\n"));
            }
        });
        let mut all: Vec<_> = runs.map(Box::pin).collect();
        // Poll them all together without another dependency.
        std::future::poll_fn(|context| {
            all.retain_mut(|run| run.as_mut().poll(context).is_pending());
            if all.is_empty() {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
    });
    for n in 0..100 {
        let root = bench.dir.path().join(format!("root-{n}"));
        let left = std::fs::read_dir(root).unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["dev", "etc", "proc", "sys"]);
    }
}

/// The server of the next test: prints the step's process id and waits.
pub fn serve_one_step() -> ! {
    let root = std::env::args().nth(2).unwrap();
    block_on(async move {
        let executor =
            Executor::new(ExecutorConfig::new(Path::new(&root).join("../state"))).unwrap();
        let spec = ProcessSpec {
            rootfs: root.into(),
            args: ["/bin/sh", "-c", "sleep 1000 & sleep 1000"]
                .map(str::to_owned)
                .into(),
            env: vec!["PATH=/bin".to_owned()],
            ..ProcessSpec::default()
        };
        let mut process = executor.start("orphan", spec, no_streams()).await.unwrap();
        println!("{}", process.started().await.unwrap().unwrap());
        let _ = process.wait().await;
    });
    std::process::exit(1)
}

fn a_killed_server_takes_its_step_along() {
    let bench = Bench::new();
    let mut server = std::process::Command::new("/proc/self/exe")
        .arg(SERVER_ARGUMENT)
        .arg(bench.root())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let pid: i32 = line.trim().parse().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let supervisor: i32 = status
        .lines()
        .find_map(|l| l.strip_prefix("PPid:\t"))
        .unwrap()
        .parse()
        .unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    wait_gone(pid);
    wait_gone(supervisor);
    assert_eq!(bench.left_in_root(), ["/dev", "/etc", "/proc", "/sys"]);
}

fn signals_reach_the_process() {
    let bench = Bench::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stdio = executor::Stdio {
        stdin: None,
        stdout: writer.try_clone().unwrap().into(),
        stderr: writer.into(),
    };
    let spec = bench.script("trap 'exit 9' TERM; echo; while :; do sleep 1000 & wait; done");
    let status = block_on(async {
        let mut process = bench.executor.start("step", spec, stdio).await.unwrap();
        let ready = tokio::task::spawn_blocking(move || reader.read_exact(&mut [0]));
        ready.await.unwrap().unwrap();
        process.signal(15);
        process.wait().await.unwrap()
    });
    assert_eq!(status.code, 9);
}

fn what_dead_servers_left_is_swept() {
    let Some(memory) = own_memory_cgroup() else {
        return;
    };
    let left = memory.join("cooperage/dead-server/step");
    std::fs::create_dir_all(&left).unwrap();
    let mut sleeper = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    std::fs::write(left.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
    let living = Bench::new();
    let other = Bench::new();
    sleeper.wait().unwrap();
    assert!(!left.exists());
    // The sweep of the second left the first alone.
    living.run(living.script("true")).ok();
    other.run(other.script("true")).ok();
}

/// The directory of our own memory cgroup of version 1.
fn own_memory_cgroup() -> Option<std::path::PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = own.lines().find_map(|l| {
        l.split_once(":memory:")?
            .1
            .strip_prefix('/')
            .map(str::to_owned)
    })?;
    let dir = Path::new("/sys/fs/cgroup/memory").join(path);
    dir.exists().then_some(dir)
}

/// Prints what a start and wait costs; asserts nothing about time.
fn starting_is_quick() {
    for spares in [0, 2] {
        let bench = Bench::with(|config| config.spares = spares);
        let mut spec = bench.command(&["/bin/true"]);
        for (network, pause_ms) in [
            (llb::NetMode::Unset, 0),
            (llb::NetMode::Unset, 40),
            (llb::NetMode::None, 0),
        ] {
            spec.network = network;
            let mut times: Vec<Duration> = (0..50)
                .map(|_| {
                    std::thread::sleep(Duration::from_millis(pause_ms));
                    let start = Instant::now();
                    bench.run(spec.clone()).ok();
                    start.elapsed()
                })
                .collect();
            times.sort();
            println!(
                "start + run + wait, {spares} spares, {network:?} network, {pause_ms} ms between: \
                 min {:?} median {:?} p90 {:?}",
                times[0], times[25], times[45]
            );
        }
    }
}
