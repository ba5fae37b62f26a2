//! Processes: what they see, what they leave, how they fail.

use llb::{MountKind, NetMode, ProxyEnv, SecurityMode, Ulimit};

use super::graph::{Llb, Step};
use super::{Case, Matrix};

/// Both servers grant what steps ask for here.
pub const ALLOW: &[&str] = &[
    "--allow-insecure-entitlement=network.host",
    "--allow-insecure-entitlement=security.insecure",
];

fn step_case(matrix: &Matrix, name: &str, script: &str, change: impl FnOnce(Step) -> Step) -> Case {
    Case::of(name, matrix, |llb: &mut Llb| {
        let step = change(llb.step(script));
        llb.run(step)
    })
}

#[test]
fn matrix_processes_see_the_same_machine() {
    let matrix = Matrix::start(ALLOW);
    let case = |name: &str, script: &str| step_case(&matrix, name, script, |step| step);
    let cases = vec![
        case(
            "arguments and streams",
            "echo a >/out/a; echo b >&2; cat >/out/stdin; cat /proc/self/cmdline | tr '\\0' ' ' >/out/cmdline",
        ),
        case("environment", "env | sort >/out/env"),
        case(
            "files of the network",
            "cat /etc/hosts >/out/hosts; stat -c '%a %u %g' /etc/hosts /etc/resolv.conf >/out/modes; hostname >/out/name",
        ),
        case(
            "mount table",
            "cut -d' ' -f2,3 /proc/mounts | grep -v -e '^/ ' -e ' overlay$' -e '^/out ' -e cgroup -e '^/etc/' | sed 's/devtmpfs/tmpfs/' | sort >/out/mounts",
        ),
        case(
            "devices",
            "find /dev | sort >/out/dev; stat -c '%n %a %t %T %u:%g' /dev/* | sort >/out/modes",
        ),
        case(
            "masked paths",
            "for p in /proc/kcore /proc/keys /proc/timer_list /proc/latency_stats; do [ -e $p ] && echo $p $(head -c 1 $p 2>&1 | wc -c); done >/out/masked; ls /sys/firmware /proc/scsi /proc/acpi >/out/dirs 2>&1 || true",
        ),
        case(
            "read-only paths",
            "for p in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/mm/x /proc/irq/x; do (echo x >$p) 2>&1 | sed 's/^.*: //'; done >/out/errors",
        ),
        case(
            "capabilities and privileges",
            "grep -e Cap -e NoNewPrivs -e Seccomp: /proc/self/status >/out/status",
        ),
        case(
            "limits",
            "cut -c1-25 /proc/self/limits >/out/names; umask >/out/umask; ulimit -c >/out/core",
        ),
        case(
            "pid namespace",
            "echo $$ >/out/pid; ls /proc | grep -c '^[0-9]' >/out/count",
        ),
        case(
            "what cannot be done",
            "(mount -t tmpfs x /tmp; mknod /tmp/n b 7 0; hostname other; date -s 2001-01-01; umount /proc) >/out/said 2>&1 || true",
        ),
        case(
            "a device node of a kind that is allowed",
            "mknod /out/null c 1 3; mknod /out/pipe p; mkfifo /out/fifo",
        ),
        case("exit code", "exit 3"),
        case("killed", "kill -9 $$"),
        case("program that is not there", "exec /nonesuch"),
        step_case(&matrix, "no such program", "", |step| {
            step.change(|exec| exec.args = vec!["nonesuch".into()])
        }),
        step_case(&matrix, "no such file", "", |step| {
            step.change(|exec| exec.args = vec!["/non/such".into()])
        }),
        step_case(&matrix, "a directory as program", "", |step| {
            step.change(|exec| exec.args = vec!["/etc".into()])
        }),
        step_case(&matrix, "a file that is not executable", "", |step| {
            step.change(|exec| exec.args = vec!["/etc/passwd".into()])
        }),
        step_case(&matrix, "no program", "", |step| {
            step.change(|exec| exec.args = vec![])
        }),
        step_case(&matrix, "exit code that is fine", "exit 3", |step| {
            step.change(|exec| exec.valid_exit_codes = vec![0, 3])
        }),
        step_case(
            &matrix,
            "exit code that is not among the fine ones",
            "exit 0",
            |step| step.change(|exec| exec.valid_exit_codes = vec![3]),
        ),
        step_case(
            &matrix,
            "host name",
            "hostname >/out/n; cat /etc/hosts >/out/h; cat /proc/sys/kernel/hostname >/out/k",
            |step| step.change(|exec| exec.hostname = "cask".into()),
        ),
        step_case(&matrix, "extra hosts", "cat /etc/hosts >/out/h", |step| {
            step.change(|exec| {
                exec.extra_hosts = vec![
                    ("db".into(), "10.1.2.3".into()),
                    ("six".into(), "fd00::1".into()),
                ]
            })
        }),
        step_case(
            &matrix,
            "extra host without address",
            "cat /etc/hosts >/out/h",
            |step| step.change(|exec| exec.extra_hosts = vec![("db".into(), "nowhere".into())]),
        ),
        step_case(
            &matrix,
            "resource limits",
            "ulimit -n >/out/n; ulimit -Hn >/out/hn; ulimit -c >/out/c",
            |step| {
                step.change(|exec| {
                    exec.ulimits = vec![
                        Ulimit {
                            name: "nofile".into(),
                            soft: 100,
                            hard: 200,
                        },
                        Ulimit {
                            name: "core".into(),
                            soft: 0,
                            hard: 0,
                        },
                    ]
                })
            },
        ),
        step_case(
            &matrix,
            "network none",
            "ls /sys/class/net >/out/n; ip addr 2>/dev/null | grep inet >/out/a",
            |step| step.change(|exec| exec.network = NetMode::None),
        ),
        step_case(&matrix, "network host refused", "true", |step| {
            step.change(|exec| exec.network = NetMode::Host)
        }),
        step_case(&matrix, "insecure refused", "true", |step| {
            step.change(|exec| exec.security = SecurityMode::Insecure)
        }),
        step_case(&matrix, "insecure asked for in vain", "true", |step| step)
            .flags(&["--allow", "nonesuch"]),
        step_case(
            &matrix,
            "proxies",
            "env | grep -i proxy | sort >/out/env",
            |step| {
                step.change(|exec| {
                    exec.proxy_env = Some(ProxyEnv {
                        http_proxy: "http://p:1".into(),
                        https_proxy: "http://p:2".into(),
                        ftp_proxy: "http://p:3".into(),
                        no_proxy: "a,b".into(),
                        all_proxy: "http://p:4".into(),
                    })
                })
            },
        ),
        step_case(
            &matrix,
            "proxies set already",
            "env | grep -i proxy | sort >/out/env",
            |step| {
                step.change(|exec| {
                    exec.env.push("HTTP_PROXY=mine".into());
                    exec.proxy_env = Some(ProxyEnv {
                        http_proxy: "http://p:1".into(),
                        ..ProxyEnv::default()
                    });
                })
            },
        ),
        step_case(
            &matrix,
            "shared memory of its size",
            "df -k /dev/shm | tail -1 | awk '{print $2}' >/out/size; stat -c %a /dev/shm >/out/mode",
            |step| step.with("/dev/shm", MountKind::Tmpfs { size: 4 << 20 }),
        ),
        step_case(
            &matrix,
            "the cgroup it is in",
            "cut -d: -f1 /proc/self/cgroup | sort | tail -1 >/out/n",
            |step| step.change(|exec| exec.cgroup_parent = "/matrix".into()),
        ),
    ];
    matrix.compare(&cases);
}

