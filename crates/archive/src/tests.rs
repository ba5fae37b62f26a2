//! Archives made by others, hostile ones, and round trips.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use crate::*;

fn archive(entries: &[Header]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for header in entries {
        writer.append(header, std::io::repeat(b'x')).unwrap();
    }
    writer.finish().unwrap()
}

fn link(kind: EntryKind, path: &str, target: &str) -> Header {
    let mut header = Header::new(kind, path);
    header.link = target.into();
    header
}

fn unpacked(entries: &[Header]) -> (tempfile::TempDir, Result<UnpackStats>) {
    let dir = tempfile::tempdir().unwrap();
    let stats = unpack_layer(&archive(entries)[..], dir.path(), None);
    (dir, stats)
}

fn headers(tar: &[u8]) -> Vec<Header> {
    let mut reader = Reader::new(tar);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        all.push(entry.header().clone());
    }
    all
}

/// An archive made by GNU tar, which every machine has, of a directory that `fill` fills.
fn gnu_tar(format: &[&str], fill: impl FnOnce(&Path)) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let output = Command::new("tar")
        .args(["--sort=name", "-c", "-f", "-"])
        .args(format)
        .arg("-C")
        .arg(dir.path())
        .arg(".")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn sparse(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::create(path).unwrap();
    for i in 0..40 {
        file.write_all_at(format!("piece {i}").as_bytes(), i << 20)
            .unwrap();
    }
    file.set_len(50 << 20).unwrap();
}

#[test]
fn archives_of_gnu_tar_are_read_in_every_format() {
    let long = "n".repeat(180);
    let deep = format!("{}/{}", "d".repeat(120), "e".repeat(120));
    for format in [
        &["--format=gnu", "--sparse"][..],
        &["--format=oldgnu"],
        &["--format=posix"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ] {
        let tar = gnu_tar(format, |dir| {
            fs::create_dir_all(dir.join(&deep)).unwrap();
            fs::write(dir.join(&deep).join(&long), "deep").unwrap();
            symlink(&long, dir.join("link")).unwrap();
            fs::write(dir.join("after"), "after").unwrap();
            sparse(&dir.join("sparse"));
        });
        let dest = tempfile::tempdir().unwrap();
        unpack_layer(&tar[..], dest.path(), None).unwrap();
        let read = |name: &Path| fs::read(dest.path().join(name)).unwrap();
        assert_eq!(read(&Path::new(&deep).join(&long)), b"deep", "{format:?}");
        assert_eq!(
            fs::read_link(dest.path().join("link")).unwrap(),
            Path::new(&long)
        );
        assert_eq!(read(Path::new("after")), b"after");
        let file = fs::read(dest.path().join("sparse")).unwrap();
        assert_eq!(file.len(), 50 << 20);
        assert!(file[39 << 20..].starts_with(b"piece 39\0"), "{format:?}");
        if format.contains(&"--sparse") {
            let blocks = fs::metadata(dest.path().join("sparse")).unwrap().blocks();
            assert!(blocks < 1000, "{format:?}: {blocks}");
        }
        // Read as a stream it has the same content.
        let mut reader = Reader::new(&tar[..]);
        while let Some(mut entry) = reader.next_entry().unwrap() {
            if entry.header().clean_path() == b"sparse" {
                let mut streamed = Vec::new();
                entry.read_to_end(&mut streamed).unwrap();
                assert!(streamed == file, "{format:?}");
            }
        }
    }
}

#[test]
fn what_is_written_is_understood_by_gnu_tar() {
    let long = format!("{}/{}", "d".repeat(200), "ü".repeat(60));
    let mut file = Header::file(long.as_str(), 7);
    file.uid = 5_000_000;
    file.mtime = Mtime {
        secs: 1_000_000_000,
        nanos: 500_000_000,
    };
    let tar = archive(&[
        Header::directory("d".repeat(200)),
        file,
        link(EntryKind::HardLink, "hard", &long),
        link(EntryKind::Symlink, "soft", &"t".repeat(120)),
    ]);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.tar"), &tar).unwrap();
    let status = Command::new("tar")
        .args(["-x", "-p", "--same-owner", "-f", "a.tar"])
        .current_dir(&dir)
        .status()
        .unwrap();
    assert!(status.success());
    let meta = fs::metadata(dir.path().join(&long)).unwrap();
    assert_eq!((meta.uid(), meta.len(), meta.nlink()), (5_000_000, 7, 2));
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec()),
        (1_000_000_000, 500_000_000)
    );
    let target = fs::read_link(dir.path().join("soft")).unwrap();
    assert_eq!(target, Path::new(&"t".repeat(120)));
}

