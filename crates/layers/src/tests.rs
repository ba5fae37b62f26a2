//! The contract every backend keeps, and what the store as a whole promises.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use archive::{Compression, Header, Writer};
use content::ContentStore;
use oci::{Descriptor, Digest, media_type};

use crate::overlay::{Request, probe, unmount};
use crate::*;

struct Fixture {
    dir: tempfile::TempDir,
    store: LayerStore,
    backend: Backend,
}

impl Fixture {
    fn new(backend: Backend) -> Self {
        Self::limited(backend, usize::MAX)
    }

    fn limited(backend: Backend, lowers_max: usize) -> Self {
        let dir = DISK.with_borrow(|disk| match disk {
            Some(disk) => tempfile::tempdir_in(disk).unwrap(),
            None => tempfile::tempdir().unwrap(),
        });
        let store = LayerStore::open_limited(dir.path(), backend, lowers_max).unwrap();
        assert_eq!(store.backend(), backend);
        Fixture {
            dir,
            store,
            backend,
        }
    }

    fn reopen(self) -> Self {
        let Fixture {
            dir,
            store,
            backend,
        } = self;
        drop(store);
        let store = LayerStore::open(dir.path(), backend).unwrap();
        Fixture {
            dir,
            store,
            backend,
        }
    }

    fn step(&self, base: &LayerStack, change: impl FnOnce(&Path)) -> LayerStack {
        let writable = self.store.writable(base).unwrap();
        change(&writable.path());
        writable.commit(LayerNote::new("step")).unwrap()
    }

    fn shown(&self, stack: &LayerStack) -> BTreeMap<String, String> {
        show(self.store.mount(stack).unwrap().path())
    }

    fn count(&self, name: &str) -> usize {
        fs::read_dir(self.dir.path().join(name)).unwrap().count()
    }
}

