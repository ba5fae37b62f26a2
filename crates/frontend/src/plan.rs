//! The build graph while it is being made.
//!
//! Which paths of a local directory are used at all is known only when every stage has been
//! lowered. So nodes name local directories by placeholders ([`Output::Deferred`]), and
//! [`Plan::finish`] puts the sources in and writes the graph.
//!
//! Invariant: a node's inputs were added before it, so ascending order is a topological one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use diag::SourceLocation;
use dockerfile::Lines;
use llb::{
    Edge, ExecOp, FileAction, FileActionKind, FileOp, Graph, GraphBuilder, MergeOp, Mount, Op,
    SourceOp, VertexMeta,
};
use oci::Platform;

/// A file system in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    /// Nothing in it.
    Scratch,
    /// What a node makes.
    Node(usize, u32),
    /// A local directory whose paths are not known yet.
    Deferred(usize),
}

/// A step.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) op: NodeOp,
    pub(crate) platform: Option<Platform>,
    pub(crate) meta: VertexMeta,
    pub(crate) lines: Option<Lines>,
}

/// A step's work; inputs are named, not counted.
#[derive(Clone, Debug)]
pub(crate) enum NodeOp {
    Source(SourceOp),
    /// The mounts of the operation are empty: they are in the second part, sorted by destination.
    Exec(Box<ExecOp>, Vec<ExecMount>),
    /// What is changed, and the changes in order.
    File(Output, Vec<Change>),
    Merge(Vec<Output>),
    /// A step of a graph that came from outside.
    Given(Op, Vec<Output>),
}

/// A mount with where its files come from.
#[derive(Clone, Debug)]
pub(crate) struct ExecMount {
    pub(crate) source: Output,
    pub(crate) mount: Mount,
}

/// A change to files with where it copies from.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) kind: FileActionKind,
    pub(crate) source: Option<Output>,
}

/// A local directory whose paths are not known yet.
#[derive(Clone, Debug)]
pub(crate) struct DeferredLocal {
    pub(crate) source: SourceOp,
    pub(crate) meta: VertexMeta,
    /// The set of paths that are used of it.
    pub(crate) paths: usize,
}

/// The build graph while it is being made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    nodes: Vec<Node>,
    deferred: Vec<DeferredLocal>,
}

impl Plan {
    /// Adds a step; gives its first output.
    pub(crate) fn add(&mut self, node: Node) -> Output {
        self.nodes.push(node);
        Output::Node(self.nodes.len() - 1, 0)
    }

    /// Adds a source.
    pub(crate) fn add_source(
        &mut self,
        source: SourceOp,
        platform: Option<Platform>,
        meta: VertexMeta,
        lines: Option<Lines>,
    ) -> Output {
        self.add(Node {
            op: NodeOp::Source(source),
            platform,
            meta,
            lines,
        })
    }

    /// Adds a local directory of which only the paths of a set will be asked for.
    pub(crate) fn add_deferred(&mut self, local: DeferredLocal) -> Output {
        self.deferred.push(local);
        Output::Deferred(self.deferred.len() - 1)
    }

    /// Adds a whole graph; gives what it makes.
    pub(crate) fn add_graph(&mut self, graph: &Graph) -> Output {
        let mut places = BTreeMap::new();
        let place =
            |places: &BTreeMap<oci::Digest, usize>, edge: &Edge| match places.get(&edge.vertex) {
                Some(node) => Output::Node(*node, edge.output),
                None => Output::Scratch,
            };
        for digest in &graph.order {
            let Some(vertex) = graph.vertex(digest) else {
                continue;
            };
            let inputs = vertex
                .inputs
                .iter()
                .map(|edge| place(&places, edge))
                .collect();
            self.nodes.push(Node {
                op: NodeOp::Given(vertex.op.clone(), inputs),
                platform: vertex.platform.clone(),
                meta: vertex.meta.clone(),
                lines: None,
            });
            places.insert(*digest, self.nodes.len() - 1);
        }
        graph
            .root
            .as_ref()
            .map_or(Output::Scratch, |edge| place(&places, edge))
    }

    /// The graph that makes `root`.
    pub(crate) fn finish(&self, root: Output, sources: &Sources<'_>) -> Graph {
        let mut writer = Writer {
            plan: self,
            sources,
            builder: GraphBuilder::new(),
            edges: vec![None; self.nodes.len()],
            deferred: vec![None; self.deferred.len()],
        };
        for index in self.needed(root) {
            writer.write(index);
        }
        let root = writer.edge(root);
        writer.builder.finish(root)
    }

