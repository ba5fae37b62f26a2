//! Changes of files without a process.

use llb::{
    ChownOpt, CopyAction, DiffOp, Edge, FileActionKind, MergeOp, MkDirAction, MkFileAction, Op,
    RmAction, SymlinkAction, UserOpt,
};

use super::graph::{Llb, TIME};
use super::{Case, Matrix};

/// A tree with something of every kind, all with fixed times.
const TREE: &str = "cd /out; mkdir -p a/b/c d; echo one >a/one.txt; echo two >a/two.md; echo three >a/b/three.txt; \
    echo four >a/b/c/four.md; echo top >top.txt; ln -s a/one.txt link; ln -s a dirlink; ln -s /nowhere dangling; \
    ln -s ../top.txt a/uplink; ln a/one.txt a/hard; mkfifo pipe; chmod 600 a/two.md; chmod 4755 top.txt; chmod 1770 d; \
    chown 1000:10 a/b; mkdir empty 'with space'; echo x >'with space/[x]'; \
    find . -depth | while read f; do touch -h -d '2015-01-02 03:04:05' \"$f\"; done";

fn tree(llb: &mut Llb) -> Edge {
    llb.sh(TREE)
}

/// The same without a link to nothing, with which stock cannot compute the key of a filtered copy.
fn tree_without_dangling(llb: &mut Llb) -> Edge {
    let tree = tree(llb);
    let remove = RmAction {
        path: "/dangling".into(),
        ..RmAction::default()
    };
    llb.file(Some(tree), None, FileActionKind::Rm(remove))
}

fn by_name(name: &str, input: Option<usize>) -> Option<UserOpt> {
    Some(UserOpt::ByName {
        name: name.into(),
        input,
    })
}

fn plain(src: &str, dest: &str) -> CopyAction {
    CopyAction {
        src: src.into(),
        dest: dest.into(),
        ..CopyAction::default()
    }
}

/// As a Dockerfile's COPY asks.
pub fn dockerfile(src: &str, dest: &str) -> CopyAction {
    CopyAction {
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..plain(src, dest)
    }
}

fn copy_case(matrix: &Matrix, name: &str, action: CopyAction) -> Case {
    Case::of(name, matrix, |llb| {
        let from = match action.exclude_patterns.as_slice() {
            [] => tree(llb),
            _ => tree_without_dangling(llb),
        };
        let to = llb.mkdir(None, "/there");
        llb.copy(from, Some(to), action)
    })
}