/// Every name in a tree with what is there.
fn show(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, out: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let meta = fs::symlink_metadata(&path).unwrap();
            let mode = meta.mode() & 0o7777;
            let what = if meta.is_dir() {
                walk(root, &path, out);
                format!("dir {mode:o}")
            } else if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if meta.is_file() {
                format!("{mode:o} {}", fs::read_to_string(&path).unwrap())
            } else {
                format!("other {:o}", meta.mode())
            };
            out.insert(name, what);
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

fn tree(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = |(name, what): &(&str, &str)| (name.to_string(), what.to_string());
    entries.iter().map(own).collect()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

thread_local! {
    /// Where stores are made, if not where temporary files are.
    static DISK: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Runs a test on a filesystem that is an overlay, as in a container without a volume: overlayfs does
/// not work there, nor can its marks be made.
fn on_an_overlay(test: impl FnOnce()) {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            DISK.set(None);
            unmount(&self.0).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let [lower, upper, work, disk] = ["lower", "upper", "work", "disk"].map(|name| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    });
    let api = probe(&dir.path().join("probe")).unwrap();
    let request = Request {
        lowers: vec![lower],
        upper: Some((&upper, &work)),
        target: &disk,
        base: dir.path(),
    };
    api.mount(&request).unwrap();
    let _mounted = Mounted(disk.clone());
    DISK.set(Some(disk));
    test();
}

/// The contract of a backend: one test function for each backend and promise.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod overlay { $(#[test] fn $name() { super::$name(crate::Backend::Overlay); })* }
        mod copy { $(#[test] fn $name() { super::$name(crate::Backend::Copy); })* }
        mod copy_on_an_overlay {
            $(#[test] fn $name() { super::on_an_overlay(|| super::$name(crate::Backend::Copy)); })*
        }
    };
}

contract!(
    the_empty_stack_is_an_empty_directory_and_a_new_root_has_mode_0755,
    what_is_written_is_seen_above_and_not_below,
    deleting_and_replacing_shows_in_the_stack_and_as_whiteouts_in_the_blob,
    a_directory_made_anew_hides_what_the_old_one_had,
    metadata_alone_makes_a_change_and_the_roots_own_is_kept,
    hard_links_and_odd_files_survive_a_commit,
    a_dropped_handle_leaves_nothing,
    stacks_may_be_joined_cut_and_repeat_layers,
    a_held_layer_is_not_removed,
    stacks_longer_than_a_mount_are_flattened_at_the_bottom,
    an_unchanged_directory_is_not_in_the_blob,
    a_file_of_equal_size_and_time_is_a_change_when_its_content_differs,
    a_directory_made_anew_loses_its_attributes,
    what_an_unpacked_archive_shows_is_what_was_packed,
    layers_that_need_what_is_below_are_unpacked_with_it,
);

fn the_empty_stack_is_an_empty_directory_and_a_new_root_has_mode_0755(backend: Backend) {
    let t = Fixture::new(backend);
    assert!(t.shown(&LayerStack::empty()).is_empty());
    let writable = t.store.writable(&LayerStack::empty()).unwrap();
    let meta = fs::metadata(writable.path()).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o755, 0));
    let stack = writable.commit(LayerNote::new("nothing")).unwrap();
    assert_eq!(stack.len(), 1);
    assert!(t.shown(&stack).is_empty());
}

fn what_is_written_is_seen_above_and_not_below(backend: Backend) {
    let t = Fixture::new(backend);
    let one = t.step(&LayerStack::empty(), |root| {
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "one").unwrap();
        symlink("b/file", root.join("a/link")).unwrap();
    });
    let two = t.step(&one, |root| {
        fs::write(root.join("a/b/file"), "two").unwrap();
        fs::write(root.join("new"), "new").unwrap();
    });
    let below = tree(&[
        ("a", "dir 755"),
        ("a/b", "dir 755"),
        ("a/b/file", "644 one"),
        ("a/link", "-> b/file"),
    ]);
    assert_eq!(t.shown(&one), below);
    let above = tree(&[
        ("a", "dir 755"),
        ("a/b", "dir 755"),
        ("a/b/file", "644 two"),
        ("a/link", "-> b/file"),
        ("new", "644 new"),
    ]);
    assert_eq!(t.shown(&two), above);
    let info = t.store.info(two.top().unwrap()).unwrap().unwrap();
    assert_eq!(t.store.stack_of(&info.made_on.unwrap()), Some(one));
    assert_eq!(info.description, "step");
    assert!(info.size > 0);
    // Only what changed is in the layer.
    assert_eq!(
        blob_names(&t, &two, 1),
        ["a/", "a/b/", "a/b/file", "new"],
        "{backend:?}"
    );
}

fn blob_names(t: &Fixture, stack: &LayerStack, index: usize) -> Vec<String> {
    let content = ContentStore::open(t.dir.path().join("content")).unwrap();
    let lease = content.lease();
    let blob = t
        .store
        .compute_blob(stack, index, &lease, Compression::Gzip, None)
        .unwrap();
    let file = content.open_blob(&blob.descriptor.digest).unwrap();
    let mut reader = archive::Reader::new(archive::decompressor(file).unwrap());
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(String::from_utf8(entry.header().path.clone()).unwrap());
    }
    names
}

