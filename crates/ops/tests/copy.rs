//! Copies between two directories, as `COPY` and `ADD` ask for them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use llb::{CopyAction, MkDirAction, MkFileAction, RmAction, SymlinkAction};
use ops::file_actions::{copy, mkdir, mkfile, rm, symlink as make_symlink};
use ops::{OpError, Owner, Root};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A source and a target directory.
struct Bench {
    source: TempDir,
    target: TempDir,
}

fn write(root: &TempDir, path: &str, data: &str) {
    let path = root.path().join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, data).unwrap();
}

impl Bench {
    /// a.txt, b.txt, dir/{c.txt, sub/d.txt}, one.c
    fn new() -> Self {
        let bench = Bench {
            source: tempfile::tempdir().unwrap(),
            target: tempfile::tempdir().unwrap(),
        };
        for path in ["a.txt", "b.txt", "dir/c.txt", "dir/sub/d.txt", "one.c"] {
            write(&bench.source, path, path);
        }
        bench
    }

    fn try_copy(&self, action: &CopyAction, owner: Option<Owner>) -> Result<(), OpError> {
        let source = Root::open(self.source.path()).unwrap();
        let target = Root::open(self.target.path()).unwrap();
        copy(&source, &target, action, owner, &CancellationToken::new())
    }

    fn copy(&self, src: &str, dest: &str) {
        self.try_copy(&like_dockerfile(src, dest), None).unwrap();
    }

    fn tree(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(self.target.path(), Path::new(""), &mut found);
        found
    }

    fn meta(&self, path: &str) -> std::fs::Metadata {
        std::fs::symlink_metadata(self.target.path().join(path)).unwrap()
    }
}

fn walk(root: &Path, below: &Path, found: &mut Vec<String>) {
    let mut names: Vec<_> = std::fs::read_dir(root.join(below))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    for name in names {
        let path = below.join(name);
        let meta = std::fs::symlink_metadata(root.join(&path)).unwrap();
        if meta.is_dir() {
            found.push(format!("{}/", path.display()));
            walk(root, &path, found);
        } else {
            found.push(path.display().to_string());
        }
    }
}

/// The options a Dockerfile's COPY has.
fn like_dockerfile(src: &str, dest: &str) -> CopyAction {
    CopyAction {
        src: src.into(),
        dest: dest.into(),
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..CopyAction::default()
    }
}

#[test]
fn files_and_slashes() {
    let bench = Bench::new();
    bench.copy("/a.txt", "/new");
    bench.copy("/a.txt", "/newdir/");
    bench.copy("/a.txt", "/newdir");
    bench.copy("/a.txt", "/deep/er/x");
    assert_eq!(
        bench.tree(),
        [
            "deep/",
            "deep/er/",
            "deep/er/x",
            "new",
            "newdir/",
            "newdir/a.txt"
        ]
    );
}

#[test]
fn directories_stand_for_their_content() {
    let bench = Bench::new();
    bench.copy("/dir", "/d1");
    bench.copy("/dir/.", "/d2/");
    bench.copy("/dir/sub", "/d1");
    assert_eq!(
        bench.tree(),
        [
            "d1/",
            "d1/c.txt",
            "d1/d.txt",
            "d1/sub/",
            "d1/sub/d.txt",
            "d2/",
            "d2/c.txt",
            "d2/sub/",
            "d2/sub/d.txt"
        ]
    );
}

#[test]
fn wildcards_match_like_go_and_stop_below_a_match() {
    let bench = Bench::new();
    bench.copy("/*.txt", "/w1/");
    bench.copy("/*/c.txt", "/w2/");
    bench.copy("/[^a].txt", "/w3/");
    bench.copy("/nothing*", "/w4/");
    assert_eq!(
        bench.tree(),
        [
            "w1/", "w1/a.txt", "w1/b.txt", "w2/", "w2/c.txt", "w3/", "w3/b.txt"
        ]
    );
    let mut strict = like_dockerfile("/nothing*", "/w5/");
    strict.allow_empty_wildcard = false;
    let error = bench.try_copy(&strict, None).unwrap_err();
    assert_eq!(error.to_string(), "/nothing* not found");
}