#[test]
fn matrix_copies() {
    let matrix = Matrix::start(&[]);
    let mut cases = Vec::new();
    for (src, dest) in [
        ("/top.txt", "/x"),
        ("/top.txt", "/there"),
        ("/top.txt", "/there/"),
        ("/top.txt", "/new/x"),
        ("/top.txt", "/new/"),
        ("/a", "/x"),
        ("/a", "/there"),
        ("/a", "/there/"),
        ("/a/", "/there/"),
        ("/a/.", "/there"),
        ("/", "/"),
        ("/", "/there"),
        ("/link", "/x"),
        ("/dirlink", "/x"),
        ("/dirlink/", "/x"),
        ("/dangling", "/x"),
        ("/nonesuch", "/x"),
        ("/a/*", "/x/"),
        ("/*.txt", "/x/"),
        ("/*.txt", "/x"),
        ("/a/*.none", "/x/"),
        ("/*/*.txt", "/x/"),
        ("/a/b/../one.txt", "/x"),
        ("/with space/*", "/x/"),
        ("/with space/[[]x]", "/x/"),
        ("/a/?ne.txt", "/x"),
        ("/../../top.txt", "/x"),
        ("/pipe", "/x"),
        ("/dirlink/*", "/x/"),
        ("/a/b", "/there/b"),
        ("a/one.txt", "y"),
        ("top.txt", "there/z"),
        ("/top.txt", "/top.txt/x"),
        ("/d", "/x"),
        ("/empty", "/x"),
        ("/empty/", "/there/"),
        ("/nonesuch/*", "/x/"),
        ("/a/uplink", "/x"),
    ] {
        for (how, action) in [
            ("plain", plain(src, dest)),
            ("as COPY", dockerfile(src, dest)),
        ] {
            cases.push(copy_case(&matrix, &format!("{how} {src} {dest}"), action));
        }
    }
    cases.push(copy_case(
        &matrix,
        "wildcard that may not be empty",
        CopyAction {
            allow_empty_wildcard: false,
            ..dockerfile("/x*", "/x/")
        },
    ));
    cases.push(copy_case(
        &matrix,
        "wildcard that is none",
        CopyAction {
            allow_wildcard: false,
            ..dockerfile("/*.txt", "/x/")
        },
    ));
    cases.push(copy_case(
        &matrix,
        "dir itself",
        CopyAction {
            dir_copy_contents: false,
            ..dockerfile("/a", "/there/")
        },
    ));
    cases.push(copy_case(
        &matrix,
        "dir itself, new",
        CopyAction {
            dir_copy_contents: false,
            ..dockerfile("/a", "/new")
        },
    ));
    cases.push(copy_case(
        &matrix,
        "links kept",
        CopyAction {
            follow_symlink: false,
            ..dockerfile("/link", "/x")
        },
    ));
    cases.push(copy_case(
        &matrix,
        "links to directories kept",
        CopyAction {
            follow_symlink: false,
            ..dockerfile("/dirlink", "/x")
        },
    ));
    matrix.compare(&cases);
}

