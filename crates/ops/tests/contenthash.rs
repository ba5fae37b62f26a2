//! Content digests: equal for equal trees, different for every difference that counts.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use oci::Digest;
use ops::OpError;
use ops::contenthash::{FileDigests, Selector, Tree, content_digest};
use session::diffcopy::Listing;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

fn dir(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, data) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }
    dir
}

/// The digest of what is on disk; that of a single layer by its listing must be the same.
fn try_digest(layers: &[&TempDir], selectors: &[Selector]) -> Result<Digest, OpError> {
    let of = |tree: Tree| {
        let (files, cancel) = (FileDigests::new(), CancellationToken::new());
        content_digest(&tree, selectors, &files, &cancel)
    };
    let found = of(Tree::open(layers.iter().map(|layer| layer.path())).unwrap());
    if let [only] = layers {
        let listing = Listing::of(only.path()).unwrap();
        let listed = of(Tree::listed(only.path(), listing).unwrap());
        assert_eq!(format!("{found:?}"), format!("{listed:?}"));
    }
    found
}

fn digest(layers: &[&TempDir], selectors: &[Selector]) -> Digest {
    try_digest(layers, selectors).unwrap()
}

fn pattern(path: &str) -> Selector {
    Selector {
        wildcard: true,
        ..Selector::followed(path)
    }
}

fn whiteout(path: &Path) {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
}

#[test]
fn a_tree_has_one_digest_however_it_is_split_into_layers() {
    let flat = dir(&[("a", "1"), ("d/b", "2"), ("d/e/c", "3")]);
    let lower = dir(&[
        ("a", "old"),
        ("d/b", "2"),
        ("d/gone", "x"),
        ("d/e/old", "x"),
    ]);
    let upper = dir(&[("a", "1"), ("d/e/c", "3")]);
    whiteout(&upper.path().join("d/gone"));
    rustix::fs::setxattr(
        upper.path().join("d/e"),
        "trusted.overlay.opaque",
        b"y",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    assert_eq!(digest(&[&flat], &[]), digest(&[&lower, &upper], &[]));
    let selectors = [Selector::path("/d/b"), pattern("/d/*/c")];
    assert_eq!(
        digest(&[&flat], &selectors),
        digest(&[&lower, &upper], &selectors)
    );
}

#[test]
fn what_counts_changes_the_digest_and_times_do_not() {
    let whole = [Selector::path("/")];
    let base = dir(&[("f", "data")]);
    let reference = digest(&[&base], &whole);
    let same = dir(&[("f", "data")]);
    let file = std::fs::File::open(same.path().join("f")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(digest(&[&same], &whole), reference);
    let other = dir(&[("f", "date")]);
    assert_ne!(digest(&[&other], &whole), reference);
    let renamed = dir(&[("g", "data")]);
    assert_ne!(digest(&[&renamed], &whole), reference);
    let path = same.path().join("f");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_ne!(digest(&[&same], &whole), reference);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    rustix::fs::setxattr(&path, "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    assert_ne!(digest(&[&same], &whole), reference);
}

#[test]
fn only_what_is_selected_counts() {
    let one = dir(&[("src/a.c", "1"), ("src/notes.md", "1"), ("other", "1")]);
    let two = dir(&[("src/a.c", "1"), ("src/notes.md", "2"), ("other", "2")]);
    let excluding = Selector {
        exclude: vec!["*.md".into()],
        ..Selector::followed("/src")
    };
    let including = Selector {
        include: vec!["*.c".into()],
        ..Selector::followed("/src")
    };
    for selector in [
        excluding,
        including,
        pattern("/src/*.c"),
        pattern("/s*/a.c"),
    ] {
        let selector = [selector];
        assert_eq!(digest(&[&one], &selector), digest(&[&two], &selector));
    }
    for selector in [pattern("/src/*"), Selector::path("/src"), pattern("/*")] {
        let selector = [selector];
        assert_ne!(digest(&[&one], &selector), digest(&[&two], &selector));
    }
}

#[test]
fn links_are_followed_where_asked_and_missing_paths_are_named() {
    let tree = dir(&[("real/f", "1")]);
    symlink("/real", tree.path().join("link")).unwrap();
    let follow = digest(&[&tree], &[Selector::followed("/link")]);
    assert_eq!(follow, digest(&[&tree], &[Selector::path("/real")]));
    assert_ne!(follow, digest(&[&tree], &[Selector::path("/link")]));
    let through = digest(&[&tree], &[Selector::path("/link/f")]);
    assert_eq!(through, digest(&[&tree], &[Selector::path("/real/f")]));
    let error = try_digest(&[&tree], &[Selector::followed("/no-such-file.txt")]);
    let text = error.unwrap_err().to_string();
    assert_eq!(text, "\"/no-such-file.txt\": not found");
    let required = Selector {
        include: vec!["x".into()],
        required: vec!["/real/x".into()],
        ..Selector::followed("/real")
    };
    assert!(
        try_digest(&[&tree], &[required])
            .unwrap_err()
            .is_not_found()
    );
}

#[test]
fn a_listing_says_of_every_kind_of_file_what_is_on_disk() {
    let dir = dir(&[("f", "1"), ("d/e/g", "2"), ("d-e", ""), ("d/z", "3")]);
    let at = |path: &str| dir.path().join(path);
    symlink("../f", at("d/link")).unwrap();
    symlink("nowhere", at("broken")).unwrap();
    std::fs::hard_link(at("f"), at("d/other-name")).unwrap();
    std::fs::set_permissions(at("f"), std::fs::Permissions::from_mode(0o4711)).unwrap();
    std::fs::set_permissions(at("d/e"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::chown(at("d-e"), Some(7), Some(8)).unwrap();
    let node = |path: &str, kind, device| {
        let mode = rustix::fs::Mode::from_raw_mode(0o620);
        rustix::fs::mknodat(rustix::fs::CWD, at(path), kind, mode, device).unwrap();
    };
    node("fifo", rustix::fs::FileType::Fifo, 0);
    node(
        "null",
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::makedev(1, 3),
    );
    node(
        "loop",
        rustix::fs::FileType::BlockDevice,
        rustix::fs::makedev(7, 259),
    );
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at("d/z"), "user.a", b"1", flags).unwrap();
    rustix::fs::setxattr(at("d"), "trusted.a", b"2", flags).unwrap();
    // Each of these compares both.
    for path in [
        "/",
        "/f",
        "/d",
        "/d/e",
        "/d/link",
        "/d/other-name",
        "/null",
        "/loop",
        "/fifo",
    ] {
        digest(&[&dir], &[Selector::path(path)]);
        let followed = digest(&[&dir], &[Selector::followed(path)]);
        assert_ne!(followed, Digest::of(b""), "{path}");
    }
    digest(&[&dir], &[pattern("/d*/*")]);
    assert!(try_digest(&[&dir], &[Selector::followed("/broken")]).is_err());
    assert!(try_digest(&[&dir], &[Selector::path("/d/../d-e/x")]).is_err());
}
