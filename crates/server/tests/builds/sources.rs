//! Sources that a client asks for by themselves, through its session.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use futures::StreamExt;
use llb::{GraphBuilder, Op, SourceOp};
use progress::SolveStatus;
use proto::control::{Exporter, SolveRequest, StatusRequest};
use session::{ClientSession, ExportTarget, LocalDir};

use crate::bench::Bench;

/// A source as a whole build, whose files are given to the client.
struct Wanted<'a> {
    identifier: &'a str,
    attrs: &'a [(&'a str, &'a str)],
}

/// What came of it.
struct Came {
    out: PathBuf,
    /// Bytes that the client was told to have sent.
    transferred: i64,
    error: Option<String>,
}

impl Came {
    /// Paths of all files, sorted.
    fn files(&self) -> Vec<String> {
        let mut todo = vec![self.out.clone()];
        let mut files = Vec::new();
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() && !path.is_symlink() {
                    todo.push(path);
                } else {
                    let path = path.strip_prefix(&self.out).expect("below");
                    files.push(path.to_str().expect("text").to_owned());
                }
            }
        }
        files.sort();
        files
    }
}

async fn bring(bench: &Bench, wanted: Wanted<'_>) -> Came {
    let folder = bench.dir.path().join("folder");
    let out = bench
        .dir
        .path()
        .join(format!("out-{}", rand::random::<u64>()));
    let mut graph = GraphBuilder::new();
    let attrs = wanted.attrs.iter();
    let op = Op::Source(SourceOp {
        identifier: wanted.identifier.into(),
        attrs: attrs.map(|(k, v)| ((*k).into(), (*v).into())).collect(),
    });
    let edge = graph.add(op, Vec::new(), None, Default::default(), Vec::new());
    let graph = graph.finish(Some(edge));
    let session = ClientSession::builder()
        .shared_key("me")
        .local_dirs(BTreeMap::from([("context".into(), LocalDir::new(&folder))]))
        .oci_layouts(BTreeMap::from([("oci:store".into(), folder.clone())]))
        .file_target(0, ExportTarget::dir(&out))
        .build();
    let _running = session.run(bench.control().await).expect("a session");
    let request = SolveRequest {
        r#ref: format!("{:032x}", rand::random::<u128>()),
        session: session.id().to_owned(),
        definition: Some(llb::to_proto(&graph)),
        exporters: vec![Exporter {
            r#type: "local".into(),
            attrs: HashMap::new(),
        }],
        ..SolveRequest::default()
    };
    let status = StatusRequest {
        r#ref: request.r#ref.clone(),
    };
    let (mut solving, mut watching) = (bench.control().await, bench.control().await);
    let (result, transferred) = tokio::join!(solving.solve(request), async move {
        let mut bytes = 0;
        let mut stream = watching
            .status(status)
            .await
            .expect("a status")
            .into_inner();
        while let Some(Ok(message)) = stream.next().await {
            let statuses = SolveStatus::from_proto(message).statuses;
            let of_folder = statuses
                .iter()
                .filter(|one| one.id == "transferring context:");
            bytes = of_folder.map(|one| one.current).fold(bytes, i64::max);
        }
        bytes
    });
    Came {
        out,
        transferred,
        error: result.err().map(|status| status.message().to_owned()),
    }
}

impl Came {
    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.error, None);
        self
    }
}

fn put(bench: &Bench, name: &str, data: &[u8]) {
    let path = bench.dir.path().join("folder").join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
    std::fs::write(path, data).expect("a file");
}