#[test]
fn matrix_copies_with_options() {
    let matrix = Matrix::start(&[]);
    let base = || dockerfile("/", "/x/");
    let list = |patterns: &[&str]| patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    let mut cases = vec![
        copy_case(
            &matrix,
            "mode",
            CopyAction {
                mode: Some(0o640),
                ..base()
            },
        ),
        copy_case(
            &matrix,
            "mode with set-id",
            CopyAction {
                mode: Some(0o4751),
                ..base()
            },
        ),
        copy_case(
            &matrix,
            "mode of one file",
            CopyAction {
                mode: Some(0o400),
                ..dockerfile("/top.txt", "/new/dir/x")
            },
        ),
        copy_case(
            &matrix,
            "timestamp",
            CopyAction {
                timestamp: Some(TIME),
                ..base()
            },
        ),
        copy_case(
            &matrix,
            "timestamp of one file",
            CopyAction {
                timestamp: Some(TIME),
                ..dockerfile("/top.txt", "/new/dir/x")
            },
        ),
        copy_case(
            &matrix,
            "timestamp into what is there",
            CopyAction {
                timestamp: Some(TIME),
                ..dockerfile("/a", "/there/")
            },
        ),
        copy_case(
            &matrix,
            "timestamp with part of a second",
            CopyAction {
                timestamp: Some(TIME + 5),
                ..dockerfile("/a", "/there/")
            },
        ),
    ];
    for text in [
        "u=rwX,go=rX",
        "a+x",
        "g-r",
        "+t",
        "u+s",
        "0755",
        "a=",
        "go+w,u-w",
        "bogus",
    ] {
        cases.push(
            copy_case(
                &matrix,
                &format!("mode {text}"),
                CopyAction {
                    mode_str: text.into(),
                    ..base()
                },
            )
            .in_own_words(),
        );
    }
    for (include, exclude) in [
        (&["a"][..], &[][..]),
        (&["a/b"], &[]),
        (&["**/*.txt"], &[]),
        (&["*.txt"], &[]),
        (&["a/**/*.md"], &[]),
        (&["a", "!a/b"], &[]),
        (&[], &["a/b"]),
        (&[], &["**/*.txt"]),
        (&[], &["a", "!a/b/three.txt"]),
        (&[], &["*"]),
        (&["a"], &["a/b", "**/*.md"]),
        (&["nonesuch"], &[]),
        (&["d"], &[]),
        (&["empty"], &[]),
        (&["a/b/c/"], &[]),
        (&["/a/one.txt"], &[]),
        (&[], &["a/"]),
        (&["["], &[]),
        (&["**"], &["**/c"]),
        (&["a/*"], &[]),
        (&["*link"], &[]),
    ] {
        cases.push(copy_case(
            &matrix,
            &format!("include {include:?} exclude {exclude:?}"),
            CopyAction {
                include_patterns: list(include),
                exclude_patterns: list(exclude),
                ..base()
            },
        ));
        cases.push(copy_case(
            &matrix,
            &format!("include {include:?} exclude {exclude:?} of a"),
            CopyAction {
                include_patterns: list(include),
                exclude_patterns: list(exclude),
                ..dockerfile("/a", "/there/")
            },
        ));
    }
    for (name, owner) in [
        (
            "by number",
            ChownOpt {
                user: Some(UserOpt::ById(7)),
                group: Some(UserOpt::ById(8)),
            },
        ),
        (
            "user only",
            ChownOpt {
                user: Some(UserOpt::ById(7)),
                group: None,
            },
        ),
        (
            "group only",
            ChownOpt {
                user: None,
                group: Some(UserOpt::ById(8)),
            },
        ),
        (
            "by name",
            ChownOpt {
                user: by_name("app", Some(0)),
                group: by_name("wheel", Some(0)),
            },
        ),
        (
            "user by name",
            ChownOpt {
                user: by_name("app", Some(0)),
                group: None,
            },
        ),
        (
            "daemon",
            ChownOpt {
                user: by_name("daemon", Some(0)),
                group: None,
            },
        ),
        (
            "nobody known",
            ChownOpt {
                user: by_name("nonesuch", Some(0)),
                group: None,
            },
        ),
        (
            "group that nobody knows",
            ChownOpt {
                user: by_name("app", Some(0)),
                group: by_name("nonesuch", Some(0)),
            },
        ),
    ] {
        for (src, dest) in [("/a", "/x/y"), ("/top.txt", "/x/y/z")] {
            let owner = Some(owner.clone());
            cases.push(Case::of(&format!("owner {name} {src}"), &matrix, |llb| {
                let (from, to) = (tree(llb), llb.base());
                let action = CopyAction {
                    owner,
                    ..dockerfile(src, dest)
                };
                let copied = llb.copy(from, Some(to), action);
                // Only what was copied.
                llb.copy(copied, None, plain("/x", "/x"))
            }));
        }
    }
    matrix.compare(&cases);
}

#[test]
fn matrix_copies_onto_what_is_there() {
    let matrix = Matrix::start(&[]);
    let mut cases = Vec::new();
    let there = "cd /out; mkdir -p x/b/c x/one.txt; echo old >x/two.md; mkdir -m 700 x/hard; echo old >x/hard/f; ln -s /x/target x/uplink; \
        ln -s b x/top.txt; echo keep >x/keep; chmod 711 x x/b; chown 5:6 x/b x/two.md; echo dir >x/a; \
        find . -depth | while read f; do touch -h -d '2010-01-01 00:00:00' $f; done";
    for (src, dest) in [
        ("/a", "/x"),
        ("/a", "/x/"),
        ("/a/two.md", "/x/two.md"),
        ("/a/one.txt", "/x/one.txt"),
        ("/a/two.md", "/x/uplink"),
        ("/top.txt", "/x"),
        ("/a", "/x/a"),
        ("/a", "/x/two.md"),
        ("/a/b", "/x/b"),
        ("/a/b/c", "/x/b/c"),
        ("/a/two.md", "/x/top.txt"),
        ("/a/", "/x/top.txt"),
        ("/a/two.md", "/x/top.txt/"),
        ("/link", "/x/keep"),
        ("/pipe", "/x/keep"),
        ("/", "/"),
    ] {
        for replace in [false, true] {
            for contents in [false, true] {
                let name = format!("{src} onto {dest} replace={replace} contents={contents}");
                cases.push(Case::of(&name, &matrix, |llb| {
                    let (from, to) = (tree(llb), llb.sh(there));
                    llb.copy(
                        from,
                        Some(to),
                        CopyAction {
                            always_replace_existing_dest_paths: replace,
                            dir_copy_contents: contents,
                            ..dockerfile(src, dest)
                        },
                    )
                }));
            }
        }
    }
    matrix.compare(&cases);
}

