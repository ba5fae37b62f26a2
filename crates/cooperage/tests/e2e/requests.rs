//! What a frontend is asked besides building, by our clients and by stock's.

use serde_json::Value;
use testkit::Lab;

use crate::workshop::{Remote, context, server, text};

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

/// The end of a pipe that nothing is written to.
fn empty_pipe() -> std::process::Stdio {
    let (reader, _) = std::io::pipe().unwrap();
    reader.into()
}
