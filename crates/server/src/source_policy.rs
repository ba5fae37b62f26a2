//! Source policies of clients: before a graph is loaded into a build, and before somebody is told what a
//! source stands for, it is decided whether the source may be used, or what to use instead.
//!
//! First decide the rules that came with the request ([`rules`]), then the client's session if it judges
//! sources. A source that was replaced goes through both again.

mod rules;
mod selector;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use diag::{Code, Error, Result};
use llb::{Edge, Graph, Op, SourceOp};
use oci::Digest;
use proto::gateway::{ResolveSourceMetaRequest, ResolveSourceMetaResponse};
use proto::pb;
use proto::policysession::check_policy_response::Result as Answer;
use proto::policysession::{CheckPolicyRequest, CheckPolicyResponse, DecisionResponse};
use proto::sourcepolicy::PolicyAction;

pub(crate) use rules::Rules;

/// How often a session is asked about one source: for metadata, and again after it was converted.
const QUESTIONS_MAX: usize = 10;

/// Who judges sources, and finds out what the judge wants to know of them.
#[async_trait]
pub(crate) trait Judge: Send + Sync {
    /// What the client says.
    async fn check(&self, request: CheckPolicyRequest) -> Result<CheckPolicyResponse>;
    /// What a source stands for, as the rules of the request want it.
    async fn metadata(
        &self,
        request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse>;
}

/// What decides about sources.
#[derive(Clone)]
pub(crate) struct SourcePolicy<'a> {
    /// The rules of requests.
    pub(crate) rules: Rules,
    /// The session that judges them, if one does.
    pub(crate) judge: Option<&'a dyn Judge>,
}

impl SourcePolicy<'_> {
    /// The graph with the sources that are wanted, which may be others than were given; nothing if it
    /// stays as it is.
    ///
    /// # Errors
    ///
    /// The first source that is not allowed, with the reasons given; rules or an answer that make no
    /// sense.
    pub(crate) async fn graph(&self, graph: &Graph) -> Result<Option<Graph>> {
        let mut converted = HashMap::new();
        if self.rules.is_empty() && self.judge.is_none() {
            return Ok(None);
        }
        for digest in &graph.order {
            let Some(vertex) = graph.vertex(digest) else {
                continue;
            };
            if let Op::Source(source) = &vertex.op {
                let platform = vertex.platform.as_ref().map(llb::platform_to_proto);
                if let Some(wanted) = self.source(source, platform).await? {
                    converted.insert(*digest, wanted);
                }
            }
        }
        Ok((!converted.is_empty()).then(|| with_sources(graph, converted)))
    }

    /// The source that is to be used in place of one; nothing if it stays.
    ///
    /// # Errors
    ///
    /// As for [`SourcePolicy::graph`].
    pub(crate) async fn source(
        &self,
        given: &SourceOp,
        platform: Option<pb::Platform>,
    ) -> Result<Option<SourceOp>> {
        let named = canonical(given.clone());
        let mut source = named.clone();
        self.rules.apply(&mut source)?;
        if let Some(judge) = self.judge {
            source = self.judged(source, platform, judge).await?;
        }
        Ok((source != named).then_some(source))
    }

    async fn judged(
        &self,
        mut source: SourceOp,
        platform: Option<pb::Platform>,
        judge: &dyn Judge,
    ) -> Result<SourceOp> {
        let mut request = question(platform.clone(), &source);
        for _ in 0..QUESTIONS_MAX {
            let answer = judge.check(request.clone()).await?.result;
            match answer {
                Some(Answer::Request(wanted)) => {
                    must_be_about(&wanted, &source)?;
                    let found = judge.metadata(wanted).await.map_err(|error| {
                        error.context("error resolving source metadata from policy request")
                    })?;
                    request.source = Some(found);
                }
                Some(Answer::Decision(decision)) => match decision.action() {
                    PolicyAction::Allow => return Ok(source),
                    PolicyAction::Deny => return Err(denied(&source, decision)),
                    PolicyAction::Convert => {
                        let update = decision.update.ok_or_else(|| {
                            Error::invalid("convert action requires updated source")
                        })?;
                        source = canonical(SourceOp {
                            identifier: update.identifier,
                            attrs: update.attrs.into_iter().collect(),
                        });
                        self.rules.apply(&mut source)?;
                        request = question(platform.clone(), &source);
                    }
                },
                None => return Err(Error::invalid("no decision in policy response")),
            }
        }
        Err(Error::invalid("too many policy requests"))
    }
}

/// The source by the name of what it means: two ways to write a repository are one to policies, and
/// an attribute cannot lead elsewhere than the name says.
fn canonical(mut source: SourceOp) -> SourceOp {
    if let Some(name) = ops::work::canonical_identifier(&source) {
        source.identifier = name;
    }
    source
}

/// What is asked for the judge must be about what it judges.
fn must_be_about(wanted: &ResolveSourceMetaRequest, source: &SourceOp) -> Result<()> {
    let about = wanted.source.clone().unwrap_or_default();
    if about.identifier != source.identifier {
        return Err(Error::invalid(format!(
            "policy requested different source identifier: {:?} != {:?}",
            diag::redact_url(&about.identifier),
            diag::redact_url(&source.identifier)
        )));
    }
    if about != wire(source) {
        return Err(Error::invalid("policy requested different source attrs"));
    }
    Ok(())
}

fn question(platform: Option<pb::Platform>, source: &SourceOp) -> CheckPolicyRequest {
    CheckPolicyRequest {
        platform,
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