#[test]
fn matrix_archives_are_unpacked() {
    let matrix = Matrix::start(&[]);
    let mut cases = Vec::new();
    let pack = |how: &str| {
        format!(
            "mkdir /w; cd /w; mkdir -p d/e; echo f >d/e/f; ln -s f d/e/l; chmod 750 d; chown 3:4 d/e/f; touch -h -d '2015-01-02 03:04:05' d/e/f d/e/l d/e d; {how}; touch -d '2015-01-02 00:00:00' /out/*"
        )
    };
    for (name, how) in [
        ("tar", "tar -cf /out/x.tar d"),
        ("tar.gz", "tar -czf /out/x.tar d"),
        ("cut short", "tar -cf - d | head -c 700 >/out/x.tar"),
        ("no archive", "echo hello >/out/x.tar"),
        ("empty", ": >/out/x.tar"),
        ("zeros", "head -c 10240 /dev/zero >/out/x.tar"),
        (
            "gzip of no archive",
            "echo hello | gzip 2>/dev/null >/out/x.tar || echo no >/out/x.tar",
        ),
        ("dot", "tar -cf /out/x.tar -C d ."),
    ] {
        for (dest, owner, timestamp) in [
            ("/x/", None, None),
            (
                "/x",
                Some(ChownOpt {
                    user: Some(UserOpt::ById(7)),
                    group: None,
                }),
                None,
            ),
            ("/x/y", None, Some(TIME)),
        ] {
            for unpack in [true, false] {
                cases.push(
                    Case::of(
                        &format!("{name} to {dest} unpack={unpack}"),
                        &matrix,
                        |llb| {
                            let from = llb.sh(&pack(how));
                            llb.copy(
                                from,
                                None,
                                CopyAction {
                                    attempt_unpack: unpack,
                                    owner: owner.clone(),
                                    timestamp,
                                    ..dockerfile("/x.tar", dest)
                                },
                            )
                        },
                    )
                    .in_own_words(),
                );
            }
        }
    }
    matrix.compare(&cases);
}

