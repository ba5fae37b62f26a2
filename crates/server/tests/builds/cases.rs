//! The tests.

use std::path::Path;

use base64::Engine;
use futures::StreamExt;
use proto::control::{BuildHistoryRequest, DiskUsageRequest, PruneRequest, SolveRequest};
use proto::gateway::llb_bridge_client::LlbBridgeClient;
use proto::gateway::{PingRequest, ReadFileRequest, ReturnRequest, result};
use server::Server;
use tonic::Request;

use crate::bench::{Bench, Build};

pub async fn a_dockerfile_becomes_files_and_the_second_time_everything_is_cached() {
    let bench = Bench::start().await;
    let build = Build::new(
        "FROM busybox AS made\nWORKDIR /w\nCOPY a.txt .\nRUN cat a.txt > b.txt; echo said >&2; id -u\n\
         FROM scratch\nCOPY --from=made /w /out/\n",
    )
    .file("a.txt", b"content")
    .exporter("local");
    let first = bench.build(&build).await.ok();
    assert_eq!(first.read("out/b.txt"), "content");
    // Two streams, whose order is nobody's promise.
    assert!(first.logs.contains("said\n") && first.logs.contains("0\n"));
    assert!(first.vertices.iter().all(|v| v.completed.is_some()));
    let names = first.names();
    for name in [
        "[internal] load build definition from Dockerfile",
        "[internal] load .dockerignore",
        "[internal] load build context",
        "[made 3/3] RUN cat a.txt > b.txt; echo said >&2; id -u",
        "exporting to client directory",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:#?}");
    }
    let second = bench.build(&build).await.ok();
    assert_eq!(second.read("out/b.txt"), "content");
    assert!(second.logs.is_empty());
    for vertex in second.vertices.iter().filter(|v| v.name.contains('/')) {
        assert!(vertex.cached, "{} is not cached", vertex.name);
    }
}

pub async fn only_what_changed_runs_again() {
    let bench = Bench::start().await;
    let dockerfile = "FROM busybox AS one\nCOPY one.txt /\nRUN echo one-ran\n\
                      FROM busybox\nCOPY --from=one /one.txt /\nCOPY two.txt /\nRUN echo two-ran\n";
    let build = |one: &str, two: &str| {
        Build::new(dockerfile)
            .file("one.txt", one.as_bytes())
            .file("two.txt", two.as_bytes())
    };
    let first = bench.build(&build("1", "2")).await.ok();
    assert!(first.logs.contains("one-ran") || !first.names().iter().any(|n| n.contains("one-ran")));
    assert!(first.logs.contains("two-ran"));
    let second = bench.build(&build("1", "changed")).await.ok();
    assert!(second.vertex("COPY --from=one").cached);
    assert!(!second.vertex("COPY two.txt").cached);
    // The context was looked at anew, though not all of it had changed.
    assert!(!second.vertex("load build context").cached);
    assert!(!second.vertex("load build definition").cached);
    assert!(second.logs.contains("two-ran"));
    let third = bench.build(&build("1", "2")).await.ok();
    assert!(third.vertex("RUN echo two-ran").cached);
}

pub async fn a_failing_step_is_reported_with_its_place_in_the_dockerfile() {
    let bench = Bench::start().await;
    let failed = bench
        .build(&Build::new("FROM busybox\nRUN echo before; exit 7\n"))
        .await;
    let text =
        "process \"/bin/sh -c echo before; exit 7\" did not complete successfully: exit code: 7";
    assert_eq!(failed.error().message(), text);
    assert_eq!(failed.vertex("exit 7").error, text);
    assert_eq!(failed.logs, "before\n");
    assert_eq!(source_lines(failed.error()), [5]);
    let details = String::from_utf8_lossy(failed.error().details()).into_owned();
    let vertex = failed.vertex("exit 7").digest.to_string();
    assert!(
        details.contains("errdefs.Vertex+json") && details.contains(&vertex),
        "{details}"
    );
}

pub async fn a_missing_file_is_reported_with_its_place_in_the_dockerfile() {
    let bench = Bench::start().await;
    let failed = bench
        .build(&Build::new("FROM busybox\nCOPY nope.txt /\n"))
        .await;
    let message = failed.error().message();
    assert!(
        message.starts_with("failed to compute cache key: failed to calculate checksum of ref")
    );
    assert!(message.ends_with("\"/nope.txt\": not found"), "{message}");
    assert_eq!(failed.error().code(), tonic::Code::Unknown);
    assert_eq!(source_lines(failed.error()), [5]);
}

