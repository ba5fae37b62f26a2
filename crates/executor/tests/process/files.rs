//! Mounts, stubs, hosts and resolver files.

use crate::harness::Bench;
use executor::{MountFlags, MountSource, ProcessMount};

crate::harness::tests![
    the_usual_file_systems_are_there,
    hosts_and_resolver_are_given_and_leave_nothing,
    a_file_that_a_step_puts_in_the_place_of_a_stub_stays,
    bind_mounts_are_seen_where_asked,
    a_selector_cannot_lead_out_of_its_source,
    mount_points_cannot_lead_out_of_the_root,
    stubs_are_removed_and_recursively_when_asked,
    a_directory_keeps_its_times_around_a_stub,
    tmpfs_has_its_size_and_shm_can_be_replaced,
    secrets_are_in_memory_only,
    sockets_can_be_given,
    a_read_only_root_cannot_be_written,
    mounts_in_proc_and_over_the_root_are_refused,
    devices_are_there_also_where_a_step_covers_them,
    mount_points_inside_of_mounts_are_made_there,
];

fn the_usual_file_systems_are_there() {
    let bench = Bench::new();
    let outcome = bench.run(bench.script(
        "cat /proc/self/mounts; ls -l /dev; df -k /dev/shm | tail -1; ls -ld /dev/shm /dev/null; \
         head -c1 /dev/zero | wc -c; echo x > /dev/null; ls -d /dev/fd/0 /dev/stdin",
    ));
    let text = outcome.ok();
    for start in [
        "proc /proc proc rw,nosuid,nodev,noexec",
        "tmpfs /dev tmpfs rw,nosuid",
        "devpts /dev/pts devpts rw,nosuid,noexec",
        "tmpfs /dev/shm tmpfs rw,nosuid,nodev,noexec",
        "mqueue /dev/mqueue mqueue rw,nosuid,nodev,noexec",
        "sysfs /sys sysfs ro,nosuid,nodev,noexec",
    ] {
        assert!(
            text.lines().any(|l| l.starts_with(start)),
            "{start}: {text}"
        );
    }
    assert!(text.contains("65536"), "{text}");
    assert!(text.contains("drwxrwxrwt"), "{text}");
    assert_eq!(bench.left_in_root(), ["/dev", "/etc", "/proc", "/sys"]);
}

fn hosts_and_resolver_are_given_and_leave_nothing() {
    let bench = Bench::new();
    let mut spec =
        bench.script("cat /etc/hosts; hostname; cat /etc/resolv.conf; echo x >> /etc/hosts");
    spec.hostname = "mine".to_owned();
    spec.extra_hosts = vec![
        ("db".to_owned(), "10.1.2.3".to_owned()),
        ("six".to_owned(), "fd00::7".to_owned()),
    ];
    let outcome = bench.run(spec.clone());
    let own = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    let own = if own.ends_with('\n') || own.is_empty() {
        own
    } else {
        own + "\n"
    };
    assert_eq!(
        outcome.stdout,
        format!(
            "127.0.0.1\tlocalhost mine\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             10.1.2.3\tdb\nfd00::7\tsix\nmine\n{own}"
        )
    );
    assert_eq!(outcome.code(), 1, "hosts can be written: {outcome:?}");
    assert_eq!(bench.left_in_root(), ["/dev", "/etc", "/proc", "/sys"]);
    if executor::default_gateway().is_some() {
        spec.extra_hosts = vec![("gw".to_owned(), "host-gateway".to_owned())];
        assert!(bench.run(spec).stdout.contains("\tgw\n"));
    }
}

fn a_file_that_a_step_puts_in_the_place_of_a_stub_stays() {
    let bench = Bench::new();
    std::fs::create_dir(bench.root().join("etc")).unwrap();
    std::fs::write(bench.root().join("etc/hosts"), "").unwrap();
    bench.run(bench.script("true")).ok();
    // It was there before, empty, and is not ours to remove.
    assert!(bench.root().join("etc/hosts").exists());
    assert!(!bench.root().join("etc/resolv.conf").exists());
}

