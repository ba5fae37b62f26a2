//! What a user of the solver implements.

use async_trait::async_trait;
use diag::Result;
use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::RunContext;

/// One vertex: how it is keyed and run.
///
/// Life of a vertex in a build: [`identity`](Work::identity) once; if it must be looked up by
/// content, [`content_digest`](Work::content_digest) for each input that is keyed so; if it was
/// not found, [`run`](Work::run), in a task that may serve several builds.
///
/// A source has no inputs and does its pinning in `identity`: an image resolves its tag to a digest,
/// a local context is transferred and its content digested; what was brought may stay in the value
/// for `run` to hand out. A process has its root file system as an input keyed by
/// [`InputKey::Definition`] and read-only mounts keyed by [`InputKey::Content`].
#[async_trait]
pub trait Work: Send + Sync + 'static {
    /// What one output of the work is; cloning it is cheap.
    type Output: Clone + Send + Sync + 'static;
    /// Who watches, and where the outside is found.
    type Context: Context;

    /// The vertex's own name within a build: equal names are one vertex.
    fn vertex(&self) -> Digest;

    /// What the vertex is, without its inputs.
    ///
    /// Events may be emitted; the vertex then counts as started.
    async fn identity(&self, context: &RunContext<Self::Context>) -> Result<Identity>;

    /// How input number `input` enters the content key.
    fn input_key(&self, input: usize) -> InputKey;

    /// The digest of what this vertex reads of input number `input`, whose output is given.
    async fn content_digest(
        &self,
        context: &RunContext<Self::Context>,
        input: usize,
        output: &Self::Output,
    ) -> Result<Digest>;

    /// Does the work. Inputs are in the order of the vertex. The number of outputs is fixed for a
    /// vertex. Must end soon after `context.cancel` fires, leaving nothing behind.
    async fn run(
        &self,
        context: &RunContext<Self::Context>,
        inputs: Vec<Self::Output>,
    ) -> Result<Vec<Self::Output>>;

    /// Whether the work must be done even if it is known.
    fn ignore_cache(&self) -> bool {
        false
    }

    /// Whether the outcome is kept for later builds.
    fn keep(&self) -> bool {
        true
    }

    /// Whether it is told when what was kept of it is used. Work that brings everything while it is
    /// pinned has told that already.
    fn tells_reuse(&self) -> bool {
        true
    }

    /// Whether the run counts against the limit on parallel work.
    fn limited(&self) -> bool {
        true
    }

    /// What is kept with the record for people.
    fn description(&self) -> String;
}

/// How an input enters the content key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKey {
    /// By its own canonical key.
    Definition,
    /// By a digest of what is read of it.
    Content,
}

/// What a vertex is, without its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Equal for equal work, given what is read of inputs keyed by content.
    pub digest: Digest,
    /// Equal for equal work on equal inputs: also made of what is read of which input.
    pub definition: Digest,
    /// What the digest was made of, by name, so that a miss can be explained.
    pub parts: Vec<KeyPart>,
}

impl Identity {
    /// The identity made of these parts, in this order.
    pub fn of(parts: Vec<KeyPart>) -> Self {
        let mut hasher = oci::DigestHasher::new();
        for part in &parts {
            hasher.field(part.name.as_bytes());
            hasher.field(part.value.as_bytes());
        }
        let digest = hasher.finish();
        Identity {
            digest,
            definition: digest,
            parts,
        }
    }

    /// The same where, of inputs keyed by content, only what `selection` says is read. Two works
    /// that differ in nothing else have different definition keys and may share a content key.
    #[must_use]
    pub fn reading(mut self, selection: &[u8]) -> Self {
        let mut hasher = oci::DigestHasher::new();
        hasher.field(self.digest.as_bytes());
        hasher.field(selection);
        self.definition = hasher.finish();
        self
    }
}

/// A named component of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPart {
    /// What it is, such as `args` or `input 0`.
    pub name: String,
    /// Its value, or the digest of a long or secret one.
    pub value: String,
}

impl KeyPart {
    /// A component.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        KeyPart {
            name: name.into(),
            value: value.into(),
        }
    }
}

/// Who watches the vertices of a build.
pub trait Context: Clone + Send + Sync + 'static {
    /// What running work tells, such as a piece of a log.
    type Event: Clone + Send + Sync + 'static;

    /// The vertex began to do something.
    fn started(&self, vertex: &Digest);
    /// Something happened in it.
    fn event(&self, vertex: &Digest, event: &Self::Event);
    /// The vertex has ended.
    fn completed(&self, vertex: &Digest, outcome: Outcome<'_>);
    /// A vertex that ended after visible work of pinning is used now, and what it gives was kept: it
    /// is not made again.
    fn reused(&self, _vertex: &Digest) {}
}

/// How a vertex ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// Its outcome was known.
    Cached,
    /// It was done.
    Done,
    /// It failed or was cancelled.
    Failed(&'a diag::Error),
}
