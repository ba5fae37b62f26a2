//! What a step can see and do, in the sandbox and out of it.

use crate::harness::{Bench, block_on, no_streams};
use executor::{CgroupLayout, DeviceKind, DeviceNode, MountSource, ProcessMount};
use llb::NetMode;

crate::harness::tests![
    capabilities_are_dockers_as_far_as_we_have_them,
    system_calls_are_filtered,
    paths_are_masked_and_read_only,
    devices_are_the_usual_ones_only,
    a_device_that_was_given_opens_as_it_says,
    an_insecure_step_has_everything,
    an_insecure_user_keeps_capabilities,
    networks_are_the_servers_or_none,
    the_step_has_a_cgroup_and_it_goes_away,
    descriptors_of_the_server_are_not_there,
    the_init_program_cannot_be_overwritten,
    running_out_of_memory_is_told,
    programs_of_other_architectures_run_in_the_sandbox,
];

/// The bounding set of this process.
fn bounding() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("CapBnd:\t"))
        .unwrap();
    u64::from_str_radix(line, 16).unwrap()
}

fn capabilities_are_dockers_as_far_as_we_have_them() {
    let bench = Bench::new();
    let outcome = bench.run(bench.script("grep ^Cap /proc/self/status"));
    let expected = bounding() & 0xa804_25fb;
    assert_eq!(
        outcome.ok(),
        format!(
            "CapInh:\t0000000000000000\nCapPrm:\t{expected:016x}\nCapEff:\t{expected:016x}\n\
             CapBnd:\t{expected:016x}\nCapAmb:\t0000000000000000\n"
        )
    );
}

fn system_calls_are_filtered() {
    let bench = Bench::new();
    for script in [
        "mount -t tmpfs x /tmp",
        "unshare -m true",
        "chroot /bin/nowhere true",
    ] {
        let outcome = bench.run(bench.script(&format!("mkdir -p /tmp; {script}")));
        assert!(outcome.code() != 0, "{script}");
    }
    let outcome = bench.run(bench.script("mkdir -p /tmp; unshare -m true"));
    assert!(
        outcome.stderr.contains("Operation not permitted"),
        "{outcome:?}"
    );
    bench
        .run(bench.script("mkdir -p /r/bin; cp /bin/busybox /r/bin/sh; chroot /r /bin/sh -c :"))
        .ok();
}

fn paths_are_masked_and_read_only() {
    let bench = Bench::new();
    let outcome = bench.run(bench.script(
        "wc -c < /proc/keys; ls /sys/firmware | wc -l; \
         echo 0 > /proc/sys/kernel/printk; echo h > /proc/sysrq-trigger; echo x > /sys/power/state",
    ));
    assert_eq!(outcome.stdout, "0\n0\n");
    assert!(
        outcome.stderr.matches("Read-only file system").count() >= 2,
        "{outcome:?}"
    );
}

fn devices_are_the_usual_ones_only() {
    let bench = Bench::new();
    // The disk of this machine, by whatever number it has.
    let partitions = std::fs::read_to_string("/proc/partitions").unwrap();
    let disk: Vec<&str> = partitions
        .lines()
        .nth(2)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let [major, minor, ..] = disk[..] else {
        return;
    };
    let outcome = bench.run(bench.script(&format!(
        "mknod /disk b {major} {minor}; head -c 1 /disk | wc -c; \
         mknod /dev/disk b {major} {minor}; head -c 1 /dev/disk | wc -c"
    )));
    assert_eq!(outcome.ok(), "0\n0\n", "{outcome:?}");
    assert!(outcome.stderr.contains("not permitted") || outcome.stderr.contains("denied"));
    if bench.executor.cgroup_layout() != CgroupLayout::None {
        let script = "mknod /null c 1 3 && echo x > /null && echo fine";
        assert_eq!(bench.run(bench.script(script)).ok(), "fine\n");
    }
}

fn a_device_that_was_given_opens_as_it_says() {
    let bench = Bench::new();
    let partitions = std::fs::read_to_string("/proc/partitions").unwrap();
    let disks = partitions.lines().skip(2).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [major, minor, _, name] = words[..] else {
            return None;
        };
        let path = std::path::PathBuf::from(format!("/dev/{name}"));
        // In a container this process may not open it either.
        std::fs::File::open(&path).ok()?;
        Some((major.parse().ok()?, minor.parse().ok()?, path))
    });
    let Some((major, minor, host_path)) = disks else {
        return;
    };
    let mut spec = bench.script(
        "head -c 1 /dev/own | wc -c; (: >> /dev/own) 2> /dev/null && echo written; \
         stat -c '%F %a %u:%g' /dev/own /opt/pipe",
    );
    let node = DeviceNode {
        kind: DeviceKind::Block,
        major,
        minor,
        mode: 0o640,
        uid: 0,
        gid: 7,
        read: true,
        write: false,
        host_path,
    };
    let pipe = DeviceNode {
        kind: DeviceKind::Fifo,
        major: 0,
        minor: 0,
        ..node.clone()
    };
    for (node, dest) in [(node, "/dev/own"), (pipe, "/opt/pipe")] {
        let mount = ProcessMount::new(MountSource::Device(node), dest);
        spec.mounts.push(mount);
    }
    let outcome = bench.run(spec);
    let nodes = "block special file 640 0:7\nfifo 640 0:7\n";
    let written = match bench.executor.cgroup_layout() {
        // Without one only the node itself says who may do what.
        CgroupLayout::None => "written\n",
        _ => "",
    };
    assert_eq!(outcome.ok(), format!("1\n{written}{nodes}"));
    assert_eq!(
        bench.left_in_root(),
        ["/dev", "/etc", "/opt", "/proc", "/sys"]
    );
}

