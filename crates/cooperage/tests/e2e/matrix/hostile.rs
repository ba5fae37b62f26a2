//! Inputs that try to reach what is outside of their root.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use llb::{
    CopyAction, Edge, FileActionKind, MkDirAction, MkFileAction, Mount, MountKind, RmAction,
    SecurityMode, SymlinkAction,
};

use super::file::dockerfile;
use super::graph::Llb;
use super::{Case, Matrix};
use crate::workshop::text;

const SECRET: &str = "nobody inside may read this";

/// A folder of the machine that nothing in a build may read or change.
struct Outside {
    path: PathBuf,
    shown: String,
}

impl Outside {
    fn new(matrix: &Matrix) -> Outside {
        let path = matrix.shop.lab.subdirectory("outside");
        std::fs::write(path.join("secret"), SECRET).unwrap();
        let shown = text(&path);
        Outside { path, shown }
    }

    /// Everything about it that a build could change.
    fn state(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.path)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let meta = entry.metadata().unwrap();
                format!(
                    "{:?} {:o} {}:{} {} {}.{} {}",
                    entry.file_name(),
                    meta.mode(),
                    meta.uid(),
                    meta.gid(),
                    meta.nlink(),
                    meta.mtime(),
                    meta.mtime_nsec(),
                    meta.ino()
                )
            })
            .collect();
        names.sort();
        names.push(std::fs::read_to_string(self.path.join("secret")).unwrap());
        names
    }

    /// Builds each case; whether it fails or not, nothing got out or in.
    fn survives(&self, matrix: &Matrix, cases: &[Case]) {
        let before = self.state();
        for case in cases {
            let built = matrix.build(case);
            assert!(
                !format!("{built:?}").contains(SECRET),
                "{}: {built:?}",
                case.name
            );
            assert_eq!(self.state(), before, "{}: {built:?}", case.name);
        }
    }
}

fn link(llb: &mut Llb, on: Edge, path: &str, target: &str) -> Edge {
    let action = SymlinkAction {
        oldpath: target.into(),
        newpath: path.into(),
        ..SymlinkAction::default()
    };
    llb.file(Some(on), None, FileActionKind::Symlink(action))
}

/// The base image with links that lead out of it, absolute, upward and through /proc.
fn with_ways_out(llb: &mut Llb, outside: &str) -> Edge {
    let base = llb.base();
    let base = link(llb, base, "/way", outside);
    let up = format!("{}{outside}", "../".repeat(40));
    let base = link(llb, base, "/up", &up);
    link(llb, base, "/around", &format!("/proc/self/root{outside}"))
}

const WAYS: [&str; 3] = ["/way", "/up", "/around"];

