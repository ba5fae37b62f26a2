//! The server as a process on a root of its own: killed at random instants, started twice, and started on
//! state that a disk has damaged.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use testkit::{BuildServer, Lab, Output, Peers, Registry, RegistryAccess, ServerSetup, Tool};

use crate::workshop::{executable, text};

/// A directory that is removed with the test; its file system is one that overlay can use.
fn directory() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("cooperage-state-")
        .tempdir()
        .unwrap()
}

/// A context whose Dockerfile has two steps to be cached.
fn context(directory: &tempfile::TempDir) -> PathBuf {
    let context = directory.path().join("context");
    std::fs::create_dir_all(&context).unwrap();
    std::fs::copy("/bin/busybox", context.join("busybox")).unwrap();
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\n\
                      RUN [\"/bin/busybox\", \"touch\", \"/kept\"]\n";
    std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    context
}

fn build(server: &BuildServer, context: &std::path::Path) -> Output {
    let context = text(context);
    server.buildctl().ok(&[
        "build",
        "--frontend=dockerfile.v0",
        "--progress=plain",
        &format!("--local=context={context}"),
        &format!("--local=dockerfile={context}"),
    ])
}

fn cached(output: &Output) -> usize {
    output.stderr.matches("CACHED").count()
}

/// Those of the clock's second, as a number that is another each time.
fn nanoseconds() -> u32 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().subsec_nanos()
}

#[test]
fn a_server_killed_at_any_instant_loses_at_most_what_was_running() {
    let directory = directory();
    let given = std::env::var("COOPERAGE_CRASH_SEED").ok();
    let seed = given.map_or_else(|| nanoseconds().into(), |seed| seed.parse().unwrap());
    eprintln!("COOPERAGE_CRASH_SEED={seed}");
    let report = testkit::crash(&executable(), directory.path(), seed, 8);
    assert!(
        report.cut_off + report.ended == 8 * 3 && report.blobs > 0,
        "{report:?}"
    );
}

