//! Random work on stacks against the same work in a plain directory, and a store killed at random.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use archive::Compression;
use content::ContentStore;
use proptest::prelude::*;

use crate::*;

/// One change to a filesystem. Names are few, so that changes meet.
#[derive(Clone, Debug)]
enum Change {
    Write(String, u8),
    Append(String, u8),
    Mkdir(String),
    Remove(String),
    Rename(String, String),
    Link(String, String),
    Symlink(String, String),
    Chmod(String, u32),
    Xattr(String, u8),
    RemakeDir(String),
}

fn path() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c"]);
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (path(), any::<u8>()).prop_map(|(p, n)| Change::Write(p, n)),
        1 => (path(), any::<u8>()).prop_map(|(p, n)| Change::Append(p, n)),
        3 => path().prop_map(Change::Mkdir),
        2 => path().prop_map(Change::Remove),
        1 => (path(), path()).prop_map(|(p, q)| Change::Rename(p, q)),
        1 => (path(), path()).prop_map(|(p, q)| Change::Link(p, q)),
        1 => (path(), path()).prop_map(|(p, q)| Change::Symlink(p, q)),
        1 => (path(), 0u32..0o10000).prop_map(|(p, m)| Change::Chmod(p, m)),
        1 => (path(), any::<u8>()).prop_map(|(p, n)| Change::Xattr(p, n)),
        1 => path().prop_map(Change::RemakeDir),
    ]
}

/// A place whose directories are all real, so that no link leads out of the tree; `None` otherwise.
fn place(root: &Path, name: &str) -> Option<PathBuf> {
    let path = root.join(name);
    let mut parent = path.parent()?;
    while parent != root {
        if !fs::symlink_metadata(parent).is_ok_and(|meta| meta.is_dir()) {
            return None;
        }
        parent = parent.parent()?;
    }
    Some(path)
}

/// What overlayfs does otherwise than other filesystems: a file of several names gets a copy for the
/// one name through which it is changed, and such names are different files to it.
fn changes_a_linked_file(plain: &Path, change: &Change) -> bool {
    let linked = |name: &String| {
        place(plain, name)
            .and_then(|path| fs::symlink_metadata(path).ok())
            .is_some_and(|meta| !meta.is_dir() && meta.nlink() > 1)
    };
    match change {
        Change::Write(name, _) | Change::Append(name, _) => linked(name),
        Change::Chmod(name, _) | Change::Xattr(name, _) => linked(name),
        Change::Rename(from, to) => linked(from) || linked(to),
        _ => false,
    }
}

/// Makes a change; what cannot be done is left, the same everywhere. Directories are never renamed:
/// on overlay that is refused and left to the caller to copy.
fn apply(root: &Path, change: &Change) {
    let kind = |path: &Path| fs::symlink_metadata(path).ok().map(|meta| meta.file_type());
    let is_file = |path: &Path| kind(path).is_some_and(|kind| kind.is_file());
    match change {
        Change::Write(name, n) => {
            if let Some(path) = place(root, name)
                && (kind(&path).is_none() || is_file(&path))
            {
                let _ = fs::write(path, format!("content {n}"));
            }
        }
        Change::Append(name, n) => {
            if let Some(path) = place(root, name)
                && is_file(&path)
            {
                let text = fs::read_to_string(&path).unwrap();
                let _ = fs::write(path, format!("{text}+{n}"));
            }
        }
        Change::Mkdir(name) => {
            let _ = place(root, name).map(fs::create_dir);
        }
        Change::Remove(name) => {
            if let Some(path) = place(root, name) {
                archive::remove_tree(rustix::fs::CWD, &path).unwrap();
            }
        }
        Change::Rename(from, to) => {
            if let (Some(from), Some(to)) = (place(root, from), place(root, to))
                && kind(&from).is_some_and(|kind| !kind.is_dir())
            {
                let _ = fs::rename(from, to);
            }
        }
        Change::Link(from, to) => {
            if let (Some(from), Some(to)) = (place(root, from), place(root, to)) {
                let _ = fs::hard_link(from, to);
            }
        }
        Change::Symlink(target, name) => {
            let _ = place(root, name).map(|path| symlink(target, path));
        }
        Change::Chmod(name, mode) => {
            if let Some(path) = place(root, name)
                && kind(&path).is_some_and(|kind| !kind.is_symlink())
            {
                fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
            }
        }
        Change::Xattr(name, n) => {
            if let Some(path) = place(root, name)
                && kind(&path).is_some_and(|kind| !kind.is_symlink())
            {
                archive::xattr::set(&path, b"user.n", &[*n, b'\n', 0]).unwrap();
            }
        }
        Change::RemakeDir(name) => {
            if let Some(path) = place(root, name)
                && kind(&path).is_some_and(|kind| kind.is_dir())
            {
                fs::remove_dir_all(&path).unwrap();
                fs::create_dir(&path).unwrap();
            }
        }
    }
}