#[test]
fn matrix_links_in_images_lead_nowhere_outside() {
    let matrix = Matrix::alone(testkit::Release::Debian, &[]);
    let outside = Outside::new(&matrix);
    let shown = outside.shown.as_str();
    let mut cases = Vec::new();
    for way in WAYS {
        let at = |name: &str| format!("{way}/{name}");
        let file_case = |name: &str, kind: FileActionKind| {
            Case::of(&format!("{name} {way}"), &matrix, |llb| {
                let base = with_ways_out(llb, shown);
                llb.file(Some(base), None, kind)
            })
        };
        for parents in [false, true] {
            cases.push(file_case(
                "mkdir",
                FileActionKind::MkDir(MkDirAction {
                    path: at("made/deep"),
                    mode: 0o777,
                    make_parents: parents,
                    ..MkDirAction::default()
                }),
            ));
        }
        for path in [at("made"), at("secret"), way.to_owned()] {
            cases.push(file_case(
                "mkfile",
                FileActionKind::MkFile(MkFileAction {
                    path: path.clone(),
                    mode: 0o777,
                    data: b"overwritten".to_vec(),
                    ..MkFileAction::default()
                }),
            ));
            cases.push(file_case(
                "symlink",
                FileActionKind::Symlink(SymlinkAction {
                    oldpath: "/x".into(),
                    newpath: path.clone(),
                    ..SymlinkAction::default()
                }),
            ));
            for allow_wildcard in [false, true] {
                cases.push(file_case(
                    "rm",
                    FileActionKind::Rm(RmAction {
                        path: path.clone(),
                        allow_not_found: true,
                        allow_wildcard,
                    }),
                ));
            }
        }
        cases.push(file_case(
            "rm all",
            FileActionKind::Rm(RmAction {
                path: at("*"),
                allow_not_found: true,
                allow_wildcard: true,
            }),
        ));
        for src in [
            at("secret"),
            at("*"),
            way.to_owned(),
            at("."),
            "/*/secret".to_owned(),
        ] {
            cases.push(Case::of(&format!("copy from {src}"), &matrix, |llb| {
                let base = with_ways_out(llb, shown);
                llb.copy(base, None, dockerfile(&src, "/got/"))
            }));
        }
        for dest in [at("made"), at("secret"), at(""), at("deep/er/")] {
            for replace in [false, true] {
                cases.push(Case::of(&format!("copy to {dest}"), &matrix, |llb| {
                    let base = with_ways_out(llb, shown);
                    let from = llb.mkfile(None, "/secret", "overwritten");
                    llb.copy(
                        from,
                        Some(base),
                        CopyAction {
                            always_replace_existing_dest_paths: replace,
                            ..dockerfile("/", &dest)
                        },
                    )
                }));
            }
        }
        let mounts = |name: &str, mount: Mount| {
            Case::of(&format!("{name} {way}"), &matrix, |llb| {
                let base = with_ways_out(llb, shown);
                let mut step = llb.step(&format!("cat {way}/secret >/out/got 2>&1 || true; find /in >/out/found 2>&1; cat /in/secret /in >/out/more 2>&1; true"));
                step.inputs[0] = base;
                let step = step
                    .bind(base, mount)
                    .change(|exec| exec.cwd = format!("{way}/work/dir"));
                llb.run(step)
            })
        };
        for (dest, selector) in [
            ("/in", way.to_owned()),
            ("/in", at("secret")),
            (way, String::new()),
            (&at("in"), String::new()),
        ] {
            cases.push(mounts(
                "mount",
                Mount {
                    dest: dest.to_owned(),
                    selector,
                    readonly: true,
                    ..Mount::default()
                },
            ));
        }
        for kind in [
            MountKind::Tmpfs { size: 0 },
            MountKind::Cache {
                id: "c".into(),
                sharing: llb::CacheSharing::Shared,
            },
        ] {
            cases.push(mounts(
                "other mounts",
                Mount {
                    dest: at("in"),
                    kind,
                    ..Mount::default()
                },
            ));
        }
    }
    outside.survives(&matrix, &cases);
}

#[test]
fn matrix_links_in_place_of_the_systems_folders_lead_nowhere_outside() {
    let matrix = Matrix::alone(
        testkit::Release::Debian,
        &["--allow-insecure-entitlement=security.insecure"],
    );
    let outside = Outside::new(&matrix);
    let mut cases = Vec::new();
    for place in [
        "/etc",
        "/proc",
        "/sys",
        "/dev",
        "/tmp",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/passwd",
        "/etc/group",
        "/sys/fs",
        "/dev/shm",
    ] {
        for security in [SecurityMode::Sandbox, SecurityMode::Insecure] {
            let case = Case::of(&format!("{place} {security:?}"), &matrix, |llb| {
                let base = llb.base();
                let rm = RmAction {
                    path: place.into(),
                    allow_not_found: true,
                    ..RmAction::default()
                };
                let base = llb.file(Some(base), None, FileActionKind::Rm(rm));
                let dir = Path::new(place).parent().unwrap();
                let base = llb.mkdir(Some(base), dir.to_str().unwrap());
                let target = match place.ends_with("passwd") || place.ends_with("group") {
                    true => format!("{}/secret", outside.shown),
                    false => outside.shown.clone(),
                };
                let base = link(llb, base, place, &target);
                let mut step = llb.step(&format!("cat {place}/secret {place} >/out/got 2>&1; id >/out/id; touch {place}/touched; true"));
                step.inputs[0] = base;
                step.exec.user = "app".into();
                step.exec.security = security;
                llb.run(step)
            });
            cases.push(case.flags(&["--allow", "security.insecure"]));
        }
    }
    outside.survives(&matrix, &cases);
}

