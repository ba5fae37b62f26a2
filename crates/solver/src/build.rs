//! One build: its vertices, what is known of each, and the resolving of one from another.

use std::collections::HashMap;
use std::sync::Arc;

use diag::{Error, Result};
use futures::future::{BoxFuture, FutureExt, try_join_all};
use oci::Digest;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::flight::{Departure, Subscription, board};
use crate::keys::{KeyInput, key};
use crate::store::RecordNote;
use crate::work::{Context, Identity, InputKey, KeyPart, Outcome, Work};
use crate::{Inner, RunContext};

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
    nodes: Mutex<HashMap<Digest, Arc<Node<W>>>>,
}

struct Node<W: Work> {
    vertex: Digest,
    work: Arc<W>,
    inputs: Vec<(Arc<Node<W>>, usize)>,
    key: OnceCell<Result<Keyed<W::Output>>>,
    outputs: OnceCell<Result<Vec<W::Output>>>,
    subscription: Mutex<Option<Arc<Subscription<W>>>>,
    /// Set when the observers were told of the vertex's end, which happens once.
    ended: std::sync::atomic::AtomicBool,
}

/// What is known of a vertex before it is run.
#[derive(Clone)]
struct Keyed<O> {
    canonical: Digest,
    /// The keys a new record is found by, the canonical one included.
    keys: Vec<Digest>,
    parts: Vec<KeyPart>,
    found: Option<Vec<O>>,
    /// Whether pinning the identity was visible work.
    started: bool,
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
        let node = Arc::new(Node {
            vertex,
            work: Arc::new(work),
            inputs,
            key: OnceCell::new(),
            outputs: OnceCell::new(),
            subscription: Mutex::new(None),
            ended: std::sync::atomic::AtomicBool::new(false),
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
            node.subscription.lock().take();
        }
    }

    /// The canonical key of a vertex. Runs nothing but what its lookups by content need.
    pub async fn key(&self, node: &NodeRef<W>) -> Result<Digest> {
        self.until_cancelled(async { Ok(self.keyed(&node.0).await?.canonical) })
            .await
    }

    /// All outputs of a vertex, found or made.
    pub async fn outputs(&self, node: &NodeRef<W>) -> Result<Vec<W::Output>> {
        self.until_cancelled(self.realise(node.0.clone())).await
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
        // Inputs are keyed beside the pinning of this vertex: neither needs the other.
        let inputs = try_join_all(node.inputs.iter().map(|(input, _)| self.keyed(input)));
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
                parts: parts(&identity, &inputs),
                found: record.outputs,
                started: started(),
            });
        }
        let content_key = self
            .content_key(node, &identity, by_definition, &watcher)
            .await?;
        let canonical = content_key.unwrap_or(definition_key);
        let mut keys = vec![definition_key];
        keys.extend(content_key);
        let mut keyed = Keyed {
            canonical,
            keys,
            parts: parts(&identity, &inputs),
            found: None,
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
            keyed.found = record.outputs;
        }
        Ok(keyed)
    }

    /// The content key, if any input is keyed by content; such inputs are realised.
    async fn content_key(
        &self,
        node: &Arc<Node<W>>,
        identity: &Identity,
        mut inputs: Vec<KeyInput>,
        watcher: &RunContext<W::Context>,
    ) -> Result<Option<Digest>> {
        let by_content: Vec<usize> = (0..node.inputs.len())
            .filter(|input| node.work.input_key(*input) == InputKey::Content)
            .collect();
        if by_content.is_empty() {
            return Ok(None);
        }
        let digests = try_join_all(by_content.iter().map(|&at| async move {
            let (input, output) = &node.inputs[at];
            let outputs = self.realise(input.clone()).await?;
            let output = pick(&outputs, *output, &input.vertex)?;
            let digest = node.work.content_digest(watcher, at, &output).await;
            digest.map_err(|error| error.vertex(node.vertex.to_string()))
        }))
        .await?;
        for (at, digest) in by_content.into_iter().zip(digests) {
            inputs[at] = KeyInput::Content(digest);
        }
        Ok(Some(key(&identity.digest, &inputs)))
    }

    fn realise<'a>(&'a self, node: Arc<Node<W>>) -> BoxFuture<'a, Result<Vec<W::Output>>> {
        async move {
            let outputs = node.outputs.get_or_init(|| self.make(&node));
            outputs.await.clone()
        }
        .boxed()
    }

    async fn make(&self, node: &Arc<Node<W>>) -> Result<Vec<W::Output>> {
        let keyed = self.keyed(node).await?;
        if let Some(outputs) = keyed.found {
            return Ok(outputs);
        }
        let inputs = try_join_all(node.inputs.iter().map(|(input, output)| async move {
            let outputs = self.realise(input.clone()).await?;
            pick(&outputs, *output, &input.vertex)
        }))
        .await?;
        let departure = Departure {
            work: node.work.clone(),
            inputs,
            canonical: keyed.canonical,
            keys: keyed.keys,
            reuse: !node.work.ignore_cache() && node.work.keep(),
            note: RecordNote {
                description: node.work.description(),
                parts: keyed.parts,
            },
        };
        // The subscription lives as long as the build: a waiter that is dropped because something
        // else failed must not stop work that another waiter of this build takes up.
        let subscription = {
            let mut held = node.subscription.lock();
            if self.cancel.is_cancelled() {
                return Err(Error::canceled());
            }
            held.get_or_insert_with(|| {
                Arc::new(board(&self.solver, departure, self.context.clone()))
            })
            .clone()
        };
        let landed = subscription.wait().await;
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

    fn end(&self, node: &Node<W>, outcome: Outcome<'_>) {
        if !node.ended.swap(true, std::sync::atomic::Ordering::Relaxed) {
            self.context.completed(&node.vertex, outcome);
        }
    }
}

fn pick<O: Clone>(outputs: &[O], output: usize, vertex: &Digest) -> Result<O> {
    outputs.get(output).cloned().ok_or_else(|| {
        Error::invalid(format!(
            "vertex {vertex} has {} outputs, not {output}",
            outputs.len()
        ))
    })
}

fn parts<O>(identity: &Identity, inputs: &[Keyed<O>]) -> Vec<KeyPart> {
    let mut parts = identity.parts.clone();
    for (at, input) in inputs.iter().enumerate() {
        parts.push(KeyPart::new(
            format!("input {at}"),
            input.canonical.to_string(),
        ));
    }
    parts
}
