//! What a frontend is asked besides building, by our clients and by stock's.

use serde_json::Value;
use testkit::{Lab, Tool};

use crate::workshop::{Remote, context, executable, server, text, wait_until};

const DOCKERFILE: &str = "FROM scratch AS base\nCOPY a /a\nFROM base\nARG WHO\n\
                          RUN --mount=type=cache,target=/c [\"/bin/greet\", \"<$WHO>\"]\n";

#[test]
fn a_dockerfile_is_given_as_llb_to_every_client() {
    let remote = Remote::open();
    let (ours, stock) = (&remote.ours, &remote.stock);
    let address = remote.server.address();
    let files = [("Dockerfile", DOCKERFILE), ("a", "a")];
    let context = context(&remote.lab, "llb", &files);
    let call = ["build", "--builder=far", "--call=convertllb,format=json"];
    let call = [&call[..], &[&context]].concat();
    let (own, stocks) = (ours.ok(&call).stdout, stock.ok(&call).stdout);
    // Contexts are each session's own.
    let without_session = |answer: &str| {
        let mut answer: Value = serde_json::from_str(answer).unwrap();
        let mut ops: Vec<Value> = Vec::new();
        for op in answer["def"].as_object_mut().unwrap().values_mut() {
            if op.pointer("/source/attrs/local.sharedkeyhint").is_some() {
                ops.push(op["source"]["identifier"].clone());
            } else {
                op["inputs"] = Value::Null;
                ops.push(op.clone());
            }
        }
        ops.sort_by_key(Value::to_string);
        ops
    };
    assert_eq!(without_session(&own), without_session(&stocks));
    let answer: Value = serde_json::from_str(&own).unwrap();
    let ops = answer["def"].as_object().unwrap();
    let inputs = ops.values().filter_map(|op| op["inputs"].as_array());
    for input in inputs.flatten() {
        assert!(ops.contains_key(input["digest"].as_str().unwrap()));
    }
    let run = ops.values().find(|op| op["exec"].is_object()).unwrap();
    assert_eq!(run["exec"]["meta"]["args"][1], "<$WHO>");
    assert_eq!(run["exec"]["mounts"][1]["mountType"], "CACHE");
    assert_eq!(answer["source"]["infos"][0]["filename"], "Dockerfile");
    assert!(own.contains("\\u003c$WHO\\u003e"), "{own}");
    // The operator's client shows the answer under its name.
    let local = |name: &str| format!("--local={name}={context}");
    let args = ["buildctl", "--addr", &address, "build"];
    let asked = ["--frontend=dockerfile.v0", "--opt"];
    let built = |request: &str| {
        let request = format!("requestid=frontend.{request}");
        let locals = [local("context"), local("dockerfile")];
        let locals = [locals[0].as_str(), locals[1].as_str()];
        let all = [&args[..], &asked[..], &[&request], &locals[..]].concat();
        ours.ok(&all).stdout
    };
    let named = built("convertllb");
    let json = named.strip_prefix("result.json\n").unwrap();
    assert_eq!(without_session(json), without_session(&own));
    assert!(
        built("targets").starts_with("TARGET"),
        "{}",
        built("targets")
    );
}