#[test]
fn matrix_links_in_a_context_lead_nowhere_outside() {
    let matrix = Matrix::alone(testkit::Release::Debian, &[]);
    let outside = Outside::new(&matrix);
    let context = matrix.shop.context("hostile", &[("plain", "x")]);
    let up = format!("{}{}", "../".repeat(40), outside.shown);
    for (name, target) in [
        ("way", outside.shown.as_str()),
        ("up", &up),
        ("file", &format!("{}/secret", outside.shown)),
    ] {
        std::os::unix::fs::symlink(target, format!("{context}/{name}")).unwrap();
    }
    let local = format!("--local=src={context}");
    let mut cases = Vec::new();
    for follow in [
        "[]",
        "[\"way\"]",
        "[\"way/secret\",\"up/secret\",\"file\"]",
        "[\"../outside\"]",
        "[\"*/secret\"]",
    ] {
        for src in [
            "/",
            "/way/secret",
            "/up/secret",
            "/file",
            "/way/",
            "/*/secret",
            "/../outside/secret",
        ] {
            cases.push(
                Case::of(&format!("{src} following {follow}"), &matrix, |llb| {
                    let source = llb.source("local://src", &[("local.followpaths", follow)]);
                    llb.copy(source, None, dockerfile(src, "/got/"))
                })
                .flags(&[&local]),
            );
        }
    }
    outside.survives(&matrix, &cases);
}

/// A tar of entries: type flag, name, link target.
pub fn tar(entries: &[(u8, &str, &str)]) -> Vec<u8> {
    let mut all = Vec::new();
    for (kind, name, target) in entries {
        let data: &[u8] = if *kind == b'0' {
            b"from the archive"
        } else {
            b""
        };
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000777");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].copy_from_slice(b"        ");
        header[156] = *kind;
        header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        all.extend_from_slice(&header);
        all.extend_from_slice(data);
        all.resize(all.len().next_multiple_of(512), 0);
    }
    all.resize(all.len() + 1024, 0);
    all
}

/// Archives that try to write or read outside of where they are unpacked.
fn hostile_archives(outside: &str) -> Vec<(&'static str, Vec<u8>)> {
    let up = format!("{}{outside}", "../".repeat(20));
    let own = |path: &str| path.to_owned();
    let inner = |path: &str| format!("{path}/x");
    let secret = format!("{outside}/secret");
    let up_secret = format!("{up}/secret");
    vec![
        ("absolute name", tar(&[(b'0', &inner(outside), "")])),
        ("name that goes up", tar(&[(b'0', &inner(&up), "")])),
        (
            "overwriting",
            tar(&[(b'0', &secret, ""), (b'0', &up_secret, "")]),
        ),
        (
            "through a link",
            tar(&[
                (b'2', "l", outside),
                (b'0', "l/x", ""),
                (b'0', "l/secret", ""),
            ]),
        ),
        (
            "through a link that goes up",
            tar(&[(b'2', "l", &up), (b'5', "l/d", ""), (b'0', "l/d/x", "")]),
        ),
        (
            "through two links",
            tar(&[
                (b'2', "a", ".."),
                (b'2', "b", "a/../../../../../../.."),
                (b'0', &format!("b{outside}/x"), ""),
            ]),
        ),
        ("hard link", tar(&[(b'1', "h", &secret), (b'0', "h", "")])),
        ("hard link that goes up", tar(&[(b'1', "h", &up_secret)])),
        (
            "hard link through a link",
            tar(&[(b'2', "l", outside), (b'1', "h", "l/secret")]),
        ),
        (
            "whiteout through a link",
            tar(&[(b'2', "l", outside), (b'0', "l/.wh.secret", "")]),
        ),
        (
            "opaque through a link",
            tar(&[(b'2', "l", outside), (b'0', "l/.wh..wh..opq", "")]),
        ),
        (
            "whiteout of what is above",
            tar(&[
                (b'0', ".wh...", ""),
                (b'0', ".wh..", ""),
                (b'0', "../.wh.x", ""),
            ]),
        ),
        (
            "directory over a link",
            tar(&[(b'2', "l", outside), (b'5', "l", ""), (b'0', "l/x", "")]),
        ),
        (
            "fifo and devices",
            tar(&[(b'6', "pipe", ""), (b'3', "null", ""), (b'4', "disk", "")]),
        ),
        (
            "itself",
            tar(&[
                (b'5', ".", ""),
                (b'2', ".", outside),
                (b'0', &own("./x"), ""),
            ]),
        ),
    ]
}