#[test]
fn include_patterns_make_only_the_directories_they_need() {
    let bench = Bench::new();
    std::fs::create_dir(bench.source.path().join("empty")).unwrap();
    let mut action = like_dockerfile("/", "/p/");
    action.include_patterns = vec!["dir/sub/d.txt".into()];
    bench.try_copy(&action, None).unwrap();
    let mut action = like_dockerfile("/", "/q/");
    action.exclude_patterns = vec!["**/*.txt".into(), "!dir/c.txt".into()];
    bench.try_copy(&action, None).unwrap();
    assert_eq!(
        bench.tree(),
        [
            "p/",
            "p/dir/",
            "p/dir/sub/",
            "p/dir/sub/d.txt",
            "q/",
            "q/dir/",
            "q/dir/c.txt",
            "q/dir/sub/",
            "q/empty/",
            "q/one.c"
        ]
    );
}

#[test]
fn a_directory_does_not_replace_a_file_unless_told() {
    let bench = Bench::new();
    write(&bench.target, "x", "in the way");
    let action = like_dockerfile("/dir", "/x");
    let error = bench.try_copy(&action, None).unwrap_err();
    assert_eq!(error.to_string(), "cannot copy to non-directory: /x");
    write(&bench.target, "y/c.txt/z", "");
    let error = bench
        .try_copy(&like_dockerfile("/dir", "/y"), None)
        .unwrap_err();
    assert!(error.to_string().contains("/y/c.txt"), "{error}");
    let mut action = like_dockerfile("/dir", "/y");
    action.always_replace_existing_dest_paths = true;
    bench.try_copy(&action, None).unwrap();
    assert!(bench.meta("y/c.txt").is_file());
}

#[test]
fn owner_and_mode_apply_to_everything_made() {
    let bench = Bench::new();
    let mut action = like_dockerfile("/dir", "/made/here");
    action.mode = Some(0o4711);
    let owner = Owner { uid: 12, gid: 34 };
    bench.try_copy(&action, Some(owner)).unwrap();
    let ids = |path: &str| (bench.meta(path).uid(), bench.meta(path).gid());
    assert_eq!(ids("made"), (12, 34));
    assert_eq!(ids("made/here/sub/d.txt"), (12, 34));
    assert_eq!(
        bench.meta("made/here/c.txt").permissions().mode() & 0o7777,
        0o4711
    );
    let mut action = like_dockerfile("/dir/", "/sym/");
    action.mode_str = "u=rwX,go=rX".into();
    bench.try_copy(&action, None).unwrap();
    assert_eq!(bench.meta("sym").permissions().mode() & 0o7777, 0o755);
    assert_eq!(bench.meta("sym/c.txt").permissions().mode() & 0o7777, 0o644);
}

#[test]
fn times_links_and_hard_links_are_kept() {
    let bench = Bench::new();
    let from = bench.source.path();
    std::fs::hard_link(from.join("a.txt"), from.join("dir/a2.txt")).unwrap();
    std::fs::hard_link(from.join("a.txt"), from.join("dir/a3.txt")).unwrap();
    symlink("../a.txt", from.join("dir/link")).unwrap();
    let past = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 5);
    for path in ["dir/c.txt", "dir/sub", "dir"] {
        let file = std::fs::File::open(from.join(path)).unwrap();
        file.set_modified(past).unwrap();
    }
    bench.copy("/dir", "/d");
    assert_eq!(bench.meta("d").modified().unwrap(), past);
    assert_eq!(bench.meta("d/sub").modified().unwrap(), past);
    assert_eq!(bench.meta("d/c.txt").modified().unwrap(), past);
    assert_eq!(bench.meta("d/a2.txt").ino(), bench.meta("d/a3.txt").ino());
    assert!(bench.meta("d/link").is_symlink());
    bench.copy("/dir/link", "/followed");
    assert!(bench.meta("followed").is_file());
    let mut action = like_dockerfile("/dir", "/stamped/x");
    action.timestamp = Some(1_000_000_000_000_000_000);
    bench.try_copy(&action, None).unwrap();
    for path in ["stamped", "stamped/x", "stamped/x/sub", "stamped/x/c.txt"] {
        assert_eq!(bench.meta(path).mtime(), 1_000_000_000, "{path}");
    }
}

