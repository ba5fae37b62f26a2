//! The shape of the graphs.

use std::collections::BTreeMap;
use std::sync::Arc;

use llb::{ExecOp, FileAction, FileActionKind, Graph, MountKind, Op, UserOpt, Vertex};

use super::host::MemoryHost;
use crate::{BuildOptions, FrontendResult, build};

fn options(attrs: &[(&str, &str)]) -> BuildOptions {
    let attrs: BTreeMap<String, String> = attrs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    BuildOptions::from_attrs(&attrs).unwrap()
}

async fn built(host: &MemoryHost, attrs: &[(&str, &str)]) -> FrontendResult {
    build(host, options(attrs)).await.unwrap()
}

async fn graph(text: &str, attrs: &[(&str, &str)]) -> Graph {
    let host = MemoryHost::with_dockerfile(text);
    built(&host, attrs).await.refs.remove(0).graph
}

async fn failure(text: &str, attrs: &[(&str, &str)]) -> diag::Error {
    let host = MemoryHost::with_dockerfile(text);
    build(&host, options(attrs)).await.unwrap_err()
}

fn names(graph: &Graph) -> Vec<String> {
    graph
        .order
        .iter()
        .map(|digest| graph.vertices[digest].name())
        .collect()
}

fn vertex<'a>(graph: &'a Graph, part: &str) -> &'a Arc<Vertex> {
    let found = graph.order.iter().map(|digest| &graph.vertices[digest]);
    found
        .into_iter()
        .find(|vertex| vertex.name().contains(part))
        .unwrap()
}

/// The first operation of a kind whose step's name has `part` in it.
fn find<'a, T>(graph: &'a Graph, part: &str, kind: impl Fn(&'a Op) -> Option<T>) -> T {
    let mut vertices = graph.order.iter().map(|digest| &graph.vertices[digest]);
    vertices
        .find_map(|vertex| kind(&vertex.op).filter(|_| vertex.name().contains(part)))
        .unwrap()
}

fn exec<'a>(graph: &'a Graph, part: &str) -> &'a ExecOp {
    find(graph, part, |op| match op {
        Op::Exec(exec) => Some(&**exec),
        _ => None,
    })
}

fn actions<'a>(graph: &'a Graph, part: &str) -> &'a [FileAction] {
    find(graph, part, |op| match op {
        Op::File(file) => Some(file.actions.as_slice()),
        _ => None,
    })
}

fn attrs<'a>(graph: &'a Graph, part: &str) -> &'a BTreeMap<String, String> {
    find(graph, part, |op| match op {
        Op::Source(source) => Some(&source.attrs),
        _ => None,
    })
}

#[tokio::test]
async fn a_build_asks_in_stocks_order_and_names_its_steps_as_stock_does() {
    let text = "FROM busybox AS build\nWORKDIR /src\nCOPY . .\nRUN make\nFROM scratch\nCOPY --from=build /src/out /out\nCMD [\"/out\"]\n";
    let host = MemoryHost::with_dockerfile(text);
    let result = built(&host, &[]).await;
    assert_eq!(
        *host.asked.lock().unwrap(),
        [
            "[internal] load build definition from Dockerfile",
            "[internal] load metadata for docker.io/library/busybox:latest",
            "[internal] load .dockerignore",
        ]
    );
    assert!(result.single);
    assert_eq!(
        names(&result.refs[0].graph),
        [
            "[build 1/4] FROM docker.io/library/busybox:latest@sha256:".to_owned()
                + &digest_of_busybox(),
            "[build 2/4] WORKDIR /src".to_owned(),
            "[internal] load build context".to_owned(),
            "[build 3/4] COPY . .".to_owned(),
            "[build 4/4] RUN make".to_owned(),
            "[stage-1 1/1] COPY --from=build /src/out /out".to_owned(),
        ]
    );
    let platforms = String::from_utf8(result.metadata["refs.platforms"].clone()).unwrap();
    assert_eq!(
        platforms,
        r#"{"Platforms":[{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}}]}"#
    );
    assert!(result.metadata.contains_key("containerimage.config"));
}

fn digest_of_busybox() -> String {
    let images = super::recorded::images();
    let digest = images["docker.io/library/busybox:latest"]["digest"]
        .as_str()
        .unwrap();
    digest.strip_prefix("sha256:").unwrap().to_owned()
}