#[test]
fn matrix_processes_with_more_rights() {
    let matrix = Matrix::start(ALLOW);
    let insecure = |name: &str, script: &str| {
        let case = step_case(&matrix, name, script, |step| {
            step.change(|exec| exec.security = SecurityMode::Insecure)
        });
        case.flags(&["--allow", "security.insecure"])
    };
    let host = |name: &str, script: &str| {
        let case = step_case(&matrix, name, script, |step| {
            step.change(|exec| exec.network = NetMode::Host)
        });
        case.flags(&["--allow", "network.host"])
    };
    let cases = vec![
        insecure(
            "insecure: capabilities",
            "grep -e Cap -e NoNewPrivs -e Seccomp: /proc/self/status >/out/status",
        ),
        insecure(
            "insecure: masked and read-only paths",
            "for p in /proc/kcore /proc/keys /proc/timer_list /sys/firmware /proc/sys /proc/irq; do grep -c \" $p \" /proc/mounts; done >/out/seen || true; \
             grep -e ' /sys ' -e ' /sys/fs/cgroup ' /proc/mounts | cut -d' ' -f2-4 | cut -d, -f1 >/out/sys",
        ),
        insecure(
            "insecure: mounts and devices",
            "mount -t tmpfs x /tmp; touch /tmp/x; umount /tmp; ls /tmp >/out/left; mknod /out/disk b 7 0; hostname other; hostname >/out/name",
        ),
        insecure(
            "insecure: limits",
            "ulimit -n >/out/n; umask >/out/umask; stat -c '%a %t:%T' /dev/null /dev/full /dev/loop-control /dev/loop0 /dev/fuse >/out/dev 2>/dev/null || true",
        ),
        host(
            "network of the host",
            "cut -d: -f1 /proc/net/dev | tail -n +3 | grep -v veth | sort >/out/links; wget -q -O /out/registry http://127.0.0.1:5000/v2/",
        ),
        host(
            "names with the network of the host",
            "cat /etc/hosts >/out/hosts; hostname >/out/name; cat /etc/resolv.conf >/out/resolv",
        ),
    ];
    matrix.compare(&cases);
}

