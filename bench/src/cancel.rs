//! How fast a cancelled step is gone: the time from the interrupt of its client to the end of the last
//! process of the step, and to the end of the client, which waits until nothing is mounted any more.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use testkit::{BuildServer, Peers};

/// The steps: what they are called, how many of their processes have the round's number among their
/// arguments, and their command, in which `WORD` stands for that number.
const STEPS: &[(&str, usize, &str)] = &[
    ("one that sleeps", 1, "sleep WORD"),
    (
        "200 processes in sessions of their own that ignore SIGTERM",
        200,
        "trap '' TERM INT HUP; for i in $(seq 199); do setsid sleep WORD & done; sleep WORD",
    ),
    (
        "256 MiB of memory, and 256 MiB in a tmpfs",
        1,
        "dd if=/dev/zero of=/t/x bs=1M count=256; sh -c 'dd if=/dev/zero of=/dev/null bs=256M' WORD",
    ),
    (
        "writing files without end",
        1,
        "sh -c 'i=0; while true; do i=$((i+1)); echo $i >/$i; done' WORD",
    ),
];
/// How long a step is let run before it is cancelled.
const RUNS: Duration = Duration::from_millis(300);

/// Cancels each step that often and prints a table.
pub fn run(executable: &Path, rounds: usize) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let server = BuildServer::start(executable, directory.path());
    println!(
        "{:<60} {:>24} {:>24}",
        "from the interrupt, median (most) in ms", "to the last process", "to the client's end"
    );
    for (name, processes, script) in STEPS {
        let (mut step, mut client) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let word = format!("95{}{round}", std::process::id());
            let context = directory.path().join("context");
            write_context(&context, &script.replace("WORD", &word));
            let (ended, answered) = cancel(start(&server, &context), &word, *processes);
            step.push(ended);
            client.push(answered);
        }
        println!("{name:<60} {:>24} {:>24}", shown(step), shown(client));
    }
    server.stop();
}

fn write_context(context: &Path, script: &str) {
    std::fs::create_dir_all(context).expect("make the context");
    let dockerfile = format!(
        "FROM scratch\nCOPY busybox /bin/sh\nRUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t {script}\n"
    );
    std::fs::write(context.join("Dockerfile"), dockerfile).expect("write the Dockerfile");
    std::fs::copy(Peers::find().busybox("amd64"), context.join("busybox")).expect("busybox");
}

fn start(server: &BuildServer, context: &Path) -> Child {
    let local = |name: &str| format!("--local={name}={}", context.display());
    let args = [
        "build".to_owned(),
        "--progress=plain".to_owned(),
        "--frontend=dockerfile.v0".to_owned(),
        local("context"),
        local("dockerfile"),
    ];
    let mut command = server.buildctl().command(&args);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null());
    command.spawn().expect("start a client")
}

/// Interrupts the client when its step runs; how long the step's processes and the client lived on.
fn cancel(mut client: Child, word: &str, count: usize) -> (Duration, Duration) {
    let mut processes = Vec::new();
    while processes.len() < count {
        let ended = client.try_wait().expect("ask for the client's end");
        assert!(ended.is_none(), "the client ended early: {ended:?}");
        std::thread::sleep(Duration::from_millis(20));
        processes = with_argument(word);
    }
    std::thread::sleep(RUNS);
    let id = Pid::from_raw(client.id() as i32).expect("a process id");
    let start = Instant::now();
    kill_process(id, Signal::INT).expect("interrupt the client");
    for process in &processes {
        let mut polled = [PollFd::new(process, PollFlags::IN)];
        rustix::event::poll(&mut polled, None).expect("wait for a process");
    }
    let ended = start.elapsed();
    client.wait().expect("wait for the client");
    (ended, start.elapsed())
}

/// The processes that have that word among their arguments.
fn with_argument(word: &str) -> Vec<OwnedFd> {
    let processes = std::fs::read_dir("/proc")
        .expect("list processes")
        .flatten();
    let ids = processes.filter(|process| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|arg| arg == word.as_bytes())
    });
    let ids = ids.filter_map(|process| process.file_name().to_str()?.parse().ok());
    ids.filter_map(|id| pidfd_open(Pid::from_raw(id)?, PidfdFlags::empty()).ok())
        .collect()
}

fn shown(mut times: Vec<Duration>) -> String {
    times.sort();
    let ms = |time: &Duration| time.as_secs_f64() * 1e3;
    let most = times.last().map_or(0.0, ms);
    format!("{:.0} ({most:.0})", ms(&times[times.len() / 2]))
}
