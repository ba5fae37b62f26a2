use llb::{GraphBuilder, VertexMeta};
use parking_lot::Mutex;
use proto::gateway::ResolveSourceImageResponse;
use proto::policysession::DenyMessage;

use super::*;

/// Answers as it was told to, by the source; a source it was told nothing of is allowed.
#[derive(Default)]
struct Told {
    answers: Mutex<HashMap<String, Vec<Answer>>>,
    asked: Mutex<Vec<CheckPolicyRequest>>,
}

impl Told {
    fn of(source: &str, answers: Vec<Answer>) -> Told {
        let told = Told::default();
        told.answers.lock().insert(source.to_owned(), answers);
        told
    }
}

fn source_of(request: &CheckPolicyRequest) -> pb::SourceOp {
    let known = request.source.clone().expect("a source");
    known.source.expect("its name")
}

#[async_trait]
impl Judge for Told {
    async fn check(&self, request: CheckPolicyRequest) -> Result<CheckPolicyResponse> {
        let name = source_of(&request).identifier;
        self.asked.lock().push(request);
        let mut answers = self.answers.lock();
        let told = answers.get_mut(&name).filter(|told| !told.is_empty());
        let result = told.map_or_else(|| decision(PolicyAction::Allow), |told| told.remove(0));
        Ok(CheckPolicyResponse {
            result: Some(result),
        })
    }

    async fn metadata(
        &self,
        request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse> {
        Ok(ResolveSourceMetaResponse {
            source: request.source,
            image: Some(ResolveSourceImageResponse {
                digest: "sha256:found".to_owned(),
                ..ResolveSourceImageResponse::default()
            }),
            ..ResolveSourceMetaResponse::default()
        })
    }
}

fn decision(action: PolicyAction) -> Answer {
    Answer::Decision(DecisionResponse {
        action: action.into(),
        ..DecisionResponse::default()
    })
}

fn source(identifier: &str) -> SourceOp {
    SourceOp {
        identifier: identifier.to_owned(),
        attrs: [("kept".to_owned(), "attr".to_owned())].into(),
    }
}

/// What a session without rules makes of a graph.
async fn judged(graph: &Graph, judge: &dyn Judge) -> Result<Option<Graph>> {
    let (rules, judge) = (Rules::default(), Some(judge));
    SourcePolicy { rules, judge }.graph(graph).await
}

/// Two sources, merged.
fn graph(one: &str, two: &str) -> Graph {
    let mut builder = GraphBuilder::new();
    let mut add = |op: Op, inputs: Vec<Edge>| {
        builder.add(op, inputs, None, VertexMeta::default(), Vec::new())
    };
    let inputs = vec![
        add(Op::Source(source(one)), Vec::new()),
        add(Op::Source(source(two)), Vec::new()),
    ];
    let merge = Op::Merge(llb::MergeOp {
        inputs: vec![Some(0), Some(1)],
    });
    let root = add(merge, inputs);
    builder.finish(Some(root))
}

#[tokio::test]
async fn a_graph_whose_sources_are_allowed_stays_as_it_is() {
    let told = Told::default();
    let graph = graph("docker-image://a", "local://b");
    assert!(judged(&graph, &told).await.unwrap().is_none());
    let asked = told.asked.lock();
    let names: Vec<_> = asked
        .iter()
        .map(|asked| source_of(asked).identifier)
        .collect();
    assert_eq!(names, ["docker-image://a", "local://b"]);
    assert_eq!(source_of(&asked[0]).attrs["kept"], "attr");
}

#[tokio::test]
async fn a_denied_source_ends_the_build_with_the_client_s_reasons() {
    let mut answer = DecisionResponse {
        action: PolicyAction::Deny.into(),
        ..DecisionResponse::default()
    };
    let message = "not from here".to_owned();
    answer.deny_messages.push(DenyMessage { message });
    let told = Told::of("local://b", vec![Answer::Decision(answer)]);
    let graph = graph("docker-image://a", "local://b");
    let error = judged(&graph, &told).await.map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "source \"local://b\" not allowed by policy: action DENY"
    );
    assert_eq!(error.hints(), ["not from here"]);
}