fn bind_mounts_are_seen_where_asked() {
    let bench = Bench::new();
    let source = bench.dir.path().join("source");
    std::fs::create_dir_all(source.join("sub")).unwrap();
    std::fs::write(source.join("sub/file"), "content").unwrap();
    let mut spec = bench.script("cat /in/file /one; echo new > /in/new; echo new > /ro/new");
    let mut selected = ProcessMount::bind(&source, "/in");
    selected.selector = "sub".to_owned();
    spec.mounts = vec![
        selected,
        ProcessMount::bind(source.join("sub/file"), "/one").readonly(),
        ProcessMount::bind(&source, "/ro").readonly(),
    ];
    let outcome = bench.run(spec);
    assert_eq!(outcome.stdout, "contentcontent");
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{outcome:?}"
    );
    assert!(source.join("sub/new").exists());
    assert!(!source.join("new").exists());
    assert_eq!(bench.left_in_root(), ["/dev", "/etc", "/proc", "/sys"]);
}

fn a_selector_cannot_lead_out_of_its_source() {
    let bench = Bench::new();
    let source = bench.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::os::unix::fs::symlink("/etc", source.join("link")).unwrap();
    let mut spec = bench.script("ls /in");
    let mut mount = ProcessMount::bind(&source, "/in");
    mount.selector = "link".to_owned();
    spec.mounts = vec![mount];
    let error = bench.run(spec).error();
    assert_eq!(error, "mounting /in: link: no such file or directory");
}

fn mount_points_cannot_lead_out_of_the_root() {
    let bench = Bench::new();
    let outside = bench.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, bench.root().join("link")).unwrap();
    let mut spec = bench.script("touch /link/made/here");
    spec.mounts = vec![ProcessMount::new(
        MountSource::Tmpfs { size: 0 },
        "/link/made",
    )];
    bench.run(spec).ok();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

fn stubs_are_removed_and_recursively_when_asked() {
    let bench = Bench::new();
    let tmpfs = |dest: &str| ProcessMount::new(MountSource::Tmpfs { size: 0 }, dest);
    let mut spec = bench.script("touch /a/b/c/x");
    spec.mounts = vec![tmpfs("/a/b/c")];
    bench.run(spec.clone()).ok();
    assert_eq!(
        bench.left_in_root(),
        ["/a", "/a/b", "/dev", "/etc", "/proc", "/sys"]
    );
    std::fs::remove_dir_all(bench.root().join("a")).unwrap();
    spec.remove_mount_stubs_recursive = true;
    bench.run(spec.clone()).ok();
    // Stock's flag takes `/etc` with it too, when it was made for the stubs in it.
    assert_eq!(bench.left_in_root(), ["/dev", "/etc", "/proc", "/sys"]);
    // What a step put there stays, with all above it.
    spec.args[2] = "touch /a/b/y".to_owned();
    bench.run(spec).ok();
    assert_eq!(bench.left_in_root()[..3], ["/a", "/a/b", "/a/b/y"]);
}

fn a_directory_keeps_its_times_around_a_stub() {
    let bench = Bench::new();
    let etc = bench.root().join("etc");
    std::fs::create_dir(&etc).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    std::fs::File::open(&etc)
        .unwrap()
        .set_modified(old)
        .unwrap();
    bench.run(bench.script("true")).ok();
    assert_eq!(std::fs::metadata(&etc).unwrap().modified().unwrap(), old);
}

fn tmpfs_has_its_size_and_shm_can_be_replaced() {
    let bench = Bench::new();
    let mut spec =
        bench.script("df -k /t /dev/shm | awk '{print $2}'; stat -c %a /t /dev/shm /old");
    std::fs::create_dir(bench.root().join("old")).unwrap();
    spec.mounts = vec![
        ProcessMount::new(MountSource::Tmpfs { size: 1 << 20 }, "/t"),
        ProcessMount::new(MountSource::Tmpfs { size: 2 << 20 }, "/dev/shm"),
        ProcessMount::new(MountSource::Tmpfs { size: 0 }, "/old"),
    ];
    assert_eq!(
        bench.run(spec).ok(),
        "1K-blocks\n1024\n2048\n1777\n1777\n755\n"
    );
}

