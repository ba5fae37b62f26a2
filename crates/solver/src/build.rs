//! One build: its vertices, what is known of each, and the resolving of one from another.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diag::{Error, Result};
use futures::future::{BoxFuture, FutureExt, try_join_all};
use oci::Digest;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::flight::{Departure, Subscription, board};
use crate::keys::{KeyInput, key};
use crate::miss::shortened;
use crate::store::RecordNote;
use crate::work::{Context, Identity, InputKey, KeyPart, Outcome, Work};
use crate::{Inner, RunContext};

/// How often work is begun for a build whose fellows go away.
const ATTEMPTS_MAX: usize = 4;

/// How many vertices on the way to one may be resolved from one another, each on the stack of the
/// one above it (2 KiB each, four times that without optimisation). Of a deeper graph the bottom is
/// resolved first, in bands of that height.
const BAND: usize = 128;

/// A vertex added to a build.
pub struct NodeRef<W: Work>(Arc<Node<W>>);

impl<W: Work> Clone for NodeRef<W> {
    fn clone(&self) -> Self {
        NodeRef(self.0.clone())
    }
}

impl<W: Work> NodeRef<W> {
    /// Its name.
    pub fn vertex(&self) -> Digest {
        self.0.vertex
    }

    /// Its work.
    pub fn work(&self) -> &Arc<W> {
        &self.0.work
    }
}

/// A build in progress. Vertices are added inputs first; equal ones are one. Dropping the build
/// withdraws its interest in everything that runs for it.
pub struct Build<W: Work> {
    solver: Arc<Inner<W>>,
    context: W::Context,
    cancel: CancellationToken,
    /// The ends of works that were given up.
    ending: Mutex<Vec<BoxFuture<'static, ()>>>,
    nodes: Mutex<HashMap<Digest, Arc<Node<W>>>>,
}

struct Node<W: Work> {
    vertex: Digest,
    work: Arc<W>,
    inputs: Vec<(Arc<Node<W>>, usize)>,
    /// How many vertices are on the longest way down from it.
    depth: usize,
    key: OnceCell<Result<Keyed<W::Output>>>,
    outputs: OnceCell<Result<Vec<W::Output>>>,
    subscription: Mutex<Option<Arc<Subscription<W>>>>,
    /// Set when work for it that was given up had been told to have begun: what is found afterwards was
    /// not simply there.
    begun: AtomicBool,
    /// Set when the observers were told of the vertex's end, which happens once.
    ended: AtomicBool,
}

/// What is known of a vertex before it is run.
#[derive(Clone)]
struct Keyed<O> {
    canonical: Digest,
    /// The keys a new record is found by, the canonical one included.
    keys: Vec<Digest>,
    parts: Vec<KeyPart>,
    found: Option<Vec<O>>,
    /// Whether it is known, but what it gave is gone.
    evicted: bool,
    /// Whether pinning the identity was visible work.
    started: bool,
}

impl<W: Work> Node<W> {
    fn note_begun(&self, begun: bool) {
        self.begun.fetch_or(begun, Ordering::Relaxed);
    }
}

impl<W: Work> Drop for Node<W> {
    /// One after the other: inputs of inputs would be dropped on top of one another else.
    fn drop(&mut self) {
        let mut inputs = std::mem::take(&mut self.inputs);
        while let Some((input, _)) = inputs.pop() {
            if let Some(mut input) = Arc::into_inner(input) {
                inputs.append(&mut input.inputs);
            }
        }
    }
}

impl<W: Work> Drop for Build<W> {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl<W: Work> Build<W> {
    pub(crate) fn new(solver: Arc<Inner<W>>, context: W::Context) -> Self {
        Build {
            solver,
            context,
            cancel: CancellationToken::new(),
            ending: Mutex::default(),
            nodes: Mutex::new(HashMap::new()),
        }
    }

