//! What a build tells about itself while it runs: the event model, and its fold into a [`Tree`].
//!
//! A server emits [`SolveStatus`]es, each a batch of changes; a client receives them in the same
//! order. Only [`SolveStatus::from_proto`] and [`SolveStatus::to_proto`] know the wire messages.
//! This crate knows nothing of terminals: how a tree is shown is `progress-ui`'s.
//!
//! Invariant: folding is total. Any sequence of statuses, also one that names unknown vertices or
//! goes back in time, gives a tree.

mod from_proto;
mod interval;
mod logs;
mod to_proto;
mod tree;

use bytes::Bytes;
use diag::SourceLocation;
use jiff::Timestamp;
use oci::Digest;

pub use interval::{Interval, merge_intervals};
pub use llb::ProgressGroup;
pub use logs::{LogLine, Logs};
pub use tree::{Node, NodeId, Tree};

/// One batch of changes in a build.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SolveStatus {
    /// Vertices that appeared, started, completed or changed.
    pub vertexes: Vec<Vertex>,
    /// Pieces of work within vertices: downloads, uploads, transfers.
    pub statuses: Vec<VertexStatus>,
    /// What steps wrote.
    pub logs: Vec<VertexLog>,
    /// What the builder warns about.
    pub warnings: Vec<VertexWarning>,
}

/// One step of a build.
#[derive(Clone, Debug, PartialEq)]
pub struct Vertex {
    /// Its identity for the length of a build.
    pub digest: Digest,
    /// The vertices it reads.
    pub inputs: Vec<Digest>,
    /// What users call it, such as `[2/3] RUN make`.
    pub name: String,
    /// When it started; `None` before that.
    pub started: Option<Timestamp>,
    /// When it completed; `None` before that.
    pub completed: Option<Timestamp>,
    /// Whether its result came from the cache.
    pub cached: bool,
    /// Why it failed; empty when it did not.
    pub error: String,
    /// The group it is shown as part of.
    pub progress_group: Option<ProgressGroup>,
}

/// A piece of work within a vertex.
#[derive(Clone, Debug, PartialEq)]
pub struct VertexStatus {
    /// What it is called and known by, such as `transferring context:`.
    pub id: String,
    /// The vertex it belongs to.
    pub vertex: Digest,
    /// A name beside the id; servers leave it empty.
    pub name: String,
    /// Bytes done.
    pub current: i64,
    /// Bytes to do; 0 when that is not known.
    pub total: i64,
    /// When this was said.
    pub timestamp: Timestamp,
    /// When the work started.
    pub started: Option<Timestamp>,
    /// When the work completed.
    pub completed: Option<Timestamp>,
}

/// Bytes a step wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct VertexLog {
    /// The vertex that wrote them.
    pub vertex: Digest,
    /// 1 for standard output, 2 for standard error.
    pub stream: i64,
    /// When they were written.
    pub timestamp: Timestamp,
    /// The bytes; not necessarily whole lines, not necessarily UTF-8.
    pub data: Bytes,
}

/// A warning about the source of a build.
#[derive(Clone, Debug, PartialEq)]
pub struct VertexWarning {
    /// The vertex that warns.
    pub vertex: Digest,
    /// How much it matters; 1 is the usual one.
    pub level: i64,
    /// One line.
    pub short: String,
    /// More lines.
    pub detail: Vec<String>,
    /// Where the rule is explained; may be empty.
    pub url: String,
    /// The place in the source.
    pub location: Option<SourceLocation>,
}

impl SolveStatus {
    /// A status that only says something about these vertices.
    pub fn of_vertexes(vertexes: Vec<Vertex>) -> Self {
        SolveStatus {
            vertexes,
            ..SolveStatus::default()
        }
    }

    /// True when it says nothing.
    pub fn is_empty(&self) -> bool {
        self.vertexes.is_empty()
            && self.statuses.is_empty()
            && self.logs.is_empty()
            && self.warnings.is_empty()
    }
}

impl Vertex {
    /// A vertex that has not started.
    pub fn new(digest: Digest, name: impl Into<String>) -> Self {
        Vertex {
            digest,
            inputs: Vec::new(),
            name: name.into(),
            started: None,
            completed: None,
            cached: false,
            error: String::new(),
            progress_group: None,
        }
    }
}

impl VertexStatus {
    /// A piece of work that starts now and whose size is not known.
    pub fn started(vertex: Digest, id: impl Into<String>, now: Timestamp) -> Self {
        VertexStatus {
            id: id.into(),
            vertex,
            name: String::new(),
            current: 0,
            total: 0,
            timestamp: now,
            started: Some(now),
            completed: None,
        }
    }
}
