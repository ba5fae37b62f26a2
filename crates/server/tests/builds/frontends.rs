//! Frontends that are images, here shell scripts on busybox; sub-builds; what sources stand for.

use std::io::{Read, Write};

use base64::Engine;
use futures::StreamExt;
use llb::{
    BuildOp, CopyAction, FileAction, FileActionKind, FileOp, Graph, GraphBuilder, MkFileAction, Op,
    SourceOp, VertexMeta,
};
use proto::control::StatusRequest;
use proto::gateway::checksum_request::ChecksumAlgo;
use proto::gateway::{
    ChecksumRequest, ResolveSourceHttpRequest, ResolveSourceMetaRequest, ReturnRequest,
};
use proto::pb;
use proto::prost::Message;

use crate::bench::{Bench, Build};

/// The name that Dockerfiles ask for.
const NAME: &str = "front.test/shell";

fn source(identifier: &str) -> Op {
    Op::Source(SourceOp {
        identifier: identifier.to_owned(),
        ..SourceOp::default()
    })
}

fn copy(from: &str, to: &str) -> FileActionKind {
    FileActionKind::Copy(Box::new(CopyAction {
        src: from.to_owned(),
        dest: to.to_owned(),
        create_dest_path: true,
        ..CopyAction::default()
    }))
}

pub fn make(path: &str, mode: u32, data: &[u8]) -> FileActionKind {
    FileActionKind::MkFile(MkFileAction {
        path: path.to_owned(),
        mode,
        data: data.to_vec(),
        ..MkFileAction::default()
    })
}

/// Busybox out of the context as a shell, and a file.
pub fn busybox_with(path: &str, mode: u32, data: &[u8]) -> Graph {
    let mut graph = GraphBuilder::new();
    let mut add = |op, inputs| graph.add(op, inputs, None, VertexMeta::default(), Vec::new());
    let context = add(source("local://context"), Vec::new());
    let action = |input, output, kind| FileAction {
        input,
        secondary_input: Some(0),
        output,
        kind,
    };
    let names = [
        "sh", "cat", "env", "ls", "sleep", "tr", "stty", "tty", "kill",
    ];
    let mut actions: Vec<FileAction> = Vec::new();
    for (at, name) in names.iter().enumerate() {
        // Numbers after the only input are those of earlier actions.
        let input = at.checked_sub(1).map(|before| before + 1);
        actions.push(action(
            input,
            None,
            copy("/busybox", &format!("/bin/{name}")),
        ));
    }
    actions.push(FileAction {
        secondary_input: None,
        ..action(Some(names.len()), Some(0), make(path, mode, data))
    });
    let root = add(Op::File(FileOp { actions }), vec![context]);
    graph.finish(Some(root))
}

/// A build by a frontend that is this script.
fn build(script: &str) -> Build {
    let script = format!("#!/bin/sh\n{script}\n");
    let graph = busybox_with("/front", 0o755, script.as_bytes());
    let dockerfile = format!("# syntax={NAME} with words\nnot for us\n");
    let mut build = Build::new("")
        .file("Dockerfile", dockerfile.as_bytes())
        .attr(&format!("context:{NAME}"), "input:front")
        .attr("build-arg:COLOUR", "blue");
    build
        .inputs
        .insert("front".to_owned(), llb::to_proto(&graph));
    build
}

/// As [`build`], without graphs for the frontend itself: it need not promise to take any.
fn build_by(script: &str) -> Build {
    let metadata = r#"{"config":{"Entrypoint":["/front"],"Labels":{"moby.buildkit.frontend.caps":"moby.buildkit.frontend.inputs"}},"architecture":"amd64","os":"linux"}"#;
    let config = base64::engine::general_purpose::STANDARD.encode(metadata);
    build(script).attr(
        "input-metadata:front",
        &format!("{{\"containerimage.config\":\"{config}\"}}"),
    )
}

pub async fn a_frontend_image_sees_its_request() {
    let bench = Bench::start().await;
    let script = "env >&2; ls /run/config/buildkit/metadata >&2; exit 1";
    let seen = bench.build(&build_by(script)).await;
    seen.error();
    for line in [
        "=build-arg:COLOUR=blue\n",
        "=cmdline=front.test/shell with words\n",
        "=source=front.test/shell\n",
        "BUILDKIT_SESSION_ID=",
        "BUILDKIT_EXPORTEDPRODUCT=buildkit\n",
        "BUILDKIT_WORKERS=[{\"id\":\"",
        "BUILDKIT_FRONTEND_OPT_0=",
        "frontend.bin\n",
    ] {
        assert!(seen.logs.contains(line), "{line} is not in {}", seen.logs);
    }
    // The same by its own name, without a Dockerfile that asks for it.
    let named = build_by("env >&2; exit 1").attr("source", NAME);
    let seen = bench.build_by(&named, "gateway.v0").await;
    assert!(seen.logs.contains("=build-arg:COLOUR=blue\n"));
    assert!(!seen.logs.contains("=cmdline="), "{}", seen.logs);
    let nothing = bench.build_by(&build_by("true"), "gateway.v0").await;
    let message = nothing.error().message();
    assert_eq!(message, "no source specified for gateway");
    let refused = bench.build(&build("true")).await;
    let message = refused.error().message();
    assert!(
        message.ends_with("unsupported frontend capability moby.buildkit.frontend.inputs"),
        "{message}"
    );
}

