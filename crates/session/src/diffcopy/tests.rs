//! Both ends against each other, without a network.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt;
use parking_lot::Mutex;
use pathmatch::PathFilter;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};

use super::*;
use crate::codec::flat;
use crate::error::SessionError;

/// Brings `to` to the state of `from`.
async fn copy(
    from: &Path,
    to: &Path,
    send_options: SendOptions,
    options: ReceiveOptions,
) -> Result<(SendStats, SyncStats), SessionError> {
    let (packets, packets_out) = mpsc::channel(send::OUTBOUND_BATCHES);
    let (requests, requests_out) = mpsc::unbounded_channel();
    let to_sender = flat(UnboundedReceiverStream::new(requests_out))
        .map(Ok)
        .boxed();
    let to_receiver = flat(ReceiverStream::new(packets_out)).map(Ok).boxed();
    let sending = super::send(from.to_owned(), send_options, to_sender, packets);
    let receiving = super::receive(to.to_owned(), options, to_receiver, requests);
    let (sent, received) = tokio::join!(sending, receiving);
    match (sent, received) {
        (Ok(sent), Ok(received)) => Ok((sent, received)),
        (_, Err(error)) | (Err(error), _) => Err(error),
    }
}

async fn copy_plain(from: &Path, to: &Path) -> SyncStats {
    copy(from, to, SendOptions::default(), ReceiveOptions::default())
        .await
        .unwrap()
        .1
}

/// Everything that is to be the same in two trees, as text.
fn listing(root: &Path) -> Vec<String> {
    let mut walker = crate::walk::Walker::new(
        root,
        crate::walk::WalkOptions {
            xattrs: true,
            ..Default::default()
        },
    )
    .unwrap();
    let mut links = crate::walk::HardLinks::default();
    let mut out = Vec::new();
    while let Some(mut entry) = walker.next_entry().unwrap() {
        links.mark(&mut entry);
        let stat = entry.stat;
        let path = root.join(std::str::from_utf8(&stat.path).unwrap());
        let content = if crate::mode::is_regular(stat.mode) {
            let data = fs::read(path).unwrap();
            format!(
                "{} bytes, sum {}",
                data.len(),
                data.iter().map(|&b| u64::from(b)).sum::<u64>()
            )
        } else {
            String::new()
        };
        out.push(format!("{stat:?} {content}"));
    }
    out
}

fn write(root: &Path, path: &str, content: impl AsRef<[u8]>) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root, "a/one", "1");
    write(root, "a/empty", "");
    write(root, "a/b/big", vec![3u8; 200_000]);
    write(root, "a-b", "x");
    fs::hard_link(root.join("a/one"), root.join("z-link")).unwrap();
    symlink("../nowhere", root.join("a/sym")).unwrap();
    fs::set_permissions(root.join("a/one"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o2711)).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    dir
}

#[tokio::test]
async fn a_tree_arrives_with_everything_that_belongs_to_it() {
    let from = sample();
    let to = tempfile::tempdir().unwrap();
    let stats = copy_plain(from.path(), to.path()).await;
    assert_eq!(listing(from.path()), listing(to.path()));
    assert_eq!((stats.entries, stats.changed, stats.files), (9, 9, 3));
}

#[tokio::test]
async fn an_unchanged_tree_is_not_asked_for() {
    let from = sample();
    let to = tempfile::tempdir().unwrap();
    copy_plain(from.path(), to.path()).await;
    let again = copy_plain(from.path(), to.path()).await;
    assert_eq!((again.changed, again.files, again.removed), (0, 0, 0));
}

