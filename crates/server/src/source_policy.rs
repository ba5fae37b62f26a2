//! Source policies of clients: before a graph is loaded into a build, the client's session says of each
//! of its sources whether it may be used, or what to use instead.
//!
//! Sources are judged as they stand in the graph, and not already when somebody asks for their
//! metadata.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use diag::{Code, Error, Result};
use llb::{Edge, Graph, Op, SourceOp, Vertex};
use oci::Digest;
use proto::gateway::{ResolveSourceMetaRequest, ResolveSourceMetaResponse};
use proto::pb;
use proto::policysession::check_policy_response::Result as Answer;
use proto::policysession::{CheckPolicyRequest, CheckPolicyResponse, DecisionResponse};
use proto::sourcepolicy::PolicyAction;

/// How often one source is asked about: for metadata, and again after it was converted.
const QUESTIONS_MAX: usize = 10;

/// Who judges sources, and finds out what the judge wants to know of them.
#[async_trait]
pub(crate) trait Judge: Send + Sync {
    /// What the client says.
    async fn check(&self, request: CheckPolicyRequest) -> Result<CheckPolicyResponse>;
    /// What a source stands for.
    async fn metadata(
        &self,
        request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse>;
}

/// The graph with the sources that the judge wants, which may be others than were given; nothing if it
/// stays as it is.
///
/// # Errors
///
/// The first source that is not allowed, with the reasons given; an answer that makes no sense.
pub(crate) async fn judged(graph: &Graph, judge: &dyn Judge) -> Result<Option<Graph>> {
    let mut converted = HashMap::new();
    for digest in &graph.order {
        let Some(vertex) = graph.vertex(digest) else {
            continue;
        };
        if let Op::Source(source) = &vertex.op {
            let wanted = verdict(vertex, source, judge).await?;
            if wanted != *source {
                converted.insert(*digest, wanted);
            }
        }
    }
    Ok((!converted.is_empty()).then(|| with_sources(graph, converted)))
}

/// The source that is to be used in place of one.
async fn verdict(vertex: &Vertex, source: &SourceOp, judge: &dyn Judge) -> Result<SourceOp> {
    let mut source = source.clone();
    let mut request = question(vertex, &source);
    for _ in 0..QUESTIONS_MAX {
        let answer = judge.check(request.clone()).await?.result;
        match answer {
            Some(Answer::Request(wanted)) => {
                let about = wanted.source.clone().unwrap_or_default();
                if about != wire(&source) {
                    return Err(Error::invalid(format!(
                        "policy requested different source: {:?} != {:?}",
                        about.identifier, source.identifier
                    )));
                }
                let found = judge.metadata(wanted).await.map_err(|error| {
                    error.context("error resolving source metadata from policy request")
                })?;
                request.source = Some(found);
            }
            Some(Answer::Decision(decision)) => match decision.action() {
                PolicyAction::Allow => return Ok(source),
                PolicyAction::Deny => return Err(denied(&source, decision)),
                PolicyAction::Convert => {
                    let update = decision
                        .update
                        .ok_or_else(|| Error::invalid("convert action requires updated source"))?;
                    source = SourceOp {
                        identifier: update.identifier,
                        attrs: update.attrs.into_iter().collect(),
                    };
                    request = question(vertex, &source);
                }
            },
            None => return Err(Error::invalid("no decision in policy response")),
        }
    }
    Err(Error::invalid("too many policy requests"))
}

fn question(vertex: &Vertex, source: &SourceOp) -> CheckPolicyRequest {
    CheckPolicyRequest {
        platform: vertex.platform.as_ref().map(llb::platform_to_proto),
        source: Some(ResolveSourceMetaResponse {
            source: Some(wire(source)),
            ..ResolveSourceMetaResponse::default()
        }),
        caps: HashMap::new(),
    }
}

fn wire(source: &SourceOp) -> pb::SourceOp {
    pb::SourceOp {
        identifier: source.identifier.clone(),
        attrs: source.attrs.clone().into_iter().collect(),
    }
}

fn denied(source: &SourceOp, decision: DecisionResponse) -> Error {
    let error = Error::new(
        Code::PermissionDenied,
        format!(
            "source {:?} not allowed by policy: action DENY",
            diag::redact_url(&source.identifier)
        ),
    );
    let messages = decision.deny_messages.into_iter();
    messages.fold(error, |error, reason| error.hint(reason.message))
}

/// The graph with other sources; whatever depends on them gets another digest.
fn with_sources(graph: &Graph, mut sources: HashMap<Digest, SourceOp>) -> Graph {
    let mut names: HashMap<Digest, Digest> = HashMap::new();
    let mut made = Graph::default();
    for digest in &graph.order {
        let Some(vertex) = graph.vertex(digest) else {
            continue;
        };
        let mut vertex = vertex.clone();
        let source = sources.remove(digest);
        let moved = |input: &Edge| names.contains_key(&input.vertex);
        if source.is_some() || vertex.inputs.iter().any(moved) {
            let changed = Arc::make_mut(&mut vertex);
            if let Some(source) = source {
                changed.op = Op::Source(source);
            }
            for input in &mut changed.inputs {
                input.vertex = names.get(&input.vertex).copied().unwrap_or(input.vertex);
            }
            let platform = changed.platform.as_ref();
            changed.raw = llb::marshal_vertex(&changed.op, &changed.inputs, platform).into();
            changed.digest = Digest::of(&changed.raw);
            names.insert(*digest, changed.digest);
        }
        let name = vertex.digest;
        if made.vertices.insert(name, vertex).is_none() {
            made.order.push(name);
        }
    }
    made.root = graph.root.map(|mut root| {
        root.vertex = names.get(&root.vertex).copied().unwrap_or(root.vertex);
        root
    });
    made
}

#[cfg(test)]
mod tests;
