//! Steps on a bridge of their own, in the lab's network.

use llb::NetMode;

use super::{Case, Matrix};

/// A machine that the lab's network reaches and that knows no way back to steps: it sees whoever
/// asks it, so only who comes masqueraded is answered. It serves what it sees as a page.
const FAR: &str = "unshare --net sh -c 'readlink /proc/self/ns/net >\"$1/namespace\"; echo $$ >\"$1/pid\"; until ip link show far1 >/dev/null 2>&1; do sleep 0.05; done; \
    ip addr add 198.51.100.2/24 dev far1; ip link set far1 up; mkdir -p \"$1/cgi-bin\"; \
    printf \"#!/bin/sh\\necho; echo seen \\$REMOTE_ADDR\\n\" >\"$1/cgi-bin/who\"; chmod 755 \"$1/cgi-bin/who\"; \
    echo ready >\"$1/ready\"; exec \"$2\" httpd -f -p 198.51.100.2:80 -h \"$1\"' far \"$1\" \"$2\" & \
    until [ -s \"$1/pid\" ]; do sleep 0.05; done; \
    ip link add far0 type veth peer name far1 netns \"$(cat \"$1/pid\")\"; \
    ip addr add 198.51.100.1/24 dev far0; ip link set far0 up; wait";

/// That machine; it ends with its shell.
struct Far(std::process::Child);

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_far(matrix: &Matrix) -> Far {
    let directory = matrix.shop.lab.subdirectory("far");
    let busybox = testkit::Peers::find().busybox("amd64");
    let mut command = matrix.shop.lab.command("sh");
    command
        .args(["-c", FAR, "far"])
        .arg(&directory)
        .arg(busybox);
    let far = Far(command.spawn().unwrap());
    let start = std::time::Instant::now();
    while !directory.join("ready").exists() {
        assert!(
            start.elapsed() < std::time::Duration::from_secs(20),
            "no far machine"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    far
}

fn case(matrix: &Matrix, name: &str, script: &str, network: NetMode) -> Case {
    Case::of(name, matrix, |llb| {
        let step = llb.step(script).change(|exec| {
            exec.network = network;
            if network == NetMode::Unset {
                exec.extra_hosts = vec![("gate".into(), "host-gateway".into())];
            }
        });
        llb.run(step)
    })
}

#[test]
fn matrix_steps_on_a_bridge_have_a_network_of_their_own_and_reach_others_masqueraded() {
    let matrix = Matrix::alone(
        testkit::Release::Debian,
        &[
            "--oci-worker-net=bridge",
            "--allow-insecure-entitlement=network.host",
        ],
    );
    let _far = start_far(&matrix);
    let script = "ls /sys/class/net >/out/links; ip -4 addr show eth0 | grep -o 'inet [^ ]*' >/out/address; \
                  ip route >/out/routes; grep gate /etc/hosts >/out/gate; \
                  wget -q -O /out/seen http://198.51.100.2/cgi-bin/who; \
                  wget -q -O /out/registry http://10.88.0.1:5000/v2/";
    let built = matrix
        .build(&case(&matrix, "one", script, NetMode::Unset))
        .unwrap()
        .join("\n");
    for expected in [
        "\"eth0\\nlo\\n\"",
        "inet 10.10.0.",
        "default via 10.10.0.1 dev eth0",
        "\"10.10.0.1\\tgate\\n\"",
        "\"seen 198.51.100.1\\n\"",
        "\"{}\"",
    ] {
        assert!(built.contains(expected), "{expected}: {built}");
    }
    let other = case(
        &matrix,
        "two",
        &format!("{script}; : again"),
        NetMode::Unset,
    );
    let other = matrix.build(&other).unwrap().join("\n");
    let address = |built: &str| {
        let line = built
            .lines()
            .find(|line| line.starts_with("/address"))
            .unwrap();
        line.to_owned()
    };
    assert_ne!(
        address(&built),
        address(&other),
        "each step has an address of its own"
    );
    let none = case(
        &matrix,
        "none",
        "ls /sys/class/net >/out/links",
        NetMode::None,
    );
    assert!(
        matrix
            .build(&none)
            .unwrap()
            .join("\n")
            .contains("\"lo\\n\"")
    );
    let host = case(
        &matrix,
        "host",
        "ls /sys/class/net >/out/links",
        NetMode::Host,
    );
    let host = matrix
        .build(&host.flags(&["--allow", "network.host"]))
        .unwrap()
        .join("\n");
    assert!(
        host.contains("docker0") && host.contains("buildkit0"),
        "{host}"
    );
}

/// The far machine's network namespace, by a process in it.
fn namespace_of_far(matrix: &Matrix) -> std::path::PathBuf {
    let name = matrix.shop.lab.subdirectory("far").join("namespace");
    let name = std::fs::read_to_string(name).unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut namespaces = processes.map(|process| process.path().join("ns/net"));
    let is_it = |path: &std::path::PathBuf| {
        std::fs::read_link(path).is_ok_and(|link| link.to_str() == Some(name.trim()))
    };
    namespaces.find(is_it).expect("the far machine runs")
}

#[test]
fn matrix_steps_on_a_bridge_resolve_names_and_reach_what_they_stand_for() {
    let mut matrix = Matrix::alone(testkit::Release::Debian, &[]);
    let _far = start_far(&matrix);
    let far = std::net::Ipv4Addr::new(198, 51, 100, 2);
    testkit::serve_names(&namespace_of_far(&matrix), far, "barrels.far.test", far);
    let config = matrix.shop.lab.directory().join("buildkitd.toml");
    let mut lines = std::fs::read_to_string(&config).unwrap();
    lines += &format!(
        "[worker.oci]\n  networkMode = \"bridge\"\n\
         [dns]\n  nameservers = [\"{far}\"]\n  searchDomains = [\"far.test\"]\n"
    );
    std::fs::write(&config, lines).unwrap();
    matrix.server.kill_and_restart(&[]);
    let script = "cat /etc/resolv.conf >/out/resolver; \
                  wget -q -O /out/full http://barrels.far.test/cgi-bin/who; \
                  wget -q -O /out/short http://barrels/cgi-bin/who; \
                  if nslookup nothing.far.test >/out/nothing; then exit 9; fi";
    let built = matrix.build(&case(&matrix, "names", script, NetMode::Unset));
    let built = built.unwrap().join("\n");
    for expected in [
        "nameserver 198.51.100.2\\n",
        "/full 644 0:0 @now \"seen 198.51.100.1\\n\"",
        "/short 644 0:0 @now \"seen 198.51.100.1\\n\"",
        "NXDOMAIN",
    ] {
        assert!(built.contains(expected), "{expected}: {built}");
    }
}

#[test]
fn matrix_a_bridge_takes_a_network_that_nobody_has_and_survives_a_killed_server() {
    let mut matrix = Matrix::alone(testkit::Release::Debian, &[]);
    let taken = matrix
        .shop
        .lab
        .command("ip")
        .args(["link", "add", "taken", "type", "bridge"])
        .status();
    assert!(taken.unwrap().success());
    for arguments in [
        &["addr", "add", "10.10.7.1/24", "dev", "taken"][..],
        &["link", "set", "taken", "up"],
    ] {
        assert!(
            matrix
                .shop
                .lab
                .command("ip")
                .args(arguments)
                .status()
                .unwrap()
                .success()
        );
    }
    for (turn, more) in [&["--oci-worker-net=bridge"][..], &[]].iter().enumerate() {
        matrix.server.kill_and_restart(more);
        let script = format!(
            "ip route >/out/routes; wget -q -O /out/registry http://10.88.0.1:5000/v2/; : {turn}"
        );
        let built = matrix.build(&case(&matrix, "one", &script, NetMode::Unset));
        let built = built.unwrap_or_else(|error| {
            panic!(
                "{error}
{}",
                matrix.server.log()
            )
        });
        let built = built.join(
            "
",
        );
        assert!(built.contains("default via 10.26.0.1 dev eth0"), "{built}");
    }
}