    /// Adds a vertex; if one of that name is there, that one is returned.
    ///
    /// # Errors
    /// Invalid, when an input was not added before.
    pub fn add(&self, work: W, inputs: &[(Digest, usize)]) -> Result<NodeRef<W>> {
        let vertex = work.vertex();
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get(&vertex) {
            return Ok(NodeRef(node.clone()));
        }
        let inputs = inputs
            .iter()
            .map(|(input, output)| match nodes.get(input) {
                Some(node) => Ok((node.clone(), *output)),
                None => Err(Error::invalid(format!(
                    "input {input} of {vertex} is not known"
                ))),
            })
            .collect::<Result<Vec<_>>>()?;
        let depth = inputs.iter().map(|(input, _)| input.depth + 1).max();
        let node = Arc::new(Node {
            vertex,
            work: Arc::new(work),
            inputs,
            depth: depth.unwrap_or(0),
            key: OnceCell::new(),
            outputs: OnceCell::new(),
            subscription: Mutex::new(None),
            begun: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        nodes.insert(vertex, node.clone());
        Ok(NodeRef(node))
    }

    /// The vertex of that name, if it was added.
    pub fn node(&self, vertex: &Digest) -> Option<NodeRef<W>> {
        self.nodes
            .lock()
            .get(vertex)
            .map(|node| NodeRef(node.clone()))
    }

    /// Who watches this build.
    pub fn context(&self) -> &W::Context {
        &self.context
    }

    /// Gives the build up: whoever waits for it gets a cancelled error, and work that nobody else
    /// wants is stopped.
    pub fn cancel(&self) {
        self.cancel.cancel();
        for node in self.nodes.lock().values() {
            if let Some(subscription) = node.subscription.lock().take() {
                self.ending.lock().push(subscription.withdraw().boxed());
            }
        }
    }

    /// Gives the build up, and waits until the works that only it wanted have ended and cleaned up.
    /// Whoever waits for an outcome of the build must have been dropped before.
    pub async fn stop(&self) {
        self.cancel();
        let ending = std::mem::take(&mut *self.ending.lock());
        futures::future::join_all(ending).await;
    }

    /// The outputs of all vertices that were found or made so far.
    pub fn known_outputs(&self) -> Vec<W::Output> {
        let nodes = self.nodes.lock();
        let outputs = nodes.values().filter_map(|node| {
            let made = node.outputs.get().and_then(|outputs| outputs.as_ref().ok());
            let keyed = || node.key.get().and_then(|keyed| keyed.as_ref().ok());
            made.or_else(|| keyed().and_then(|keyed| keyed.found.as_ref()))
        });
        outputs.flatten().cloned().collect()
    }

    /// The canonical key of a vertex. Runs nothing but what its lookups by content need.
    pub async fn key(&self, node: &NodeRef<W>) -> Result<Digest> {
        self.until_cancelled(async {
            self.key_bands_below(&node.0).await?;
            Ok(self.keyed(&node.0).await?.canonical)
        })
        .await
    }

    /// All outputs of a vertex, found or made.
    pub async fn outputs(&self, node: &NodeRef<W>) -> Result<Vec<W::Output>> {
        self.until_cancelled(async {
            self.key_bands_below(&node.0).await?;
            self.realise(&node.0).await
        })
        .await
    }

    /// One output of a vertex, found or made.
    ///
    /// # Errors
    /// Those of the work, and invalid when there is no such output.
    pub async fn output(&self, node: &NodeRef<W>, output: usize) -> Result<W::Output> {
        let outputs = self.outputs(node).await?;
        pick(&outputs, output, &node.0.vertex)
    }

    async fn until_cancelled<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            outcome = work => outcome,
            () = self.cancel.cancelled() => Err(Error::canceled()),
        }
    }

    /// Keys what is so deep below a vertex that it cannot be keyed on its stack.
    async fn key_bands_below(&self, node: &Arc<Node<W>>) -> Result<()> {
        for band in bands_below(node, |node| node.key.initialized()) {
            try_join_all(band.iter().map(|node| self.keyed(node))).await?;
        }
        Ok(())
    }

    /// The outputs of a vertex whose key is known, or being made by the caller's.
    async fn realise(&self, node: &Arc<Node<W>>) -> Result<Vec<W::Output>> {
        let known = |node: &Node<W>| {
            let keyed = node.key.get().and_then(|keyed| keyed.as_ref().ok());
            node.outputs.initialized() || keyed.is_some_and(|keyed| keyed.found.is_some())
        };
        for band in bands_below(node, known) {
            try_join_all(band.iter().map(|node| self.realise_near(node.clone()))).await?;
        }
        self.realise_near(node.clone()).await
    }

    fn keyed<'a>(&'a self, node: &'a Arc<Node<W>>) -> BoxFuture<'a, Result<Keyed<W::Output>>> {
        async move {
            let keyed = node.key.get_or_init(|| async {
                let keyed = self.compute_key(node).await;
                match &keyed {
                    Ok(keyed) if keyed.found.is_some() => {
                        self.end(
                            node,
                            if keyed.started {
                                Outcome::Done
                            } else {
                                Outcome::Cached
                            },
                        );
                    }
                    Ok(_) => {}
                    Err(error) if error.failed_vertex() == Some(&node.vertex.to_string()) => {
                        self.end(node, Outcome::Failed(error));
                    }
                    Err(_) => {}
                }
                keyed
            });
            keyed.await.clone()
        }
        .boxed()
    }

