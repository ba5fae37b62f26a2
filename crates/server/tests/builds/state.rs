//! What a server keeps: how much that is, what goes and what stays, and what builds share.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use futures::StreamExt;
use futures::future::join_all;
use llb::{
    DiffOp, Edge, FileAction, FileActionKind, FileOp, GraphBuilder, MergeOp, MkFileAction, Op,
    VertexMeta,
};
use proto::control::{DiskUsageRequest, PruneRequest, StatusRequest, UsageRecord};

use crate::bench::{Bench, Build};

/// A step that writes so many MiB that nothing can compress.
fn noise(mib: u32, path: &str) -> String {
    format!("RUN dd if=/dev/urandom of={path} bs=1M count={mib} 2>/dev/null\n")
}

async fn usage(bench: &Bench) -> Vec<UsageRecord> {
    let mut control = bench.control().await;
    let usage = control.disk_usage(DiskUsageRequest::default()).await;
    usage.expect("usage").into_inner().record
}

fn total(records: &[UsageRecord]) -> i64 {
    records.iter().map(|record| record.size).sum()
}

/// Without what was removed and is still on its way.
fn total_kept(records: &[UsageRecord]) -> i64 {
    let kept = records
        .iter()
        .filter(|record| record.description != "what is being removed");
    kept.map(|record| record.size).sum()
}

/// Prunes; the descriptions of what went.
async fn prune(bench: &Bench, request: PruneRequest) -> Vec<String> {
    let pruned = bench.control().await.prune(request).await.expect("prune");
    let pruned = pruned
        .into_inner()
        .map(|record| record.expect("a record").description);
    pruned.collect().await
}

/// What `du` says of the server's root, in bytes.
fn du(root: &Path) -> i64 {
    let output = Command::new("du")
        .args(["-s", "-x", "-B1"])
        .arg(root)
        .output()
        .expect("du");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let bytes = text
        .split_whitespace()
        .next()
        .and_then(|bytes| bytes.parse().ok());
    bytes.unwrap_or_else(|| panic!("du says {output:?}"))
}

fn root(bench: &Bench) -> std::path::PathBuf {
    bench.dir.path().join("root")
}

pub async fn disk_usage_adds_up_to_what_du_says() {
    let bench = Bench::start().await;
    let dockerfile = format!(
        "FROM busybox AS made\n{}{}\
         RUN --mount=type=cache,target=/c dd if=/dev/urandom of=/c/x bs=1M count=7 2>/dev/null\n\
         RUN mkdir /many && for i in $(seq 500); do echo $i > /many/$i; done; ln /many/1 /hard\n\
         FROM busybox\nCOPY --from=made /a /\nCOPY context /context\n",
        noise(9, "/a"),
        noise(5, "/b"),
    );
    let large: Vec<u8> = (0..4_u32 << 20)
        .map(|n| (n.wrapping_mul(n) >> 9) as u8)
        .collect();
    let build = Build::new(&dockerfile).file("context/large", &large);
    bench.build(&build.exporter("oci")).await.ok();
    fetch_repository(&bench).await;
    let (records, real) = quiet_usage(&bench).await;
    for part in [
        "cached mount",
        "local source for context",
        "shared git repo for",
        "git snapshot for",
        // Manifests and configurations too: the record of the build names them.
        "logs and results",
        "databases",
    ] {
        assert!(
            records
                .iter()
                .any(|record| record.description.contains(part)),
            "no {part} among {records:#?}"
        );
    }
    let said = total(&records);
    assert!(real > 25 << 20, "{real}");
    let difference = (said - real).abs();
    assert!(
        difference * 50 <= real,
        "the server says {said}, du says {real}: {records:#?}"
    );
    let all = PruneRequest {
        all: true,
        ..PruneRequest::default()
    };
    let gone = prune(&bench, all).await;
    assert!(
        gone.iter().any(|what| what.contains("shared git repo for")),
        "{gone:?}"
    );
    // What was known of the client's folders went with their layers.
    let known = std::fs::read_dir(root(&bench).join("v1/local")).expect("a folder");
    assert_eq!(known.count(), 1, "the superblock");
}