    /// The nodes that `root` needs, each after its inputs, in the order stock writes them: of equal
    /// steps the last one gives the name that is shown.
    fn needed(&self, root: Output) -> Vec<usize> {
        let mut order = Vec::new();
        let mut known = BTreeSet::new();
        // A node is met twice: to go to its inputs, and when they are done.
        let mut wanted = vec![(root, false)];
        while let Some((output, inputs_done)) = wanted.pop() {
            let Output::Node(index, _) = output else {
                continue;
            };
            if inputs_done {
                order.push(index);
            } else if known.insert(index) {
                wanted.push((output, true));
                let inputs = self.nodes[index].inputs();
                wanted.extend(inputs.into_iter().rev().map(|input| (input, false)));
            }
        }
        order
    }
}

impl Node {
    fn inputs(&self) -> Vec<Output> {
        match &self.op {
            NodeOp::Source(_) => Vec::new(),
            NodeOp::Exec(_, mounts) => mounts.iter().map(|mount| mount.source).collect(),
            // The last change comes first: it is the one that leads to the others.
            NodeOp::File(base, changes) => [*base]
                .into_iter()
                .chain(changes.iter().rev().filter_map(|change| change.source))
                .collect(),
            NodeOp::Merge(inputs) | NodeOp::Given(_, inputs) => inputs.clone(),
        }
    }
}

/// What the placeholders of a plan stand for.
pub(crate) struct Sources<'a> {
    /// The sets of paths that [`DeferredLocal::paths`] counts in.
    pub(crate) paths: &'a [BTreeSet<String>],
    /// The Dockerfile.
    pub(crate) file: &'a SourceFile,
    /// The platform of steps that say none.
    pub(crate) platform: &'a Platform,
}

/// The file that steps and errors point at.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    pub(crate) name: String,
    pub(crate) data: Arc<[u8]>,
}

impl SourceFile {
    /// Lines of the file.
    pub(crate) fn at(&self, lines: Lines) -> SourceLocation {
        self.at_ranges(lines.ranges())
    }

    /// Ranges of the file.
    pub(crate) fn at_ranges(&self, ranges: Vec<diag::Range>) -> SourceLocation {
        SourceLocation {
            filename: self.name.clone(),
            language: "Dockerfile".to_owned(),
            data: self.data.clone(),
            ranges,
        }
    }
}

struct Writer<'a> {
    plan: &'a Plan,
    sources: &'a Sources<'a>,
    builder: GraphBuilder,
    edges: Vec<Option<Edge>>,
    deferred: Vec<Option<Edge>>,
}

/// The inputs of a vertex, each once.
#[derive(Default)]
struct Inputs(Vec<Edge>);

impl Inputs {
    fn index(&mut self, edge: Option<Edge>) -> Option<usize> {
        let edge = edge?;
        Some(match self.0.iter().position(|known| *known == edge) {
            Some(index) => index,
            None => {
                self.0.push(edge);
                self.0.len() - 1
            }
        })
    }
}