    async fn compute_key(&self, node: &Arc<Node<W>>) -> Result<Keyed<W::Output>> {
        let own = |error: Error| error.vertex(node.vertex.to_string());
        let watcher =
            RunContext::single(node.vertex, self.context.clone(), self.cancel.child_token());
        // Whoever waits for this may go away, and another look from the start.
        let _told = Told(node, &watcher);
        // Inputs are keyed beside the pinning of this vertex: neither needs the other.
        let inputs = (0..node.inputs.len()).map(|at| self.keyed_input(node, at));
        let inputs = try_join_all(inputs);
        let identity = async { node.work.identity(&watcher).await.map_err(own) };
        let (inputs, identity) = tokio::try_join!(inputs, identity)?;
        let by_definition: Vec<KeyInput> = inputs
            .iter()
            .zip(&node.inputs)
            .map(|(keyed, (_, output))| KeyInput::Definition(keyed.canonical, *output))
            .collect();
        let definition_key = key(&identity.definition, &by_definition);
        let reuse = !node.work.ignore_cache() && node.work.keep();
        let started = || watcher.has_started();
        if reuse && let Some(record) = self.solver.store.lookup(&definition_key)? {
            let keys = vec![definition_key];
            return Ok(Keyed {
                canonical: record.canonical,
                keys,
                parts: parts(&identity, &inputs, &[]),
                evicted: record.outputs.is_none(),
                found: record.outputs,
                started: started(),
            });
        }
        let contents = self.contents(node, &watcher).await?;
        let mut by_content = by_definition;
        for (at, digest) in &contents {
            by_content[*at] = KeyInput::Content(*digest);
        }
        let content_key = (!contents.is_empty()).then(|| key(&identity.digest, &by_content));
        let canonical = content_key.unwrap_or(definition_key);
        let mut keys = vec![definition_key];
        keys.extend(content_key);
        let mut keyed = Keyed {
            canonical,
            keys,
            parts: parts(&identity, &inputs, &contents),
            found: None,
            evicted: false,
            started: started(),
        };
        if !reuse {
            return Ok(keyed);
        }
        if let Some(content_key) = content_key
            && let Some(record) = self.solver.store.lookup(&content_key)?
        {
            self.solver
                .store
                .alias(&definition_key, &record.canonical)?;
            keyed.canonical = record.canonical;
            keyed.evicted = record.outputs.is_none();
            keyed.found = record.outputs;
        }
        Ok(keyed)
    }

    /// The key of an input. One that is keyed by content and unknown will be needed, and is made at
    /// once: stages that end in the same chain of copies would be made one after the other else.
    async fn keyed_input(&self, node: &Node<W>, at: usize) -> Result<Keyed<W::Output>> {
        let (input, _) = &node.inputs[at];
        let keyed = self.keyed(input).await?;
        let unknown = keyed.found.is_none() && !keyed.evicted;
        if unknown && node.work.input_key(at) == InputKey::Content {
            self.realise(input).await?;
        }
        Ok(keyed)
    }

    /// Digests of what is read of inputs that are keyed by content, which are realised for it.
    async fn contents(
        &self,
        node: &Arc<Node<W>>,
        watcher: &RunContext<W::Context>,
    ) -> Result<Vec<(usize, Digest)>> {
        let by_content =
            (0..node.inputs.len()).filter(|input| node.work.input_key(*input) == InputKey::Content);
        try_join_all(by_content.map(|at| async move {
            let (input, output) = &node.inputs[at];
            let outputs = self.realise(input).await?;
            let output = pick(&outputs, *output, &input.vertex)?;
            let digest = node.work.content_digest(watcher, at, &output).await;
            let digest = digest.map_err(|error| self.end_keying(node, error))?;
            Ok((at, digest))
        }))
        .await
    }

    /// What the build hears when an input could not be read for a key; who watches the vertex hears
    /// the error alone, as it is clear there what was tried.
    fn end_keying(&self, node: &Node<W>, error: Error) -> Error {
        let error = error.vertex(node.vertex.to_string());
        self.end(node, Outcome::Failed(&error));
        match error.is_canceled() {
            true => error,
            false => error.context("failed to compute cache key"),
        }
    }

