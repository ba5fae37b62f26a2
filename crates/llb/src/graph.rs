//! The graph: vertices named by the digest of their wire bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use diag::SourceLocation;
use oci::{Digest, Platform};

use crate::Op;
use crate::to_proto::marshal_vertex;

/// One output of a vertex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// The vertex.
    pub vertex: Digest,
    /// Which of its outputs, from 0.
    pub output: u32,
}

/// An operation with its inputs.
#[derive(Clone, Debug)]
pub struct Vertex {
    /// sha256 of `raw`.
    pub digest: Digest,
    /// What it does.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<Edge>,
    /// What it runs on, or is for.
    pub platform: Option<Platform>,
    /// Filters that the worker must fulfil.
    pub worker_filter: Vec<String>,
    /// What does not change its outcome.
    pub meta: VertexMeta,
    /// Where it came from in the user's files.
    pub locations: Vec<SourceLocation>,
    /// The wire form of everything that does change its outcome.
    pub raw: Bytes,
}

impl Vertex {
    /// The name shown for it: `llb.customname`, else what the op says of itself.
    pub fn name(&self) -> String {
        if let Some(name) = self.meta.description.get("llb.customname") {
            return name.clone();
        }
        self.op.name()
    }
}

/// Notes on a vertex that are not part of its digest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VertexMeta {
    /// Free notes; `llb.customname` is the name shown.
    pub description: BTreeMap<String, String>,
    /// Whether the step must run even if it is known.
    pub ignore_cache: bool,
    /// Whether it belongs into an exported cache; `None` leaves it to the exporter.
    pub export_cache: Option<bool>,
    /// The group it is shown in.
    pub progress_group: Option<ProgressGroup>,
    /// Capabilities the graph's maker relied on.
    pub caps: BTreeMap<String, bool>,
}

impl VertexMeta {
    /// Adds the notes on an equal vertex: what they say wins, what they leave open stays.
    fn add(&mut self, other: VertexMeta) {
        self.description.extend(other.description);
        self.ignore_cache |= other.ignore_cache;
        self.export_cache = other.export_cache.or(self.export_cache);
        self.progress_group = other.progress_group.or(self.progress_group.take());
        self.caps.extend(other.caps);
    }
}

/// A group of vertices shown as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressGroup {
    /// Its identity.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether a single member is shown by itself.
    pub weak: bool,
}

/// A build graph.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Every vertex, by digest.
    pub vertices: HashMap<Digest, Arc<Vertex>>,
    /// The digests so that inputs come before users.
    pub order: Vec<Digest>,
    /// What is wanted; `None` is an empty file system.
    pub root: Option<Edge>,
}

impl Graph {
    /// The vertex of that digest.
    pub fn vertex(&self, digest: &Digest) -> Option<&Arc<Vertex>> {
        self.vertices.get(digest)
    }
}

/// Makes a graph; equal vertices are one.
#[derive(Clone, Debug, Default)]
pub struct GraphBuilder {
    graph: Graph,
}

impl GraphBuilder {
    /// A builder with no vertices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a vertex and returns its first output. If an equal one is there already, both have one
    /// set of notes, in which the later ones win, and the locations of both.
    pub fn add(
        &mut self,
        op: Op,
        inputs: Vec<Edge>,
        platform: Option<Platform>,
        meta: VertexMeta,
        locations: Vec<SourceLocation>,
    ) -> Edge {
        let raw = marshal_vertex(&op, &inputs, platform.as_ref());
        let digest = Digest::of(&raw);
        match self.graph.vertices.get_mut(&digest) {
            Some(known) => {
                let known = Arc::make_mut(known);
                known.meta.add(meta);
                known.locations.extend(locations);
            }
            None => {
                let worker_filter = Vec::new();
                let vertex = Vertex {
                    digest,
                    op,
                    inputs,
                    platform,
                    worker_filter,
                    meta,
                    locations,
                    raw: raw.into(),
                };
                self.graph.vertices.insert(digest, Arc::new(vertex));
                self.graph.order.push(digest);
            }
        }
        Edge {
            vertex: digest,
            output: 0,
        }
    }

    /// The part of the graph that `root` needs, with `root` as what is wanted.
    pub fn finish(&self, root: Option<Edge>) -> Graph {
        let mut wanted: Vec<Digest> = root.iter().map(|edge| edge.vertex).collect();
        let mut needed = std::collections::HashSet::new();
        while let Some(digest) = wanted.pop() {
            if needed.insert(digest)
                && let Some(vertex) = self.graph.vertices.get(&digest)
            {
                wanted.extend(vertex.inputs.iter().map(|edge| edge.vertex));
            }
        }
        let order: Vec<Digest> = self
            .graph
            .order
            .iter()
            .filter(|digest| needed.contains(*digest))
            .copied()
            .collect();
        let vertices = order
            .iter()
            .map(|digest| (*digest, self.graph.vertices[digest].clone()))
            .collect();
        Graph {
            vertices,
            order,
            root,
        }
    }
}