fn secrets_are_in_memory_only() {
    let bench = Bench::new();
    let secret = |text: &str, mode: u32| MountSource::File {
        data: diag::Secret::new(text.as_bytes().to_vec()),
        uid: 5,
        gid: 6,
        mode,
    };
    let mut mounts = vec![
        ProcessMount::new(secret("hunter2", 0o400), "/run/secrets/a").readonly(),
        ProcessMount::new(secret("", 0o444), "/run/secrets/b").readonly(),
        ProcessMount::new(secret("", 0o440), "/run/secrets/c").readonly(),
    ];
    for mount in &mut mounts {
        mount.flags = MountFlags::RESTRICTED;
    }
    assert!(!format!("{mounts:?}").contains("hunter2"));
    let mut spec = bench.script(
        "cat /run/secrets/a; stat -c ' %u:%g:%a:%s' /run/secrets/*; grep secrets /proc/self/mounts | cut -d' ' -f3,4",
    );
    spec.mounts = mounts;
    let outcome = bench.run(spec);
    assert!(
        outcome
            .ok()
            .starts_with("hunter2 5:6:400:7\n 5:6:444:0\n 5:6:440:0\n"),
        "{}",
        outcome.stdout
    );
    let tmpfs = outcome
        .stdout
        .lines()
        .filter(|l| l.starts_with("tmpfs ro,nosuid,nodev,noexec"));
    assert_eq!(tmpfs.count(), 3, "{}", outcome.stdout);
    assert_eq!(
        bench.left_in_root(),
        ["/dev", "/etc", "/proc", "/run", "/run/secrets", "/sys"]
    );
}

fn sockets_can_be_given() {
    use std::io::Read;
    let bench = Bench::new();
    let path = bench.dir.path().join("agent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut spec = bench.script("echo hello | nc local:/run/agent || test -S /run/agent");
    spec.mounts = vec![ProcessMount::new(MountSource::Socket(path), "/run/agent")];
    let reader = std::thread::spawn(move || {
        listener.set_nonblocking(true).unwrap();
        let mut text = String::new();
        // Busybox may be built without unix sockets in `nc`; being there is enough then.
        if let Ok((mut stream, _)) = listener.accept() {
            stream.read_to_string(&mut text).unwrap();
        }
    });
    bench.run(spec).ok();
    reader.join().unwrap();
}

fn a_read_only_root_cannot_be_written() {
    let bench = Bench::new();
    let mut spec = bench.script("touch /x; touch /w/x && echo ok");
    spec.readonly_rootfs = true;
    spec.mounts = vec![ProcessMount::new(MountSource::Tmpfs { size: 0 }, "/w")];
    let outcome = bench.run(spec);
    assert_eq!(outcome.ok(), "ok\n");
    assert!(outcome.stderr.contains("Read-only"), "{outcome:?}");
}

fn mounts_in_proc_and_over_the_root_are_refused() {
    let bench = Bench::new();
    for dest in ["/", "/proc/sys", "/x/../proc/1"] {
        let mut spec = bench.script("true");
        spec.mounts = vec![ProcessMount::new(MountSource::Tmpfs { size: 0 }, dest)];
        assert!(bench.run(spec).result.is_err(), "{dest}");
    }
    std::os::unix::fs::symlink("../proc", bench.root().join("way")).unwrap();
    let mut spec = bench.script("true");
    spec.mounts = vec![ProcessMount::new(MountSource::Tmpfs { size: 0 }, "/way/1")];
    let error = bench.run(spec).error();
    assert_eq!(error, "mounting /way/1: it is inside /proc");
    std::fs::remove_dir(bench.root().join("proc")).unwrap();
    std::os::unix::fs::symlink("/bin", bench.root().join("proc")).unwrap();
    let error = bench.run(bench.script("true")).error();
    assert_eq!(error, "mounting /proc: it must be an ordinary directory");
}

/// Memory is filled with the usual devices, as runc does it; a folder is taken as it is.
fn devices_are_there_also_where_a_step_covers_them() {
    let bench = Bench::new();
    let mut spec = bench.script("test -c /dev/null && test -d /dev/pts && cat && echo ok");
    spec.mounts = vec![ProcessMount::new(MountSource::Tmpfs { size: 0 }, "/dev")];
    assert_eq!(bench.run(spec).ok(), "ok\n");
    let empty = bench.dir.path().join("dev");
    std::fs::create_dir(&empty).unwrap();
    let mut spec = bench.script("test -e /dev/null || cat && echo ok");
    spec.mounts = vec![ProcessMount::bind(&empty, "/dev")];
    assert_eq!(bench.run(spec).ok(), "ok\n");
}

fn mount_points_inside_of_mounts_are_made_there() {
    let bench = Bench::new();
    let cache = bench.dir.path().join("cache");
    std::fs::create_dir(&cache).unwrap();
    let mut spec = bench.script("touch /c/deep/er/x");
    spec.mounts = vec![
        ProcessMount::bind(&cache, "/c"),
        ProcessMount::new(MountSource::Tmpfs { size: 0 }, "/c/deep/er"),
    ];
    bench.run(spec).ok();
    assert!(cache.join("deep/er").is_dir());
    assert!(!bench.root().join("c").exists());
}