fn deleting_and_replacing_shows_in_the_stack_and_as_whiteouts_in_the_blob(backend: Backend) {
    let t = Fixture::new(backend);
    let one = t.step(&LayerStack::empty(), |root| {
        fs::create_dir_all(root.join("dir/sub")).unwrap();
        fs::write(root.join("dir/sub/x"), "x").unwrap();
        fs::write(root.join("dir/y"), "y").unwrap();
        fs::write(root.join("file"), "f").unwrap();
        fs::create_dir(root.join("becomes-file")).unwrap();
    });
    let two = t.step(&one, |root| {
        fs::remove_dir_all(root.join("dir/sub")).unwrap();
        fs::remove_file(root.join("file")).unwrap();
        fs::create_dir(root.join("file")).unwrap();
        fs::remove_dir(root.join("becomes-file")).unwrap();
        fs::write(root.join("becomes-file"), "now").unwrap();
        fs::write(root.join("short-lived"), "").unwrap();
        fs::remove_file(root.join("short-lived")).unwrap();
    });
    let expected = tree(&[
        ("becomes-file", "644 now"),
        ("dir", "dir 755"),
        ("dir/y", "644 y"),
        ("file", "dir 755"),
    ]);
    assert_eq!(t.shown(&two), expected);
    assert_eq!(
        blob_names(&t, &two, 1),
        ["becomes-file", "dir/", "dir/.wh.sub", "file/"]
    );
    // Alone the layer deletes nothing that is there, and that is no failure.
    let alone = t.shown(&two.above(&one).unwrap());
    assert!(
        !alone.contains_key("dir/sub") && alone.contains_key("file"),
        "{alone:?}"
    );
}

fn a_directory_made_anew_hides_what_the_old_one_had(backend: Backend) {
    let t = Fixture::new(backend);
    let one = t.step(&LayerStack::empty(), |root| {
        fs::create_dir_all(root.join("d/deep")).unwrap();
        fs::write(root.join("d/old"), "old").unwrap();
        fs::write(root.join("d/both"), "below").unwrap();
        fs::write(root.join("d/deep/x"), "x").unwrap();
    });
    let two = t.step(&one, |root| {
        fs::remove_dir_all(root.join("d")).unwrap();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/both"), "above").unwrap();
    });
    let expected = tree(&[("d", "dir 755"), ("d/both", "644 above")]);
    assert_eq!(t.shown(&two), expected);
    let names = blob_names(&t, &two, 1);
    assert!(names.contains(&"d/.wh.old".to_string()), "{names:?}");
    assert!(names.contains(&"d/.wh.deep".to_string()), "{names:?}");
    let three = t.step(&two, |root| fs::write(root.join("d/more"), "3").unwrap());
    assert_eq!(t.shown(&three).len(), 3);
}

fn metadata_alone_makes_a_change_and_the_roots_own_is_kept(backend: Backend) {
    let t = Fixture::new(backend);
    let one = t.step(&LayerStack::empty(), |root| {
        fs::write(root.join("tool"), "t").unwrap();
        fs::write(root.join("other"), "o").unwrap();
        mode(root, 0o711);
    });
    let two = t.step(&one, |root| {
        assert_eq!(fs::metadata(root).unwrap().mode() & 0o7777, 0o711);
        mode(&root.join("tool"), 0o4755);
        archive::xattr::set(&root.join("other"), b"user.note", b"a\nb").unwrap();
    });
    let expected = tree(&[("other", "644 o"), ("tool", "4755 t")]);
    assert_eq!(t.shown(&two), expected);
    assert_eq!(blob_names(&t, &two, 1), ["other", "tool"]);
    let mounted = t.store.mount(&two).unwrap();
    assert_eq!(fs::metadata(mounted.path()).unwrap().mode() & 0o7777, 0o711);
    let value = archive::xattr::get(&mounted.path().join("other"), b"user.note").unwrap();
    assert_eq!(value.as_deref(), Some(&b"a\nb"[..]));
}

fn hard_links_and_odd_files_survive_a_commit(backend: Backend) {
    let t = Fixture::new(backend);
    let one = t.step(&LayerStack::empty(), |root| {
        fs::write(root.join("base"), "b").unwrap();
    });
    let two = t.step(&one, |root| {
        fs::write(root.join("a"), "linked").unwrap();
        fs::hard_link(root.join("a"), root.join("z")).unwrap();
        fs::hard_link(root.join("base"), root.join("base2")).unwrap();
        std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let kind = rustix::fs::FileType::Fifo;
        let bits = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), kind, bits, 0).unwrap();
    });
    let mounted = t.store.mount(&two).unwrap();
    let inode = |name: &str| {
        fs::symlink_metadata(mounted.path().join(name))
            .unwrap()
            .ino()
    };
    assert_eq!(inode("a"), inode("z"));
    assert_eq!(inode("base"), inode("base2"));
    drop(mounted);
    // `base` itself did not change and is left out, as other builders do.
    assert_eq!(blob_names(&t, &two, 1), ["a", "base2", "fifo", "z"]);
}