/// The lines that an error's details point at.
fn source_lines(status: &tonic::Status) -> Vec<u64> {
    let status: proto::rpc::Status = prost::Message::decode(status.details()).expect("details");
    let source = status
        .details
        .iter()
        .find(|detail| detail.type_url == "github.com/moby/buildkit/errdefs.Source+json")
        .expect("a source");
    let value: serde_json::Value = serde_json::from_slice(&source.value).expect("JSON");
    let data = value["info"]["data"].as_str().expect("the Dockerfile");
    let data = base64::engine::general_purpose::STANDARD.decode(data);
    assert!(data.expect("base64").starts_with(b"FROM scratch"));
    let ranges = value["ranges"].as_array().expect("ranges");
    let lines = ranges.iter().map(|r| r["start"]["line"].as_u64());
    lines.map(|line| line.expect("a line")).collect()
}

pub async fn archives_hold_an_image() {
    let bench = Bench::start().await;
    let dockerfile = "FROM busybox\nENV A=b\nCMD [\"sh\"]\n";
    for kind in ["docker", "oci"] {
        let built = bench
            .build(&Build::new(dockerfile).exporter(kind))
            .await
            .ok();
        let archive = std::fs::read(&built.out).expect("the archive");
        let mut reader = archive::Reader::new(archive.as_slice());
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().expect("an entry") {
            names.push(String::from_utf8_lossy(&entry.header().path).into_owned());
        }
        assert!(names.contains(&"index.json".to_owned()), "{names:?}");
        assert_eq!(
            names.contains(&"manifest.json".to_owned()),
            kind == "docker"
        );
        let response = built.result.expect("ok").exporter_response;
        for key in ["containerimage.digest", "containerimage.config.digest"] {
            assert!(response[key].starts_with("sha256:"), "{key}");
        }
    }
}

pub async fn secrets_and_cache_mounts_are_seen_by_steps_and_not_kept() {
    let bench = Bench::start().await;
    let step = |n: &str| {
        Build::new(&format!(
            "FROM busybox AS s\nRUN --mount=type=secret,id=key --mount=type=cache,target=/c \
             cat /run/secrets/key; echo {n} >> /c/f; cat /c/f > /seen\n\
             FROM scratch\nCOPY --from=s / /\n"
        ))
        .exporter("local")
    };
    let mut build = step("one");
    build.secrets = vec![("key".into(), "s3cret".into())];
    let first = bench.build(&build).await.ok();
    assert_eq!(first.logs, "s3cret");
    assert_eq!(first.read("seen"), "one\n");
    assert!(!first.out.join("run/secrets").exists());
    let mut build = step("two");
    build.secrets = vec![("key".into(), "s3cret".into())];
    assert_eq!(bench.build(&build).await.ok().read("seen"), "one\ntwo\n");
    let missing = Build::new("FROM busybox\nRUN --mount=type=secret,id=no,required true\n");
    let failed = bench.build(&missing).await;
    assert_eq!(failed.error().message(), "secret no: not found");
}

pub async fn equal_steps_of_two_builds_run_once() {
    let bench = Bench::start().await;
    let build = || {
        Build::new(
            "FROM busybox AS s\nRUN --mount=type=cache,target=/c echo ran >> /c/f; sleep 0.3; \
             cat /c/f > /seen\nFROM scratch\nCOPY --from=s /seen /\n",
        )
        .exporter("local")
    };
    let (one, two) = (build(), build());
    let (one, two) = tokio::join!(bench.build(&one), bench.build(&two));
    assert_eq!(
        (one.ok().read("seen"), two.ok().read("seen")),
        ("ran\n".into(), "ran\n".into())
    );
}

