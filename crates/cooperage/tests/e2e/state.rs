//! The server as a process on a root of its own: killed at random instants, started twice, and started on
//! state that a disk has damaged.

use std::path::PathBuf;
use std::process::Stdio;

use testkit::{BuildServer, Output, Peers, ServerSetup, Tool};

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

#[test]
fn a_server_killed_at_any_instant_loses_at_most_what_was_running() {
    let directory = directory();
    let from_time = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().subsec_nanos().into()
    };
    let given = std::env::var("COOPERAGE_CRASH_SEED").ok();
    let seed = given.map_or_else(from_time, |seed| seed.parse().unwrap());
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