#[test]
fn two_servers_on_one_root_refuse_clearly() {
    let directory = directory();
    let context = context(&directory);
    let server = BuildServer::start(&executable(), directory.path());
    build(&server, &context);
    let second = |address: &str| {
        let mut command = std::process::Command::new(executable());
        command
            .args(["buildkitd", "--addr", address, "--root"])
            .arg(server.root())
            .stdin(Stdio::null());
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let other = format!("unix://{}", text(&directory.path().join("other.sock")));
    let said = second(&other);
    assert!(said.contains("another instance running?"), "{said}");
    assert!(said.contains("hint: stop the other server"), "{said}");
    let same = format!("unix://{}", text(&directory.path().join("b.sock")));
    let said = second(&same);
    assert!(said.contains("b.sock"), "{said}");
    // The first one is not disturbed.
    assert_eq!(cached(&build(&server, &context)), 2);
}

#[test]
fn clients_see_and_remove_what_is_cached() {
    let directory = directory();
    let context = context(&directory);
    let _server = BuildServer::start(&executable(), directory.path());
    let home = directory.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let address = format!("unix://{}", text(&directory.path().join("b.sock")));
    for client in [
        Tool::new(executable(), &home),
        Tool::new(Peers::find().buildx(), &home),
    ] {
        client.ok(&["create", "--name=far", "--use", "--driver=remote", &address]);
        client.ok(&["build", "--progress=plain", &text(&context)]);
        let step = "/kept";
        let du = client.ok(&["du", "--verbose"]).stdout;
        assert!(
            du.contains(step) && du.contains("databases of the build server"),
            "{du}"
        );
        let prune = |flags: &[&str]| {
            let args = [&["prune", "--force", "--verbose"], flags].concat();
            client.ok(&args).stdout.contains(step)
        };
        for spared in [
            ["--filter=until=1h", "--all"],
            ["--filter=unused-for=1h", "--all"],
            ["--filter=type=exec.cachemount", "--all"],
            ["--filter=inuse=true", "--all"],
            ["--filter=id=unknown", "--all"],
            ["--filter=mutable=true", "--all"],
            ["--reserved-space=1gb", "--all"],
            ["--max-used-space=1gb", "--all"],
            ["--min-free-space=1mb", "--all"],
            ["--keep-storage=1gb", "--all"],
        ] {
            assert!(!prune(&spared), "{spared:?}");
        }
        assert!(prune(&[
            "--filter=description~=touch",
            "--filter=type!=internal"
        ]));
        assert!(!client.ok(&["du", "--verbose"]).stdout.contains(step));
        client.ok(&["build", "--progress=plain", &text(&context)]);
        assert!(prune(&["--max-used-space=1kb"]));
        client.ok(&["prune", "--force", "--all"]);
        client.ok(&["rm", "far"]);
    }
}

#[test]
fn what_a_damaged_database_cost_is_told_to_the_next_build() {
    let directory = directory();
    let context = context(&directory);
    let start = || BuildServer::start(&executable(), directory.path());
    let server = start();
    build(&server, &context);
    server.stop();
    for (database, lost) in [
        ("history.db", "the history of builds is lost"),
        ("keys.db", "the knowledge of what is cached is lost"),
        ("layers/layers.db", "the build cache is lost"),
    ] {
        let path = directory.path().join("root/v1").join(database);
        std::fs::write(&path, vec![0xa5; 8192]).unwrap();
        let server = start();
        let told = build(&server, &context).stderr;
        assert!(told.contains(lost) && told.contains(".damaged"), "{told}");
        assert!(server.log().contains(lost), "{}", server.log());
        let again = build(&server, &context);
        assert_eq!(cached(&again), 2);
        assert!(!again.stderr.contains("is lost"), "{}", again.stderr);
        server.kill();
    }
    // Taken away, or emptied, by a hand.
    let state = directory.path().join("root/v1");
    std::fs::remove_file(state.join("history.db")).unwrap();
    std::fs::remove_file(state.join("keys.db")).unwrap();
    std::fs::write(state.join("layers/layers.db"), "").unwrap();
    for log in ["keys.db-wal", "history.db-wal", "layers/layers.db-wal"] {
        std::fs::remove_file(state.join(log)).unwrap();
    }
    let server = start();
    let told = build(&server, &context).stderr;
    assert_eq!(told.matches("is missing: the").count(), 3, "{told}");
    assert_eq!(cached(&build(&server, &context)), 2);
}

#[test]
fn blobs_that_a_disk_has_changed_are_made_anew() {
    let directory = directory();
    let context = context(&directory);
    let archive = directory.path().join("image.tar");
    let build = |server: &BuildServer| {
        let local = |name: &str| format!("--local={name}={}", context.display());
        let output = format!("--output=type=oci,dest={}", archive.display());
        let (context, dockerfile) = (local("context"), local("dockerfile"));
        let said = server.buildctl().ok(&[
            "build",
            "--frontend=dockerfile.v0",
            "--progress=plain",
            &context,
            &dockerfile,
            &output,
        ]);
        (cached(&said), blobs_of(&archive))
    };
    let server = BuildServer::start(&executable(), directory.path());
    let (_, before) = build(&server);
    server.stop();
    let stored = directory.path().join("root/v1/content/blobs/sha256");
    for blob in std::fs::read_dir(&stored).unwrap() {
        let path = blob.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let server = BuildServer::start(&executable(), directory.path());
    assert_eq!(build(&server), (2, before), "{}", server.log());
    assert!(server.log().contains("was damaged"), "{}", server.log());
}

/// The names of an archive's blobs, each of which is what it is named by.
fn blobs_of(archive: &std::path::Path) -> BTreeSet<String> {
    let place = tempfile::tempdir().unwrap();
    let mut tar = std::process::Command::new("tar");
    let tar = tar.arg("-xf").arg(archive).arg("-C").arg(place.path());
    assert!(tar.status().unwrap().success());
    let blobs = std::fs::read_dir(place.path().join("blobs/sha256")).unwrap();
    blobs
        .map(|blob| {
            let path = blob.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let digest = oci::Digest::of(std::fs::read(&path).unwrap());
            assert_eq!(digest.hex(), name, "a blob of the archive is damaged");
            name
        })
        .collect()
}

#[test]
fn state_of_a_newer_version_is_refused_wherever_it_is() {
    let directory = directory();
    BuildServer::start(&executable(), directory.path()).stop();
    let state = directory.path().join("root/v1");
    for part in [
        "",
        "content",
        "layers",
        "local",
        "git",
        "http",
        "cache-mounts",
    ] {
        let superblock = state.join(part).join("superblock");
        let known = std::fs::read(&superblock).unwrap();
        std::fs::write(&superblock, "{\"format\":99}").unwrap();
        let setup = ServerSetup::new(&executable(), directory.path());
        let (status, said) = setup.refusal();
        assert!(
            !status.success() && said.contains("has format 99"),
            "{part}: {said}"
        );
        std::fs::write(&superblock, known).unwrap();
    }
    BuildServer::start(&executable(), directory.path()).stop();
}

#[test]
fn a_server_killed_in_its_first_moments_starts_again() {
    let directory = directory();
    let context = context(&directory);
    let begun = Instant::now();
    BuildServer::start(&executable(), &directory.path().join("whole")).kill();
    let time = begun.elapsed();
    for sixth in 0..6 {
        let place = directory.path().join(format!("{sixth}"));
        let server = ServerSetup::new(&executable(), &place).start_without_waiting();
        std::thread::sleep(time * sixth / 6);
        server.kill();
        let server = BuildServer::start(&executable(), &place);
        if sixth % 3 == 0 {
            build(&server, &context);
            assert_eq!(cached(&build(&server, &context)), 2);
        }
        server.kill();
    }
}

/// Does a build with that server and kills it after a part of the time that such builds took so far.
fn kill_while_building(server: BuildServer, args: &[&str], longest: Duration) {
    let mut client = server
        .buildctl()
        .command(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(longest * (nanoseconds() / 1000 % 1000) / 1000);
    server.kill();
    client.wait().unwrap();
}

fn kill_while_pushing_and_pulling() {
    let lab = Lab::start();
    lab.enter_network();
    let registry = Registry::start(&lab, RegistryAccess::Plain, "127.0.0.1", 5000);
    let directory = directory();
    let context = context(&directory);
    let start = || BuildServer::start(&executable(), directory.path());
    let mut longest = [Duration::from_secs(2); 2];
    for round in 0..2 {
        let name = format!("{}/noise:{round}", registry.address());
        let push = format!("--output=type=image,name={name},push=true");
        let made = format!(
            "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"dd\", \
             \"if=/dev/urandom\", \"of=/{round}\", \"bs=1M\", \"count=8\"]\n"
        );
        let used = format!("FROM {name}\nRUN [\"/bin/busybox\", \"md5sum\", \"/{round}\"]\n");
        for (step, dockerfile) in [made, used].into_iter().enumerate() {
            std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
            let local = |name: &str| format!("--local={name}={}", context.display());
            let (context, dockerfile) = (local("context"), local("dockerfile"));
            let mut args = vec!["build", "--frontend=dockerfile.v0", "--progress=plain"];
            args.extend([context.as_str(), dockerfile.as_str()]);
            if step == 0 {
                args.push(&push);
            }
            kill_while_building(start(), &args, longest[step]);
            let server = start();
            let begun = Instant::now();
            server.buildctl().ok(&args);
            longest[step] = begun.elapsed();
            // So that it is pulled then.
            server.buildctl().ok(&["prune", "--all"]);
            testkit::check_blobs(&server.root(), &format!("round {round}, step {step}"));
            server.kill();
        }
    }
}

#[test]
fn a_server_killed_while_it_pushes_or_pulls_does_it_again() {
    // In a thread of its own, as the network is the thread's.
    std::thread::spawn(kill_while_pushing_and_pulling)
        .join()
        .unwrap();
}

/// On a disk of its own, of 64 MiB: `sh -c … sh EXECUTABLE DIRECTORY`.
const ON_A_FULL_DISK: &str = r#"
set -eu
executable=$1 directory=$2
mount -t tmpfs -o size=64m tmpfs "$directory/root"
ctl() { "$executable" buildctl --addr "unix://$directory/b.sock" "$@"; }
start() {
    "$executable" buildkitd --root "$directory/root" --addr "unix://$directory/b.sock" >>"$directory/log" 2>&1 &
    server=$!
    until ctl debug info >/dev/null 2>&1; do
        kill -0 $server || { cat "$directory/log" >&2; exit 1; }
        sleep 0.05
    done
}
build() {
    ctl build --frontend=dockerfile.v0 --progress=plain \
        --local="context=$directory/context" --local="dockerfile=$directory/context"
}
fill() {
    cat /dev/zero 2>/dev/null >"$directory/root/fill-$1" || true
    test "$(df --output=avail "$directory/root" | tail -1)" -eq 0
}
check() {
    ctl du >/dev/null
    ctl prune --all >/dev/null
    rm "$directory"/root/fill-*
    build
    build 2>"$directory/said"
    test "$(grep -c CACHED "$directory/said")" -eq 2
}
trap 'kill $server || true; wait' EXIT
start
build
echo "killed and started on a full disk" >&2
fill 1
kill -9 $server
wait $server || true
start
check
echo "builds on a full disk" >&2
ctl prune --filter id==none >/dev/null
fill 2
if build 2>"$directory/said"; then exit 1; fi
grep -i "no space left on device\|disk is full" "$directory/said" >&2
kill -0 $server
check
echo "a first start on a full disk" >&2
kill -9 $server
wait $server || true
rm -r "$directory"/root/*
fill 3
if "$executable" buildkitd --root "$directory/root" --addr "unix://$directory/b.sock" 2>"$directory/said"; then exit 1; fi
grep -i "no space left on device" "$directory/said" >&2
rm "$directory"/root/fill-*
start
build
"#;

#[test]
fn a_server_on_a_full_disk_starts_and_makes_space() {
    let directory = directory();
    context(&directory);
    std::fs::create_dir(directory.path().join("root")).unwrap();
    let unshare = Tool::new("unshare", directory.path());
    let (program, place) = (text(&executable()), text(directory.path()));
    unshare.ok(&["-m", "sh", "-c", ON_A_FULL_DISK, "sh", &program, &place]);
}

/// A new step with an export, one that fails, and one whose client goes away, side by side.
fn three_builds(server: &BuildServer, directory: &tempfile::TempDir, round: usize) {
    let start = |kind: &str, step: &str, more: &[&str]| {
        let place = directory.path().join(kind);
        std::fs::create_dir_all(&place).unwrap();
        let base = "FROM scratch\nCOPY busybox /bin/busybox\n";
        std::fs::write(place.join("Dockerfile"), format!("{base}{step}\n")).unwrap();
        let dockerfile = format!("--local=dockerfile={}", place.display());
        let context = format!("--local=context={}/context", directory.path().display());
        let mut args = vec!["build", "--frontend=dockerfile.v0", "--progress=plain"];
        args.extend([context.as_str(), dockerfile.as_str()]);
        args.extend(more);
        let mut command = server.buildctl().command(&args);
        let log = std::fs::File::create(place.join("log")).unwrap();
        command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    };
    let run = |script: &str| format!("RUN [\"/bin/busybox\", \"sh\", \"-c\", \"{script}\"]");
    let archive = directory.path().join("image.tar");
    let output = format!("--output=type=oci,dest={}", archive.display());
    let mut whole = start("whole", &run(&format!("echo {round} > /own")), &[&output]);
    let mut failing = start("failing", &run(&format!("exit {}", round + 1)), &[]);
    let script = format!("echo up-{round}; exec /bin/busybox sleep 1000");
    let mut gone = start("gone", &run(&script), &[]);
    let log = directory.path().join("gone/log");
    testkit::wait_for("the step that is left alone", PATIENCE, || {
        let said = std::fs::read_to_string(&log).unwrap();
        said.lines()
            .any(|line| line.ends_with(&format!(" up-{round}")))
    });
    gone.kill().unwrap();
    gone.wait().unwrap();
    assert!(whole.wait().unwrap().success());
    assert!(!failing.wait().unwrap().success());
}

/// How long anything may take that only has to happen.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn builds_leave_nothing_behind_in_the_server() {
    let directory = directory();
    context(&directory);
    let server = BuildServer::start(&executable(), directory.path());
    let idle = server.held();
    for round in 0..3 {
        three_builds(&server, &directory, round);
    }
    let mut before = server.held();
    testkit::wait_for("the end of the steps", PATIENCE, || {
        before = server.held();
        before.cgroups <= before.processes * before.hierarchies && before.mounts <= idle.mounts
    });
    for round in 3..9 {
        three_builds(&server, &directory, round);
    }
    // Threads that have nothing to do go away by and by.
    let begun = Instant::now();
    let mut after = server.held();
    while !after.is_idle_like(&before) {
        assert!(
            begun.elapsed() < PATIENCE,
            "before: {before}\nafter: {after}"
        );
        std::thread::sleep(Duration::from_millis(50));
        after = server.held();
    }
}
