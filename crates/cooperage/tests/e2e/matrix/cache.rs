//! Mounts: files of inputs, caches and who may use them at once, memory.

use std::process::Child;

use llb::{CacheSharing, ContentCache, Edge, Mount, MountKind};

use super::graph::Llb;
use super::{Case, Matrix};

fn at(dest: &str) -> Mount {
    Mount {
        dest: dest.into(),
        ..Mount::default()
    }
}

fn files(llb: &mut Llb) -> Edge {
    llb.sh("cd /out; mkdir -p a/b; echo one >a/one; echo two >a/b/two; echo top >top; ln -s a/b link; ln -s ../../../etc out; chmod 700 a/b; \
            find . -depth | while read f; do touch -h -d '2015-01-02 00:00:00' $f; done")
}

#[test]
fn matrix_mounts_of_files() {
    let matrix = Matrix::start(&[]);
    let case = |name: &str, script: &str, mount: Mount| {
        Case::of(name, &matrix, |llb| {
            let files = files(llb);
            let step = llb.step(script).bind(files, mount);
            llb.run(step)
        })
    };
    let look =
        "cd /in; find * | sort | while read f; do stat -c '%n %a %u:%g %Y' $f; done >/out/seen";
    let write = "cd /in; echo x >new 2>/out/error || echo refused >/out/refused; rm -r a/one 2>/dev/null || true; ls -R >/out/after";
    let mut cases = Vec::new();
    for readonly in [true, false] {
        for (name, script) in [("look", look), ("write", write)] {
            for selector in [
                "",
                "/",
                "/a",
                "a/b",
                "/link",
                "/top",
                "/nonesuch",
                "/out",
                "/a/../a",
            ] {
                let name = format!("{name} readonly={readonly} selector={selector:?}");
                let mount = Mount {
                    selector: selector.into(),
                    readonly,
                    ..at("/in")
                };
                cases.push(case(&name, script, mount));
            }
        }
    }
    for dest in [
        "/in/deep/er",
        "in",
        "/etc",
        "/etc/passwd",
        "/tmp/../in",
        "/proc/x",
        "/dev/x",
        "/bin/sh/x",
        "/in/",
        "/sys/x",
        "/out/in",
    ] {
        cases.push(case(
            &format!("at {dest:?}"),
            "ls /in /etc /dev/x /out >/out/seen 2>&1 || true",
            Mount {
                readonly: true,
                ..at(dest)
            },
        ));
    }
    cases.push(case(
        "a file over a file",
        "cat /etc/hosts >/out/seen",
        Mount {
            readonly: true,
            selector: "/top".into(),
            ..at("/etc/hosts")
        },
    ));
    cases.push(case(
        "a file where nothing is",
        "cat /deep/new >/out/seen",
        Mount {
            readonly: true,
            selector: "/top".into(),
            ..at("/deep/new")
        },
    ));
    cases.push(case(
        "content cache off",
        look,
        Mount {
            readonly: true,
            content_cache: ContentCache::Off,
            ..at("/in")
        },
    ));
    cases.push(case(
        "content cache on",
        look,
        Mount {
            readonly: true,
            content_cache: ContentCache::On,
            ..at("/in")
        },
    ));
    // What is left in the output: changes of a mounted input, stubs of mounts in an output.
    for (name, selector, script) in [
        (
            "an input changed",
            "",
            "cd /in; echo x >new; rm -r a/one; chmod 711 a; touch -d '2016-01-01 00:00:00' new a .",
        ),
        (
            "part of an input changed",
            "/a",
            "cd /in; echo x >new; rm one; touch -d '2016-01-01 00:00:00' new .",
        ),
        ("nothing changed", "", "true"),
    ] {
        cases.push(Case::of(name, &matrix, |llb| {
            let files = files(llb);
            let mut step = llb.step(script);
            step.exec.mounts.pop();
            let step = step.bind(
                files,
                Mount {
                    output: Some(1),
                    selector: selector.into(),
                    ..at("/in")
                },
            );
            llb.run(step)
        }));
    }
    for recursive in [false, true] {
        cases.push(Case::of(
            &format!("stubs of mounts, recursive={recursive}"),
            &matrix,
            |llb| {
                let files = files(llb);
                let mut step = llb.step("ls / >/dev/null");
                step.exec.remove_mount_stubs_recursive = recursive;
                let step = step
                    .bind(
                        files,
                        Mount {
                            readonly: true,
                            ..at("/stub/deep/in")
                        },
                    )
                    .bind(
                        files,
                        Mount {
                            readonly: true,
                            selector: "/top".into(),
                            ..at("/other/file")
                        },
                    )
                    .with("/memory/here", MountKind::Tmpfs { size: 0 })
                    .with("/tmp/there", MountKind::Tmpfs { size: 0 });
                let ran = llb.run_for_root(step);
                let mut look = llb.step("ls -R /memory /other /stub /tmp >/out/left 2>&1 || true");
                look.inputs[0] = ran;
                llb.run(look)
            },
        ));
    }
    for size in [0, 1 << 20] {
        for dest in ["/memory", "/tmp", "/home/app"] {
            cases.push(Case::of(&format!("tmpfs {size} at {dest}"), &matrix, |llb| {
                let step = llb.step(&format!(
                    "grep ' {dest} ' /proc/mounts | cut -d' ' -f3,4 | sed 's/,inode64//; s/,mode=755//' >/out/mount; stat -c '%a %u:%g' {dest} >/out/stat; \
                     head -c 2000000 /dev/zero >{dest}/big 2>/dev/null && echo fits >/out/fits || echo full >/out/full; ls /out >/dev/null"
                ));
                let step = step.with(dest, MountKind::Tmpfs { size });
                llb.run(step)
            }));
        }
    }
    cases.push(Case::of("no root", &matrix, |llb| {
        let mut step = llb.step("true");
        step.exec.mounts.remove(0);
        llb.run(step)
    }));
    cases.push(Case::of("read-only root", &matrix, |llb| {
        let mut step =
            llb.step("echo x >/etc/x 2>/out/said || true; echo y >/tmp/y 2>>/out/said || true");
        step.exec.mounts[0].readonly = true;
        // Where stock cannot make the mount point either.
        step.exec.mounts[1].dest = "/tmp".into();
        step.exec.args[2] = "echo x >/etc/x 2>/tmp/said || true".into();
        llb.run(step)
    }));
    matrix.compare(&cases);
}