impl Writer<'_> {
    fn edge(&mut self, output: Output) -> Option<Edge> {
        match output {
            Output::Scratch => None,
            Output::Node(index, output) => {
                let edge = self.edges[index]?;
                Some(Edge { output, ..edge })
            }
            Output::Deferred(index) => {
                if self.deferred[index].is_none() {
                    let local = &self.plan.deferred[index];
                    let mut source = local.source.clone();
                    set_follow_paths(&mut source, &self.sources.paths[local.paths]);
                    let op = Op::Source(source);
                    let meta = local.meta.clone();
                    let edge = self.builder.add(op, Vec::new(), None, meta, Vec::new());
                    self.deferred[index] = Some(edge);
                }
                self.deferred[index]
            }
        }
    }

    fn write(&mut self, index: usize) {
        let node = &self.plan.nodes[index];
        let mut inputs = Inputs::default();
        let op = match &node.op {
            NodeOp::Source(source) => Op::Source(source.clone()),
            NodeOp::Exec(exec, mounts) => {
                let mut exec = exec.clone();
                exec.mounts = mounts
                    .iter()
                    .map(|mount| Mount {
                        input: inputs.index(self.edge(mount.source)),
                        ..mount.mount.clone()
                    })
                    .collect();
                Op::Exec(exec)
            }
            NodeOp::File(base, changes) => self.file_op(*base, changes, &mut inputs),
            NodeOp::Merge(merged) => {
                // What is merged twice is an input twice, as stock writes it.
                inputs.0 = merged.iter().filter_map(|o| self.edge(*o)).collect();
                Op::Merge(MergeOp {
                    inputs: (0..inputs.0.len()).map(Some).collect(),
                })
            }
            NodeOp::Given(op, given) => {
                inputs.0 = given
                    .iter()
                    .filter_map(|output| self.edge(*output))
                    .collect();
                op.clone()
            }
        };
        let platform = match &op {
            Op::File(_) | Op::Merge(_) => None,
            Op::Source(source) => node.platform.clone().filter(|_| has_platform(source)),
            _ => Some(
                node.platform
                    .as_ref()
                    .unwrap_or(self.sources.platform)
                    .clone(),
            ),
        };
        let locations = node
            .lines
            .iter()
            .map(|lines| self.sources.file.at(*lines))
            .collect();
        let edge = self
            .builder
            .add(op, inputs.0, platform, node.meta.clone(), locations);
        self.edges[index] = Some(edge);
    }

    /// The changes with inputs counted: first those of the vertex, then the outcomes of changes.
    fn file_op(&mut self, base: Output, changes: &[Change], inputs: &mut Inputs) -> Op {
        let base = inputs.index(self.edge(base));
        let sources: Vec<Option<usize>> = changes
            .iter()
            .map(|change| inputs.index(change.source.and_then(|source| self.edge(source))))
            .collect();
        let count = inputs.0.len();
        let last = changes.len().saturating_sub(1);
        let actions = changes
            .iter()
            .zip(sources)
            .enumerate()
            .map(|(i, (change, source))| {
                let mut kind = change.kind.clone();
                bind_owner(&mut kind, base);
                FileAction {
                    input: if i == 0 { base } else { Some(count + i - 1) },
                    secondary_input: source,
                    output: (i == last).then_some(0),
                    kind,
                }
            });
        Op::File(FileOp {
            actions: actions.collect(),
        })
    }
}

/// Names of owners are looked up in what is changed.
fn bind_owner(kind: &mut FileActionKind, base: Option<usize>) {
    let owner = match kind {
        FileActionKind::Copy(copy) => copy.owner.as_mut(),
        FileActionKind::MkDir(dir) => dir.owner.as_mut(),
        FileActionKind::MkFile(file) => file.owner.as_mut(),
        FileActionKind::Symlink(link) => link.owner.as_mut(),
        FileActionKind::Rm(_) => None,
    };
    let Some(owner) = owner else { return };
    for user in [&mut owner.user, &mut owner.group] {
        if let Some(llb::UserOpt::ByName { input, .. }) = user {
            *input = base;
        }
    }
}

fn has_platform(source: &SourceOp) -> bool {
    ["docker-image://", "oci-layout://"]
        .iter()
        .any(|scheme| source.identifier.starts_with(scheme))
}

/// Restricts a local source to the paths of the set and what their links lead to; the root in the
/// set, or an empty set, means everything.
pub(crate) fn set_follow_paths(source: &mut SourceOp, paths: &BTreeSet<String>) {
    if paths.is_empty() || paths.contains("/") {
        return;
    }
    let mut relative: Vec<String> = paths
        .iter()
        .map(|path| pathmatch::clean_path(&format!("./{path}")))
        .collect();
    relative.sort();
    source
        .attrs
        .insert("local.followpaths".to_owned(), json_list(&relative));
}

/// A list of texts in JSON, as [`go_json`] writes it.
pub(crate) fn json_list(items: &[String]) -> String {
    go_json(&serde_json::Value::from(items).to_string())
}

/// JSON with `<`, `>`, `&` and two kinds of line ends escaped, as Go writes it. They can stand in
/// strings only, so the text need not be understood.
pub(crate) fn go_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}

/// Notes with the name that is shown.
pub(crate) fn named(name: impl Into<String>) -> VertexMeta {
    VertexMeta {
        description: BTreeMap::from([("llb.customname".to_owned(), name.into())]),
        ..VertexMeta::default()
    }
}