/// The records and what `du` says, when nothing goes on that would come between the two: what is thrown
/// away is removed in the background, and what was mounted is unmounted there.
async fn quiet_usage(bench: &Bench) -> (Vec<UsageRecord>, i64) {
    let layers = root(bench).join("v1/layers");
    let busy = || {
        ["trash", "new", "mounts"].iter().any(|name| {
            let entries = std::fs::read_dir(layers.join(name)).expect(name);
            entries.count() > 0
        })
    };
    loop {
        let before = usage(bench).await;
        let real = du(&root(bench));
        let after = usage(bench).await;
        if !busy() && before == after {
            return (after, real);
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Brings a commit of a repository of 3 MiB.
async fn fetch_repository(bench: &Bench) {
    let work = bench.dir.path().join("work");
    std::fs::create_dir(&work).expect("a directory");
    let noise: Vec<u8> = (0..3_u32 << 20)
        .map(|n| (n.wrapping_mul(n) >> 11) as u8)
        .collect();
    std::fs::write(work.join("file"), noise).expect("a file");
    let script =
        "git init -q -b main && git add . && git -c user.name=A -c user.email=a@b commit -qm x";
    let made = Command::new("sh")
        .args(["-c", script])
        .current_dir(&work)
        .output();
    assert!(made.expect("git").status.success());
    let git = &bench.server.as_ref().expect("a server").parts().ops.git;
    let request = source::git::GitRequest {
        remote: work.display().to_string(),
        reference: "main".into(),
        ..Default::default()
    };
    let access = source::git::GitAccess::default();
    let pin = git.pin(&request, &access).await.expect("a commit");
    git.fetch(&request, &pin, &access).await.expect("its files");
}

pub async fn a_cap_holds_while_a_build_runs_and_spares_what_it_uses() {
    let bench =
        Bench::start_with("[[worker.oci.gcpolicy]]\nall = true\nmaxUsedSpace = 62914560\n").await;
    let old = Build::new(&format!("FROM busybox\n{}", noise(40, "/old")));
    bench.build(&old).await.ok();
    let build = Build::new(&format!(
        "FROM busybox\n{}RUN echo up; sleep 1000\n",
        noise(40, "/new")
    ));
    let (solve, _session) = start(&bench, &build).await;
    loop {
        let records = usage(&bench).await;
        assert!(
            has(&records, "of=/new"),
            "what a live build uses was removed"
        );
        if !has(&records, "of=/old") {
            assert!(total(&records) <= 60 << 20, "{records:#?}");
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(!solve.is_finished());
    solve.abort();
}

fn has(records: &[UsageRecord], part: &str) -> bool {
    records
        .iter()
        .any(|record| record.description.contains(part))
}

pub async fn a_cap_counts_what_a_step_is_writing() {
    let bench =
        Bench::start_with("[[worker.oci.gcpolicy]]\nall = true\nmaxUsedSpace = 41943040\n").await;
    let old = Build::new(&format!("FROM busybox\n{}", noise(20, "/old")));
    bench.build(&old).await.ok();
    let build = Build::new(
        "FROM busybox\nRUN dd if=/dev/urandom of=/new bs=1M count=20 && echo up; sleep 1000\n",
    );
    let (solve, _session) = start(&bench, &build).await;
    while has(&usage(&bench).await, "of=/old") {
        assert!(!solve.is_finished());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(!solve.is_finished());
    solve.abort();
}

/// Starts a build and waits until a step of it says `up`.
async fn start(
    bench: &Bench,
    build: &Build,
) -> (tokio::task::JoinHandle<()>, session::SessionHandle) {
    let number = rand::random::<u64>();
    let at = |name: &str| bench.dir.path().join(format!("{name}-{number}"));
    let (id, session) = bench.session(build, &at("context"), &at("out")).await;
    let request = bench.request(build, &id);
    let status = StatusRequest {
        r#ref: request.r#ref.clone(),
    };
    let (mut solving, mut watching) = (bench.control().await, bench.control().await);
    let solve = tokio::spawn(async move { drop(solving.solve(request).await) });
    let mut stream = watching.status(status).await.expect("status").into_inner();
    loop {
        let message = stream.next().await.expect("more").expect("no error");
        if message.logs.iter().any(|log| log.msg.starts_with(b"up")) {
            return (solve, session);
        }
    }
}

pub async fn old_cache_is_removed_after_builds() {
    let bench =
        Bench::start_with("[worker.oci]\nreservedSpace = 1\nmaxUsedSpace = 8388608\n").await;
    for name in ["one", "two"] {
        let build = Build::new(&format!("FROM busybox\n{}", noise(6, &format!("/{name}"))));
        bench.build(&build).await.ok();
    }
    while total(&usage(&bench).await) > 8 << 20 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

pub async fn prune_removes_what_its_filters_mean() {
    let bench = Bench::start().await;
    let build = Build::new(&format!(
        "FROM busybox\n{}RUN --mount=type=cache,id=mount,target=/c echo x > /c/x\n{}",
        noise(4, "/first"),
        noise(2, "/second"),
    ));
    bench.build(&build).await.ok();
    let filtered = |filter: &str| PruneRequest {
        filter: vec![filter.to_owned()],
        ..PruneRequest::default()
    };
    let hour = 3_600_000_000_000;
    for nothing in [
        PruneRequest {
            keep_duration: hour,
            all: true,
            ..PruneRequest::default()
        },
        filtered("id==unknown"),
        filtered("inuse"),
        filtered("shared"),
        filtered("type==internal"),
        PruneRequest {
            max_used_space: 1 << 40,
            all: true,
            ..PruneRequest::default()
        },
        PruneRequest {
            reserved_space: 1 << 40,
            all: true,
            ..PruneRequest::default()
        },
        PruneRequest {
            min_free_space: 1,
            all: true,
            ..PruneRequest::default()
        },
    ] {
        let gone = prune(&bench, nothing.clone()).await;
        assert!(gone.is_empty(), "{nothing:?} removed {gone:?}");
    }
    assert_eq!(
        prune(&bench, filtered("type==exec.cachemount")).await,
        ["cached mount /mount"]
    );
    assert!(prune(&bench, filtered("mutable")).await.is_empty());
    let gone = prune(
        &bench,
        filtered("description~=of=/second,immutable,private"),
    )
    .await;
    assert!(
        gone.len() == 1 && gone[0].contains("of=/second"),
        "{gone:?}"
    );
    // What others were made on stays as long as they do.
    assert!(
        prune(&bench, filtered("description~=of=/first"))
            .await
            .is_empty()
    );
    let records = usage(&bench).await;
    let top = records
        .iter()
        .find(|record| record.description.contains("type=cache"));
    let top = top.expect("the last step");
    let parent = records.iter().find(|record| record.id == top.parents[0]);
    assert!(
        parent
            .expect("its parent")
            .description
            .contains("of=/first")
    );
    let by_parent = format!("parents=={}", top.parents[0]);
    assert_eq!(
        prune(&bench, filtered(&by_parent)).await,
        std::slice::from_ref(&top.description)
    );
    // Just so much that the limit is kept; what was used longest ago went first.
    let keep = total_kept(&usage(&bench).await) - 1;
    let limited = PruneRequest {
        max_used_space: keep,
        ..PruneRequest::default()
    };
    let gone = prune(&bench, limited).await;
    assert_eq!(gone.len(), 1, "{gone:?}");
    let all = PruneRequest {
        all: true,
        ..PruneRequest::default()
    };
    prune(&bench, all).await;
    let left = usage(&bench).await;
    assert!(
        left.iter().all(|record| record.record_type == "internal"),
        "{left:#?}"
    );
    // With what is kept for a full disk.
    assert!(total_kept(&left) < 8 << 20, "{left:#?}");
}

pub async fn what_a_step_prints_is_clipped() {
    let bench = Bench::start().await;
    let print = "yes 0123456789abcde | head -c 16777216";
    let build = Build::new(&format!("FROM busybox\nRUN {print}\n"));
    let said = bench.build(&build).await.ok().logs;
    assert!(
        said.contains("\n[output clipped, log limit 2"),
        "{}",
        said.len()
    );
    assert!(said.len() < (2 << 20) + (64 << 10), "{}", said.len());
    // What may say why a step failed is shown all the same.
    let build = Build::new(&format!("FROM busybox\nRUN {print}; echo the end; false\n"));
    let failed = bench.build(&build).await;
    assert!(failed.logs.ends_with("abcde\nthe end\n"));
    assert!(
        failed.logs.len() < (2 << 20) + (320 << 10),
        "{}",
        failed.logs.len()
    );
    failed.error();
}

pub async fn sixty_four_builds_run_what_they_share_once() {
    let bench = Bench::start().await;
    let shared: String = ["one", "two", "three", "four"]
        .map(|name| {
            format!("RUN --mount=type=cache,id=log,target=/c echo {name} >> /c/log; echo {name} > /{name}\n")
        })
        .concat();
    let builds: Vec<Build> = (0..64)
        .map(|n| {
            let own =
                format!("FROM busybox AS base\n{shared}FROM base AS own\nRUN echo {n} > /own\n");
            let mut build = Build::new(&format!(
                "{own}FROM scratch\nCOPY --from=own /own /four /\n"
            ));
            build.shared_key = format!("client {n}");
            build.exporter("local")
        })
        .collect();
    let outcomes = join_all(builds.iter().map(|build| bench.build(build))).await;
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let outcome = outcome.ok();
        assert_eq!(outcome.read("own"), format!("{n}\n"));
        assert_eq!(outcome.read("four"), "four\n");
    }
    let look = "FROM busybox AS look\nRUN --mount=type=cache,id=log,target=/c cp /c/log /log\n\
                FROM scratch\nCOPY --from=look /log /\n";
    let outcome = bench.build(&Build::new(look).exporter("local")).await.ok();
    assert_eq!(outcome.read("log"), "one\ntwo\nthree\nfour\n");
    let parts = bench.server.as_ref().expect("a server").parts();
    assert_eq!(parts.solver.in_flight(), 0);
}

pub async fn at_most_so_many_steps_run_at_once() {
    let bench = Bench::start_with("[worker.oci]\nmax-parallelism = 2\n").await;
    let step = |n: usize| {
        format!(
            "FROM busybox AS step{n}\nRUN --mount=type=cache,id=seen,target=/c \
             touch /c/up-{n}; ls /c | grep -c up- >> /c/counts; sleep 0.2; rm /c/up-{n}; touch /{n}\n"
        )
    };
    let mut dockerfile: String = (0..6).map(step).collect();
    dockerfile += "FROM busybox\n";
    for n in 0..6 {
        dockerfile += &format!("COPY --from=step{n} /{n} /\n");
    }
    dockerfile += "RUN --mount=type=cache,id=seen,target=/c cp /c/counts /counts\n";
    let outcome = bench
        .build(&Build::new(&dockerfile).exporter("local"))
        .await
        .ok();
    let counts: Vec<u32> = outcome
        .read("counts")
        .lines()
        .map(|count| count.parse().expect("a number"))
        .collect();
    assert_eq!(counts.len(), 6);
    assert_eq!(counts.iter().max(), Some(&2), "{counts:?}");
}

pub async fn differences_and_merges_of_unrelated_states_are_made() {
    let bench = Bench::start().await;
    let mut builder = GraphBuilder::new();
    let mut add = |op: Op, inputs: Vec<Edge>| {
        builder.add(op, inputs, None, VertexMeta::default(), Vec::new())
    };
    let mut files = |entries: &[(&str, &str)]| {
        let actions = entries
            .iter()
            .enumerate()
            .map(|(at, (path, data))| FileAction {
                input: at.checked_sub(1),
                secondary_input: None,
                output: (at + 1 == entries.len()).then_some(0),
                kind: FileActionKind::MkFile(MkFileAction {
                    path: (*path).into(),
                    mode: 0o644,
                    data: data.as_bytes().to_vec(),
                    timestamp: Some(1_000_000_000),
                    ..MkFileAction::default()
                }),
            });
        let op = FileOp {
            actions: actions.collect(),
        };
        add(Op::File(op), Vec::new())
    };
    let one = files(&[("/gone", "1"), ("/same", "2"), ("/other", "3")]);
    let two = files(&[("/same", "2"), ("/other", "4"), ("/new", "5")]);
    let base = files(&[("/gone", "base"), ("/same", "base"), ("/base", "base")]);
    let diff = DiffOp {
        lower: Some(0),
        upper: Some(1),
    };
    let diff = add(Op::Diff(diff), vec![one, two]);
    let nothing = DiffOp {
        lower: Some(0),
        upper: Some(0),
    };
    let nothing = add(Op::Diff(nothing), vec![two]);
    let merge = MergeOp {
        inputs: vec![Some(0), Some(1), Some(2)],
    };
    let merge = add(Op::Merge(merge), vec![base, diff, nothing]);
    let graph = builder.finish(Some(merge));
    let build = Build::default().exporter("local");
    let (context, out) = (
        bench.dir.path().join("context"),
        bench.dir.path().join("out"),
    );
    let (id, _session) = bench.session(&build, &context, &out).await;
    let mut request = bench.request(&build, &id);
    request.frontend = String::new();
    request.definition = Some(llb::to_proto(&graph));
    bench.control().await.solve(request).await.expect("a build");
    let seen: BTreeMap<String, String> = std::fs::read_dir(&out)
        .expect("the result")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, std::fs::read_to_string(path).expect("a file"))
        })
        .collect();
    let expected = [
        ("base", "base"),
        ("new", "5"),
        ("other", "4"),
        ("same", "base"),
    ];
    assert_eq!(
        seen,
        expected
            .map(|(name, data)| (name.into(), data.into()))
            .into()
    );
}