fn a_dropped_handle_leaves_nothing(backend: Backend) {
    let t = Fixture::new(backend);
    let one = t.step(&LayerStack::empty(), |root| {
        fs::write(root.join("f"), "1").unwrap()
    });
    let two = t.step(&one, |root| fs::remove_file(root.join("f")).unwrap());
    for stack in [&LayerStack::empty(), &one, &two] {
        let writable = t.store.writable(stack).unwrap();
        fs::write(writable.path().join("lost"), "").unwrap();
        drop(writable);
        drop(t.store.mount(stack).unwrap());
    }
    drop(t.store.new_layer().unwrap());
    assert_eq!(
        (t.count("new"), t.count("mounts"), t.count("layers")),
        (0, 0, 2)
    );
    let t = t.reopen();
    assert_eq!((t.count("trash"), t.count("layers")), (0, 2));
    assert!(t.shown(&two).is_empty());
}

fn stacks_may_be_joined_cut_and_repeat_layers(backend: Backend) {
    let t = Fixture::new(backend);
    let file = |name: &'static str, text: &'static str| {
        t.step(&LayerStack::empty(), |root| {
            fs::create_dir(root.join("d")).unwrap();
            fs::write(root.join("d").join(name), text).unwrap();
            fs::write(root.join("same"), text).unwrap();
        })
    };
    let (a, b) = (file("a", "A"), file("b", "B"));
    let joined = a.joined(&b);
    let shown = t.shown(&joined);
    assert_eq!(shown["same"], "644 B");
    assert!(shown.contains_key("d/a") && shown.contains_key("d/b"));
    assert_eq!(t.shown(&joined.joined(&a))["same"], "644 A");
    assert_eq!(t.shown(&joined.above(&a).unwrap()), t.shown(&b));
    let more = t.step(&joined.joined(&a), |root| {
        assert_eq!(fs::read(root.join("same")).unwrap(), b"A");
    });
    assert_eq!(more.len(), 4);
}

fn a_held_layer_is_not_removed(backend: Backend) {
    let t = Fixture::new(backend);
    let stack = t.step(&LayerStack::empty(), |root| {
        fs::write(root.join("f"), "1").unwrap()
    });
    let id = stack.top().unwrap();
    let hold = t.store.hold(&stack);
    let mounted = t.store.mount(&stack).unwrap();
    drop(hold);
    assert!(matches!(t.store.remove(id), Err(LayerError::Held(_))));
    assert!(t.store.info(id).unwrap().unwrap().held);
    drop(mounted);
    let writable = t.store.writable(&stack).unwrap();
    assert!(matches!(t.store.remove(id), Err(LayerError::Held(_))));
    drop(writable);
    t.store.remove(id).unwrap();
    assert!(matches!(t.store.remove(id), Err(LayerError::NotFound(_))));
    assert!(matches!(
        t.store.mount(&stack),
        Err(LayerError::NotFound(_))
    ));
    assert!(t.store.info(id).unwrap().is_none());
    assert_eq!(t.count("layers"), 0);
}