#[test]
fn every_field_of_an_entry_is_unpacked() {
    let mut dir = Header::directory("dir");
    dir.mode = 0o2775;
    dir.mtime = Mtime {
        secs: 100,
        nanos: 7,
    };
    let mut tool = Header::file("dir/tool", 3);
    tool.mode = 0o4755;
    (tool.uid, tool.gid) = (12, 34);
    tool.mtime = Mtime {
        secs: -2,
        nanos: 250_000_000,
    };
    tool.xattrs
        .insert(b"user.odd".to_vec(), b"a\n12 x=y\n\0".to_vec());
    // cap_net_raw+ep, as `setcap` writes it.
    let mut capability = vec![0u8; 20];
    capability[..8].copy_from_slice(&[1, 0, 0, 2, 0, 0x20, 0, 0]);
    tool.xattrs
        .insert(b"security.capability".to_vec(), capability.clone());
    tool.xattrs
        .insert(b"trusted.overlay.redirect".to_vec(), b"/etc".to_vec());
    let mut null = Header::new(EntryKind::CharDevice, "null");
    (null.dev_major, null.dev_minor, null.mode) = (1, 3, 0o666);
    let mut fifo = Header::new(EntryKind::Fifo, "fifo");
    fifo.mode = 0o622;
    let hard = {
        let mut header = link(EntryKind::HardLink, "hard", "dir/tool");
        (header.mode, header.uid, header.gid) = (tool.mode, tool.uid, tool.gid);
        header.mtime = tool.mtime;
        header.xattrs = tool.xattrs.clone();
        header
    };
    let (root, stats) = unpacked(&[dir, tool, null, fifo, hard]);
    let stats = stats.unwrap();
    assert_eq!(
        (stats.entries, stats.content_bytes, stats.whiteouts),
        (5, 3, false)
    );
    let at = |name: &str| root.path().join(name);
    let meta = |name: &str| fs::symlink_metadata(at(name)).unwrap();
    assert_eq!(
        (meta("dir").mode() & 0o7777, meta("dir").mtime()),
        (0o2775, 100)
    );
    assert_eq!(meta("dir").mtime_nsec(), 7);
    let tool = meta("dir/tool");
    assert_eq!(
        (tool.mode() & 0o7777, tool.uid(), tool.gid()),
        (0o4755, 12, 34)
    );
    assert_eq!((tool.mtime(), tool.mtime_nsec()), (-2, 250_000_000));
    assert_eq!(tool.ino(), meta("hard").ino());
    let get = |name: &str| xattr::get(&at("hard"), name.as_bytes()).unwrap();
    assert_eq!(get("user.odd").unwrap(), b"a\n12 x=y\n\0");
    assert_eq!(get("security.capability").unwrap(), capability);
    assert_eq!(get("trusted.overlay.redirect"), None);
    assert!(meta("null").file_type().is_char_device());
    assert_eq!(
        (meta("null").rdev(), meta("null").mode() & 0o777),
        (0x103, 0o666)
    );
    assert!(meta("fifo").file_type().is_fifo());
    assert_eq!(meta("fifo").mode() & 0o777, 0o622);
}