fn an_insecure_step_has_everything() {
    let bench = Bench::new();
    let mut spec = bench.script(
        "grep -E '^(CapEff|Seccomp):' /proc/self/status; mkdir -p /tmp; mount -t tmpfs x /tmp && echo mounted; \
         test -c /dev/kmsg && echo kmsg; test -w /proc/sys/kernel/printk && cat /proc/sys/kernel/printk > /proc/sys/kernel/printk && echo wrote",
    );
    spec.insecure = true;
    let expected = format!(
        "CapEff:\t{:016x}\nSeccomp:\t0\nmounted\nkmsg\nwrote\n",
        bounding()
    );
    assert_eq!(bench.run(spec).ok(), expected);
}

fn an_insecure_user_keeps_capabilities() {
    let bench = Bench::new();
    let mut spec = bench.script("id -u; grep ^CapEff /proc/self/status");
    spec.insecure = true;
    spec.user.uid = 1000;
    assert_eq!(
        bench.run(spec).ok(),
        format!("1000\nCapEff:\t{:016x}\n", bounding())
    );
}

fn networks_are_the_servers_or_none() {
    let bench = Bench::new();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let mut spec =
        bench.script("readlink /proc/self/ns/net; ip link | grep -c '^[0-9]'; ip link show lo");
    for mode in [NetMode::Unset, NetMode::Host] {
        spec.network = mode;
        assert!(
            bench
                .run(spec.clone())
                .ok()
                .starts_with(own.to_str().unwrap())
        );
    }
    spec.network = NetMode::None;
    let outcome = bench.run(spec);
    assert!(!outcome.ok().starts_with(own.to_str().unwrap()));
    assert!(outcome.stdout.contains("LOOPBACK,UP"), "{}", outcome.stdout);
}

fn the_step_has_a_cgroup_and_it_goes_away() {
    let bench = Bench::new();
    let outcome = bench.run(bench.script("cat /proc/self/cgroup; ls /sys/fs/cgroup"));
    outcome.ok();
    if bench.executor.cgroup_layout() == CgroupLayout::None {
        return;
    }
    let status = outcome.result.as_ref().unwrap();
    if std::path::Path::new("/sys/fs/cgroup/memory").exists() {
        let own = outcome.stdout.lines().find(|l| l.contains(":memory:"));
        let own = own.unwrap();
        assert!(
            status.memory_peak.is_some_and(|peak| peak > 0),
            "{status:?}"
        );
        let path = own.split(':').nth(2).unwrap();
        assert!(
            path.contains("/cooperage/") && path.contains("/step-"),
            "{own}"
        );
        assert!(!std::path::Path::new(&format!("/sys/fs/cgroup/memory{path}")).exists());
    }
    let mut spec = bench.script("sleep 1000");
    spec.cgroup_parent = "/cooperage-test-parent".to_owned();
    let cgroups = block_on(async {
        let process = bench.executor.start("step", spec, no_streams()).await;
        let mut process = process.unwrap();
        let pid = process.started().await.unwrap().unwrap();
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        process.kill();
        assert_eq!(process.wait().await.unwrap().signal, Some(9));
        cgroups
    });
    assert!(
        cgroups.contains("/cooperage-test-parent/cooperage-"),
        "{cgroups}"
    );
    remove_test_parents();
}

/// Parents that were asked for are the user's: they stay.
fn remove_test_parents() {
    for top in ["/sys/fs/cgroup".to_owned()].into_iter().chain(
        std::fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .map(|e| e.unwrap().path().to_str().unwrap().to_owned()),
    ) {
        let _ = std::fs::remove_dir(format!("{top}/cooperage-test-parent"));
    }
}

fn descriptors_of_the_server_are_not_there() {
    let bench = Bench::new();
    let outcome = bench.run(bench.script("ls -l /proc/self/fd /proc/1/fd"));
    // Three streams each, and what `ls` itself has open.
    let count = outcome.ok().lines().filter(|l| l.contains("->")).count();
    assert!(count <= 7, "{}", outcome.stdout);
}