fn stacks_longer_than_a_mount_are_flattened_at_the_bottom(backend: Backend) {
    let t = Fixture::limited(backend, 6);
    let mut stack = LayerStack::empty();
    for i in 0..25 {
        stack = t.step(&stack, |root| {
            fs::write(root.join(format!("f{i}")), "x").unwrap();
            fs::write(root.join("last"), i.to_string()).unwrap();
            if i % 2 == 1 {
                fs::remove_file(root.join(format!("f{}", i - 1))).unwrap();
            }
        });
    }
    let shown = t.shown(&stack);
    assert_eq!(shown["last"], "644 24");
    assert_eq!(shown.len(), 1 + 13, "{shown:?}");
    assert!(shown.contains_key("f23") && !shown.contains_key("f22"));
    let flats = t.count("flat");
    assert_eq!(flats > 0, backend == Backend::Overlay);
    assert_eq!(t.shown(&stack), shown);
    assert_eq!(t.count("flat"), flats);
    // The layers themselves were not touched by sharing their files.
    assert_eq!(t.shown(&stack.prefix(3))["last"], "644 2");
    t.store.remove(stack.get(0).unwrap()).unwrap();
    assert_eq!(t.count("flat"), 0);
}

fn an_unchanged_directory_is_not_in_the_blob(backend: Backend) {
    let t = Fixture::new(backend);
    let one = t.step(&LayerStack::empty(), |root| {
        fs::create_dir_all(root.join("tmp/keep")).unwrap();
    });
    let two = t.step(&one, |root| {
        fs::write(root.join("tmp/x"), "").unwrap();
        fs::remove_file(root.join("tmp/x")).unwrap();
    });
    assert!(blob_names(&t, &two, 1).is_empty());
}

fn a_file_of_equal_size_and_time_is_a_change_when_its_content_differs(backend: Backend) {
    let t = Fixture::new(backend);
    let time = |path: &Path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        let then = std::time::UNIX_EPOCH + std::time::Duration::new(1000, 77);
        file.set_modified(then).unwrap();
    };
    let one = t.step(&LayerStack::empty(), |root| {
        for (name, text) in [("a", "one"), ("b", "two"), ("c", "two")] {
            fs::write(root.join(name), text).unwrap();
            time(&root.join(name));
        }
    });
    let two = t.step(&one, |root| {
        fs::rename(root.join("b"), root.join("a")).unwrap();
        mode(&root.join("c"), 0o600);
        mode(&root.join("c"), 0o644);
    });
    assert_eq!(blob_names(&t, &two, 1), ["a", ".wh.b"]);
}

fn a_directory_made_anew_loses_its_attributes(backend: Backend) {
    let t = Fixture::new(backend);
    let one = t.step(&LayerStack::empty(), |root| {
        fs::create_dir(root.join("d")).unwrap();
        archive::xattr::set(&root.join("d"), b"user.k", b"v").unwrap();
    });
    let two = t.step(&one, |root| {
        fs::remove_dir(root.join("d")).unwrap();
        fs::create_dir(root.join("d")).unwrap();
    });
    let mounted = t.store.mount(&two).unwrap();
    let value = archive::xattr::get(&mounted.path().join("d"), b"user.k").unwrap();
    assert_eq!(value, None);
}

type Packed = (ContentStore, PackedLayer);

fn pack(t: &Fixture, kind: Compression, write: impl FnOnce(&mut Writer<Vec<u8>>)) -> Packed {
    let content = ContentStore::open(t.dir.path().join("content")).unwrap();
    let mut writer = Writer::new(Vec::new());
    write(&mut writer);
    let tar = writer.finish().unwrap();
    let mut packed = archive::compressor(Vec::new(), kind, None, 2).unwrap();
    std::io::Write::write_all(&mut packed, &tar).unwrap();
    let blob = packed.finish().unwrap();
    let media = match kind {
        Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        _ => media_type::OCI_LAYER_GZIP,
    };
    content.put(&blob).unwrap();
    let layer = PackedLayer {
        descriptor: Descriptor::of(media, &blob),
        diff_id: Some(Digest::of(&tar)),
        note: LayerNote::new("pulled"),
    };
    (content, layer)
}