#[tokio::test]
async fn changes_of_every_kind_arrive() {
    let from = sample();
    let to = tempfile::tempdir().unwrap();
    copy_plain(from.path(), to.path()).await;
    let root = from.path();
    fs::remove_dir_all(root.join("a/b")).unwrap();
    write(root, "a/b", "a file where a directory was");
    fs::remove_file(root.join("a-b")).unwrap();
    write(root, "a-b/in", "a directory where a file was");
    fs::remove_file(root.join("a/sym")).unwrap();
    symlink("elsewhere", root.join("a/sym")).unwrap();
    fs::remove_file(root.join("fifo")).unwrap();
    write(root, "a/one", "changed");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let options = ReceiveOptions {
        on_change: Some(Arc::new(move |change| {
            let path = String::from_utf8_lossy(change.path).into_owned();
            log.lock().push((change.kind, path));
        })),
        ..ReceiveOptions::default()
    };
    copy(root, to.path(), SendOptions::default(), options)
        .await
        .unwrap();
    assert_eq!(listing(from.path()), listing(to.path()));
    use ChangeKind::*;
    let expected = [
        (Modified, "a/b"),
        (Modified, "a/one"),
        (Modified, "a/sym"),
        (Modified, "a-b"),
        (Added, "a-b/in"),
        (Removed, "fifo"),
        (Modified, "z-link"),
    ];
    assert_eq!(
        *seen.lock(),
        expected.map(|(kind, path)| (kind, path.to_owned()))
    );
}

#[tokio::test]
async fn what_lies_around_in_the_destination_is_removed() {
    let from = sample();
    let to = tempfile::tempdir().unwrap();
    write(to.path(), "0/deep/er", "x");
    write(to.path(), "a/.tmp.1", "x");
    write(to.path(), "zz/y", "x");
    copy_plain(from.path(), to.path()).await;
    assert_eq!(listing(from.path()), listing(to.path()));
}

#[tokio::test]
async fn merging_keeps_what_the_sender_does_not_have() {
    let from = sample();
    let to = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    write(to.path(), "mine", "x");
    write(to.path(), "a/mine", "x");
    // A link where the sender has a directory is replaced, never written through.
    fs::remove_dir_all(to.path().join("a")).unwrap();
    symlink(outside.path(), to.path().join("a")).unwrap();
    let options = ReceiveOptions {
        merge: true,
        ..ReceiveOptions::default()
    };
    for _ in 0..2 {
        copy(
            from.path(),
            to.path(),
            SendOptions::default(),
            options.clone(),
        )
        .await
        .unwrap();
        assert_eq!(fs::read(to.path().join("mine")).unwrap(), b"x");
        assert_eq!(fs::read(to.path().join("a/one")).unwrap(), b"1");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let inode = |path| fs::metadata(to.path().join(path)).unwrap().ino();
    assert_eq!(inode("z-link"), inode("a/one"));
}

#[tokio::test]
async fn only_what_the_filter_wants_is_sent_with_its_directories() {
    let from = sample();
    let to = tempfile::tempdir().unwrap();
    let options = SendOptions {
        filter: PathFilter::new(&["**/big", "z-link"], &[] as &[&str]).unwrap(),
        ..SendOptions::default()
    };
    copy(from.path(), to.path(), options, ReceiveOptions::default())
        .await
        .unwrap();
    let paths: Vec<_> = walk_paths(to.path());
    assert_eq!(paths, ["a", "a/b", "a/b/big", "z-link"]);
    assert_eq!(fs::read(to.path().join("z-link")).unwrap(), b"1");
}

fn walk_paths(root: &Path) -> Vec<String> {
    let mut walker = crate::walk::Walker::new(root, Default::default()).unwrap();
    let mut paths = Vec::new();
    while let Some(entry) = walker.next_entry().unwrap() {
        paths.push(String::from_utf8(entry.stat.path).unwrap());
    }
    paths
}

#[tokio::test]
async fn a_destination_that_cannot_be_written_is_the_error_of_both() {
    let from = sample();
    let to = tempfile::tempdir().unwrap();
    let missing = to.path().join("missing");
    let error = copy(
        from.path(),
        &missing,
        SendOptions::default(),
        ReceiveOptions::default(),
    );
    let text = error.await.unwrap_err().to_string();
    assert_eq!(
        text,
        format!("open {}: no such file or directory", missing.display())
    );
}

#[tokio::test]
async fn too_many_entries_are_refused() {
    let from = sample();
    let to = tempfile::tempdir().unwrap();
    let options = ReceiveOptions {
        entries_max: 3,
        ..ReceiveOptions::default()
    };
    let error = copy(from.path(), to.path(), SendOptions::default(), options).await;
    assert!(matches!(error, Err(SessionError::Limit(_))));
}

#[tokio::test]
async fn only_metadata_travels_but_for_what_is_wanted() {
    let from = sample();
    write(from.path(), "a/deep/x/wanted", "w");
    write(from.path(), ".fsutil-metadata", "of the sender");
    let to = tempfile::tempdir().unwrap();
    let changes: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let noted = changes.clone();
    let options = ReceiveOptions {
        metadata_only: Some(Arc::new(|path: &[u8]| path.ends_with(b"/wanted"))),
        on_change: Some(Arc::new(move |change: Change<'_>| {
            noted.lock().push(change.path.to_vec());
        })),
        ..ReceiveOptions::default()
    };
    let transfer = || {
        copy(
            from.path(),
            to.path(),
            SendOptions::default(),
            options.clone(),
        )
    };
    let stats = transfer().await.unwrap().1;
    assert_eq!((stats.files, stats.content_bytes), (1, 1));
    let names = |dir: &str| -> Vec<String> {
        let all = fs::read_dir(to.path().join(dir)).unwrap();
        let mut all: Vec<String> = all
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        all.sort();
        all
    };
    assert_eq!(names(""), [".fsutil-metadata", "a"]);
    assert_eq!(
        (names("a"), names("a/deep/x")),
        (vec!["deep".to_owned()], vec!["wanted".to_owned()])
    );
    assert_eq!(noted_paths(to.path()).len(), 12);
    assert!(changes.lock().contains(&b".fsutil-metadata".to_vec()));
    changes.lock().clear();
    let again = transfer().await.unwrap().1;
    assert_eq!((again.changed, again.removed, again.files), (0, 0, 0));
    assert!(changes.lock().is_empty());
    write(from.path(), "a/one", "11");
    let changed = transfer().await.unwrap().1;
    assert_eq!((changed.changed, changed.files), (1, 0));
}

