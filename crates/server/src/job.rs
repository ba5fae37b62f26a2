//! One build: graphs in, solved states out.
//!
//! A [`Job`] lives as long as its request. Graphs of frontends and gateway clients are solved in it
//! and share vertices; dropping it gives up what only it wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use diag::{Error, Result};
use layers::LayerId;
use llb::Graph;
use oci::Digest;
use ops::work::{BuildContext, OpWork, Output, Outside, ReadOnly, blocking};
use parking_lot::Mutex;
use proto::gateway::{ResolveSourceMetaRequest, ResolveSourceMetaResponse};
use proto::pb;
use proto::policysession::{CheckPolicyRequest, CheckPolicyResponse};
use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

use crate::entitlements::Entitlements;
use crate::parts::ServerParts;
use crate::resolving::{Asker, resolve_source_meta};
use crate::running::Running;
use crate::source_policy::{Judge, Rules, SourcePolicy};

/// One build.
pub struct Job {
    parts: Arc<ServerParts>,
    running: Arc<Running>,
    entitlements: Entitlements,
    policy: JobPolicy,
    build: solver::Build<OpWork>,
    refs: Mutex<HashMap<String, Arc<SolvedRef>>>,
    /// What must have taken away its processes and mounts before the build has ended.
    tasks: TaskTracker,
}

/// What decides about the sources of a build.
#[derive(Default)]
pub(crate) struct JobPolicy {
    /// The rules that came with its request.
    pub(crate) rules: Rules,
    /// The session whose client judges sources; empty when none does.
    pub(crate) session: String,
}

/// A graph whose outcome can be asked for.
pub struct SolvedRef {
    graph: Arc<Graph>,
    definition: Option<pb::Definition>,
    output: OnceCell<Output>,
    view: OnceCell<Arc<ReadOnly>>,
}

/// What a frontend or gateway client made of a build.
#[derive(Default)]
pub struct BuildResult {
    /// Solved graphs by platform; `None` is an empty file system.
    pub refs: Vec<(String, Option<Arc<SolvedRef>>)>,
    /// The name of a build with one result that is no map by platforms.
    pub single: bool,
    /// Configurations and the like, under the names frontends give them.
    pub metadata: BTreeMap<String, Vec<u8>>,
}

impl BuildResult {
    /// The result without files.
    pub fn empty() -> Self {
        Self::of(None)
    }

    /// A result that is no map.
    pub fn of(reference: Option<Arc<SolvedRef>>) -> Self {
        BuildResult {
            refs: vec![(String::new(), reference)],
            single: true,
            metadata: BTreeMap::new(),
        }
    }
}

impl SolvedRef {
    /// The graph.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// The graph as the wire has it: as it came, or made from ours.
    pub fn definition(&self) -> pb::Definition {
        let mut definition = match &self.definition {
            Some(definition) => definition.clone(),
            None => llb::to_proto(&self.graph),
        };
        llb::drop_empty_locations(&mut definition);
        definition
    }
}

impl Job {
    /// A build for the client behind `running`, of whose sources `policy` decides.
    pub(crate) fn new(
        parts: Arc<ServerParts>,
        running: Arc<Running>,
        entitlements: Entitlements,
        policy: JobPolicy,
    ) -> Arc<Self> {
        let context = BuildContext::new(running.clone());
        let build = parts.solver.build(context);
        let job = Arc::new(Job {
            parts,
            running,
            entitlements,
            policy,
            build,
            refs: Mutex::new(HashMap::new()),
            tasks: TaskTracker::new(),
        });
        job.running.attach(&job);
        job
    }

    /// What the server's builds share.
    pub fn parts(&self) -> &Arc<ServerParts> {
        &self.parts
    }

    /// The build as others see it.
    pub fn running(&self) -> &Arc<Running> {
        &self.running
    }

    /// What it may do.
    pub fn entitlements(&self) -> &Entitlements {
        &self.entitlements
    }

    /// What must have ended before the build has.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// What work sees that is done for this build alone.
    pub fn context(&self) -> BuildContext {
        BuildContext::new(self.running.clone())
    }

    /// Gives everything up, and waits until what only this build wanted has ended and taken away its
    /// mounts, at most for `patience`.
    pub async fn stop(&self, patience: Duration) {
        let stopped = async {
            self.build.stop().await;
            self.tasks.close();
            self.tasks.wait().await;
        };
        if tokio::time::timeout(patience, stopped).await.is_err() {
            let id = self.running.id();
            tracing::warn!(
                "build {id}: steps have not ended {patience:?} after they were cancelled"
            );
        }
    }

    /// Notes the use of everything that the build found or made: what was used longest ago is
    /// removed first. That it cannot be noted is no reason to fail.
    pub async fn note_use(&self) {
        let outputs = self.build.known_outputs();
        let used: BTreeSet<LayerId> = outputs
            .iter()
            .flat_map(|output| output.stack.iter())
            .collect();
        let (layers, used) = (self.parts.layers.clone(), used.into_iter().collect());
        if let Err(error) = blocking(move || Ok(layers.touch(&used)?)).await {
            tracing::warn!("noting the use of layers: {error}");
        }
    }