#[test]
fn the_operators_client_answers_scripts_as_stocks_does() {
    let lab = Lab::start();
    lab.enter_network();
    let server = server(&lab).start();
    let buildctl = server.buildctl();
    // Neither a frontend nor a definition: known before the server is asked.
    let mut nothing = buildctl.command(&["build"]);
    let output = nothing.stdin(empty_pipe()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("empty definition sent to build"), "{said}");
    let files = [("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "a")];
    let context = context(&lab, "image", &files);
    let metadata = lab.directory().join("metadata.json");
    let image = lab.directory().join("image.tar");
    buildctl.ok(&[
        "build",
        "--frontend=dockerfile.v0",
        &format!("--local=context={context}"),
        &format!("--local=dockerfile={context}"),
        &format!("--metadata-file={}", text(&metadata)),
        &format!("--output=type=oci,dest={}", text(&image)),
    ]);
    let metadata: Value = serde_json::from_slice(&std::fs::read(metadata).unwrap()).unwrap();
    assert_eq!(
        metadata["containerimage.descriptor"]["digest"], metadata["containerimage.digest"],
        "{metadata}"
    );
    // Templates name fields as Go's structures do.
    let format = "--format={{range .}}{{.ID}} {{.BuildkitVersion.Version}}{{end}}";
    let said = buildctl.ok(&["debug", "workers", format]).stdout;
    assert!(said.contains(" v0."), "{said}");
}

/// Builds a file of a context by `buildctl`, with more flags.
fn built(buildctl: &Tool, context: &str, more: &[&str]) -> testkit::Output {
    let locals = ["context", "dockerfile"].map(|name| format!("--local={name}={context}"));
    let first = ["build", "--frontend=dockerfile.v0", &locals[0], &locals[1]];
    buildctl.ok(&[&first[..], more].concat())
}

#[test]
fn the_operators_client_shows_records_logs_and_contents() {
    let lab = Lab::start();
    lab.enter_network();
    let server = server(&lab).start();
    let buildctl = server.buildctl();
    let context = lab.subdirectory("context");
    std::fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY a /\n").unwrap();
    std::fs::write(context.join("a"), "a").unwrap();
    let context = text(&context);
    let file = |name: &str| text(&lab.directory().join(name));
    let (reference, trace) = (file("ref"), file("trace"));
    let flags = [
        &format!("--ref-file={reference}"),
        &format!("--trace={trace}"),
        &format!("--output=type=oci,dest={}", file("image.tar")),
        "--debug-json-cache-metrics=stdout",
        "--progress=plain",
    ];
    let figures = built(&buildctl, &context, &flags).stdout;
    let mut figures = figures.lines();
    assert_eq!(figures.next(), Some("cache miss: [1/1] COPY a /"));
    let counted: Value = serde_json::from_str(figures.next().unwrap()).unwrap();
    assert_eq!(
        (&counted["user_total"], &counted["miss"]),
        (&1.into(), &1.into())
    );
    let trace = std::fs::read_to_string(trace).unwrap();
    let statuses = trace
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert!(
        statuses.count() > 0 && trace.contains("[1/1] COPY a /"),
        "{trace}"
    );
    let reference = std::fs::read_to_string(reference).unwrap();
    let logs = buildctl
        .ok(&["debug", "logs", "--progress=plain", &reference])
        .stdout;
    assert!(logs.contains("[1/1] COPY a /"), "{logs}");
    // It is written when the build has ended already.
    let spans = ["debug", "logs", "--trace", &reference];
    wait_until("the trace", || buildctl.run(&spans).code == 0);
    let spans = buildctl.ok(&spans).stdout;
    assert!(spans.contains("{\"Name\":"), "{spans}");
    let record = buildctl.ok(&["debug", "histories", "--format=json"]).stdout;
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(
        (&record["type"], &record["record"]["Ref"]),
        (&1.into(), &(&*reference).into())
    );
    let blob = record["record"]["Result"]["Results"]["0"]["digest"]
        .as_str()
        .unwrap();
    let manifest = buildctl.ok(&["debug", "get", blob]).stdout;
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(1));
    // Only what is not pinned is removed.
    buildctl.ok(&["debug", "ctl", "--pin", &reference]);
    built(&buildctl, &context, &[]);
    let removed = buildctl
        .ok(&["prune-histories", "--format={{.Record.Ref}}"])
        .stdout;
    assert!(
        removed.lines().count() == 1 && !removed.contains(&reference),
        "{removed}"
    );
    let listed = buildctl.ok(&["debug", "histories"]).stdout;
    let mut listed = listed.lines();
    assert!(listed.next().is_some_and(|line| line.starts_with("TYPE\t")));
    let kept = listed.next().unwrap();
    assert!(kept.contains(&reference) && kept.ends_with("\t*"), "{kept}");
    assert_eq!(listed.next(), None);
    buildctl.ok(&["debug", "ctl", "--delete", &reference]);
    assert_eq!(
        buildctl.ok(&["debug", "histories"]).stdout.lines().count(),
        1
    );
}

#[test]
fn the_operators_client_says_what_is_wrong_with_its_arguments() {
    let lab = Lab::start();
    let home = lab.subdirectory("home");
    let buildctl = Tool::new(executable(), &home).arg("buildctl");
    let missing = text(&lab.directory().join("missing"));
    let policy = lab.directory().join("policy.json");
    std::fs::write(&policy, "{").unwrap();
    let policy = text(&policy);
    for (arguments, code, said) in [
        ("nope", 3, "No help topic for 'nope'"),
        ("debug nope", 3, "No help topic for 'nope'"),
        (
            "build --nope",
            1,
            "error: flag provided but not defined: -nope",
        ),
        (
            "--timeout x du",
            1,
            "error: invalid value \"x\" for flag -timeout: ",
        ),
        ("--log-format x du", 1, "error: unsupported log type \"x\""),
        (
            "--tlsdir /etc --tlscert x du",
            1,
            "error: cannot specify tlsdir and tlscacert/tlscert/tlskey at the same time",
        ),
        ("debug ctl", 1, "error: build ref must be specified"),
        ("debug logs", 1, "error: build ref must be specified"),
        ("debug get", 1, "error: blob digest must be specified"),
        ("debug get foo", 1, "error: invalid checksum digest format"),
        (
            "debug dump-metadata",
            1,
            "error: dump-metadata is not supported: ",
        ),
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let output = buildctl.run(&arguments);
        assert_eq!(output.code, code, "{arguments:?} {}", output.stderr);
        assert!(
            output.stderr.starts_with(said),
            "{arguments:?} {}",
            output.stderr
        );
    }
    let debug = buildctl.ok(&["debug"]).stdout;
    for words in [&["help", "debug"], &["debug", "--help"]] {
        let all = [&["--addr", "unix:///nowhere"][..], words].concat();
        assert_eq!(debug, buildctl.ok(&all).stdout, "{words:?}");
    }
    assert!(debug.contains("Usage: buildctl debug "), "{debug}");
    assert!(
        debug.contains("dump-llb") && !debug.contains("dump-metadata"),
        "{debug}"
    );
    let server = server(&lab).start();
    let buildctl = server.buildctl();
    for (flag, said) in [
        ("--opt=x".to_owned(), "invalid opt: invalid value x"),
        ("--local=x".to_owned(), "invalid local: invalid value x"),
        ("--allow=x".to_owned(), "unknown entitlement x"),
        (
            "--proxy-network".to_owned(),
            "--proxy-network is not supported by this client",
        ),
        (format!("--source-policy-file={missing}"), "open "),
        (
            format!("--source-policy-file={policy}"),
            "failed to unmarshal source-policy-file ",
        ),
        (
            "--registry-auth-tlscontext=host=x".to_owned(),
            "--registry-auth-tlscontext requires ca=<ca> or ",
        ),
    ] {
        let refused = buildctl.fails(&["build", "--frontend=dockerfile.v0", &flag]);
        let said = format!("error: {said}");
        let found = refused.stderr.lines().any(|line| line.starts_with(&said));
        assert!(found && refused.code == 1, "{flag} {}", refused.stderr);
    }
}

/// The end of a pipe that nothing is written to.
fn empty_pipe() -> std::process::Stdio {
    let (reader, _) = std::io::pipe().unwrap();
    reader.into()
}