    fn realise_near<'a>(&'a self, node: Arc<Node<W>>) -> BoxFuture<'a, Result<Vec<W::Output>>> {
        async move {
            let outputs = node.outputs.get_or_init(|| self.make(&node));
            outputs.await.clone()
        }
        .boxed()
    }

    async fn make(&self, node: &Arc<Node<W>>) -> Result<Vec<W::Output>> {
        let keyed = self.keyed(node).await?;
        if let Some(outputs) = keyed.found {
            if keyed.started && node.work.tells_reuse() {
                self.context.reused(&node.vertex);
            }
            return Ok(outputs);
        }
        let inputs = try_join_all(node.inputs.iter().map(|(input, output)| async move {
            let outputs = self.realise_near(input.clone()).await?;
            pick(&outputs, *output, &input.vertex)
        }))
        .await?;
        let departure = || Departure {
            work: node.work.clone(),
            inputs: inputs.clone(),
            canonical: keyed.canonical,
            keys: keyed.keys.clone(),
            reuse: !node.work.ignore_cache() && node.work.keep(),
            evicted: keyed.evicted,
            note: RecordNote {
                description: node.work.description(),
                parts: shortened(keyed.parts.clone()),
                missed: None,
            },
        };
        let mut attempts = 1;
        let (subscription, landed) = loop {
            let subscription = self.subscribe(node, departure)?;
            let landed = subscription.wait().await;
            match &landed {
                Err(error)
                    if attempts < ATTEMPTS_MAX
                        && subscription.lost_somebody()
                        && error.process_exit_code().is_none()
                        && !self.cancel.is_cancelled() =>
                {
                    attempts += 1;
                    node.note_begun(subscription.has_started());
                    node.subscription.lock().take();
                }
                _ => break (subscription, landed),
            }
        };
        let started = keyed.started || subscription.has_started();
        match landed {
            Ok(landed) => {
                let cached = landed.found && !started;
                self.end(
                    node,
                    if cached {
                        Outcome::Cached
                    } else {
                        Outcome::Done
                    },
                );
                Ok(landed.outputs)
            }
            Err(error) => {
                let error = error.vertex(node.vertex.to_string());
                self.end(node, Outcome::Failed(&error));
                Err(error)
            }
        }
    }

    /// The subscription lives as long as the build: a waiter that is dropped because something else
    /// failed must not stop work that another waiter of this build takes up.
    fn subscribe(
        &self,
        node: &Node<W>,
        departure: impl FnOnce() -> Departure<W>,
    ) -> Result<Arc<Subscription<W>>> {
        let mut held = node.subscription.lock();
        if self.cancel.is_cancelled() {
            return Err(Error::canceled());
        }
        let begin = || Arc::new(board(&self.solver, departure(), self.context.clone()));
        Ok(held.get_or_insert_with(begin).clone())
    }

    fn end(&self, node: &Node<W>, outcome: Outcome<'_>) {
        let outcome = match outcome {
            Outcome::Cached if node.begun.load(Ordering::Relaxed) => Outcome::Done,
            outcome => outcome,
        };
        if !node.ended.swap(true, Ordering::Relaxed) {
            self.context.completed(&node.vertex, outcome);
        }
    }
}

/// Notes on its way out whether the vertex was told to have begun.
struct Told<'a, W: Work>(&'a Node<W>, &'a RunContext<W::Context>);

impl<W: Work> Drop for Told<'_, W> {
    fn drop(&mut self) {
        self.0.note_begun(self.1.has_started());
    }
}

/// The vertices below `node`, lowest band first, without its own band and without what is only below
/// `known` ones.
fn bands_below<W: Work>(
    node: &Arc<Node<W>>,
    known: impl Fn(&Node<W>) -> bool,
) -> Vec<Vec<Arc<Node<W>>>> {
    let mut bands = vec![Vec::new(); node.depth / BAND];
    if bands.is_empty() || known(node) {
        return Vec::new();
    }
    let mut seen = HashSet::new();
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        for (input, _) in &node.inputs {
            if seen.insert(input.vertex) && !known(input) {
                if let Some(band) = bands.get_mut(input.depth / BAND) {
                    band.push(input.clone());
                }
                open.push(input);
            }
        }
    }
    bands
}

fn pick<O: Clone>(outputs: &[O], output: usize, vertex: &Digest) -> Result<O> {
    outputs.get(output).cloned().ok_or_else(|| {
        Error::invalid(format!(
            "vertex {vertex} has {} outputs, not {output}",
            outputs.len()
        ))
    })
}

/// The components of a key by name.
fn parts<O>(
    identity: &Identity,
    inputs: &[Keyed<O>],
    contents: &[(usize, Digest)],
) -> Vec<KeyPart> {
    let mut parts = identity.parts.clone();
    for (at, input) in inputs.iter().enumerate() {
        let content = contents.iter().find(|(input, _)| *input == at);
        parts.push(match content {
            Some((_, digest)) => KeyPart::new(format!("input {at} content"), digest.to_string()),
            None => KeyPart::new(format!("input {at}"), input.canonical.to_string()),
        });
    }
    parts
}