fn what_an_unpacked_archive_shows_is_what_was_packed(backend: Backend) {
    let t = Fixture::new(backend);
    let write = |out: &mut Writer<Vec<u8>>| {
        out.append(&Header::directory("bin"), &b""[..]).unwrap();
        out.append_bytes(Header::file("bin/sh", 0), b"shell")
            .unwrap();
    };
    let (content, layer) = pack(&t, Compression::Gzip, write);
    let (stack, _hold) = t
        .store
        .unpack_image(&content, std::slice::from_ref(&layer))
        .unwrap();
    let expected = tree(&[("bin", "dir 755"), ("bin/sh", "644 shell")]);
    assert_eq!(t.shown(&stack), expected);
    // The same archive, packed otherwise, is the same layer; its blob is what was pulled.
    let (content, zstd) = pack(&t, Compression::Zstd, write);
    let (again, _hold) = t.store.unpack_image(&content, &[zstd]).unwrap();
    assert_eq!(again, stack);
    let lease = content.lease();
    let compute = |kind| t.store.compute_blob(&stack, 0, &lease, kind, None).unwrap();
    assert_eq!(compute(Compression::Gzip).descriptor, layer.descriptor);
    let plain = compute(Compression::None);
    assert_eq!(Some(plain.diff_id), layer.diff_id);
    assert_eq!(plain.descriptor.digest, plain.diff_id);
    // Promises are checked.
    let wrong = PackedLayer {
        diff_id: Some(Digest::of("else")),
        ..layer
    };
    let error = t.store.unpack_image(&content, &[wrong]).err().unwrap();
    assert!(matches!(error, LayerError::DiffId { .. }), "{error}");
    assert_eq!((t.count("layers"), t.count("new")), (1, 0));
}

fn layers_that_need_what_is_below_are_unpacked_with_it(backend: Backend) {
    let t = Fixture::new(backend);
    let (content, bottom) = pack(&t, Compression::Gzip, |out| {
        let mut usr = Header::directory("usr");
        usr.mode = 0o1777;
        out.append(&usr, &b""[..]).unwrap();
        out.append(&Header::directory("usr/lib"), &b""[..]).unwrap();
        let mut lib = Header::new(archive::EntryKind::Symlink, "lib");
        lib.link = b"usr/lib".to_vec();
        out.append(&lib, &b""[..]).unwrap();
        out.append_bytes(Header::file("usr/original", 0), b"text")
            .unwrap();
    });
    let (_, middle) = pack(&t, Compression::Gzip, |out| {
        // Neither `usr` nor `lib` has an entry here.
        out.append_bytes(Header::file("lib/module", 0), b"m")
            .unwrap();
        out.append_bytes(Header::file("usr/new", 0), b"n").unwrap();
    });
    let (_, top) = pack(&t, Compression::Gzip, |out| {
        let mut link = Header::new(archive::EntryKind::HardLink, "other-name");
        link.link = b"usr/original".to_vec();
        link.mode = 0o600;
        out.append(&link, &b""[..]).unwrap();
    });
    let layers = [bottom, middle, top];
    let (stack, hold) = t.store.unpack_image(&content, &layers).unwrap();
    let shown = t.shown(&stack);
    assert_eq!(shown["usr"], "dir 1777");
    assert_eq!(shown["lib"], "-> usr/lib");
    assert_eq!(shown["usr/lib/module"], "644 m");
    assert_eq!(shown["other-name"], "600 text");
    assert_eq!(shown["usr/original"], "600 text");
    let (again, _) = t.store.unpack_image(&content, &layers).unwrap();
    assert_eq!(again, stack);
    drop(hold);
    // On another bottom they are other layers.
    let (other, _) = t.store.unpack_image(&content, &layers[1..2]).unwrap();
    assert_eq!(t.shown(&other)["usr"], "dir 755");
}