pub async fn only_changed_files_of_a_folder_travel() {
    let bench = Bench::start().await;
    put(&bench, "big", &[7; 1 << 20]);
    for number in 0..100 {
        put(
            &bench,
            &format!("dir/{number}"),
            number.to_string().as_bytes(),
        );
    }
    let folder = async |attrs: &[(&str, &str)]| {
        let wanted = Wanted {
            identifier: "local://context",
            attrs,
        };
        bring(&bench, wanted).await.ok()
    };
    let first = folder(&[]).await;
    assert_eq!(first.files().len(), 101);
    assert!(first.transferred > 1 << 20, "{}", first.transferred);
    let second = folder(&[]).await;
    assert!(second.transferred < 16 << 10, "{}", second.transferred);
    put(&bench, "dir/5", &[9; 5000]);
    let third = folder(&[]).await;
    let more = third.transferred - second.transferred;
    assert!((5000..8000).contains(&more), "{more}");
    assert_eq!(
        std::fs::read(third.out.join("dir/5")).expect("it"),
        [9; 5000]
    );
    let all = folder(&[("local.differ", "none")]).await;
    assert!(all.transferred > 1 << 20, "{}", all.transferred);
    // Another folder by its hint starts from nothing.
    let hinted = folder(&[("local.sharedkeyhint", "other")]).await;
    assert!(hinted.transferred > 1 << 20, "{}", hinted.transferred);
}

pub async fn a_folder_is_taken_in_part() {
    let bench = Bench::start().await;
    for name in ["a/x.go", "a/y.c", "b/x.go", "b/z/x.go", "target"] {
        put(&bench, name, name.as_bytes());
    }
    std::os::unix::fs::symlink("../target", bench.dir.path().join("folder/a/link")).expect("link");
    let folder = async |attrs: &[(&str, &str)]| {
        let wanted = Wanted {
            identifier: "local://context",
            attrs,
        };
        bring(&bench, wanted).await
    };
    let some = [
        ("local.includepattern", r#"["**/*.go"]"#),
        ("local.excludepatterns", r#"["b/z"]"#),
    ];
    assert_eq!(folder(&some).await.ok().files(), ["a/x.go", "b/x.go"]);
    let followed = folder(&[("local.followpaths", r#"["a/link"]"#)]).await.ok();
    assert_eq!(followed.files(), ["a/link", "target"]);
    let wrong = folder(&[("local.includepattern", "no list")]).await;
    assert!(
        wrong
            .error
            .is_some_and(|error| error.contains("local.includepattern"))
    );
}

pub async fn what_files_are_travels_without_what_is_in_them() {
    let bench = Bench::start().await;
    put(&bench, "big", &[7; 1 << 20]);
    put(&bench, "dir/keep.go", b"package");
    let attrs = [
        ("local.metadatatransfer", "true"),
        ("local.metadatatransferexclude", r#"["**/*.go"]"#),
    ];
    let folder = async || {
        let wanted = Wanted {
            identifier: "local://context",
            attrs: &attrs,
        };
        bring(&bench, wanted).await.ok()
    };
    let came = folder().await;
    assert_eq!(came.files(), [".fsutil-metadata", "dir/keep.go"]);
    assert!(came.transferred < 4096, "{}", came.transferred);
    let notes = std::fs::read(came.out.join(".fsutil-metadata")).expect("the notes");
    let has = |name: &[u8]| notes.windows(name.len()).any(|window| window == name);
    assert!(has(b"big") && has(b"dir/keep.go"));
    let again = folder().await;
    assert_eq!(again.files(), came.files());
}

pub async fn a_blob_of_a_clients_layout_is_a_file() {
    let bench = Bench::start().await;
    let digest = oci::Digest::of("staves");
    put(&bench, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    put(&bench, &format!("blobs/sha256/{}", digest.hex()), b"staves");
    let identifier = format!("oci-layout+blob://example.org/a@{digest}");
    let blob = async |attrs: &[(&str, &str)]| {
        let wanted = Wanted {
            identifier: &identifier,
            attrs,
        };
        bring(&bench, wanted).await
    };
    let came = blob(&[
        ("oci.store", "store"),
        ("http.filename", "cask"),
        ("http.perm", "0644"),
    ]);
    let came = came.await.ok();
    assert_eq!(came.files(), ["cask"]);
    assert_eq!(std::fs::read(came.out.join("cask")).expect("it"), b"staves");
    let unnamed = blob(&[("oci.store", "store")]).await.ok();
    assert_eq!(unnamed.files(), [digest.hex()]);
    let homeless = blob(&[]).await;
    assert!(
        homeless
            .error
            .is_some_and(|error| error.contains("requires store id"))
    );
}