    /// Takes a graph into the build, with the sources that its policy wants. Nothing runs yet.
    pub async fn load(&self, graph: Graph) -> Result<Arc<SolvedRef>> {
        self.load_judged(graph, None, &Rules::default()).await
    }

    /// The rules of the build, and of the session if its client judges sources.
    pub(crate) fn policy(&self) -> SourcePolicy<'_> {
        SourcePolicy {
            rules: self.policy.rules.clone(),
            judge: (!self.policy.session.is_empty()).then_some(self as &dyn Judge),
        }
    }

    async fn load_judged(
        &self,
        mut graph: Graph,
        mut definition: Option<pb::Definition>,
        rules: &Rules,
    ) -> Result<Arc<SolvedRef>> {
        let mut policy = self.policy();
        policy.rules = policy.rules.then(rules);
        let wanted = policy.graph(&graph).await.map_err(|error| {
            let error = error.context("error evaluating the source policy");
            error.context("failed to load LLB")
        })?;
        if let Some(wanted) = wanted {
            // Whoever asks what was solved is told what was asked for.
            definition = definition.or_else(|| Some(llb::to_proto(&graph)));
            graph = wanted;
        }
        self.running.announce(&graph);
        self.entitlements
            .check(&mut graph, self.parts.ops.devices.as_ref())
            .map_err(|error| self.running.locate(error))?;
        for digest in &graph.order {
            let Some(vertex) = graph.vertex(digest) else {
                continue;
            };
            let inputs: Vec<_> = vertex
                .inputs
                .iter()
                .map(|edge| (edge.vertex, edge.output as usize))
                .collect();
            let work = OpWork::new(vertex.clone(), self.parts.ops.clone());
            self.build.add(work, &inputs)?;
        }
        Ok(Arc::new(SolvedRef {
            graph: Arc::new(graph),
            definition,
            output: OnceCell::new(),
            view: OnceCell::new(),
        }))
    }

    /// Takes a graph as it came over the wire; its sources are also judged by the rules given along.
    pub(crate) async fn load_definition(
        &self,
        definition: pb::Definition,
        rules: &Rules,
    ) -> Result<Option<Arc<SolvedRef>>> {
        let graph = llb::from_proto(definition.clone())
            .map_err(|error| Error::from(error).context("failed to load LLB"))?;
        if graph.root.is_none() {
            return Ok(None);
        }
        let loaded = self.load_judged(graph, Some(definition), rules).await?;
        Ok(Some(loaded))
    }

    /// The outcome of a graph, made now if it was not before.
    pub async fn evaluate(&self, reference: &SolvedRef) -> Result<Output> {
        let make = || async {
            let Some(root) = reference.graph.root else {
                return Ok(Output::empty());
            };
            let node = self
                .build
                .node(&root.vertex)
                .ok_or_else(|| Error::internal(format!("vertex {} was not loaded", root.vertex)))?;
            self.build.output(&node, root.output as usize).await
        };
        let output = reference.output.get_or_try_init(make).await;
        output.cloned().map_err(|error| self.running.locate(error))
    }

    /// The outcome of a graph, to be looked into.
    pub async fn view(&self, reference: &SolvedRef) -> Result<Arc<ReadOnly>> {
        let output = self.evaluate(reference).await?;
        let view = reference.view.get_or_try_init(|| async {
            let parts = self.parts.ops.clone();
            let view = blocking(move || parts.read_only(&output.stack)).await?;
            Ok(Arc::new(view))
        });
        view.await.cloned()
    }

    /// Keeps a graph under a new name, by which gateway clients speak of it.
    pub fn keep(&self, reference: Arc<SolvedRef>) -> String {
        let id = format!("{:032x}", rand::random::<u128>());
        self.refs.lock().insert(id.clone(), reference);
        id
    }

    /// Keeps an outcome that no graph of its own stands for under a new name.
    pub fn keep_output(&self, output: Output) -> String {
        self.keep(Arc::new(SolvedRef {
            graph: Arc::new(Graph::default()),
            definition: None,
            output: OnceCell::new_with(Some(output)),
            view: OnceCell::new(),
        }))
    }

    /// The vertex of that digest, if it was loaded.
    pub fn vertex(&self, digest: &Digest) -> Option<Arc<llb::Vertex>> {
        let node = self.build.node(digest)?;
        Some(node.work().op_vertex().clone())
    }

    /// The graph kept under a name; the empty name is the empty file system.
    pub fn find(&self, id: &str) -> Result<Option<Arc<SolvedRef>>> {
        if id.is_empty() {
            return Ok(None);
        }
        match self.refs.lock().get(id) {
            Some(reference) => Ok(Some(reference.clone())),
            None => Err(Error::not_found(format!("no such ref: {id}"))),
        }
    }
}

#[async_trait]
impl Judge for Job {
    async fn check(&self, request: CheckPolicyRequest) -> Result<CheckPolicyResponse> {
        let session = self.running.session_of(&self.policy.session).await?;
        Ok(session.check_policy(request).await?)
    }

    async fn metadata(
        &self,
        request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse> {
        resolve_source_meta(self, request, Asker::Judge).await
    }
}