pub async fn a_cancelled_build_leaves_no_process_and_no_mount() {
    let bench = Bench::start().await;
    let build = Build::new("FROM busybox\nRUN echo up; sleep 100000471\n");
    let context = bench.dir.path().join("context");
    let out = bench.dir.path().join("out");
    let (id, _session) = bench.session(&build, &context, &out).await;
    let request = bench.request(&build, &id);
    let mut watching = bench.control().await;
    let status = proto::control::StatusRequest {
        r#ref: request.r#ref.clone(),
    };
    let mut solving = bench.control().await;
    let solve = tokio::spawn(async move { solving.solve(request).await });
    let mut stream = watching.status(status).await.expect("status").into_inner();
    let mut up = false;
    while !up {
        let message = stream.next().await.expect("more").expect("no error");
        up = message.logs.iter().any(|log| log.msg.starts_with(b"up"));
    }
    solve.abort();
    // The stream ends when the build has.
    let mut error = String::new();
    while let Some(Ok(message)) = stream.next().await {
        let failed = message.vertexes.iter().find(|v| !v.error.is_empty());
        error = failed.map_or(error, |vertex| vertex.error.clone());
    }
    assert!(error.contains("context canceled"), "{error}");
    let parts = bench.server.as_ref().expect("a server").parts();
    assert_eq!(parts.solver.in_flight(), 0);
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    let commands = processes.map(|process| std::fs::read(process.path().join("cmdline")));
    let sleeps = b"100000471";
    let left = commands
        .flatten()
        .filter(|command| command.windows(sleeps.len()).any(|part| part == sleeps))
        .count();
    assert_eq!(left, 0, "a process lives on");
    let mounts = || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let root = bench.dir.path().to_str().expect("a path").to_owned();
        mounts.lines().filter(|line| line.contains(&root)).count()
    };
    assert_eq!(mounts(), 0);
}

pub async fn what_is_cached_outlives_the_server() {
    let mut bench = Bench::start().await;
    let build = Build::new("FROM busybox\nRUN echo ran\n").exporter("oci");
    let first = bench.build(&build).await.ok();
    bench.restart().await;
    let second = bench.build(&build).await.ok();
    assert!(second.vertex("RUN echo ran").cached);
    let digest = |outcome: &crate::bench::Outcome| {
        let response = &outcome.result.as_ref().expect("ok").exporter_response;
        response["containerimage.descriptor"].clone()
    };
    assert_eq!(layers(&first.out), layers(&second.out));
    assert_eq!(digest(&first).len(), digest(&second).len());
}

/// The names of the blobs in an archive that are layers: those that begin as gzip does.
fn layers(path: &Path) -> Vec<String> {
    use std::io::Read;
    let archive = std::fs::read(path).expect("the archive");
    let mut reader = archive::Reader::new(archive.as_slice());
    let mut names = Vec::new();
    while let Some(mut entry) = reader.next_entry().expect("an entry") {
        let name = String::from_utf8_lossy(&entry.header().path).into_owned();
        let mut start = [0; 2];
        if entry.read_exact(&mut start).is_ok() && start == [0x1f, 0x8b] {
            names.push(name);
        }
    }
    names.sort();
    names
}

pub async fn everything_can_be_pruned_and_built_again() {
    let bench = Bench::start().await;
    let build = Build::new("FROM busybox\nRUN --mount=type=cache,target=/c echo x > /c/x\n");
    bench.build(&build).await.ok();
    let mut control = bench.control().await;
    let usage = control.disk_usage(DiskUsageRequest::default()).await;
    let records = usage.expect("usage").into_inner().record;
    for kind in ["regular", "source.local", "exec.cachemount"] {
        assert!(records.iter().any(|r| r.record_type == kind), "{kind}");
    }
    let filtered = control
        .disk_usage(DiskUsageRequest {
            filter: vec!["type==exec.cachemount".into()],
            ..DiskUsageRequest::default()
        })
        .await;
    assert_eq!(filtered.expect("usage").into_inner().record.len(), 1);
    let request = PruneRequest {
        all: true,
        ..PruneRequest::default()
    };
    let pruned = control.prune(request).await.expect("prune").into_inner();
    let pruned: Vec<_> = pruned.collect().await;
    let kept = records.iter().filter(|record| record.in_use).count();
    assert_eq!(pruned.len(), records.len() - kept);
    let left = control.disk_usage(DiskUsageRequest::default()).await;
    let left = left.expect("usage").into_inner().record;
    // The server's own databases.
    assert!(left.iter().all(|r| r.record_type == "internal"), "{left:?}");
    let again = bench.build(&build).await.ok();
    assert!(!again.vertex("RUN --mount=type=cache").cached);
}

