//! A full disk and half-made state: what was finished before stays, and the server goes on.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use testkit::{Output, Tool};

use crate::workshop::{Workshop, executable, text};

const CONTAINER: &str = "buildx_buildkit_c0";
const FULL: &str = "no space left on device";

/// A workshop whose builder `c` keeps its state on a disk of 64 MiB.
fn with_small_disk() -> Workshop {
    let shop = Workshop::open();
    shop.engine.docker(&[
        "volume",
        "create",
        "--driver=local",
        "--opt=type=tmpfs",
        "--opt=device=tmpfs",
        "--opt=o=size=64m",
        "small",
    ]);
    shop.cooperage.ok(&[
        "create",
        "--name=c",
        "--use",
        "--driver-opt=state=small",
        "--bootstrap",
    ]);
    shop
}

/// A Dockerfile that leaves a file behind, and then does what `last` says.
fn dockerfile(last: &str) -> String {
    format!(
        "FROM scratch\nCOPY busybox /bin/busybox\n\
         RUN [\"/bin/busybox\", \"touch\", \"/kept\"]\n{last}\n"
    )
}

/// Writes so many MiB that nothing can compress.
fn run_dd(mib: u32) -> String {
    format!(
        "RUN [\"/bin/busybox\", \"dd\", \"if=/dev/urandom\", \"of=/data\", \"bs=1M\", \"count={mib}\"]"
    )
}

struct Disk {
    shop: Workshop,
    context: String,
    started: String,
}

impl Disk {
    /// The small disk, with the first steps of [`dockerfile`] done.
    fn open() -> Disk {
        let shop = with_small_disk();
        let context = shop.context_with_busybox("disk", &[]);
        let started = started_at(&shop);
        let disk = Disk {
            shop,
            context,
            started,
        };
        disk.build(&dockerfile(""), &[], 0);
        disk
    }

    fn build(&self, dockerfile: &str, flags: &[&str], code: i32) -> Output {
        let file = format!("{}/Dockerfile", self.context);
        std::fs::write(file, dockerfile).unwrap();
        let mut args = vec!["build", "--progress=plain"];
        args.extend(flags);
        args.push(&self.context);
        let output = self.shop.cooperage.run(&args);
        assert_eq!(output.code, code, "{dockerfile}\n{}", output.stderr);
        output
    }

    /// The server is the one that was started, knows what was finished, and builds.
    fn assert_goes_on(&self) {
        assert_eq!(started_at(&self.shop), self.started, "the server ended");
        let after = self.build(&dockerfile(&run_dd(1)), &[], 0).stderr;
        assert_eq!(after.matches("CACHED").count(), 2, "{after}");
    }
}

fn started_at(shop: &Workshop) -> String {
    let format = "--format={{.State.Running}} {{.State.StartedAt}} {{.RestartCount}}";
    let state = shop.engine.docker(&["inspect", format, CONTAINER]);
    assert!(state.starts_with("true "), "{state}");
    state
}

/// The error says that the disk is full and what to do.
fn assert_full(output: &Output) {
    let said = output.stderr.to_lowercase();
    assert!(said.contains(FULL), "{}", output.stderr);
    assert!(
        said.contains("hint: the disk of the build server is full"),
        "{}",
        output.stderr
    );
}

#[test]
fn a_step_that_fills_the_disk_fails_alone() {
    let disk = Disk::open();
    let failed = disk.build(&dockerfile(&run_dd(200)), &[], 1);
    assert_full(&failed);
    assert!(failed.stderr.contains("exit code: 1"), "{}", failed.stderr);
    disk.assert_goes_on();
}