#[test]
fn a_store_made_on_an_overlay_is_copied_wherever_it_is_moved() {
    on_an_overlay(|| {
        let t = Fixture::new(Backend::Copy);
        assert!(t.dir.path().join("stand-ins").exists());
    });
    let moved = tempfile::tempdir().unwrap();
    fs::write(moved.path().join("stand-ins"), "").unwrap();
    let refused = LayerStore::open(moved.path(), Backend::Overlay).err();
    assert!(matches!(refused, Some(LayerError::StandIns(_))));
    let store = LayerStore::open(moved.path(), Backend::Auto).unwrap();
    assert_eq!(store.backend(), Backend::Copy);
    assert!(
        !Fixture::new(Backend::Copy)
            .dir
            .path()
            .join("stand-ins")
            .exists()
    );
}

#[test]
fn a_store_open_elsewhere_is_refused() {
    let t = Fixture::new(Backend::Copy);
    let second = LayerStore::open(t.dir.path(), Backend::Copy);
    assert!(matches!(second.err(), Some(LayerError::Locked(_))));
}

#[test]
fn opening_sweeps_unknown_directories_and_forgets_missing_ones() {
    let t = Fixture::new(Backend::Overlay);
    let one = t.step(&LayerStack::empty(), |root| {
        fs::write(root.join("f"), "1").unwrap()
    });
    let two = t.step(&one, |root| fs::write(root.join("g"), "1").unwrap());
    let layers = t.dir.path().join("layers");
    fs::create_dir_all(layers.join("unknown/x")).unwrap();
    fs::create_dir_all(t.dir.path().join("new/half/fs")).unwrap();
    fs::remove_dir_all(layers.join(two.top().unwrap().to_string())).unwrap();
    let t = t.reopen();
    assert_eq!(t.store.list().unwrap(), one.as_slice());
    assert_eq!((t.count("layers"), t.count("new")), (1, 0));
}

#[test]
fn a_mount_left_by_a_killed_process_is_taken_away() {
    let t = Fixture::new(Backend::Overlay);
    let one = t.step(&LayerStack::empty(), |root| {
        fs::write(root.join("f"), "1").unwrap()
    });
    let writable = t.store.writable(&one).unwrap();
    let path = writable.path();
    fs::write(path.join("lost"), "").unwrap();
    let dir = t.dir.path().to_owned();
    std::mem::forget(writable);
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(before.contains(path.to_str().unwrap()));
    // The forgotten handle keeps the lock of this process, so the lock file is replaced.
    fs::remove_file(dir.join("lock")).unwrap();
    let second = LayerStore::open(&dir, Backend::Overlay).unwrap();
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!after.contains(path.to_str().unwrap()));
    assert_eq!(t.count("mounts"), 0);
    assert_eq!(second.list().unwrap(), one.as_slice());
}

#[test]
fn inside_an_overlay_the_store_finds_a_backend_that_works() {
    let outer = Fixture::new(Backend::Overlay);
    let base = outer.step(&LayerStack::empty(), |root| {
        fs::write(root.join("f"), "").unwrap()
    });
    let writable = outer.store.writable(&base).unwrap();
    let store = LayerStore::open(writable.path().join("state"), Backend::Auto).unwrap();
    let step = |stack: &LayerStack, change: &dyn Fn(&Path)| {
        let writable = store.writable(stack).unwrap();
        change(&writable.path());
        writable.commit(LayerNote::default()).unwrap()
    };
    let one = step(&LayerStack::empty(), &|root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/f"), "1").unwrap();
    });
    let two = step(&one, &|root| fs::write(root.join("d/g"), "2").unwrap());
    let shown = show(store.mount(&two).unwrap().path());
    assert_eq!(shown.len(), 3, "{:?}", store.backend());
}