fn cached(id: &str, sharing: CacheSharing) -> MountKind {
    MountKind::Cache {
        id: id.into(),
        sharing,
    }
}

#[test]
fn matrix_cache_mounts() {
    let matrix = Matrix::start(&[]);
    let mut cases = Vec::new();
    for sharing in [
        CacheSharing::Shared,
        CacheSharing::Private,
        CacheSharing::Locked,
    ] {
        for (turn, script) in [
            "echo first >>/c/log",
            "echo second >>/c/log",
            "cp /c/log /out/log; stat -c '%a %u:%g' /c >/out/mode",
        ]
        .iter()
        .enumerate()
        {
            cases.push(Case::of(
                &format!("{sharing:?} turn {turn}"),
                &matrix,
                |llb| {
                    let step = llb
                        .step(script)
                        .with("/c", cached(&format!("turns-{sharing:?}"), sharing));
                    llb.run(step)
                },
            ));
        }
    }
    for turn in 0..2 {
        cases.push(Case::of(
            &format!("from an input, turn {turn}"),
            &matrix,
            |llb| {
                let files = files(llb);
                let mount = Mount {
                    kind: cached("from-input", CacheSharing::Shared),
                    ..at("/c")
                };
                let step = llb
                    .step(&format!(
                        "ls -R /c >/out/seen; echo {turn} >/c/turn; rm -f /c/top"
                    ))
                    .bind(files, mount);
                llb.run(step)
            },
        ));
        cases.push(Case::of(
            &format!("part of an input, turn {turn}"),
            &matrix,
            |llb| {
                let files = files(llb);
                let mount = Mount {
                    kind: cached("part", CacheSharing::Shared),
                    selector: "/a".into(),
                    ..at("/c")
                };
                let step = llb
                    .step(&format!("ls -R /c >/out/seen; echo {turn} >/c/turn"))
                    .bind(files, mount);
                llb.run(step)
            },
        ));
        cases.push(Case::of(
            &format!("without id, turn {turn}"),
            &matrix,
            |llb| {
                let step = llb
                    .step(&format!("ls /cc >/out/seen; echo {turn} >/cc/turn"))
                    .with("/cc", cached("", CacheSharing::Shared));
                llb.run(step)
            },
        ));
        cases.push(Case::of(
            &format!("read-only, turn {turn}"),
            &matrix,
            |llb| {
                let step = llb
                    .step(&format!(
                        "(echo {turn} >/c/x) 2>/out/said || true; ls /c >/out/seen"
                    ))
                    .mount(Mount {
                        readonly: true,
                        kind: cached("ro", CacheSharing::Shared),
                        ..at("/c")
                    });
                llb.run(step)
            },
        ));
        cases.push(Case::of(
            &format!("what a failed step wrote, turn {turn}"),
            &matrix,
            |llb| {
                let step = llb
                    .step(["echo x >/c/x; exit 1", "ls /c >/out/seen"][turn])
                    .with("/c", cached("failed", CacheSharing::Shared));
                llb.run(step)
            },
        ));
    }
    cases.push(Case::of("with an output", &matrix, |llb| {
        let step = llb.step("true").mount(Mount {
            output: Some(2),
            kind: cached("o", CacheSharing::Shared),
            ..at("/c")
        });
        llb.run(step)
    }));
    matrix.compare(&cases);
}