/// Every name in a tree with all that must agree.
fn show(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, out: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let mut what = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
            if meta.is_dir() {
                walk(root, &path, out);
            } else if meta.is_symlink() {
                what += &format!(" -> {}", fs::read_link(&path).unwrap().display());
            } else if meta.is_file() {
                what += &format!(" {}", fs::read_to_string(&path).unwrap());
            }
            let value = archive::xattr::get(&path, b"user.n").unwrap();
            what += &format!(" {value:?}");
            let name = path.strip_prefix(root).unwrap().display().to_string();
            out.insert(name, what);
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

fn check_against_a_plain_directory(backend: Backend, steps: &[Vec<Change>]) {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    fs::create_dir(&plain).unwrap();
    let open = |name: &str| LayerStore::open_limited(&dir.path().join(name), backend, 4).unwrap();
    let (store, second) = (open("store"), open("second"));
    let content = ContentStore::open(dir.path().join("content")).unwrap();
    let lease = content.lease();
    let mut stack = LayerStack::empty();
    let mut packed = Vec::new();
    for changes in steps {
        let writable = store.writable(&stack).unwrap();
        for change in changes.iter() {
            if !changes_a_linked_file(&plain, change) {
                apply(&plain, change);
                apply(&writable.path(), change);
            }
        }
        assert_eq!(show(&writable.path()), show(&plain), "while writing");
        stack = writable.commit(LayerNote::default()).unwrap();
        assert_eq!(
            show(store.mount(&stack).unwrap().path()),
            show(&plain),
            "committed"
        );
        let top = stack.len() - 1;
        let blob = store
            .compute_blob(&stack, top, &lease, Compression::Gzip, None)
            .unwrap();
        packed.push(PackedLayer {
            descriptor: blob.descriptor,
            diff_id: Some(blob.diff_id),
            note: LayerNote::default(),
        });
    }
    // What was packed and unpacked elsewhere is the same.
    let (unpacked, _hold) = second.unpack_image(&content, &packed).unwrap();
    assert_eq!(
        show(second.mount(&unpacked).unwrap().path()),
        show(&plain),
        "unpacked"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn overlay_stacks_behave_like_a_plain_directory(
        steps in prop::collection::vec(prop::collection::vec(change(), 1..12), 1..7)
    ) {
        check_against_a_plain_directory(Backend::Overlay, &steps);
    }

    #[test]
    fn copied_stacks_behave_like_a_plain_directory(
        steps in prop::collection::vec(prop::collection::vec(change(), 1..12), 1..7)
    ) {
        check_against_a_plain_directory(Backend::Copy, &steps);
    }
}

/// The directory and backend that [`the_victim`] works with; unset, it does nothing.
const VICTIM: &str = "COOPERAGE_TEST_LAYERS_VICTIM";

/// Works without end until it is killed; only run by the test below, in a process of its own.
#[test]
fn the_victim() {
    let Ok(spec) = std::env::var(VICTIM) else {
        return;
    };
    let (backend, dir) = spec.split_once(' ').unwrap();
    let backend = match backend {
        "overlay" => Backend::Overlay,
        _ => Backend::Copy,
    };
    let store = LayerStore::open(dir, backend).unwrap();
    let mut stack = LayerStack::empty();
    for number in 0.. {
        let writable = store.writable(&stack).unwrap();
        for part in 0..20 {
            fs::write(writable.path().join(format!("{part}")), number.to_string()).unwrap();
        }
        let next = writable.commit(LayerNote::new(number.to_string())).unwrap();
        let seen = store.mount(&next).unwrap();
        assert!(seen.path().join("0").exists());
        let fresh = store.new_layer().unwrap();
        fs::write(fresh.path().join("0"), "x").unwrap();
        match number % 10 {
            9 => {
                drop((seen, fresh));
                for id in stack.iter() {
                    store.remove(id).unwrap();
                }
                stack = LayerStack::empty();
            }
            _ => stack = next,
        }
        println!("{number}");
    }
}

fn survive_kills(backend: Backend, name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    for round in 0..12u32 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "oracle_tests::the_victim", "--nocapture"])
            .env(VICTIM, format!("{name} {path}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Killed at some moment after a number of steps, not after a time.
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        let steps = 3 + round * 5 % 17;
        let mut counted = 0;
        while counted < steps {
            let line = lines.next().unwrap().unwrap();
            counted += u32::from(line.parse::<u32>().is_ok());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = LayerStore::open(path, backend).unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(path), "round {round}");
        let count = |name: &str| fs::read_dir(dir.path().join(name)).unwrap().count();
        assert_eq!((count("new"), count("mounts")), (0, 0));
        let layers = store.list().unwrap();
        assert_eq!(count("layers"), layers.len());
        for id in layers {
            let info = store.info(id).unwrap().unwrap();
            let mounted = store.mount(&id.into()).unwrap();
            for part in 0..20 {
                let text = fs::read_to_string(mounted.path().join(part.to_string())).unwrap();
                assert_eq!(text, info.description);
            }
            drop(mounted);
            store.remove(id).unwrap();
        }
    }
}

#[test]
fn an_overlay_store_survives_being_killed() {
    survive_kills(Backend::Overlay, "overlay");
}

#[test]
fn a_copying_store_survives_being_killed() {
    survive_kills(Backend::Copy, "copy");
}