/// Paths of the entries in the notes of a transfer, read as BuildKit's own clients write them.
fn noted_paths(root: &Path) -> Vec<String> {
    use prost::Message;
    let notes = fs::read(root.join(".fsutil-metadata")).unwrap();
    let (mut rest, mut paths) = (notes.as_slice(), Vec::new());
    while !rest.is_empty() {
        let (length, after) = rest.split_at(4);
        let length = u32::from_le_bytes(length.try_into().unwrap()) as usize;
        let stat = proto::fsutil::Stat::decode(&after[..length]).unwrap();
        paths.push(stat.path);
        rest = &after[length..];
    }
    paths
}

/// What the directory holds, as the transfer says it, and as a walk says it.
async fn listed(
    from: &Path,
    to: &Path,
    known: Option<Listing>,
    in_place: bool,
) -> (Option<Listing>, SyncStats) {
    let told = Arc::new(Mutex::new(None));
    let slot = told.clone();
    let options = ReceiveOptions {
        known: known.map(Arc::new),
        on_listing: Some(Arc::new(move |listing| *slot.lock() = Some(listing))),
        ..ReceiveOptions::default()
    };
    let stats = match in_place {
        false => {
            let copied = copy(from, to, SendOptions::default(), options).await;
            copied.unwrap().1
        }
        true => {
            let tree = Tree {
                root: Arc::new(fs::File::open(from).unwrap().into()),
                path: from.to_owned(),
                filter: PathFilter::default(),
            };
            mirror(tree, to, options, &Default::default()).unwrap()
        }
    };
    (told.lock().take(), stats)
}