#[tokio::test]
async fn a_copy_is_encoded_as_stock_encodes_it() {
    let text =
        "FROM busybox\nWORKDIR /w\nCOPY --chown=app:5 --chmod=640 --exclude=*.o a.txt dir/ d/\n";
    let graph = graph(text, &[]).await;
    let actions = actions(&graph, "COPY");
    assert_eq!(actions.len(), 2);
    assert_eq!(
        (
            actions[0].input,
            actions[0].secondary_input,
            actions[0].output
        ),
        (Some(0), Some(1), None)
    );
    assert_eq!(
        (
            actions[1].input,
            actions[1].secondary_input,
            actions[1].output
        ),
        (Some(2), Some(1), Some(0))
    );
    let FileActionKind::Copy(copy) = &actions[1].kind else {
        panic!()
    };
    assert_eq!((copy.src.as_str(), copy.dest.as_str()), ("/dir", "/w/d/"));
    assert!(copy.follow_symlink && copy.dir_copy_contents && copy.create_dest_path);
    assert!(copy.allow_wildcard && copy.allow_empty_wildcard && !copy.attempt_unpack);
    assert_eq!(
        (copy.mode, copy.exclude_patterns.as_slice()),
        (Some(0o640), ["*.o".to_owned()].as_slice())
    );
    let owner = copy.owner.clone().unwrap();
    assert_eq!(
        owner.user,
        Some(UserOpt::ByName {
            name: "app".into(),
            input: Some(0)
        })
    );
    assert_eq!(owner.group, Some(UserOpt::ById(5)));
    let context = attrs(&graph, "load build context");
    assert_eq!(context["local.followpaths"], r#"["a.txt","dir"]"#);
    assert_eq!(context["local.sharedkeyhint"], "context");
    assert_eq!(context["local.session"], "session");
    let location = &vertex(&graph, "COPY").locations[0];
    assert_eq!(
        (location.filename.as_str(), location.ranges[0].start.line),
        ("Dockerfile", 3)
    );
}

#[tokio::test]
async fn symbolic_modes_parents_and_archives_have_their_fields() {
    let text = "FROM scratch\nADD --chmod=u+x a.tar /x/\nCOPY --parents ./a/./b/c *.d /y/\nADD --unpack=false b.tar /z\n";
    let graph = graph(text, &[]).await;
    let copy = |part: &str, index: usize| match &actions(&graph, part)[index].kind {
        FileActionKind::Copy(copy) => (**copy).clone(),
        other => panic!("{other:?}"),
    };
    let unpacked = copy("ADD --chmod", 0);
    assert!(unpacked.attempt_unpack);
    assert_eq!(
        (unpacked.mode, unpacked.mode_str.as_str()),
        (Some(0), "u+x")
    );
    let kept = copy("COPY --parents", 0);
    assert_eq!(kept.src, "/a");
    assert_eq!(
        (kept.include_patterns, kept.required_paths),
        (vec!["b/c".to_owned()], vec!["/a/b/c".to_owned()])
    );
    let pattern = copy("COPY --parents", 1);
    assert_eq!(
        (pattern.src.as_str(), pattern.required_paths.len()),
        ("/", 0)
    );
    assert!(!copy("ADD --unpack", 0).attempt_unpack);
    assert_eq!(actions(&graph, "ADD --chmod")[0].input, None);
}

#[tokio::test]
async fn a_linked_copy_is_a_layer_of_its_own() {
    let text = "FROM busybox\nCOPY --link --chown=app a /a\n";
    let graph = graph(text, &[]).await;
    let merged = vertex(&graph, "LINK COPY");
    assert_eq!(
        merged.name(),
        "[stage-0 2/2] LINK COPY --link --chown=app a /a".replace("stage-0 ", "")
    );
    let Op::Merge(merge) = &merged.op else {
        panic!()
    };
    assert_eq!(merge.inputs, [Some(0), Some(1)]);
    let layer = &graph.vertices[&merged.inputs[1].vertex];
    assert_eq!(layer.name(), "[2/2] COPY --link --chown=app a /a");
    let (weak, strong) = (
        layer.meta.progress_group.clone().unwrap(),
        merged.meta.progress_group.clone().unwrap(),
    );
    assert!(weak.weak && !strong.weak && weak.id == strong.id);
    let Op::File(file) = &layer.op else { panic!() };
    let FileActionKind::Copy(copy) = &file.actions[0].kind else {
        panic!()
    };
    assert_eq!(
        copy.owner.as_ref().unwrap().user,
        Some(UserOpt::ByName {
            name: "app".into(),
            input: None
        })
    );
}

#[tokio::test]
async fn heredocs_become_files_and_scripts() {
    let text = "FROM busybox\nENV who=me\nCOPY <<a <<'b' /x/\n$who\na\n$who\nb\nRUN <<EOF\necho 1\necho 2\nEOF\nRUN <<EOF\n#!/bin/sh\nx\nEOF\nRUN cat <<EOF | sh\ny\nEOF\n";
    let graph = graph(text, &[]).await;
    let mut inline: Vec<Vec<u8>> = graph
        .order
        .iter()
        .filter_map(|digest| match &graph.vertices[digest].op {
            Op::File(file) => match &file.actions[0].kind {
                FileActionKind::MkFile(file) => Some(file.data.clone()),
                _ => None,
            },
            _ => None,
        })
        .collect();
    inline.sort();
    assert_eq!(
        inline,
        [
            b"#!/bin/sh\nx\n".to_vec(),
            b"$who\n".to_vec(),
            b"me\n".to_vec(),
        ]
    );
    assert_eq!(
        exec(&graph, "(echo 1...)").args,
        ["/bin/sh", "-c", "echo 1\necho 2\n"]
    );
    let script = exec(&graph, "(#!/bin/sh...)");
    assert_eq!(script.args, ["/bin/sh", "-c", "/dev/pipes/EOF"]);
    assert_eq!(
        (script.mounts[1].dest.as_str(), script.mounts[1].readonly),
        ("/dev/pipes/", true)
    );
    assert_eq!(exec(&graph, "| sh").args[2], "cat <<EOF | sh\ny\nEOF");
}

#[tokio::test]
async fn mounts_of_every_kind_are_encoded() {
    let text = "FROM busybox AS s\nFROM busybox\nWORKDIR /w\nRUN --mount=type=cache,target=/c,sharing=locked,uid=7 --mount=from=s,source=/etc,target=e,rw --mount=type=tmpfs,target=/t,size=1m --mount=type=secret,id=tok,env=T,required --mount=type=secret,id=f --mount=type=ssh --network=none --security=insecure x $T\n";
    let attrs = [
        ("shm-size", "65536"),
        ("add-hosts", "h=1.2.3.4"),
        ("ulimit", "nofile=1:2"),
        ("cgroup-parent", "cg"),
        ("hostname", "hn"),
        ("build-arg:http_proxy", "p"),
        ("build-arg:BUILDKIT_CACHE_MOUNT_NS", "ns"),
        ("no-cache", ""),
    ];
    let graph = graph(text, &attrs).await;
    let run = exec(&graph, "RUN --mount");
    let dests: Vec<&str> = run.mounts.iter().map(|mount| mount.dest.as_str()).collect();
    assert_eq!(
        dests,
        [
            "/",
            "/c",
            "/dev/shm",
            "/t",
            "/w/e",
            "/run/secrets/f",
            "/run/buildkit/ssh_agent.0"
        ]
    );
    assert_eq!(run.mounts[0].output, Some(0));
    assert!(run.mounts[1..].iter().all(|mount| mount.output.is_none()));
    let MountKind::Cache { id, sharing } = &run.mounts[1].kind else {
        panic!()
    };
    assert_eq!(
        (id.as_str(), *sharing),
        ("ns//c", llb::CacheSharing::Locked)
    );
    assert_eq!(run.mounts[1].selector, "/cache");
    assert_eq!(
        (run.mounts[4].selector.as_str(), run.mounts[4].readonly),
        ("/etc", false)
    );
    assert_eq!(
        run.mounts[4].input,
        run.mounts[4].input.filter(|input| *input > 0)
    );
    assert_eq!(
        (run.secret_env[0].name.as_str(), run.secret_env[0].optional),
        ("T", false)
    );
    assert!(
        run.env
            .contains(&"SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0".to_owned())
    );
    assert_eq!(
        (run.network, run.security),
        (llb::NetMode::None, llb::SecurityMode::Insecure)
    );
    assert_eq!(run.proxy_env.as_ref().unwrap().http_proxy, "p");
    assert_eq!(
        (
            run.hostname.as_str(),
            run.cgroup_parent.as_str(),
            run.cwd.as_str()
        ),
        ("hn", "cg", "/w")
    );
    assert_eq!((run.extra_hosts.len(), run.ulimits.len()), (1, 1));
    let step = vertex(&graph, "RUN --mount");
    assert!(
        step.meta.ignore_cache && step.name().ends_with("x ****"),
        "{}",
        step.name()
    );
}

#[tokio::test]
async fn only_stages_that_are_needed_are_built() {
    let text =
        "FROM no/such:image AS broken\nRUN false\nFROM busybox AS wanted\nRUN true\nFROM broken\n";
    let graph = graph(text, &[("target", "wanted")]).await;
    assert!(
        names(&graph)
            .iter()
            .all(|name| !name.contains("broken") && !name.contains("false"))
    );
}

#[tokio::test]
async fn every_platform_has_its_own_graph_and_configuration() {
    let text = "FROM --platform=$BUILDPLATFORM busybox AS b\nARG TARGETARCH\nRUN echo $TARGETARCH\nFROM busybox\nCOPY --from=b /x /x\n";
    let host = MemoryHost::with_dockerfile(text);
    let result = built(&host, &[("platform", "linux/amd64,linux/arm64")]).await;
    assert!(!result.single);
    let ids: Vec<&str> = result.refs.iter().map(|built| built.id.as_str()).collect();
    assert_eq!(ids, ["linux/amd64", "linux/arm64"]);
    assert!(
        result
            .metadata
            .contains_key("containerimage.config/linux/arm64")
    );
    let arm = &result.refs[1].graph;
    let step = vertex(arm, "RUN echo");
    assert_eq!(step.name(), "[linux/amd64->arm64 b 2/2] RUN echo arm64");
    assert_eq!(step.platform.as_ref().unwrap().architecture, "amd64");
    assert!(
        names(arm)
            .iter()
            .any(|name| name.starts_with("[linux/arm64 stage-1 1/2] FROM"))
    );
    assert_eq!(result.refs[1].config.architecture, "arm64");
    let asked = host.asked.lock().unwrap().clone();
    assert!(asked.contains(
        &"[linux/arm64 internal] load metadata for docker.io/library/busybox:latest".to_owned()
    ));
    assert_eq!(
        asked
            .iter()
            .filter(|name| name.contains("linux/amd64 internal"))
            .count(),
        1
    );
}

#[tokio::test]
async fn named_contexts_stand_for_images_and_stages() {
    let text = "FROM base AS one\nCOPY --from=files a /a\nFROM busybox AS two\nFROM one\nCOPY --from=two /b /b\n";
    let mut host = MemoryHost::with_dockerfile(text);
    host.file("dir", ".dockerignore", b"*.o\n");
    let layout = format!("oci-layout://store:tag@sha256:{}", "0".repeat(64));
    let result = built(
        &host,
        &[
            ("context:base", "docker-image://busybox"),
            ("context:files", "local:dir"),
            ("context:two", &layout),
        ],
    )
    .await;
    let graph = &result.refs[0].graph;
    assert!(names(graph).contains(&"[context base] busybox".to_owned()));
    let local = attrs(graph, "[context files] load from client");
    assert_eq!(local["local.excludepatterns"], r#"["*.o"]"#);
    assert_eq!(local["local.followpaths"], r#"["a"]"#);
    assert_eq!(local["local.sharedkeyhint"], "context:files-");
    let layout = attrs(graph, "[context two] OCI load from client");
    assert_eq!(
        (layout["oci.store"].as_str(), layout["oci.session"].as_str()),
        ("store", "session")
    );
    for (input, message) in [
        ("nothing", "invalid context specifier nothing for base"),
        ("ftp://x", "unsupported context source ftp for base"),
        ("input:x", "invalid input x for base"),
    ] {
        let error = failure("FROM base", &[("context:base", input)]).await;
        assert_eq!(error.to_string(), message);
    }
}

#[tokio::test]
async fn remote_contexts_are_read_from_their_source() {
    let mut host = MemoryHost {
        images: super::recorded::images(),
        ..MemoryHost::default()
    };
    host.file(
        "git://h/r.git#main:sub",
        "Dockerfile",
        b"FROM scratch\nCOPY a /a\n",
    );
    let result = built(&host, &[("context", "https://h/r.git#main:sub")]).await;
    let graph = &result.refs[0].graph;
    assert_eq!(
        names(graph)[0],
        "[internal] load git source https://h/r.git#main:sub"
    );
    assert_eq!(
        *host.asked.lock().unwrap(),
        ["[internal] load git source https://h/r.git#main:sub"]
    );

    let mut host = MemoryHost::default();
    host.file("http://h/f", "context", b"FROM scratch\nCOPY context /a\n");
    let result = built(
        &host,
        &[("context", "http://h/f"), ("contextkey", "context")],
    )
    .await;
    assert_eq!(
        names(&result.refs[0].graph)[0],
        "[internal] load remote build context"
    );
}

#[tokio::test]
async fn downloads_and_repositories_are_sources() {
    let sum = format!("sha256:{}", "a".repeat(64));
    let text = format!(
        "FROM scratch\nADD --checksum={sum} https://h/d/f.txt?x /x/\nADD --keep-git-dir=true https://h/r.git#v1 /r\nADD --unpack https://h/a.tgz /u\n"
    );
    let graph = graph(&text, &[]).await;
    let find = |identifier: &str| {
        graph
            .order
            .iter()
            .find_map(|digest| match &graph.vertices[digest].op {
                Op::Source(source) if source.identifier == identifier => Some(source.attrs.clone()),
                _ => None,
            })
            .unwrap()
    };
    let http = find("https://h/d/f.txt?x");
    assert_eq!(
        (
            http["http.filename"].as_str(),
            http["http.checksum"].as_str()
        ),
        ("f.txt", sum.as_str())
    );
    assert_eq!(find("git://h/r.git#v1")["git.keepgitdir"], "true");
    let FileActionKind::Copy(copy) = &actions(&graph, "ADD --unpack")[0].kind else {
        panic!()
    };
    assert!(copy.attempt_unpack && !copy.allow_wildcard && copy.src == "/a.tgz");
    for (line, message) in [
        ("COPY https://h/f /f", "source can't be a URL for COPY"),
        (
            "COPY https://h/f.git /f",
            "source can't be a git ref for COPY",
        ),
        (
            "ADD --checksum=x a /f",
            "checksum requires HTTP(S) or Git sources",
        ),
        (
            "ADD --checksum=x https://h/f a /f",
            "checksum can't be specified for multiple sources",
        ),
        (
            "ADD --checksum=x https://h/f /f",
            "invalid checksum digest format",
        ),
    ] {
        let error = failure(&format!("FROM scratch\n{line}\n"), &[]).await;
        assert_eq!(error.to_string(), message);
        assert_eq!(error.locations()[0].ranges[0].start.line, 2);
    }
}

#[tokio::test]
async fn triggers_of_a_stage_run_in_the_next_one() {
    let text =
        "FROM busybox AS a\nONBUILD COPY --from=busybox /x /x\nONBUILD ENV A=1\nFROM a\nRUN true\n";
    let host = MemoryHost::with_dockerfile(text);
    let result = built(&host, &[]).await;
    let names = names(&result.refs[0].graph);
    assert!(
        names.contains(&"[stage-1 1/3] ONBUILD COPY --from=busybox /x /x".to_owned()),
        "{names:?}"
    );
    assert!(
        names.contains(&"[stage-1 2/3] RUN true".to_owned()),
        "{names:?}"
    );
    assert!(result.refs[0].config.config.env.contains(&"A=1".to_owned()));
    assert!(result.refs[0].config.config.on_build.is_empty());
    let error = failure(
        "FROM busybox AS a\nONBUILD RUN --network=x y\nFROM a\n",
        &[],
    )
    .await;
    assert_eq!(error.to_string(), "invalid network mode \"x\"");
    assert_eq!(error.locations()[0].ranges[0].start.line, 3);
}

#[tokio::test]
async fn wrong_builds_are_told_as_stock_tells_them() {
    for (text, message, line) in [
        ("", "the Dockerfile cannot be empty", None),
        ("ARG A\n", "dockerfile contains no stages to build", None),
        (
            "FROM busybox\nCOPY --from=9 a b\n",
            "invalid stage index 9",
            None,
        ),
        (
            "FROM busybox\nARG X\nCOPY --from=$X a b\n",
            "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
            None,
        ),
        (
            "FROM UPPER\n",
            "failed to parse stage name \"UPPER\": invalid reference format: repository name (library/UPPER) must be lowercase",
            Some(1),
        ),
        (
            "FROM --platform=$NOPE busybox\n",
            "empty platform value from expression $NOPE",
            Some(1),
        ),
        (
            "FROM --platform=$BUILDPLATFROM busybox\n",
            "empty platform value from expression $BUILDPLATFROM (did you mean BUILDPLATFORM?)",
            Some(1),
        ),
        (
            "FROM scratch\nRUN --mount=target=/ x\n",
            "invalid mount target \"/\"",
            Some(2),
        ),
        (
            "FROM scratch\nRUN --mount=type=what x\n",
            "unsupported mount type \"what\"",
            Some(2),
        ),
        (
            "FROM scratch\nCOPY --chmod=9 a /\n",
            "invalid chmod parameter: '9'. it should be octal string and between 0 and 07777",
            Some(2),
        ),
        (
            "FROM scratch\nSTOPSIGNAL NOPE\n",
            "invalid signal: NOPE",
            Some(2),
        ),
        (
            "FROM scratch\nEXPOSE 80/x\n",
            "invalid port: \"80/x\": invalid proto: x",
            Some(2),
        ),
        (
            "FROM scratch\nRUN []\n",
            "failed to marshal LLB definition: arguments are required",
            Some(2),
        ),
        (
            "FROM scratch\nENV a=${b\n",
            "failed to process \"${b\": unsupported modifier (\u{fffd}) in substitution",
            Some(2),
        ),
        (
            "# check=error=true\nFROM scratch AS A\n",
            "lint violation found for rules: StageNameCasing",
            None,
        ),
        (
            "FROM busybox AS a\nCOPY --from=b x y\nFROM busybox AS b\n",
            "cannot copy from stage \"b\", it needs to be defined before current stage \"a\"",
            Some(2),
        ),
    ] {
        let target = if text.contains("AS b\n") { "a" } else { "" };
        let error = failure(text, &[("target", target)]).await;
        assert_eq!(error.to_string(), message);
        let at = error
            .locations()
            .first()
            .map(|location| location.ranges[0].start.line);
        assert_eq!(at, line, "{text}");
    }
}

#[tokio::test]
async fn equal_requests_give_equal_bytes() {
    let text = "FROM busybox AS a\nARG X=1 Y=2\nCOPY --link a /a\nRUN --mount=type=cache,target=/c --mount=from=b,target=/b x\nFROM busybox AS b\nLABEL z=1 y=2\n";
    let text = text.replace("from=b,", "from=busybox,");
    let bytes = || async {
        let host = MemoryHost::with_dockerfile(&text);
        let result = built(
            &host,
            &[("platform", "linux/amd64,linux/arm64"), ("target", "a")],
        )
        .await;
        let graphs: Vec<String> = result
            .refs
            .iter()
            .map(|built| format!("{:?}", llb::to_proto(&built.graph).def))
            .collect();
        (graphs, result.metadata)
    };
    assert_eq!(bytes().await, bytes().await);
}

#[tokio::test]
async fn other_requests_are_answered_or_refused() {
    let text = "# one does it\nFROM busybox AS one\nFROM one\n";
    let host = MemoryHost::with_dockerfile(text);
    let answer = built(&host, &[("requestid", "frontend.targets")])
        .await
        .metadata;
    let shown = String::from_utf8(answer["result.txt"].clone()).unwrap();
    assert_eq!(
        shown,
        "TARGET    DESCRIPTION\none       does it\n(default) \n"
    );
    let answer = built(&host, &[("requestid", "frontend.lint")])
        .await
        .metadata;
    assert_eq!(answer["result.statuscode"], b"0");
    built(&host, &[("requestid", "frontend.subrequests.describe")]).await;
    let error = failure(text, &[("requestid", "frontend.other")]).await;
    assert_eq!(error.to_string(), "unsupported request frontend.other");
}

#[tokio::test]
async fn copying_what_is_ignored_is_warned_of() {
    let text = "FROM scratch\nCOPY drop.log keep /\nCOPY . /all/\n";
    let mut host = MemoryHost::with_dockerfile(text);
    host.file("context", ".dockerignore", b"*.log\n");
    let result = built(&host, &[]).await;
    let warnings = host.warnings.lock().unwrap().clone();
    assert_eq!(warnings.len(), 1);
    assert_eq!(
        warnings[0].short,
        "CopyIgnoredFile: Attempting to Copy file \"drop.log\" that is excluded by .dockerignore (line 2)"
    );
    assert!(warnings[0].vertex.is_some() && warnings[0].url.ends_with("/copy-ignored-file/"));
    let context = attrs(&result.refs[0].graph, "load build context");
    assert_eq!(context["local.excludepatterns"], r#"["*.log"]"#);
    assert!(!context.contains_key("local.followpaths"));
}

#[tokio::test]
async fn a_missing_dockerfile_is_told_without_a_code_in_front() {
    let error = build(&MemoryHost::default(), options(&[]))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to read dockerfile: open Dockerfile: no such file or directory"
    );
    assert_eq!(error.code(), diag::Code::Unknown);
}

#[tokio::test]
async fn an_image_whose_triggers_copy_from_itself_is_built_once() {
    let mut host = MemoryHost::with_dockerfile("FROM self\n");
    let mut image = host.images["docker.io/library/busybox:latest"].clone();
    image["configs"]["linux/amd64"]["config"]["OnBuild"] =
        serde_json::json!(["COPY --from=self /a /b"]);
    host.images
        .insert("docker.io/library/self:latest".into(), image);
    let result = built(&host, &[]).await;
    let names = names(&result.refs[0].graph);
    assert!(
        names
            .last()
            .unwrap()
            .contains("ONBUILD COPY --from=self /a /b"),
        "{names:?}"
    );
}

#[tokio::test]
async fn another_frontend_is_asked_for_by_the_file_or_by_an_option() {
    let forward = async |text: &str, attrs: &[(&str, &str)]| {
        let host = MemoryHost::with_dockerfile(text);
        build(&host, options(attrs)).await.unwrap().forward
    };
    let text = "# syntax=example.com/other:1 -x\nthis is not a Dockerfile\n";
    let by_file = forward(text, &[]).await.unwrap();
    assert_eq!(by_file.image, "example.com/other:1");
    assert_eq!(by_file.cmdline, "example.com/other:1 -x");
    let blamed = by_file.blame(diag::Error::internal("boom"));
    assert_eq!(blamed.to_string(), "boom");
    assert_eq!(blamed.locations()[0].ranges[0].start.line, 1);
    let option = [("build-arg:BUILDKIT_SYNTAX", "a/b:2 y")];
    let by_option = forward(text, &option).await.unwrap();
    assert_eq!(
        (by_option.image.as_str(), by_option.location.is_none()),
        ("a/b:2", true)
    );
    let blamed = by_option.blame(diag::Error::internal("boom"));
    assert_eq!(
        blamed.to_string(),
        "failed with build-arg:BUILDKIT_SYNTAX = a/b:2 y: boom"
    );
    for own in [
        "docker/dockerfile:1",
        "docker/dockerfile-upstream:master",
        "docker/dockerfile:1-labs",
    ] {
        let text = format!("# syntax={own}\nFROM scratch\n");
        assert!(forward(&text, &[]).await.is_none(), "{own}");
    }
    // The other frontend may hand the request back.
    let text = "# syntax=example.com/other:1\nFROM scratch\n";
    assert!(forward(text, &[("cmdline", "x")]).await.is_none());
}

#[tokio::test]
async fn a_step_of_several_stages_has_the_name_of_the_last_and_the_lines_of_all() {
    let text = "FROM busybox AS a\nRUN 1\nFROM busybox AS b\nRUN 2\nFROM scratch\nCOPY --from=a /x /\nCOPY --from=b /y /\n";
    let graph = graph(text, &[]).await;
    let base = vertex(&graph, "FROM docker.io/library/busybox");
    assert!(base.name().starts_with("[b 1/2] FROM "), "{}", base.name());
    let lines: Vec<u32> = base
        .locations
        .iter()
        .map(|location| location.ranges[0].start.line)
        .collect();
    assert_eq!(lines, [1, 3]);
}

#[tokio::test]
async fn an_error_without_a_place_is_at_the_line_that_asks_for_the_frontend() {
    let text = "# syntax=docker/dockerfile:1\nFROM scratch\n";
    let error = failure(text, &[("target", "x")]).await;
    assert_eq!(error.to_string(), "target stage \"x\" could not be found");
    assert_eq!(error.locations()[0].ranges[0].start.line, 1);
    let error = failure("FROM scratch\n", &[("target", "x")]).await;
    assert_eq!(error.locations(), []);
    let syntax = ("build-arg:BUILDKIT_SYNTAX", "docker/dockerfile:1");
    let error = failure("FROM scratch\n", &[("target", "x"), syntax]).await;
    assert_eq!(
        error.to_string(),
        "failed with build-arg:BUILDKIT_SYNTAX = docker/dockerfile:1: target stage \"x\" could not be found"
    );
}
