//! Source policies: of requests, of the calls of a build that is driven, and of sub-builds.

use llb::{BuildOp, Graph, GraphBuilder, Op, SourceOp, VertexMeta};
use proto::gateway::{
    ReadDirRequest, ResolveImageConfigRequest, ResolveSourceMetaRequest, ReturnRequest,
    SolveRequest, SolveResponse, result,
};
use proto::pb;
use proto::sourcepolicy::{Policy, PolicyAction, Rule, Selector, Update};

use crate::bench::{Bench, Build};
use crate::frontends::{hello_server, make};

/// A policy of rules: what is done, to what, and what is used instead.
fn policy(rules: &[(PolicyAction, &str, &str)]) -> Policy {
    let rule = |(action, from, to): &(PolicyAction, &str, &str)| Rule {
        action: (*action).into(),
        selector: Some(Selector {
            identifier: (*from).to_owned(),
            ..Selector::default()
        }),
        updates: Some(Update {
            identifier: (*to).to_owned(),
            ..Update::default()
        }),
    };
    Policy {
        version: 1,
        rules: rules.iter().map(rule).collect(),
    }
}

fn graph_of(source: &str) -> Graph {
    let mut graph = GraphBuilder::new();
    let op = Op::Source(SourceOp {
        identifier: source.to_owned(),
        ..SourceOp::default()
    });
    let root = graph.add(op, Vec::new(), None, VertexMeta::default(), Vec::new());
    graph.finish(Some(root))
}

fn reference(response: SolveResponse) -> String {
    match response.result.and_then(|result| result.result) {
        Some(result::Result::RefDeprecated(id)) => id,
        other => panic!("{other:?}"),
    }
}

const DENIED: &str = "source \"http://denied.test/f\" denied by policy: source denied by policy";

pub async fn a_policy_of_the_request_decides_about_its_sources() {
    let address = hello_server();
    let bench = Bench::start().await;
    let there = format!("http://{address}/there.txt");
    let rules = policy(&[
        (PolicyAction::Convert, "http://moved.test/f", &there),
        (PolicyAction::Deny, "http://denied.test/*", ""),
    ]);
    let build = Build::default().exporter("local");
    let solve = |source: &str| {
        let definition = llb::to_proto(&graph_of(source));
        bench.definition_under(&build, definition, rules.clone())
    };
    let moved = solve("http://moved.test/f").await.ok();
    assert_eq!(moved.read("there.txt"), "hello");
    // The step is that of the source which was used.
    assert!(
        moved.names().iter().any(|name| *name == there),
        "{:?}",
        moved.names()
    );
    let denied = solve("http://denied.test/f").await;
    assert_eq!(
        denied.error().message(),
        format!("failed to load LLB: error evaluating the source policy: {DENIED}")
    );
    let wrong = Policy {
        version: 1,
        rules: vec![Rule::default()],
    };
    let definition = llb::to_proto(&graph_of("http://denied.test/f"));
    let wrong = bench.definition_under(&build, definition, wrong).await;
    assert_eq!(wrong.error().message(), "invalid nil selector in policy");
}

pub async fn a_policy_holds_for_definitions_that_a_build_finds() {
    let bench = Bench::start().await;
    let found = llb::to_proto(&graph_of("http://denied.test/f"));
    let mut graph = GraphBuilder::new();
    let mut add = |op, inputs| graph.add(op, inputs, None, VertexMeta::default(), Vec::new());
    let data = proto::prost::Message::encode_to_vec(&found);
    let file = add(
        Op::File(llb::FileOp {
            actions: vec![llb::FileAction {
                input: None,
                secondary_input: None,
                output: Some(0),
                kind: make("/buildkit.llb.definition", 0o644, &data),
            }],
        }),
        Vec::new(),
    );
    let root = add(
        Op::Build(BuildOp {
            builder: -1,
            inputs: [("buildkit.llb.definition".to_owned(), 0)].into(),
            attrs: Default::default(),
        }),
        vec![file],
    );
    let definition = llb::to_proto(&graph.finish(Some(root)));
    let rules = policy(&[(PolicyAction::Deny, "http://*", "")]);
    let build = Build::default();
    let denied = bench.definition_under(&build, definition, rules).await;
    let said = denied.error().message().to_owned();
    assert!(said.ends_with(DENIED), "{said}");
}

pub async fn policies_of_calls_decide_about_what_is_asked_and_solved() {
    let address = hello_server();
    let bench = Bench::start().await;
    let mut driven = bench.drive(&Build::new("")).await;
    let there = format!("http://{address}/there.txt");
    let rules = policy(&[
        (PolicyAction::Convert, "http://moved.test/f", &there),
        (PolicyAction::Convert, "docker-image://moved.test/*", &there),
        (PolicyAction::Deny, "*://denied.test/*", ""),
    ]);
    let meta = |identifier: &str| ResolveSourceMetaRequest {
        source: Some(pb::SourceOp {
            identifier: identifier.to_owned(),
            ..pb::SourceOp::default()
        }),
        source_policies: vec![rules.clone()],
        ..ResolveSourceMetaRequest::default()
    };
    let found = driven
        .gateway
        .resolve_source_meta(meta("http://moved.test/f"));
    let found = found.await.expect("another source").into_inner();
    assert_eq!(found.source.expect("its name").identifier, there);
    assert_eq!(found.http.expect("a file").filename, "there.txt");
    let denied = driven
        .gateway
        .resolve_source_meta(meta("http://denied.test/f"));
    let denied = denied.await.expect_err("it is denied");
    let expected = format!("could not resolve image due to policy: {DENIED}");
    assert_eq!(denied.message(), expected);
    let image = |name: &str| ResolveImageConfigRequest {
        r#ref: name.to_owned(),
        source_policies: vec![rules.clone()],
        ..ResolveImageConfigRequest::default()
    };
    let denied = driven.gateway.resolve_image_config(image("denied.test/i"));
    assert_eq!(
        denied.await.expect_err("it is denied").message(),
        "failed to resolve source metadata for denied.test/i:latest: could not resolve image due to \
         policy: source \"docker-image://denied.test/i:latest\" denied by policy: source denied by policy"
    );
    let other = driven.gateway.resolve_image_config(image("moved.test/i"));
    assert_eq!(
        other.await.expect_err("it is no image").message(),
        format!(
            "ref mutated by policy to non-image: docker-image://moved.test/i:latest -> {there}"
        )
    );
    let solve = |source: &str| SolveRequest {
        definition: Some(llb::to_proto(&graph_of(source))),
        source_policies: vec![rules.clone()],
        allow_result_return: true,
        evaluate: true,
        ..SolveRequest::default()
    };
    let solved = driven.gateway.solve(solve("http://moved.test/f")).await;
    let id = reference(solved.expect("solved").into_inner());
    let listed = driven.gateway.read_dir(ReadDirRequest {
        r#ref: id,
        dir_path: "/".to_owned(),
        ..ReadDirRequest::default()
    });
    let listed = listed.await.expect("its files").into_inner().entries;
    assert_eq!(listed[0].path, "there.txt");
    let denied = driven.gateway.solve(solve("http://denied.test/f")).await;
    let said = denied.expect_err("it is denied").message().to_owned();
    assert!(said.ends_with(DENIED), "{said}");
    let empty = ReturnRequest {
        result: Some(proto::gateway::Result::default()),
        error: None,
    };
    driven.gateway.r#return(empty).await.expect("returned");
    driven.solve.await.expect("no panic").expect("solved");
}
