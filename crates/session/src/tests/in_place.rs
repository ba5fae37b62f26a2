//! One contract for both ways that a directory comes: through the session, and read in place.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Opened, open};
use crate::{ClientSession, LocalDir, SyncRequest};

/// A folder with one of everything.
fn fill(root: &Path) {
    for (path, content) in [
        ("a", "one"),
        ("a-b", ""),
        ("dir/b", "two"),
        ("dir/deep/er/c", "three"),
        ("node_modules/x", "four"),
        ("real/file", "five"),
        ("d\u{e9}j\u{e0}", "six"),
    ] {
        write(root, path, content);
    }
    fs::write(root.join("large"), vec![7; 3 << 20]).unwrap();
    symlink("real", root.join("link")).unwrap();
    symlink("/etc/hostname", root.join("outside")).unwrap();
    fs::hard_link(root.join("a"), root.join("dir/another")).unwrap();
    fs::set_permissions(root.join("dir/b"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(root.join("real"), fs::Permissions::from_mode(0o1700)).unwrap();
    let pipe = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), pipe, mode, 0).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    // Not every file system has them; where they are, they come along.
    for path in ["a", "real"] {
        let _ = rustix::fs::setxattr(
            root.join(path),
            "user.note",
            b"kept",
            rustix::fs::XattrFlags::empty(),
        );
    }
}

fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Everything that is to be the same in two trees, as text.
fn listing(root: &Path) -> Vec<String> {
    let options = crate::walk::WalkOptions {
        xattrs: true,
        ..Default::default()
    };
    let mut walker = crate::walk::Walker::new(root, options).unwrap();
    let mut links = crate::walk::HardLinks::default();
    let mut out = Vec::new();
    while let Some(mut entry) = walker.next_entry().unwrap() {
        links.mark(&mut entry);
        let path = root.join(std::str::from_utf8(&entry.stat.path).unwrap());
        let regular = crate::mode::is_regular(entry.stat.mode);
        let content = regular.then(|| oci::Digest::of(fs::read(path).unwrap()));
        out.push(format!("{:?} {content:?}", entry.stat));
    }
    out
}

async fn session(dir: &Path, in_place: bool) -> Opened {
    let dirs = [("context".to_owned(), LocalDir::new(dir))].into();
    let client = ClientSession::builder().local_dirs(dirs).in_place(in_place);
    open(client.build()).await
}

/// Brings a folder to `dest`; gives the changes that were told, sorted.
async fn bring(opened: &Opened, dest: &Path, request: &SyncRequest) -> Vec<String> {
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let note = told.clone();
    let mut request = request.clone();
    request.dest = dest.to_owned();
    request.on_change = Some(Arc::new(move |change: crate::diffcopy::Change<'_>| {
        let path = String::from_utf8_lossy(change.path);
        note.lock().push(format!("{:?} {path}", change.kind));
    }));
    let stats = opened.session.sync_dir(request, None).await.unwrap();
    let mut told = told.lock().clone();
    told.sort();
    told.push(format!(
        "{} {} {}",
        stats.entries, stats.changed, stats.removed
    ));
    told.push(format!(
        "{} files, {} bytes",
        stats.files, stats.content_bytes
    ));
    told
}

#[tokio::test]
async fn both_ways_give_the_same_tree_and_tell_the_same_changes() {
    let context = tempfile::tempdir().unwrap();
    let root = context.path();
    fill(root);
    let (sent, read) = (session(root, false).await, session(root, true).await);
    assert!(sent.session.dir_in_place("context").is_none());
    assert!(read.session.dir_in_place("context").is_some());
    let (by_session, in_place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = SyncRequest::new("context", "");
    let some = SyncRequest {
        exclude: vec!["node_modules".into(), "dir/*".into(), "!dir/deep".into()],
        ..all.clone()
    };
    let followed = SyncRequest {
        include: vec!["d\u{e9}*".into()],
        follow_paths: vec!["link/file".into(), "outside".into(), "dir/d*/er".into()],
        ..all.clone()
    };
    let changes: [(&SyncRequest, &dyn Fn()); 6] = [
        (&all, &|| ()),
        (&all, &|| ()),
        (&all, &|| {
            write(root, "a", "changed");
            write(root, "new/file", "new");
            fs::remove_file(root.join("dir/b")).unwrap();
            fs::remove_dir_all(root.join("node_modules")).unwrap();
            write(root, "node_modules", "a file now");
            fs::set_permissions(root.join("dir"), fs::Permissions::from_mode(0o711)).unwrap();
        }),
        (&some, &|| ()),
        (&followed, &|| ()),
        (&all, &|| ()),
    ];
    for (round, (request, change)) in changes.into_iter().enumerate() {
        change();
        let first = bring(&sent, by_session.path(), request).await;
        let second = bring(&read, in_place.path(), request).await;
        assert_eq!(first, second, "round {round}");
        let (first, second) = (listing(by_session.path()), listing(in_place.path()));
        assert!(!first.is_empty());
        assert_eq!(first, second, "round {round}");
    }
    let owners = |path: &Path| fs::symlink_metadata(path.join("a")).unwrap().uid();
    assert_eq!(owners(in_place.path()), 0, "files are said to be root's");
}

#[tokio::test]
async fn links_do_not_lead_out_of_a_folder_that_is_read_in_place() {
    let outside = tempfile::tempdir().unwrap();
    write(outside.path(), "secret", "s");
    let context = tempfile::tempdir().unwrap();
    symlink(outside.path(), context.path().join("way")).unwrap();
    let opened = session(context.path(), true).await;
    let dest = tempfile::tempdir().unwrap();
    let request = SyncRequest {
        include: vec!["way/secret".into()],
        follow_paths: vec!["way/s*".into(), "way/secret".into()],
        ..SyncRequest::new("context", dest.path())
    };
    opened.session.sync_dir(request, None).await.unwrap();
    let mut walker = crate::walk::Walker::new(dest.path(), Default::default()).unwrap();
    let mut names = Vec::new();
    while let Some(entry) = walker.next_entry().unwrap() {
        names.push(String::from_utf8(entry.stat.path).unwrap());
    }
    assert_eq!(names, ["way"]);
}

#[tokio::test]
async fn a_transfer_that_cannot_write_fails_with_the_reason_and_names_the_file() {
    let context = tempfile::tempdir().unwrap();
    write(context.path(), "a", "x");
    let opened = session(context.path(), true).await;
    let request = SyncRequest::new("context", "/nonexistent/dest");
    let error = opened.session.sync_dir(request, None).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "open /nonexistent/dest: no such file or directory"
    );
}

#[tokio::test]
async fn the_socket_of_a_context_is_an_empty_file() {
    let context = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(context.path().join("s")).unwrap());
    let opened = session(context.path(), true).await;
    let dest = tempfile::tempdir().unwrap();
    let request = SyncRequest::new("context", dest.path());
    opened.session.sync_dir(request, None).await.unwrap();
    assert_eq!(fs::read(dest.path().join("s")).unwrap(), b"");
}