pub async fn a_frontend_that_crashes_is_reported_with_its_log() {
    let bench = Bench::start().await;
    let failed = bench
        .build(&build_by("echo it went wrong >&2; exit 3"))
        .await;
    let message = failed.error().message();
    assert_eq!(message, "frontend front.test/shell: exit code: 3");
    assert_eq!(failed.logs, "it went wrong\n");
    assert!(failed.vertex("mkfile /front").error.is_empty());
    let status: proto::rpc::Status = Message::decode(failed.error().details()).expect("details");
    let source = status.details.first().expect("a source");
    let source = String::from_utf8_lossy(&source.value);
    assert!(source.contains("\"start\":{\"line\":1}"), "{source}");
    let missing = bench.build(&build_by("exec /no/such/program")).await;
    assert!(missing.error().message().ends_with("exit code: 127"));
}

pub async fn a_frontend_that_writes_garbage_is_ended() {
    let bench = Bench::start().await;
    let script = "while echo this is not gRPC; do :; done; sleep 1000";
    let failed = bench.build(&build_by(script)).await;
    assert_eq!(
        failed.error().message(),
        "frontend front.test/shell: frontend grpc server closed unexpectedly"
    );
    nothing_is_left(&bench).await;
}

pub async fn a_frontend_that_returns_nothing_is_an_error() {
    let bench = Bench::start().await;
    for script in ["exit 0", "exec >&-; exec <&-; exit 0"] {
        let failed = bench.build(&build_by(script)).await;
        let message = failed.error().message();
        let expected = "frontend front.test/shell: no result for incomplete build";
        assert_eq!(message, expected, "{script}");
    }
}

pub async fn a_frontend_that_hangs_is_killed_when_the_build_is_cancelled() {
    let bench = Bench::start().await;
    let build = build_by("echo up >&2; sleep 1000");
    let context = bench.dir.path().join("context");
    let out = bench.dir.path().join("out");
    let (id, _session) = bench.session(&build, &context, &out).await;
    let request = bench.request(&build, &id);
    let (mut solving, mut watching) = (bench.control().await, bench.control().await);
    let status = StatusRequest {
        r#ref: request.r#ref.clone(),
    };
    let solve = tokio::spawn(async move { solving.solve(request).await });
    let mut stream = watching.status(status).await.expect("status").into_inner();
    let mut up = false;
    while !up {
        let message = stream.next().await.expect("more").expect("no error");
        up = message.logs.iter().any(|log| log.msg.starts_with(b"up"));
    }
    solve.abort();
    while let Some(Ok(_)) = stream.next().await {}
    nothing_is_left(&bench).await;
}

/// Waits until no build runs and nothing of one is mounted or running.
pub async fn nothing_is_left(bench: &Bench) {
    let parts = bench.server.as_ref().expect("a server").parts();
    let root = bench.dir.path().to_str().expect("a path").to_owned();
    loop {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let mounted = mounts.lines().any(|line| line.contains(&root));
        if parts.builds.is_empty() && parts.solver.in_flight() == 0 && !mounted {
            return;
        }
        tokio::task::yield_now().await;
    }
}

pub async fn frontends_that_are_not_allowed_are_not_run() {
    let config = "[frontend.\"gateway.v0\"]\nallowedRepositories = [\"example.com/good\"]\n";
    let bench = Bench::start_with(config).await;
    let refused = bench.build(&build_by("true")).await;
    assert_eq!(
        refused.error().message(),
        "'front.test/shell' is not an allowed gateway source"
    );
    // The frontend that is part of the server is no way around it.
    let official = Build::new("FROM scratch\n").attr("source", "docker/dockerfile:1");
    let refused = bench.build_by(&official, "gateway.v0").await;
    assert_eq!(
        refused.error().message(),
        "'docker/dockerfile:1' is not an allowed gateway source"
    );
    let bench = Bench::start_with("[frontend.\"gateway.v0\"]\nenabled = false\n").await;
    let refused = bench.build(&build_by("true")).await;
    assert_eq!(refused.error().message(), "invalid frontend: gateway.v0");
}