#[test]
fn a_context_larger_than_the_disk_fails_alone() {
    let disk = Disk::open();
    let large = format!("{}/large", disk.context);
    let file = std::fs::File::create(&large).unwrap();
    let noise: Vec<u8> = (0..1 << 20)
        .map(|n: u32| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    for number in 0..100 {
        file.write_all_at(&noise, number << 20).unwrap();
    }
    // 102 is what stock clients exit with when something was used up.
    let failed = disk.build(&dockerfile("COPY large /"), &[], 102);
    assert_full(&failed);
    std::fs::remove_file(large).unwrap();
    disk.assert_goes_on();
}

#[test]
fn an_export_that_fills_the_disk_fails_alone() {
    let disk = Disk::open();
    let archive = disk.shop.lab.directory().join("image.tar");
    let output = format!("type=oci,dest={}", text(&archive));
    let failed = disk.build(&dockerfile(&run_dd(40)), &["-o", &output], 102);
    assert_full(&failed);
    // The step itself was finished.
    let again = disk.build(&dockerfile(&run_dd(40)), &[], 0).stderr;
    assert_eq!(again.matches("CACHED").count(), 3, "{again}");
    disk.shop.cooperage.ok(&["prune", "--force", "--all"]);
    disk.build(&dockerfile(&run_dd(20)), &["-o", &output], 0);
    assert!(archive.metadata().unwrap().len() > 20 << 20);
}

#[test]
fn a_pull_larger_than_the_disk_fails_alone() {
    let shop = with_small_disk();
    let large = shop.context_with_busybox(
        "large",
        &[(
            "Dockerfile",
            &format!("FROM scratch\nCOPY busybox /bin/busybox\n{}\n", run_dd(90)),
        )],
    );
    let registry = shop.registry();
    let name = format!("{}/large:1", registry.address());
    let config = text(&shop.plain_http(&registry));
    // Made and pushed by a builder with room.
    shop.cooperage.ok(&[
        "create",
        "--name=roomy",
        "--buildkitd-config",
        &config,
        "--bootstrap",
    ]);
    let push = ["build", "--builder=roomy", "--push", "-t", &name, &large];
    shop.cooperage.ok(&push);
    shop.cooperage.ok(&["rm", "roomy"]);
    shop.cooperage.ok(&["rm", "c"]);
    shop.cooperage.ok(&[
        "create",
        "--name=c",
        "--use",
        "--driver-opt=state=small",
        "--buildkitd-config",
        &config,
        "--bootstrap",
    ]);
    let context = shop.context_with_busybox("disk", &[]);
    let started = started_at(&shop);
    let disk = Disk {
        shop,
        context,
        started,
    };
    disk.build(&dockerfile(""), &[], 0);
    let failed = disk.build(
        &format!("FROM {name}\nRUN [\"/bin/busybox\", \"true\"]\n"),
        &[],
        102,
    );
    assert_full(&failed);
    disk.assert_goes_on();
}

#[test]
fn a_full_disk_of_the_client_is_not_taken_for_the_servers() {
    let shop = Workshop::open();
    shop.cooperage
        .ok(&["create", "--name=c", "--use", "--bootstrap"]);
    let context = shop.context_with_busybox("disk", &[("Dockerfile", &dockerfile(&run_dd(10)))]);
    let out = text(&shop.lab.subdirectory("out"));
    let unshare =
        Tool::new("unshare", &shop.lab.subdirectory("home")).env("DOCKER_HOST", shop.engine.host());
    let script = "mount -t tmpfs -o size=4m tmpfs \"$2\" \
                  && exec \"$1\" build --progress=plain -o \"$3\" \"$4\"";
    let program = text(&executable());
    for kind in [
        format!("type=local,dest={out}"),
        format!("type=tar,dest={out}/tar"),
    ] {
        let failed = unshare.fails(&[
            "-m", "sh", "-c", script, "sh", &program, &out, &kind, &context,
        ]);
        let said = failed.stderr.to_lowercase();
        assert!(
            said.contains(FULL) && failed.stderr.contains(&out),
            "{}",
            failed.stderr
        );
        assert!(!said.contains("prune"), "{}", failed.stderr);
    }
}

/// Where the state of the builder `c` lies on this machine.
fn state_of(shop: &Workshop) -> PathBuf {
    let volume = format!("{CONTAINER}_state");
    let format = "--format={{.Mountpoint}}";
    let point = shop.engine.docker(&["volume", "inspect", format, &volume]);
    PathBuf::from(point)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    found
}

/// Leaves things as a server leaves them that is killed, or whose machine is, at a bad moment.
fn plant_half_made_things(state: &Path) {
    let write = |path: &str, bytes: &[u8]| {
        let path = state.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write("buildkitd.lock", b"\0\0garbage 4711\n");
    write("v1/content/ingest/half", b"half a blob");
    write("v1/content/superblock.new", b"{\"for");
    write("v1/layers/layers/stray/etc/passwd", b"nobody knows me");
    write("v1/layers/layers/no-directory", b"");
    write("v1/layers/new/staged/upper/file", b"half a layer");
    write("v1/layers/trash/old/file", b"nearly gone");
    write("v1/layers/mounts/left/merged/file", b"not mounted any more");
    write("v1/cache-mounts/.gone-x/file", b"nearly gone");
    write("v1/cache-mounts/0123/.new-x/fs/file", b"half a cache");
    write("v1/cache-mounts/0123/0/note", b"{\"na");
    write("v1/cache-mounts/file", b"");
    write("v1/tmp/staging/half.tar", b"half an export");
    write("v1/executor/scratch/x", b"");
    for database in ["layers/layers.db", "keys.db", "history.db"] {
        // What a log was cut off in: frames that were never finished.
        let log = state.join(format!("v1/{database}-wal"));
        if let Ok(file) = std::fs::File::options().write(true).open(&log) {
            let length = file.metadata().unwrap().len();
            if length > 0 {
                file.set_len(length - 1000.min(length / 2)).unwrap();
            }
        } else {
            std::fs::write(&log, b"\x37\x7f\x06\x82\0\x2d\xe2\x18 cut off").unwrap();
        }
    }
    // A machine that lost its power has blobs that are shorter than they were.
    let blobs = state.join("v1/content/blobs/sha256");
    for blob in entries(&blobs) {
        let file = std::fs::File::options().write(true).open(&blob).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }
}

#[test]
fn half_made_state_is_swept_and_the_rest_is_used() {
    let shop = Workshop::open();
    shop.cooperage
        .ok(&["create", "--name=c", "--use", "--bootstrap"]);
    let context = shop.context_with_busybox("state", &[("Dockerfile", &dockerfile(""))]);
    let archive = shop.lab.directory().join("image.tar");
    let output = format!("type=oci,dest={}", text(&archive));
    let build = || {
        let _ = std::fs::remove_file(&archive);
        shop.cooperage
            .ok(&["build", "--progress=plain", "-o", &output, &context])
            .stderr
    };
    build();
    let whole = std::fs::read(&archive).unwrap();
    for killed in [false, true] {
        match killed {
            false => shop.engine.docker(&["stop", CONTAINER]),
            true => shop.engine.docker(&["kill", CONTAINER]),
        };
        let state = state_of(&shop);
        plant_half_made_things(&state);
        let again = build();
        // A log that was cut off may have taken the newest records with it; all else is there.
        if !killed {
            assert_eq!(again.matches("CACHED").count(), 2, "{again}");
        }
        let rebuilt = std::fs::read(&archive).unwrap();
        assert_eq!(rebuilt.len(), whole.len(), "another image");
        shop.cooperage.ok(&["du"]);
        for gone in [
            "v1/content/ingest/half",
            "v1/layers/layers/stray",
            "v1/layers/new/staged",
            "v1/layers/mounts/left",
            "v1/cache-mounts/.gone-x",
            "v1/cache-mounts/0123/.new-x",
            "v1/tmp/staging/half.tar",
        ] {
            let start = std::time::Instant::now();
            while state.join(gone).exists() {
                // Much is removed in the background.
                assert!(start.elapsed().as_secs() < 20, "{gone} is still there");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        let cached = build();
        assert_eq!(cached.matches("CACHED").count(), 2, "{cached}");
    }
    shop.cooperage.ok(&["prune", "--force", "--all"]);
    build();
    shop.cooperage.ok(&["rm", "c"]);
    assert_eq!(shop.engine.docker(&["volume", "ls", "-q"]), "");
}

#[test]
fn damaged_databases_cost_the_cache_and_nothing_else() {
    let shop = Workshop::open();
    shop.cooperage
        .ok(&["create", "--name=c", "--use", "--bootstrap"]);
    let context = shop.context_with_busybox("state", &[("Dockerfile", &dockerfile(""))]);
    let build = || {
        let args = ["build", "--progress=plain", &context];
        let said = shop.cooperage.ok(&args).stderr;
        said.matches("CACHED").count()
    };
    assert_eq!(build(), 0);
    for (database, cached) in [("history.db", 2), ("keys.db", 0), ("layers/layers.db", 0)] {
        shop.engine.docker(&["stop", CONTAINER]);
        let path = state_of(&shop).join("v1").join(database);
        std::fs::write(&path, vec![0xa5; 8192]).unwrap();
        assert_eq!(build(), cached, "{database}");
        assert_eq!(build(), 2, "{database}");
    }
}

#[test]
fn state_of_a_newer_version_is_refused_in_clear_words() {
    let shop = Workshop::open();
    shop.cooperage
        .ok(&["create", "--name=c", "--use", "--bootstrap"]);
    for part in ["content", "layers"] {
        shop.engine.docker(&["stop", CONTAINER]);
        let superblock = state_of(&shop).join(format!("v1/{part}/superblock"));
        let known = std::fs::read(&superblock).unwrap();
        std::fs::write(&superblock, "{\"format\":99}").unwrap();
        let failed = shop.cooperage.fails(&["inspect", "--bootstrap"]).stderr;
        assert!(failed.contains("has format 99"), "{failed}");
        assert!(failed.contains("knows format"), "{failed}");
        shop.engine.docker(&["stop", CONTAINER]);
        std::fs::write(&superblock, known).unwrap();
        shop.cooperage.ok(&["inspect", "--bootstrap"]);
    }
}
