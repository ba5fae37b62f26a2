//! The spans of a build, made from what it said when it has ended: one for the build, below it one
//! for each time a vertex ran (sources, steps and exports are vertices), below those one for each
//! piece of work with a beginning and an end (layers pulled, layers pushed, contexts sent).
//!
//! So a build that runs spends nothing on traces.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use oci::Digest;
use progress::SolveStatus;

use super::context::TraceContext;

/// The name that gRPC's instrumentation gives the call.
const BUILD_SPAN: &str = "moby.buildkit.v1.Control/Solve";

/// The spans of one build.
#[derive(Clone, Debug)]
pub(crate) struct BuildTrace {
    pub(crate) trace_id: [u8; 16],
    /// What the client's side adds to each.
    pub(crate) state: String,
    /// The build's own first, parents before their children.
    pub(crate) spans: Vec<Span>,
}

/// One span.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) id: [u8; 8],
    /// `None` for the first one of a trace.
    pub(crate) parent: Option<[u8; 8]>,
    /// Whether the parent is the client's.
    pub(crate) is_entry: bool,
    pub(crate) name: String,
    pub(crate) start: Timestamp,
    pub(crate) end: Timestamp,
    pub(crate) attributes: Vec<(&'static str, Value)>,
    /// Why it failed.
    pub(crate) error: Option<String>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Bool(bool),
    Int(i64),
}

/// What a build was.
pub(crate) struct BuildFacts<'b> {
    /// Its id.
    pub(crate) id: &'b str,
    pub(crate) frontend: &'b str,
    pub(crate) start: Timestamp,
    pub(crate) end: Timestamp,
    pub(crate) error: Option<String>,
}

impl BuildTrace {
    /// The spans of a build that said this, as part of its client's trace if there is one.
    pub(crate) fn of(
        facts: BuildFacts<'_>,
        events: &[Arc<SolveStatus>],
        client: Option<&TraceContext>,
    ) -> Self {
        let mut trace = BuildTrace {
            trace_id: client.map_or_else(rand::random, |client| client.trace_id),
            state: client
                .map(|client| client.state.clone())
                .unwrap_or_default(),
            spans: Vec::new(),
        };
        let text = |value: &str| Value::Text(value.to_owned());
        let end = facts.end;
        trace.spans.push(Span {
            id: rand::random(),
            parent: client.map(|client| client.span_id),
            is_entry: true,
            name: BUILD_SPAN.to_owned(),
            start: facts.start,
            end,
            attributes: vec![
                ("rpc.system", text("grpc")),
                ("rpc.service", text("moby.buildkit.v1.Control")),
                ("rpc.method", text("Solve")),
                ("build.ref", text(facts.id)),
                ("build.frontend", text(facts.frontend)),
            ],
            error: facts.error,
        });
        let vertices = trace.add_vertices(events, end);
        trace.add_work(events, &vertices);
        trace
    }

    /// A span for each time a vertex ran; the last one of each by its digest.
    fn add_vertices(
        &mut self,
        events: &[Arc<SolveStatus>],
        build_end: Timestamp,
    ) -> HashMap<Digest, usize> {
        let root = self.spans[0].id;
        let mut last: HashMap<Digest, usize> = HashMap::new();
        for vertex in events.iter().flat_map(|event| &event.vertexes) {
            let Some(start) = vertex.started else {
                continue;
            };
            let known = last.get(&vertex.digest).copied();
            let at = known.filter(|at| self.spans[*at].start == start);
            let at = at.unwrap_or_else(|| {
                self.spans.push(Span {
                    id: rand::random(),
                    parent: Some(root),
                    is_entry: false,
                    name: vertex.name.clone(),
                    start,
                    end: build_end,
                    attributes: Vec::new(),
                    error: None,
                });
                self.spans.len() - 1
            });
            last.insert(vertex.digest, at);
            let span = &mut self.spans[at];
            span.end = vertex.completed.unwrap_or(build_end).max(start);
            span.error = (!vertex.error.is_empty()).then(|| vertex.error.clone());
            span.attributes = vec![
                ("vertex", Value::Text(vertex.digest.to_string())),
                ("cached", Value::Bool(vertex.cached)),
            ];
        }
        last
    }

    /// A span for each piece of work that came to its end, below its vertex.
    fn add_work(&mut self, events: &[Arc<SolveStatus>], vertices: &HashMap<Digest, usize>) {
        let mut starts: HashMap<(Digest, &str), Timestamp> = HashMap::new();
        for status in events.iter().flat_map(|event| &event.statuses) {
            let key = (status.vertex, status.id.as_str());
            if let Some(start) = status.started {
                starts.entry(key).or_insert(start);
            }
            let (Some(end), Some(vertex)) = (status.completed, vertices.get(&status.vertex)) else {
                continue;
            };
            // Said again, it is the same work.
            let Some(start) = starts.remove(&key) else {
                continue;
            };
            let bytes = status.current.max(status.total);
            self.spans.push(Span {
                id: rand::random(),
                parent: Some(self.spans[*vertex].id),
                is_entry: false,
                name: status.id.clone(),
                start,
                end: end.max(start),
                attributes: match bytes {
                    0 => Vec::new(),
                    bytes => vec![("bytes", Value::Int(bytes))],
                },
                error: None,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use progress::{Vertex, VertexStatus};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn vertices_hang_below_the_build_and_their_work_below_them() {
        let vertex = |start: Option<i64>, end: Option<i64>, error: &str| {
            let vertex = Vertex {
                started: start.map(at),
                completed: end.map(at),
                error: error.to_owned(),
                ..Vertex::new(Digest::of("v"), "[1/1] FROM x")
            };
            Arc::new(SolveStatus::of_vertexes(vec![vertex]))
        };
        let work = |end: Option<i64>| {
            let status = VertexStatus {
                completed: end.map(at),
                total: 7,
                ..VertexStatus::started(Digest::of("v"), "sha256:abc", at(3))
            };
            Arc::new(SolveStatus {
                statuses: vec![status],
                ..SolveStatus::default()
            })
        };
        let events = [
            vertex(None, None, ""),
            vertex(Some(2), None, ""),
            work(None),
            work(Some(4)),
            vertex(Some(2), Some(5), "broken"),
            vertex(Some(6), None, ""),
        ];
        let facts = BuildFacts {
            id: "b",
            frontend: "dockerfile.v0",
            start: at(1),
            end: at(9),
            error: Some("broken".into()),
        };
        let client = TraceContext {
            trace_id: [1; 16],
            span_id: [2; 8],
            sampled: true,
            state: String::new(),
        };
        let trace = BuildTrace::of(facts, &events, Some(&client));
        assert_eq!(trace.trace_id, [1; 16]);
        let shown: Vec<_> = trace
            .spans
            .iter()
            .map(|s| {
                (
                    s.name.as_str(),
                    s.start.as_second(),
                    s.end.as_second(),
                    s.error.is_some(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (BUILD_SPAN, 1, 9, true),
                ("[1/1] FROM x", 2, 5, true),
                ("[1/1] FROM x", 6, 9, false),
                ("sha256:abc", 3, 4, false),
            ]
        );
        let [build, first, second, pull] = trace.spans.as_slice() else {
            panic!("four spans");
        };
        assert_eq!(build.parent, Some([2; 8]));
        assert_eq!(
            (first.parent, second.parent),
            (Some(build.id), Some(build.id))
        );
        assert_eq!(pull.parent, Some(second.id));
        assert_eq!(pull.attributes, [("bytes", Value::Int(7))]);
    }
}