fn the_init_program_cannot_be_overwritten() {
    let bench = Bench::new();
    // The program that a link to itself names is the init program, seen from inside.
    let outcome = bench.run(bench.command(&["/proc/self/exe", "--list"]));
    drop(outcome);
    let mut spec = bench.script("/hold & sleep 0; echo x >> /proc/$!/exe; echo $?; kill $!");
    std::os::unix::fs::symlink("/proc/self/exe", bench.root().join("hold")).unwrap();
    spec.insecure = true;
    let own = std::fs::read("/proc/self/exe").unwrap();
    bench.run(spec);
    assert!(own == std::fs::read("/proc/self/exe").unwrap());
}

fn running_out_of_memory_is_told() {
    let bench = Bench::new();
    if bench.executor.cgroup_layout() == CgroupLayout::None {
        return;
    }
    // A parent with a limit, as a builder's container has it.
    let tops = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];
    let Some(top) = tops.iter().find(|t| {
        std::path::Path::new(t)
            .join("memory.limit_in_bytes")
            .exists()
            || std::path::Path::new(t).join("memory.stat").exists()
    }) else {
        return;
    };
    let parent = std::path::Path::new(top).join("cooperage-test-parent");
    std::fs::create_dir_all(&parent).unwrap();
    let limit = (32u64 << 20).to_string();
    let file = match parent.join("memory.limit_in_bytes") {
        file if file.exists() => file,
        _ => parent.join("memory.max"),
    };
    std::fs::write(file, &limit).unwrap();
    let mut spec = bench.script("head -c 200000000 /dev/zero | tail -n 1 | wc -c");
    spec.args = ["/bin/tail", "-n", "1", "/dev/zero"]
        .map(str::to_owned)
        .into();
    spec.cgroup_parent = "/cooperage-test-parent".to_owned();
    let outcome = bench.run(spec);
    let error = outcome.error();
    assert!(error.contains("limit 32 MiB"), "{error}");
    assert!(matches!(
        outcome.result,
        Err(executor::ExecError::OutOfMemory { exit_code: 137, .. })
    ));
    remove_test_parents();
}

/// A program of one segment: class 1 (32 bits) or 2 (64 bits), little-endian.
fn program(class: u8, machine: u16, flags: u32, code: &[u8]) -> Vec<u8> {
    let wide = class == 2;
    let (header, segment): (u64, u64) = if wide { (64, 56) } else { (52, 32) };
    let base = 0x40_0000;
    let size = header + segment + code.len() as u64;
    let mut out = vec![
        0x7f, b'E', b'L', b'F', class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let word = |out: &mut Vec<u8>, value: u64| out.extend_from_slice(&(value as u32).to_le_bytes());
    let address = |out: &mut Vec<u8>, value: u64| {
        let bytes = value.to_le_bytes();
        out.extend_from_slice(&bytes[..if wide { 8 } else { 4 }]);
    };
    out.extend_from_slice(&[2, 0]);
    out.extend_from_slice(&machine.to_le_bytes());
    word(&mut out, 1);
    for value in [base + header + segment, header, 0] {
        address(&mut out, value);
    }
    word(&mut out, flags.into());
    for half in [header, segment, 1, 0, 0, 0] {
        out.extend_from_slice(&(half as u16).to_le_bytes());
    }
    word(&mut out, 1);
    if wide {
        word(&mut out, 5);
    }
    for value in [0, base, base, size, size] {
        address(&mut out, value);
    }
    if !wide {
        word(&mut out, 5);
    }
    address(&mut out, 0x1_0000);
    out.extend_from_slice(code);
    out
}

fn programs_of_other_architectures_run_in_the_sandbox() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    // Each ends with exit code 42.
    let arm64 = [
        0x40, 0x05, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4,
    ];
    let i386 = [0xbb, 42, 0, 0, 0, 0xb8, 1, 0, 0, 0, 0xcd, 0x80];
    let arm = [
        0x2a, 0x00, 0xa0, 0xe3, 0x01, 0x70, 0xa0, 0xe3, 0x00, 0x00, 0x00, 0xef,
    ];
    let programs = [
        ("linux/arm64", program(2, 183, 0, &arm64)),
        ("linux/386", program(1, 3, 0, &i386)),
        ("linux/arm/v7", program(1, 40, 0x0500_0000, &arm)),
    ];
    let platforms: Vec<String> = executor::platforms()
        .iter()
        .map(|p| p.to_string())
        .collect();
    println!("platforms here: {}", platforms.join(" "));
    for (platform, bytes) in programs {
        let path = bench.root().join("foreign");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let result = bench.run(bench.command(&["/foreign"])).result;
        if platforms.iter().any(|p| p == platform) {
            assert_eq!(result.unwrap().code, 42, "{platform}");
        } else {
            let error = diag::Error::from(result.unwrap_err());
            assert_eq!(error.to_string(), "exec /foreign: exec format error");
            assert!(error.hints()[0].contains("emulator"), "{:?}", error.hints());
        }
    }
}