/// Changes of every kind, some of them to attributes and links.
fn change(root: &Path) {
    fs::remove_dir_all(root.join("a/b")).unwrap();
    write(root, "a/b", "a file where a directory was");
    fs::remove_file(root.join("a-b")).unwrap();
    write(root, "a-b/in", "a directory where a file was");
    write(root, "a/one", "changed, and so is its other name");
    fs::remove_file(root.join("fifo")).unwrap();
    write(root, "n/e/w", "");
    set_attribute(&root.join("n"), "of a directory");
    fs::set_permissions(root.join("a/empty"), fs::Permissions::from_mode(0o600)).unwrap();
}

fn set_attribute(path: &Path, value: &str) {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, "user.test", value.as_bytes(), flags).unwrap();
}

#[tokio::test]
async fn a_transfer_says_what_a_walk_would_find() {
    for in_place in [false, true] {
        let from = sample();
        write(from.path(), "large", vec![7u8; 3 << 20]);
        set_attribute(&from.path().join("large"), "of a file");
        let to = tempfile::tempdir().unwrap();
        let (first, _) = listed(from.path(), to.path(), Some(Listing::default()), in_place).await;
        let first = first.unwrap();
        assert_eq!(first, Listing::of(to.path()).unwrap(), "{in_place}");
        change(from.path());
        let (second, stats) = listed(from.path(), to.path(), Some(first), in_place).await;
        let second = second.unwrap();
        assert!(stats.changed > 0 && stats.removed > 0);
        assert_eq!(second, Listing::of(to.path()).unwrap(), "{in_place}");
        assert_eq!(listing(from.path()), listing(to.path()));
        let (third, stats) = listed(from.path(), to.path(), Some(second), in_place).await;
        assert_eq!(
            (third, stats.changed),
            (None, 0),
            "nothing new is to be said"
        );
    }
}

#[tokio::test]
async fn what_is_known_is_not_looked_at() {
    let from = sample();
    let to = tempfile::tempdir().unwrap();
    let (known, _) = listed(from.path(), to.path(), Some(Listing::default()), false).await;
    fs::remove_file(to.path().join("a-b")).unwrap();
    let (_, stats) = listed(from.path(), to.path(), known, false).await;
    assert_eq!((stats.changed, stats.files), (0, 0));
}

#[tokio::test]
async fn without_a_listing_before_there_is_none_of_what_stayed() {
    let from = sample();
    let to = tempfile::tempdir().unwrap();
    copy_plain(from.path(), to.path()).await;
    let (none, stats) = listed(from.path(), to.path(), None, false).await;
    assert_eq!((none, stats.changed), (None, 0));
}

#[test]
fn a_listing_survives_its_bytes_and_damaged_bytes_are_none() {
    let from = sample();
    set_attribute(&from.path().join("a"), "x");
    let listing = Listing::of(from.path()).unwrap();
    let bytes = listing.encode();
    assert_eq!(Listing::decode(&bytes), Some(listing.clone()));
    assert_eq!(Listing::decode(&bytes[..bytes.len() - 1]), None);
    assert_eq!(Listing::decode(&[0xff; 64]), None);
    for at in 0..listing.entries().len() {
        let path = &listing.entries()[at].stat.path;
        assert_eq!(listing.find(path), Some(at));
        let below = |entry: &&Listed| order::is_below(&entry.stat.path, path);
        let count = listing.entries().iter().filter(below).count();
        assert_eq!(listing.end_below(at), at + 1 + count);
    }
}

#[test]
fn the_digest_of_a_listing_is_of_files_and_not_of_their_times_and_names() {
    let from = sample();
    let path = from.path().join("a/one");
    let of = || Listing::of(from.path()).unwrap().digest();
    let before = of();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(5);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(time).unwrap();
    assert_eq!(of(), before);
    // Two files that are alike are as good as one with two names.
    let other = from.path().join("z-link");
    fs::remove_file(&other).unwrap();
    fs::copy(&path, &other).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o4751)).unwrap();
    assert_eq!(of(), before);
    fs::set_permissions(&other, fs::Permissions::from_mode(0o4750)).unwrap();
    assert_ne!(of(), before);
}