#[tokio::test]
async fn what_the_judge_wants_to_know_is_found_out_first() {
    let wanted = ResolveSourceMetaRequest {
        source: Some(wire(&source("docker-image://a"))),
        ..ResolveSourceMetaRequest::default()
    };
    let told = Told::of("docker-image://a", vec![Answer::Request(wanted)]);
    let graph = graph("docker-image://a", "local://b");
    assert!(judged(&graph, &told).await.unwrap().is_none());
    let second = told.asked.lock()[1].source.clone().unwrap();
    assert_eq!(second.image.unwrap().digest, "sha256:found");
}

#[tokio::test]
async fn another_source_is_not_looked_up_for_the_judge() {
    let wanted = ResolveSourceMetaRequest {
        source: Some(wire(&source("docker-image://other"))),
        ..ResolveSourceMetaRequest::default()
    };
    let told = Told::of("docker-image://a", vec![Answer::Request(wanted)]);
    let graph = graph("docker-image://a", "local://b");
    let error = judged(&graph, &told).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("different source"), "{error}");
}

#[tokio::test]
async fn a_converted_source_takes_the_place_of_the_given_one() {
    let update = DecisionResponse {
        action: PolicyAction::Convert.into(),
        update: Some(wire(&source("docker-image://a@sha256:pinned"))),
        ..DecisionResponse::default()
    };
    let told = Told::of("docker-image://a", vec![Answer::Decision(update)]);
    let given = graph("docker-image://a", "local://b");
    let made = judged(&given, &told).await.unwrap().expect("another graph");
    let wanted = graph("docker-image://a@sha256:pinned", "local://b");
    assert_eq!(made.root, wanted.root);
    assert_eq!(made.order.len(), 3);
    for digest in &made.order {
        assert_eq!(made.vertex(digest).unwrap().digest, *digest);
    }
    assert_eq!(llb::to_proto(&made).def, llb::to_proto(&wanted).def);
}

#[tokio::test]
async fn a_judge_that_never_decides_is_given_up() {
    let update = DecisionResponse {
        action: PolicyAction::Convert.into(),
        update: Some(wire(&source("docker-image://a"))),
        ..DecisionResponse::default()
    };
    let told = Told::of("docker-image://a", vec![Answer::Decision(update); 100]);
    let graph = graph("docker-image://a", "local://b");
    let error = judged(&graph, &told).await.map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "too many policy requests");
}

#[tokio::test]
async fn rules_come_first_and_judge_what_the_session_puts_in_place() {
    let rule = |action: PolicyAction, from: &str, to: &str| proto::sourcepolicy::Rule {
        action: action.into(),
        selector: Some(proto::sourcepolicy::Selector {
            identifier: from.to_owned(),
            ..Default::default()
        }),
        updates: Some(proto::sourcepolicy::Update {
            identifier: to.to_owned(),
            ..Default::default()
        }),
    };
    let policy = proto::sourcepolicy::Policy {
        version: 1,
        rules: vec![
            rule(
                PolicyAction::Convert,
                "docker-image://a",
                "docker-image://b",
            ),
            rule(PolicyAction::Deny, "docker-image://d", ""),
        ],
    };
    let update = |to: &str| {
        Answer::Decision(DecisionResponse {
            action: PolicyAction::Convert.into(),
            update: Some(wire(&source(to))),
            ..DecisionResponse::default()
        })
    };
    let told = Told::of("docker-image://b", vec![update("docker-image://c")]);
    let policy = |told| SourcePolicy {
        rules: Rules::read(std::slice::from_ref(&policy)).unwrap(),
        judge: Some(told as &dyn Judge),
    };
    let given = source("docker-image://a");
    let made = policy(&told).source(&given, None).await.unwrap();
    assert_eq!(made.unwrap().identifier, "docker-image://c");
    let told = Told::of("docker-image://b", vec![update("docker-image://d")]);
    let error = policy(&told).source(&given, None).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "source \"docker-image://d\" denied by policy: source denied by policy"
    );
}

#[tokio::test]
async fn a_repository_is_judged_by_the_address_that_is_used() {
    let told = Told::default();
    let mut given = source("git://allowed.test/a.git#main");
    let address = "https://other.test/b.git".to_owned();
    given.attrs.insert("git.fullurl".to_owned(), address);
    let policy = SourcePolicy {
        rules: Rules::default(),
        judge: Some(&told),
    };
    assert_eq!(policy.source(&given, None).await.unwrap(), None);
    let asked = source_of(&told.asked.lock()[0]).identifier;
    assert_eq!(asked, "git://other.test/b.git#main");
}