#[test]
fn names_longer_than_the_kernel_takes_are_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(200)).join("y:,\\".repeat(30));
    let store = LayerStore::open(&long, Backend::Overlay).unwrap();
    let mut stack = LayerStack::empty();
    for name in ["a", "b", "c"] {
        let writable = store.writable(&stack).unwrap();
        fs::write(writable.path().join(name), name).unwrap();
        stack = writable.commit(LayerNote::default()).unwrap();
    }
    assert_eq!(show(store.mount(&stack).unwrap().path()).len(), 3);
}

#[test]
fn five_hundred_layers_and_more_are_one_tree() {
    let t = Fixture::new(Backend::Overlay);
    let mut stack = LayerStack::empty();
    for i in 0..600 {
        let layer = t.store.new_layer().unwrap();
        fs::write(layer.path().join(i.to_string()), "").unwrap();
        stack = stack.with(layer.commit(LayerNote::default()).unwrap());
    }
    assert_eq!(t.shown(&stack).len(), 600);
    assert_eq!(t.shown(&stack.prefix(480)).len(), 480);
    let more = t.step(&stack, |root| fs::remove_file(root.join("0")).unwrap());
    assert_eq!(t.shown(&more).len(), 599);
}

#[test]
fn metadata_is_kept_across_a_restart() {
    let t = Fixture::new(Backend::Copy);
    let layer = t.store.new_layer().unwrap();
    fs::write(layer.path().join("f"), vec![0; 10_000]).unwrap();
    let note = LayerNote::new("context").of_type(RecordType::SourceLocal);
    let id = layer.commit(note).unwrap();
    let blob = LayerBlob {
        descriptor: Descriptor::of(media_type::OCI_LAYER_GZIP, b"blob"),
        diff_id: Digest::of("tar"),
    };
    t.store.set_blob(id, "gzip", &blob).unwrap();
    t.store.set_diff_id(id, &blob.diff_id).unwrap();
    t.store.set_chain(id, &Digest::of("chain")).unwrap();
    t.store.touch(&id.into()).unwrap();
    let t = t.reopen();
    let info = t.store.info(id).unwrap().unwrap();
    assert_eq!(info.record_type, RecordType::SourceLocal);
    assert_eq!((info.usage_count, info.blob.as_ref()), (1, Some(&blob)));
    assert!(info.last_used_at.unwrap() >= info.created_at);
    assert!(info.size >= 10_000 && info.size < 100_000);
    assert_eq!(t.store.find_by_diff_id(&blob.diff_id).unwrap(), Some(id));
    assert_eq!(
        t.store.find_by_chain(&Digest::of("chain")).unwrap(),
        Some(id)
    );
    t.store.remove(id).unwrap();
    assert_eq!(t.store.find_by_diff_id(&blob.diff_id).unwrap(), None);
}

#[test]
fn a_blob_asked_for_many_times_at_once_is_computed_once() {
    let t = Fixture::new(Backend::Overlay);
    let stack = t.step(&LayerStack::empty(), |root| {
        fs::write(root.join("f"), vec![1; 3 << 20]).unwrap();
    });
    let content = ContentStore::open(t.dir.path().join("content")).unwrap();
    let lease = content.lease();
    let compute = || {
        t.store
            .compute_blob(&stack, 0, &lease, Compression::Gzip, Some(9))
            .unwrap()
    };
    let blobs: Vec<LayerBlob> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(compute)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(blobs.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(content.list().unwrap().len(), 1);
    let swept = content.sweep(|| Ok::<_, content::ContentError>(Default::default()));
    assert_eq!(swept.unwrap(), 0);
    // A blob that is gone is computed again and comes out the same.
    content.remove(&blobs[0].descriptor.digest).unwrap();
    assert_eq!(
        t.store.stored_blob(stack.get(0).unwrap(), &lease).unwrap(),
        None
    );
    assert_eq!(compute(), blobs[0]);
    assert_eq!(
        t.store
            .stored_blob(stack.get(0).unwrap(), &lease)
            .unwrap()
            .as_ref(),
        Some(&blobs[0])
    );
}