#[test]
fn no_name_leads_out_of_the_directory() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "safe").unwrap();
    let out = outside.path().to_str().unwrap().to_owned();
    let up = format!("{}{out}", "../".repeat(30));
    let hostile: Vec<Vec<Header>> = vec![
        vec![Header::file(format!("{up}/new"), 1)],
        vec![Header::file(format!("{out}/new"), 1)],
        vec![
            link(EntryKind::Symlink, "l", &out),
            Header::file("l/new", 1),
        ],
        vec![link(EntryKind::Symlink, "l", &up), Header::file("l/new", 1)],
        vec![
            link(EntryKind::Symlink, "l", &out),
            Header::file("l/.wh.victim", 0),
        ],
        vec![link(EntryKind::HardLink, "h", &format!("{out}/victim"))],
        vec![link(EntryKind::HardLink, "h", &format!("{up}/victim"))],
        vec![
            link(EntryKind::Symlink, "l", &out),
            link(EntryKind::HardLink, "h", "l/victim"),
            Header::file("h", 1),
        ],
        vec![
            link(EntryKind::Symlink, "l", &format!("{out}/victim")),
            Header::file("l", 4),
        ],
        vec![
            link(EntryKind::Symlink, "d", &out),
            Header::directory("d"),
            Header::file("d/new", 1),
        ],
        // The directory is remembered, then replaced by a link.
        vec![
            Header::directory("d"),
            Header::file("d/one", 1),
            link(EntryKind::Symlink, "d", &out),
            Header::file("d/new", 1),
        ],
        vec![
            link(EntryKind::Symlink, "a", "b"),
            link(EntryKind::Symlink, "b", "a"),
            Header::file("a/new", 1),
        ],
        vec![Header::file(".wh...", 0)],
        vec![Header::file(".wh..", 0)],
        vec![Header::file(".wh.", 0)],
        vec![Header::file("..", 1)],
        vec![Header::file("d/.wh..", 0)],
    ];
    for (i, entries) in hostile.iter().enumerate() {
        for layer in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let tar = archive(entries);
            let _ = match layer {
                true => unpack_layer(&tar[..], dir.path(), None),
                false => unpack_tree(&tar[..], dir.path(), &UnpackOptions::default()),
            };
            let victim = fs::read_to_string(outside.path().join("victim")).unwrap();
            assert_eq!(victim, "safe", "case {i}");
            assert!(!outside.path().join("new").exists(), "case {i}");
            let names = fs::read_dir(outside.path()).unwrap().count();
            assert_eq!(names, 1, "case {i}");
        }
    }
}

#[test]
fn links_in_the_layers_below_do_not_lead_out_either() {
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("sub")).unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let lower = tempfile::tempdir().unwrap();
    symlink(outside.path(), lower.path().join("a")).unwrap();
    for entries in [
        vec![Header::directory("a"), Header::file("a/sub/new", 1)],
        vec![Header::file("a/sub/new", 1)],
        vec![link(EntryKind::HardLink, "stolen", "a/secret")],
        vec![
            Header::directory("a"),
            link(EntryKind::HardLink, "stolen", "a/secret"),
        ],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let _ = unpack_layer(&archive(&entries)[..], dir.path(), Some(lower.path()));
        assert!(!outside.path().join("sub/new").exists());
        assert!(!dir.path().join("stolen").exists());
    }
}

#[test]
fn whiteouts_hide_only_what_is_below() {
    let (root, stats) = unpacked(&[
        Header::directory("d"),
        Header::file("d/.wh.gone", 0),
        Header::file("kept", 1),
        Header::file(".wh.kept", 0),
        Header::file(".wh.back", 0),
        Header::file("back", 2),
        Header::file(".wh.dir-back", 0),
        Header::directory("dir-back"),
        Header::directory("dir-kept"),
        Header::file("dir-kept/x", 1),
        Header::file(".wh.dir-kept", 0),
        Header::directory("opaque"),
        Header::file("opaque/before", 1),
        Header::file("opaque/.wh..wh..opq", 0),
        Header::file("opaque/after", 1),
        Header::file(".wh.below/file", 0),
        Header::file(".wh..wh.plnk", 0),
    ]);
    assert!(stats.unwrap().whiteouts);
    let at = |name: &str| root.path().join(name);
    let whiteout = |name: &str| is_whiteout(&rustix::fs::lstat(at(name)).unwrap());
    assert!(whiteout("d/gone"));
    assert_eq!(fs::read(at("kept")).unwrap(), b"x");
    assert_eq!(fs::read(at("back")).unwrap(), b"xx");
    assert!(is_opaque(&at("dir-back")).unwrap() && is_opaque(&at("dir-kept")).unwrap());
    assert!(at("dir-kept/x").exists());
    assert!(is_opaque(&at("opaque")).unwrap());
    assert!(at("opaque/before").exists() && at("opaque/after").exists());
    assert!(!is_opaque(&at("d")).unwrap());
    assert!(at(".wh.below/file").exists());
    assert!(!at(".wh..wh.plnk").exists() && !at(".wh.plnk").exists());
}