#[test]
fn links_in_the_destination_stay_inside() {
    let bench = Bench::new();
    let to = bench.target.path();
    std::fs::create_dir(to.join("real")).unwrap();
    symlink("/real", to.join("short")).unwrap();
    symlink("/not/yet", to.join("pending")).unwrap();
    symlink("../../../../../../escape", to.join("out")).unwrap();
    bench.copy("/a.txt", "/short/");
    bench.copy("/a.txt", "/pending/z");
    bench.copy("/a.txt", "/out");
    write(&bench.target, "end.txt", "");
    symlink("end.txt", to.join("link.txt")).unwrap();
    bench.copy("/b.txt", "/link.txt");
    assert_eq!(
        bench.tree(),
        [
            "end.txt",
            "escape",
            "link.txt",
            "not/",
            "not/yet/",
            "not/yet/z",
            "out",
            "pending",
            "real/",
            "real/a.txt",
            "short"
        ]
    );
    assert_eq!(
        std::fs::read_to_string(to.join("end.txt")).unwrap(),
        "b.txt"
    );
}

#[test]
fn directories_files_links_and_removal() {
    let bench = Bench::new();
    let root = Root::open(bench.target.path()).unwrap();
    let dir = MkDirAction {
        path: "/a/b".into(),
        mode: 0o750,
        make_parents: true,
        timestamp: Some(5_000_000_000),
        ..MkDirAction::default()
    };
    mkdir(&root, &dir, Some(Owner { uid: 1, gid: 2 })).unwrap();
    assert_eq!((bench.meta("a").uid(), bench.meta("a").mtime()), (1, 5));
    let mut again = dir.clone();
    again.make_parents = false;
    mkdir(&root, &again, None).unwrap();
    let file = MkFileAction {
        path: "a/b/f".into(),
        mode: 0o640,
        data: b"hello".to_vec(),
        ..MkFileAction::default()
    };
    mkfile(&root, &file, None).unwrap();
    assert_eq!(bench.meta("a/b/f").permissions().mode() & 0o7777, 0o640);
    let link = SymlinkAction {
        oldpath: "f".into(),
        newpath: "/a/b/l".into(),
        ..SymlinkAction::default()
    };
    make_symlink(&root, &link, None).unwrap();
    let mut missing = RmAction {
        path: "/a/none".into(),
        ..RmAction::default()
    };
    let error = rm(&root, &missing).unwrap_err();
    assert_eq!(error.to_string(), "stat /a/none: no such file or directory");
    missing.allow_not_found = true;
    rm(&root, &missing).unwrap();
    let pattern = RmAction {
        path: "/a/*".into(),
        allow_wildcard: true,
        ..RmAction::default()
    };
    rm(&root, &pattern).unwrap();
    assert_eq!(bench.tree(), ["a/"]);
}

#[test]
fn a_tree_large_enough_for_several_threads_keeps_everything_and_names_the_file_that_fails() {
    let bench = Bench::new();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for number in 0..1000 {
        let path = format!("many/{}/{}/{number}", number / 200, number / 50);
        write(&bench.source, &path, &path);
    }
    for number in (0..1000).step_by(50) {
        let dir = format!("many/{}/{}", number / 200, number / 50);
        let dir = std::fs::File::open(bench.source.path().join(dir)).unwrap();
        dir.set_modified(time).unwrap();
    }
    for dir in ["many/0", "many/1", "many/2", "many/3", "many/4", "many"] {
        let dir = std::fs::File::open(bench.source.path().join(dir)).unwrap();
        dir.set_modified(time).unwrap();
    }
    bench.copy("/many", "/many");
    for number in 0..1000 {
        let path = format!("many/{}/{}/{number}", number / 200, number / 50);
        let copied = std::fs::read_to_string(bench.target.path().join(&path)).unwrap();
        assert_eq!(copied, path);
    }
    for path in bench.tree().iter().filter(|path| bench.meta(path).is_dir()) {
        assert_eq!(bench.meta(path).modified().unwrap(), time, "{path}");
    }

    let in_the_way = bench.target.path().join("many/4/17/870");
    std::fs::remove_file(&in_the_way).unwrap();
    std::fs::create_dir(&in_the_way).unwrap();
    let failed = bench.try_copy(&like_dockerfile("/many", "/many"), None);
    let error = failed.unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot replace to directory /many/4/17/870 with file"
    );
}