#[test]
fn matrix_archives_stay_where_they_are_unpacked() {
    let matrix = Matrix::alone(testkit::Release::Debian, &[]);
    let outside = Outside::new(&matrix);
    let context = matrix.shop.context("archives", &[]);
    let local = format!("--local=src={context}");
    let mut cases = Vec::new();
    for (name, bytes) in hostile_archives(&outside.shown) {
        let file = format!("{}.tar", name.replace(' ', "-"));
        std::fs::write(format!("{context}/{file}"), bytes).unwrap();
        for dest in ["/got/", "/way/", "/"] {
            cases.push(
                Case::of(&format!("{name} to {dest}"), &matrix, |llb| {
                    let (base, source) = (
                        with_ways_out(llb, &outside.shown),
                        llb.source("local://src", &[]),
                    );
                    let action = CopyAction {
                        attempt_unpack: true,
                        ..dockerfile(&format!("/{file}"), dest)
                    };
                    llb.copy(source, Some(base), action)
                })
                .flags(&[&local]),
            );
        }
    }
    outside.survives(&matrix, &cases);
}

/// An OCI layout of an image with these layers; returns the digest of its manifest.
fn image(directory: &Path, layers: &[Vec<u8>]) -> String {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let store = |media_type: &str, bytes: &[u8]| {
        let digest = oci::Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let kinds: Vec<_> = layers
        .iter()
        .map(|layer| store(oci::media_type::OCI_LAYER, layer))
        .collect();
    let ids: Vec<_> = layers
        .iter()
        .map(Vec::as_slice)
        .map(oci::Digest::of)
        .collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = store(oci::media_type::OCI_CONFIG, config.to_string().as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": oci::media_type::OCI_MANIFEST, "config": config, "layers": kinds,
    });
    let manifest = store(
        oci::media_type::OCI_MANIFEST,
        manifest.to_string().as_bytes(),
    );
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(
        directory.join("oci-layout"),
        "{\"imageLayoutVersion\":\"1.0.0\"}",
    )
    .unwrap();
    manifest["digest"].as_str().unwrap().to_owned()
}

#[test]
fn matrix_layers_of_images_stay_inside() {
    let matrix = Matrix::alone(testkit::Release::Debian, &[]);
    let outside = Outside::new(&matrix);
    let archives = hostile_archives(&outside.shown);
    let way = tar(&[
        (b'2', "l", &outside.shown),
        (b'5', "d", ""),
        (b'0', "d/f", ""),
    ]);
    let after = tar(&[
        (b'0', "l/.wh.secret", ""),
        (b'0', "l/x", ""),
        (b'0', "d/.wh.f", ""),
    ]);
    let opaque = tar(&[(b'0', "l/.wh..wh..opq", ""), (b'1', "h", "l/secret")]);
    let mut cases = Vec::new();
    let mut images: Vec<(String, Vec<Vec<u8>>)> = archives
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), vec![way.clone(), bytes]))
        .collect();
    images.push((
        "whiteouts through a lower link".into(),
        vec![way.clone(), after],
    ));
    images.push(("opaque through a lower link".into(), vec![way, opaque]));
    for (number, (name, layers)) in images.iter().enumerate() {
        let directory = matrix.shop.lab.subdirectory(&format!("image-{number}"));
        let digest = image(&directory, layers);
        let layout = format!("--oci-layout=i={}", text(&directory));
        cases.push(
            Case::of(name, &matrix, |llb| {
                let source = llb.source(
                    &format!("oci-layout://hostile/image@{digest}"),
                    &[("oci.store", "i")],
                );
                // Something is written on it, so all its layers are unpacked and mounted.
                llb.mkfile(Some(source), "/l/written", "x")
            })
            .flags(&[&layout]),
        );
    }
    outside.survives(&matrix, &cases);
}