pub async fn a_definition_in_a_file_is_a_part_of_the_build() {
    let bench = Bench::start().await;
    let inner = busybox_with("/made", 0o644, b"inside");
    let inner = llb::to_proto(&inner).encode_to_vec();
    let wrapped = |attrs: &[(&str, &str)], path: &str, builder: i64| {
        let mut graph = GraphBuilder::new();
        let mut add = |op, inputs| graph.add(op, inputs, None, VertexMeta::default(), Vec::new());
        let file = FileAction {
            input: None,
            secondary_input: None,
            output: Some(0),
            kind: make(path, 0o644, &inner),
        };
        let file = add(
            Op::File(FileOp {
                actions: vec![file],
            }),
            Vec::new(),
        );
        let op = BuildOp {
            builder,
            inputs: [("buildkit.llb.definition".to_owned(), 0)].into(),
            attrs: attrs
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
        };
        let root = add(Op::Build(op), vec![file]);
        llb::to_proto(&graph.finish(Some(root)))
    };
    let solve = async |definition: pb::Definition| {
        let build = Build::new("").exporter("local");
        bench.definition(&build, definition).await
    };
    let default = solve(wrapped(&[], "/buildkit.llb.definition", -1))
        .await
        .ok();
    assert_eq!(default.read("made"), "inside");
    // What is inside is shown as steps of the build.
    assert!(
        default
            .names()
            .iter()
            .any(|name| name.contains("mkfile /made"))
    );
    let named = wrapped(&[("llbbuild.filename", "/d/e")], "/f", -1);
    let missing = solve(named).await;
    assert_eq!(
        missing.error().message(),
        "failed to open /d/e: no such file or directory"
    );
    let named = wrapped(&[("llbbuild.filename", "f")], "/f", -1);
    assert_eq!(solve(named).await.ok().read("made"), "inside");
    let other = solve(wrapped(&[], "/buildkit.llb.definition", 0)).await;
    assert!(other.result.is_err());
}

/// A web server that says hello to everybody; its address.
pub fn hello_server() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\
                  Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n\r\nhello",
            );
        }
    });
    address
}

pub async fn what_a_source_stands_for_can_be_asked() {
    let address = hello_server();
    let bench = Bench::start().await;
    let mut driven = bench.drive(&Build::new("")).await;
    let ask = |identifier: String| ResolveSourceMetaRequest {
        source: Some(pb::SourceOp {
            identifier,
            ..pb::SourceOp::default()
        }),
        ..ResolveSourceMetaRequest::default()
    };
    let asked = ask(format!("http://{address}/file.txt"));
    let meta = driven.gateway.resolve_source_meta(asked).await;
    let http = meta.expect("metadata").into_inner().http.expect("http");
    assert_eq!(http.checksum, oci::Digest::of(b"hello").to_string());
    assert_eq!(http.filename, "file.txt");
    assert_eq!(http.last_modified.expect("a time").seconds, 1_445_412_480);
    let mut asked = ask(format!("http://{address}/file.txt"));
    let signed = |algo: i32| {
        Some(ResolveSourceHttpRequest {
            checksum_request: Some(ChecksumRequest {
                algo,
                suffix: b" world".to_vec(),
            }),
        })
    };
    asked.http = signed(ChecksumAlgo::Sha256 as i32);
    let meta = driven.gateway.resolve_source_meta(asked.clone()).await;
    let http = meta.expect("metadata").into_inner().http.expect("http");
    let sum = http.checksum_response.expect("the other checksum");
    assert_eq!(sum.digest, oci::Digest::of(b"hello world").to_string());
    assert_eq!(sum.suffix, b" world");
    asked.http = signed(99);
    let error = driven.gateway.resolve_source_meta(asked).await;
    assert_eq!(
        error.expect_err("no such checksum").message(),
        "unsupported checksum algorithm 99"
    );
    let local = driven.gateway.resolve_source_meta(ask("local://x".into()));
    let told = local.await.expect("nothing to tell").into_inner();
    assert_eq!(told.source.expect("itself").identifier, "local://x");
    assert_eq!((told.image, told.git, told.http), (None, None, None));
    let nothing = ResolveSourceMetaRequest::default();
    let error = driven.gateway.resolve_source_meta(nothing).await;
    assert_eq!(
        error.expect_err("no source").message(),
        "source is required"
    );
    let empty = ReturnRequest {
        result: Some(proto::gateway::Result::default()),
        error: None,
    };
    driven.gateway.r#return(empty).await.expect("returned");
    driven.solve.await.expect("no panic").expect("solved");
}