#[test]
fn matrix_made_and_removed() {
    let matrix = Matrix::start(&[]);
    let mut cases = Vec::new();
    let on_tree = |name: &str, kind: FileActionKind| {
        Case::of(name, &matrix, |llb| {
            let tree = tree(llb);
            llb.file(Some(tree), None, kind)
        })
    };
    let mkdir = |path: &str| MkDirAction {
        path: path.into(),
        mode: 0o751,
        ..MkDirAction::default()
    };
    for path in [
        "/n",
        "/n/m",
        "/a",
        "/a/b/new",
        "/top.txt",
        "/top.txt/x",
        "/dirlink/new",
        "/dangling",
        "/link",
        "rel",
        "/",
        "",
        "/a/../up",
        "/dangling/x",
    ] {
        for make_parents in [false, true] {
            let made = MkDirAction {
                make_parents,
                timestamp: Some(TIME),
                owner: Some(ChownOpt {
                    user: Some(UserOpt::ById(3)),
                    group: None,
                }),
                ..mkdir(path)
            };
            cases.push(on_tree(
                &format!("mkdir {path:?} parents={make_parents}"),
                FileActionKind::MkDir(made),
            ));
        }
    }
    cases.push(on_tree(
        "mkdir with set-id",
        FileActionKind::MkDir(MkDirAction {
            mode: 0o3755,
            ..mkdir("/n")
        }),
    ));
    cases.push(on_tree(
        "mkdir with type bits",
        FileActionKind::MkDir(MkDirAction {
            mode: 0o40755,
            ..mkdir("/n")
        }),
    ));
    for path in [
        "/n",
        "/n/m",
        "/a/one.txt",
        "/a",
        "/link",
        "/dangling",
        "/dirlink/f",
        "/top.txt",
        "/top.txt/x",
        "rel",
        "/",
        "/n/",
    ] {
        let made = MkFileAction {
            path: path.into(),
            mode: 0o640,
            data: b"data".to_vec(),
            timestamp: Some(TIME),
            owner: Some(ChownOpt {
                user: Some(UserOpt::ById(3)),
                group: None,
            }),
        };
        cases.push(
            on_tree(&format!("mkfile {path:?}"), FileActionKind::MkFile(made)).in_own_words(),
        );
    }
    cases.push(on_tree(
        "mkfile with set-id",
        FileActionKind::MkFile(MkFileAction {
            path: "/n".into(),
            mode: 0o4755,
            ..MkFileAction::default()
        }),
    ));
    for path in [
        "/n",
        "/n/m",
        "/a",
        "/link",
        "/dangling",
        "/dirlink/f",
        "/top.txt",
        "rel",
    ] {
        let made = SymlinkAction {
            oldpath: "../target".into(),
            newpath: path.into(),
            timestamp: Some(TIME),
            owner: Some(ChownOpt {
                user: Some(UserOpt::ById(3)),
                group: None,
            }),
        };
        cases.push(on_tree(
            &format!("symlink {path:?}"),
            FileActionKind::Symlink(made),
        ));
    }
    for path in [
        "/a",
        "/a/one.txt",
        "/nonesuch",
        "/link",
        "/dirlink",
        "/dirlink/",
        "/dirlink/b",
        "/dangling",
        "/",
        "/a/*",
        "/*.txt",
        "/x*",
        "/a/b/../one.txt",
        "/*/b",
        "/with space/[[]x]",
        "/pipe",
        "",
        "/a/.",
        "/nonesuch/x",
        "/top.txt/x",
    ] {
        for (wildcard, missing) in [(false, false), (true, false), (false, true), (true, true)] {
            let rm = RmAction {
                path: path.into(),
                allow_wildcard: wildcard,
                allow_not_found: missing,
            };
            cases.push(
                on_tree(
                    &format!("rm {path:?} wildcard={wildcard} missing={missing}"),
                    FileActionKind::Rm(rm),
                )
                .in_own_words(),
            );
        }
    }
    matrix.compare(&cases);
}