/// A step that says in a shared cache mount that it runs, and goes on when it is told to there.
fn meeting(matrix: &Matrix, name: &str, sharing: CacheSharing, script: &str) -> Case {
    Case::of(name, matrix, |llb| {
        let step = llb
            .step(&format!("{script}; : {name}"))
            .with("/meet", cached("meet", CacheSharing::Shared))
            .with("/c", cached(&format!("c-{sharing:?}"), sharing));
        llb.run(step)
    })
}

/// Waits, up to two minutes, for a file in the shared cache mount.
fn wait(file: &str) -> String {
    format!(
        "n=0; until [ -e /meet/{file} ]; do n=$((n+1)); [ $n -lt 6000 ] || exit 9; sleep 0.02; done"
    )
}

fn ends_well(child: Child) -> String {
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success(), "{said}");
    said
}

/// Runs two cases at once on each server.
fn at_once(matrix: &Matrix, one: &Case, two: &Case) {
    for peer in std::iter::once(&matrix.ours).chain(&matrix.stock) {
        let (one, two) = (peer.start(one, ""), peer.start(two, ""));
        ends_well(one);
        ends_well(two);
    }
}

#[test]
fn matrix_a_shared_cache_is_used_by_two_steps_at_once() {
    let matrix = Matrix::start(&[]);
    let shared = CacheSharing::Shared;
    let script = format!("touch /c/one /meet/one; {}; test -e /c/two", wait("two"));
    let one = meeting(&matrix, "one", shared, &script);
    let script = format!("{}; test -e /c/one; touch /c/two /meet/two", wait("one"));
    let two = meeting(&matrix, "two", shared, &script);
    at_once(&matrix, &one, &two);
    matrix.compare(&[meeting(&matrix, "after", shared, "ls /c >/out/left")]);
}

#[test]
fn matrix_a_private_cache_is_another_one_for_a_second_step() {
    let matrix = Matrix::start(&[]);
    let private = CacheSharing::Private;
    let script = format!("touch /c/one /meet/one; {}; test ! -e /c/two", wait("two"));
    let one = meeting(&matrix, "one", private, &script);
    let script = format!("{}; test ! -e /c/one; touch /c/two /meet/two", wait("one"));
    let two = meeting(&matrix, "two", private, &script);
    at_once(&matrix, &one, &two);
    // Which of the two it is, is left to the server.
    matrix.compare(&[meeting(
        &matrix,
        "after",
        private,
        "ls /c | wc -l >/out/count",
    )]);
}

#[test]
fn matrix_a_locked_cache_is_used_by_one_step_after_the_other() {
    let matrix = Matrix::start(&[]);
    let locked = CacheSharing::Locked;
    // Each would see the other's mark if they ran at once; both hold it until the other has had
    // every chance to come.
    let script = |me: &str| {
        format!(
            "test ! -e /c/busy; touch /c/busy /meet/{me}; sleep 1; rm /c/busy; echo {me} >>/c/log"
        )
    };
    let one = meeting(&matrix, "one", locked, &script("one"));
    let two = meeting(&matrix, "two", locked, &script("two"));
    at_once(&matrix, &one, &two);
    let script = "sort /c/log | tr '\\n' ' ' >/out/log; cat /out/log | grep -q '^one two $'";
    matrix.compare(&[meeting(&matrix, "after", locked, script)]);
}

#[test]
fn matrix_a_locked_cache_is_free_again_when_its_step_is_cancelled() {
    let matrix = Matrix::alone(testkit::Release::Debian, &[]);
    let locked = CacheSharing::Locked;
    let case = meeting(&matrix, "holds", locked, "touch /meet/holding; sleep 1000");
    let mut holds = matrix.ours.start(&case, "");
    let sees = Case::of("watch", &matrix, |llb| {
        let step = llb
            .step(&wait("holding"))
            .with("/meet", cached("meet", CacheSharing::Shared));
        llb.run(step)
    });
    ends_well(matrix.ours.start(&sees, ""));
    let next = matrix
        .ours
        .start(&meeting(&matrix, "next", locked, "true"), "");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(holds.id() as i32).unwrap(),
        rustix::process::Signal::INT,
    )
    .unwrap();
    ends_well(next);
    let _ = holds.wait();
}