#[test]
fn matrix_users_and_working_directories() {
    let matrix = Matrix::start(&[]);
    let who = "id >/out/id; pwd >/out/pwd; echo $HOME >/out/home; grep Groups /proc/self/status >/out/groups";
    let user = |user: &str| {
        step_case(&matrix, &format!("user {user:?}"), who, |step| {
            // The mount is root's; a user can write where everybody can.
            let step = step.with("/anybody", MountKind::Tmpfs { size: 0 });
            step.change(|exec| {
                exec.user = user.into();
                exec.args[2] = who.replace("/out", "/anybody") + "; cat /anybody/*";
            })
        })
    };
    let mut cases: Vec<Case> = [
        "",
        "app",
        "1000",
        "app:wheel",
        "app:10",
        "1000:1000",
        "4242",
        "4242:4343",
        "root",
        "root:wheel",
        "nobodyatall",
        "app:nogroup",
        ":10",
        "app:",
        "99999999999",
        "-1",
    ]
    .iter()
    .map(|name| user(name))
    .collect();
    // Seen through a file that the user may write: a directory made for it before.
    for name in ["app", "1000", "app:wheel", "4242", "4242:4343", "1000:1000"] {
        let case = Case::of(&format!("files of {name}"), &matrix, |llb| {
            let out = llb.sh("mkdir /out/d; chmod 777 /out/d");
            let mut step = llb.step("id >/out/d/id; pwd >/out/d/pwd; echo $HOME >/out/d/home; echo x >/out/d/x; mkdir /out/d/y");
            step.inputs.push(out);
            step.exec.mounts[1].input = Some(1);
            step.exec.user = name.into();
            llb.run(step)
        });
        cases.push(case);
    }
    for cwd in [
        "/tmp",
        "/made/here",
        "/etc/passwd",
        "/bin/sh/x",
        "/out/inside",
        "/tmp/../etc",
        "/x/../y",
    ] {
        cases.push(
            step_case(
                &matrix,
                &format!("cwd {cwd:?}"),
                "pwd >/out/pwd; stat -c '%a %u:%g %n' . >/out/stat",
                |step| step.change(|exec| exec.cwd = cwd.into()),
            )
            .in_own_words(),
        );
    }
    cases.push(Case::of("cwd made for its user", &matrix, |llb| {
        let out = llb.sh("mkdir -m 777 /out/d");
        let mut step = llb.step("stat -c '%a %u:%g %n' /new /new/dir >/out/d/stat");
        step.inputs.push(out);
        step.exec.mounts[1].input = Some(1);
        step.exec.user = "app".into();
        step.exec.cwd = "/new/dir".into();
        llb.run(step)
    }));
    cases.push(Case::of("cwd through a link", &matrix, |llb| {
        let base = llb.base();
        let linked = llb.file(
            Some(base),
            None,
            llb::FileActionKind::Symlink(llb::SymlinkAction {
                oldpath: "../../../../tmp".into(),
                newpath: "/way".into(),
                ..llb::SymlinkAction::default()
            }),
        );
        let mut step = llb.step("/bin/pwd >/out/pwd; stat -c '%a %n' /tmp/in >/out/stat");
        step.inputs[0] = linked;
        step.exec.cwd = "/way/in".into();
        llb.run(step)
    }));
    matrix.compare(&cases);
}

#[test]
fn matrix_what_the_client_grants_a_process_gets() {
    let matrix = Matrix::alone(testkit::Release::Debian, ALLOW);
    let insecure = step_case(
        &matrix,
        "insecure",
        "mount -t tmpfs x /tmp && touch /tmp/x && umount /tmp; test ! -e /tmp/x; ls /dev | wc -l >/out/devices; \
         grep Seccomp: /proc/self/status | tr -d '\\t' >/out/seccomp; echo 1 >/proc/sys/net/ipv4/ip_forward",
        |step| step.change(|exec| exec.security = SecurityMode::Insecure),
    );
    let refused = matrix.build(&insecure).unwrap_err();
    assert!(
        refused.contains("security.insecure is not allowed"),
        "{refused}"
    );
    let insecure = insecure.flags(&["--allow", "security.insecure"]);
    let built = matrix.build(&insecure).unwrap().join("\n");
    assert!(built.contains("\"Seccomp:0\\n\""), "{built}");
    let host = step_case(
        &matrix,
        "host",
        "ls /sys/class/net >/out/n; cat /proc/net/dev >/out/dev",
        |step| step.change(|exec| exec.network = NetMode::Host),
    );
    let refused = matrix.build(&host).unwrap_err();
    assert!(refused.contains("network.host is not allowed"), "{refused}");
    let built = matrix
        .build(&host.flags(&["--allow", "network.host"]))
        .unwrap()
        .join("\n");
    assert!(
        built.contains("docker0"),
        "the lab's network is seen: {built}"
    );
}

#[test]
fn matrix_a_server_grants_only_what_its_flags_allow() {
    let matrix = Matrix::alone(
        testkit::Release::Debian,
        &["--allow-insecure-entitlement=network.host"],
    );
    let case = step_case(&matrix, "insecure", "true", |step| {
        step.change(|exec| exec.security = SecurityMode::Insecure)
    });
    let refused = matrix
        .build(&case.flags(&["--allow", "security.insecure"]))
        .unwrap_err();
    assert!(
        refused.contains(
            "granting entitlement security.insecure is not allowed by build daemon configuration"
        ),
        "{refused}"
    );
}