/// What a directory holds: names, kinds, permission bits and contents.
fn described(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    walk(root, Path::new(""), &mut names);
    let describe = |name: &String| {
        let path = root.join(name);
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let content = match meta.is_file() {
            true => std::fs::read_to_string(&path).unwrap(),
            false => String::new(),
        };
        format!("{name} {:o} {} {content}", meta.mode(), meta.mtime())
    };
    names.iter().map(describe).collect()
}

#[test]
fn what_is_read_from_layers_is_what_a_mount_of_them_shows() {
    let dir = tempfile::tempdir().unwrap();
    let store = layers::LayerStore::open(dir.path(), layers::Backend::Auto).unwrap();
    let mut stack = layers::LayerStack::empty();
    let steps: [&dyn Fn(&Path); 4] = [
        &|root| {
            for path in [
                "kept/a",
                "kept/b",
                "gone/a",
                "emptied/a",
                "swap/a",
                "deep/x/y/z",
            ] {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "first").unwrap();
            }
            std::fs::write(root.join("turned"), "into a directory").unwrap();
            symlink("kept", root.join("link")).unwrap();
        },
        &|root| {
            std::fs::write(root.join("kept/b"), "second").unwrap();
            std::fs::remove_dir_all(root.join("gone")).unwrap();
            std::fs::remove_dir_all(root.join("emptied")).unwrap();
            std::fs::create_dir(root.join("emptied")).unwrap();
            std::fs::write(root.join("emptied/new"), "second").unwrap();
            std::fs::remove_dir_all(root.join("swap")).unwrap();
            std::fs::write(root.join("swap"), "a file now").unwrap();
            std::fs::remove_file(root.join("turned")).unwrap();
            std::fs::create_dir(root.join("turned")).unwrap();
            std::fs::remove_file(root.join("deep/x/y/z")).unwrap();
            let bits = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(root.join("deep/x"), bits).unwrap();
        },
        &|root| {
            std::fs::remove_file(root.join("link")).unwrap();
            std::fs::create_dir(root.join("gone")).unwrap();
            std::fs::write(root.join("gone/again"), "third").unwrap();
            std::fs::write(root.join("deep/x/y/more"), "third").unwrap();
        },
        &|root| {
            std::fs::remove_file(root.join("swap")).unwrap();
            std::fs::create_dir(root.join("swap")).unwrap();
            std::fs::write(root.join("emptied/a"), "fourth").unwrap();
        },
    ];
    for (number, step) in steps.iter().enumerate() {
        let writable = store.writable(&stack).unwrap();
        step(&writable.path());
        let note = layers::LayerNote::new(format!("step {number}"));
        stack = writable.commit(note).unwrap();
        let mounted = store.mount(&stack).unwrap();
        let dirs = store.dirs(&stack).unwrap().unwrap();
        assert_eq!(dirs.paths().len(), number + 1);
        for path in ["/", "/deep/x", "/emptied", "/swap"] {
            let copied = [
                Root::open(mounted.path()).unwrap(),
                Root::of_layers(mounted.path(), dirs.paths()).unwrap(),
            ]
            .map(|source| {
                let to = tempfile::tempdir().unwrap();
                let target = Root::open(to.path()).unwrap();
                let action = like_dockerfile(path, "/copied/");
                copy(&source, &target, &action, None, &CancellationToken::new()).unwrap();
                // The directory itself is made now, unless it is the copy of one.
                described(&to.path().join("copied"))
            });
            assert_eq!(copied[0], copied[1], "{path} after step {number}");
            assert!(path != "/" || copied[0].len() > 5);
        }
    }
    let whole = described(store.mount(&stack).unwrap().path());
    assert!(whole.iter().any(|line| line.starts_with("gone/again ")));
    assert!(!whole.iter().any(|line| line.starts_with("deep/x/y/z ")));
}