#[test]
fn matrix_merges_and_differences() {
    let matrix = Matrix::start(&[]);
    let merge = |llb: &mut Llb, edges: &[Edge]| {
        let inputs = (0..edges.len()).map(Some).collect();
        llb.add(Op::Merge(MergeOp { inputs }), edges.to_vec())
    };
    let diff = |llb: &mut Llb, lower: Option<Edge>, upper: Option<Edge>| {
        let inputs: Vec<Edge> = lower.into_iter().chain(upper).collect();
        let first = lower.map(|_| 0);
        let second = upper.map(|_| inputs.len() - 1);
        llb.add(
            Op::Diff(DiffOp {
                lower: first,
                upper: second,
            }),
            inputs,
        )
    };
    // A script that changes what is in /out of an earlier step.
    let change = |llb: &mut Llb, before: Edge, script: &str| {
        let mut step = llb.step(script);
        step.inputs.push(before);
        step.exec.mounts[1].input = Some(1);
        llb.run(step)
    };
    let settle = "; find /out -depth ! -path /out/empty | while read f; do touch -h -d '2012-01-01 00:00:00' \"$f\"; done";
    let changes = format!(
        "cd /out; rm -r a/b; echo new >a/one.txt; mkdir n; echo n >n/n; rm top.txt; mkdir top.txt; chmod 700 d; ln a/two.md n/hard; rm link; ln -s n link{settle}"
    );
    let cases = vec![
        Case::of("merge of two", &matrix, |llb| {
            let (a, b) = (tree(llb), llb.mkfile(None, "/top.txt", "other"));
            merge(llb, &[a, b])
        }),
        Case::of("merge the other way", &matrix, |llb| {
            let (a, b) = (llb.mkfile(None, "/top.txt", "other"), tree(llb));
            merge(llb, &[a, b])
        }),
        Case::of("merge of three with one twice", &matrix, |llb| {
            let (a, b) = (tree(llb), llb.mkfile(None, "/a/one.txt", "other"));
            merge(llb, &[a, b, a])
        }),
        Case::of("merge onto changes", &matrix, |llb| {
            let a = tree(llb);
            let b = change(llb, a, &changes);
            let c = llb.mkfile(None, "/a/b/back", "x");
            merge(llb, &[b, c])
        }),
        Case::of("diff", &matrix, |llb| {
            let a = tree(llb);
            let b = change(llb, a, &changes);
            diff(llb, Some(a), Some(b))
        }),
        Case::of("diff of two steps", &matrix, |llb| {
            let a = tree(llb);
            let b = change(llb, a, &changes);
            let c = change(
                llb,
                b,
                &format!("echo again >/out/again; rm -r /out/n{settle}"),
            );
            diff(llb, Some(a), Some(c))
        }),
        Case::of("diff of what has no common base", &matrix, |llb| {
            let a = tree(llb);
            let b = llb.sh(&format!(
                "cd /out; mkdir a; echo one >a/one.txt; echo else >top.txt{settle}"
            ));
            diff(llb, Some(a), Some(b))
        }),
        Case::of("diff backwards", &matrix, |llb| {
            let a = tree(llb);
            let b = change(llb, a, &changes);
            diff(llb, Some(b), Some(a))
        }),
        Case::of("diff against nothing", &matrix, |llb| {
            let a = tree(llb);
            diff(llb, None, Some(a))
        }),
        Case::of("diff to nothing", &matrix, |llb| {
            let a = tree(llb);
            diff(llb, Some(a), None)
        }),
        Case::of("diff of the same", &matrix, |llb| {
            let a = tree(llb);
            diff(llb, Some(a), Some(a))
        }),
        Case::of("a diff put elsewhere", &matrix, |llb| {
            let a = tree(llb);
            let b = change(llb, a, &changes);
            let d = diff(llb, Some(a), Some(b));
            let other = llb.sh(&format!(
                "cd /out; mkdir -p a/b; echo stays >a/b/stays; echo t >top.txt; echo z >z{settle}"
            ));
            merge(llb, &[other, d])
        }),
        Case::of("a diff put back", &matrix, |llb| {
            let a = tree(llb);
            let b = change(llb, a, &changes);
            let d = diff(llb, Some(a), Some(b));
            merge(llb, &[a, d])
        }),
        Case::of("a process on a merge", &matrix, |llb| {
            let (a, b) = (tree(llb), llb.mkfile(None, "/top.txt", "other"));
            let merged = merge(llb, &[a, b]);
            change(
                llb,
                merged,
                &format!("rm -r /out/a; cp /out/top.txt /out/copy{settle}"),
            )
        }),
        Case::of("a copy from a diff", &matrix, |llb| {
            let a = tree(llb);
            let b = change(llb, a, &changes);
            let d = diff(llb, Some(a), Some(b));
            llb.copy(d, None, dockerfile("/", "/d/"))
        }),
    ];
    matrix.compare(&cases);
}