#[test]
fn an_opaque_root_hides_each_name_below() {
    let entries = [
        Header::file(".wh..wh..opq", 0),
        Header::directory("both"),
        Header::file("own", 1),
    ];
    let (_root, stats) = unpacked(&entries);
    assert!(matches!(stats, Err(ArchiveError::NeedsLowers(_))));
    let lower = tempfile::tempdir().unwrap();
    fs::create_dir(lower.path().join("both")).unwrap();
    fs::write(lower.path().join("own"), "").unwrap();
    fs::write(lower.path().join("gone"), "").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let stats = unpack_layer(&archive(&entries)[..], dir.path(), Some(lower.path())).unwrap();
    assert!(stats.used_lowers);
    assert!(is_opaque(&dir.path().join("both")).unwrap());
    assert!(is_whiteout(
        &rustix::fs::lstat(dir.path().join("gone")).unwrap()
    ));
    assert_eq!(fs::read(dir.path().join("own")).unwrap(), b"x");
}

#[test]
fn directories_without_entries_are_made_like_those_below_and_counted() {
    let entries = [Header::file("a/b/file", 1)];
    let (root, stats) = unpacked(&entries);
    let stats = stats.unwrap();
    assert_eq!(stats.implied_directories, 2);
    assert!(stats.needs_lowers());
    let mode = fs::metadata(root.path().join("a/b")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
    // An entry that comes later explains the directory.
    let (_root, stats) = unpacked(&[Header::file("a/file", 1), Header::directory("a")]);
    assert!(!stats.unwrap().needs_lowers());
    let lower = tempfile::tempdir().unwrap();
    fs::create_dir(lower.path().join("a")).unwrap();
    std::os::unix::fs::chown(lower.path().join("a"), Some(5), Some(6)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let stats = unpack_layer(&archive(&entries)[..], dir.path(), Some(lower.path())).unwrap();
    assert!(stats.used_lowers && stats.implied_directories == 1);
    assert_eq!(fs::metadata(dir.path().join("a")).unwrap().gid(), 6);
}

#[test]
fn entries_replace_earlier_ones_of_another_kind() {
    let (root, stats) = unpacked(&[
        Header::directory("x"),
        Header::file("x/inner", 1),
        Header::file("x", 2),
        Header::file("y", 1),
        Header::directory("y"),
        Header::file("y/inner", 1),
        link(EntryKind::Symlink, "z", "y"),
        Header::file("z", 3),
        Header::file("y/inner", 5),
    ]);
    stats.unwrap();
    let size = |name: &str| fs::symlink_metadata(root.path().join(name)).unwrap().len();
    assert_eq!((size("x"), size("z"), size("y/inner")), (2, 3, 5));
    assert!(is_opaque(&root.path().join("y")).unwrap());
}

#[test]
fn a_tree_is_unpacked_over_what_is_there_with_the_owner_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/old"), "old").unwrap();
    fs::write(dir.path().join("d/new"), "old").unwrap();
    let entries = [
        Header::directory("d"),
        Header::file("d/new", 1),
        Header::file("d/.wh.old", 1),
    ];
    let options = UnpackOptions {
        owner: Some((7, 8)),
    };
    unpack_tree(&archive(&entries)[..], dir.path(), &options).unwrap();
    let meta = fs::metadata(dir.path().join("d/new")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.len()), (7, 8, 1));
    assert!(dir.path().join("d/old").exists() && dir.path().join("d/.wh.old").exists());
}

#[test]
fn a_cut_or_garbled_archive_is_an_error_and_never_a_panic() {
    let tar = archive(&[Header::file("a", 2000), Header::file("x".repeat(300), 10)]);
    for cut in (1..tar.len()).step_by(97) {
        let dir = tempfile::tempdir().unwrap();
        let result = unpack_layer(&tar[..cut], dir.path(), None);
        // An archive may end after any whole entry, also without the padding of the last one.
        let after_first = (512 + 2000..=512 + 2048).contains(&cut);
        assert!(
            result.is_err() || after_first || cut > tar.len() - 1536,
            "{cut}"
        );
    }
    let mut bad = tar.clone();
    bad[3] ^= 1;
    let dir = tempfile::tempdir().unwrap();
    let error = unpack_layer(&bad[..], dir.path(), None).unwrap_err();
    assert!(matches!(error, ArchiveError::Format(_)), "{error}");
}