pub async fn a_client_drives_a_build_through_the_gateway() {
    let bench = Bench::start().await;
    let build =
        Build::new("FROM busybox AS s\nRUN echo hi > /f\nFROM scratch\nCOPY --from=s /f /f\n")
            .exporter("local");
    let context = bench.dir.path().join("context");
    let out = bench.dir.path().join("out");
    let (id, _session) = bench.session(&build, &context, &out).await;
    let request = SolveRequest {
        frontend: String::new(),
        ..bench.request(&build, &id)
    };
    let build_id: tonic::metadata::MetadataValue<_> = request.r#ref.parse().expect("an id");
    let mut control = bench.control().await;
    let solve = tokio::spawn(async move { control.solve(request).await });
    let mut gateway =
        LlbBridgeClient::with_interceptor(bench.channel().await, move |mut request: Request<()>| {
            let name = "buildkit-controlapi-buildid";
            request.metadata_mut().insert(name, build_id.clone());
            Ok(request)
        });
    let pong = gateway
        .ping(PingRequest {})
        .await
        .expect("pong")
        .into_inner();
    assert!(pong.llb_caps.iter().any(|cap| cap.id == "file.base"));
    assert_eq!(pong.workers.len(), 1);
    let solved = gateway
        .solve(proto::gateway::SolveRequest {
            frontend: "dockerfile.v0".into(),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..Default::default()
        })
        .await;
    let result = solved
        .expect("solved")
        .into_inner()
        .result
        .expect("a result");
    assert!(result.metadata.contains_key("containerimage.config"));
    let Some(result::Result::Ref(reference)) = &result.result else {
        panic!("{:?}", result.result);
    };
    assert!(reference.def.is_some());
    let read = gateway
        .read_file(ReadFileRequest {
            r#ref: reference.id.clone(),
            file_path: "f".into(),
            ..Default::default()
        })
        .await;
    assert_eq!(read.expect("read").into_inner().data, b"hi\n");
    let returned = ReturnRequest {
        result: Some(result),
        error: None,
    };
    gateway.r#return(returned).await.expect("returned");
    solve.await.expect("no panic").expect("solved");
    assert_eq!(std::fs::read_to_string(out.join("f")).expect("f"), "hi\n");
}

pub async fn entitlements_must_be_granted_by_both() {
    let config = "insecure-entitlements = [\"network.host\"]\n";
    let bench = Bench::start_with(config).await;
    let host = || Build::new("FROM busybox\nRUN true\n").attr("force-network-mode", "host");
    let refused = bench.build(&host()).await;
    assert_eq!(
        refused.error().message(),
        "failed to load LLB: network.host is not allowed"
    );
    let mut granted = host();
    granted.entitlements = vec!["network.host".into()];
    bench.build(&granted).await.ok();
    let mut too_much = host();
    too_much.entitlements = vec!["security.insecure".into()];
    let refused = bench.build(&too_much).await;
    let text =
        "granting entitlement security.insecure is not allowed by build daemon configuration";
    assert_eq!(refused.error().message(), text);
}

pub async fn a_root_has_one_server() {
    let bench = Bench::start().await;
    let second = Server::open(bench.config(""), Default::default());
    let error = second.err().expect("the root is in use");
    assert!(
        error.to_string().contains("another instance running?"),
        "{error}"
    );
}

pub async fn finished_builds_are_remembered() {
    let bench = Bench::start().await;
    bench.build(&Build::new("FROM busybox\n")).await.ok();
    let failed = bench.build(&Build::new("FROM busybox\nRUN false\n")).await;
    failed.error();
    let mut control = bench.control().await;
    let request = BuildHistoryRequest {
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    let events = control
        .listen_build_history(request)
        .await
        .expect("history");
    let events: Vec<_> = events.into_inner().collect().await;
    let mut records: Vec<_> = events
        .into_iter()
        .map(|event| event.expect("an event").record.expect("a record"))
        .collect();
    // The newest comes first.
    records.reverse();
    assert_eq!(records.len(), 2);
    assert!(records[0].error.is_none() && records[1].error.is_some());
    assert!(records[0].num_total_steps >= 3);
    assert_eq!(records[0].num_total_steps, records[0].num_completed_steps);
    let status = proto::control::StatusRequest {
        r#ref: records[1].r#ref.clone(),
    };
    let said = control.status(status).await.expect("status").into_inner();
    let said: Vec<_> = said.collect().await;
    let mut vertices = said.iter().flatten().flat_map(|message| &message.vertexes);
    assert!(vertices.any(|vertex| vertex.error.contains("exit code: 1")));
}