#[test]
fn a_layer_is_written_sorted_relative_and_the_same_every_time() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("b/sub")).unwrap();
    fs::write(at("b/sub/file"), "content").unwrap();
    fs::hard_link(at("b/sub/file"), at("b/again")).unwrap();
    fs::write(at("b.txt"), "").unwrap();
    symlink("b.txt", at("a")).unwrap();
    xattr::set(&at("b"), b"user.k", b"v").unwrap();
    make_opaque(&at("b")).unwrap();
    let fd = fs::File::open(dir.path()).unwrap();
    make_whiteout(&fd, b"gone").unwrap();
    let write = || {
        let mut out = Vec::new();
        write_layer(dir.path(), None, &mut out, &TarOptions::default()).unwrap();
        out
    };
    let tar = write();
    assert!(tar == write());
    let all = headers(&tar);
    let names: Vec<_> = all
        .iter()
        .map(|h| String::from_utf8_lossy(&h.path))
        .collect();
    assert_eq!(
        names,
        [
            "a",
            "b/",
            "b/.wh..wh..opq",
            "b/again",
            "b/sub/",
            "b/sub/file",
            "b.txt",
            ".wh.gone"
        ]
    );
    let by_name: BTreeMap<_, _> = names.iter().cloned().zip(&all).collect();
    assert_eq!(by_name["b/sub/file"].kind, EntryKind::HardLink);
    assert_eq!(by_name["b/sub/file"].link, b"b/again");
    assert_eq!(by_name["b/"].xattrs.len(), 1);
    assert_eq!(
        (by_name[".wh.gone"].mode, by_name[".wh.gone"].mtime.secs),
        (0, 0)
    );
    assert!(all.iter().all(|h| h.mtime.nanos == 0 && h.uname.is_empty()));
}

#[test]
fn times_are_limited_and_names_prefixed_on_request() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "1").unwrap();
    fs::hard_link(dir.path().join("f"), dir.path().join("g")).unwrap();
    let options = TarOptions {
        prefix: b"linux_amd64/".to_vec(),
        mtime_max: Some(Mtime::from_secs(1000)),
    };
    let all = headers(&write_tree(dir.path(), Vec::new(), &options).unwrap());
    assert_eq!(all[0].path, b"linux_amd64/f");
    assert_eq!(all[1].link, b"linux_amd64/f");
    assert!(all.iter().all(|h| h.mtime == Mtime::from_secs(1000)));
}

fn any_header() -> impl Strategy<Value = Header> {
    let name = prop::collection::vec(prop::sample::select(&b"ab/.\xc3\xa4 =\n"[..]), 1..300);
    let kind = prop::sample::select(vec![
        EntryKind::Regular,
        EntryKind::Symlink,
        EntryKind::HardLink,
        EntryKind::CharDevice,
        EntryKind::Directory,
        EntryKind::Fifo,
    ]);
    let xattrs = prop::collection::btree_map(
        prop::sample::select(vec![b"user.a".to_vec(), b"security.capability".to_vec()]),
        prop::collection::vec(any::<u8>(), 0..50),
        0..3,
    );
    let numbers = (
        0u32..0o10000,
        0u64..1 << 40,
        any::<u32>(),
        -(1i64 << 40)..1 << 40,
    );
    (
        kind,
        name.clone(),
        name,
        numbers,
        0u32..1_000_000_000,
        xattrs,
        0u64..3000,
    )
        .prop_map(
            |(kind, path, link, (mode, uid, gid, secs), nanos, xattrs, size)| {
                let mut header = Header::new(kind, path);
                (header.mode, header.uid, header.gid) = (mode, uid, u64::from(gid));
                header.mtime = Mtime { secs, nanos };
                header.xattrs = xattrs;
                match kind {
                    EntryKind::Regular => header.size = size,
                    EntryKind::Symlink | EntryKind::HardLink => header.link = link,
                    EntryKind::CharDevice => (header.dev_major, header.dev_minor) = (gid % 4096, 7),
                    _ => {}
                }
                header
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn headers_are_read_as_they_were_written(all in prop::collection::vec(any_header(), 1..8)) {
        prop_assert_eq!(headers(&archive(&all)), all);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..3000),
        all in prop::collection::vec(any_header(), 0..3),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut tar = archive(&all);
        for (index, byte) in flips {
            let at = index.index(tar.len());
            tar[at] = byte;
            // A right checksum lets more of the damage through.
            let block = at / 512 * 512;
            let mut header: [u8; 512] = tar[block..block + 512].try_into().unwrap();
            let sum = crate::header::checksums(&header).0;
            crate::header::put_octal(&mut header[148..155], sum);
            tar[block..block + 512].copy_from_slice(&header);
        }
        bytes.splice(0..0, tar);
        let mut reader = Reader::new(&bytes[..]);
        while let Ok(Some(mut entry)) = reader.next_entry() {
            let limit = 1 << 20;
            let _ = std::io::copy(&mut (&mut entry).take(limit), &mut std::io::sink());
        }
    }
}
