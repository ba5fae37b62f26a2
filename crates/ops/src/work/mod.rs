//! LLB vertices as the solver's work.
//!
//! [`OpWork`] is one vertex of a build: [`keys`] says what it is keyed by, the other modules run it.
//! Everything that ops share is in [`Parts`]; everything that belongs to one build comes through its
//! [`BuildContext`].

mod blob;
mod build;
mod cache_mounts;
mod canonical;
mod container;
mod context;
mod devices;
mod exec;
mod file;
mod git;
mod http;
mod keys;
mod local;
mod logs;
mod output;
mod parts;
mod provider;
mod source_meta;
mod source_op;
mod ssh;

use std::sync::Arc;

use async_trait::async_trait;
use diag::{Error, Result};
use layers::{LayerNote, LayerStack};
use llb::{DiffOp, MergeOp, Op, Vertex};
use oci::Digest;
use solver::{Identity, InputKey, RunContext, Work};
use status::Line;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

pub use cache_mounts::{CacheMountInfo, CacheMounts};
pub use canonical::canonical_identifier;
pub use container::{ContainerFiles, ContainerProcess};
pub use context::{BuildContext, Event, FailedStep, Outside, RunSink, to_vertex_status};
pub use devices::not_to_be_had;
pub use keys::InputSelection;
pub use logs::{LogChunk, LogLimits, forward as forward_logs};
pub use output::Output;
pub use parts::{Parts, ReadOnly, blocking};
pub use provider::{layout_provider, registry_provider};
pub use source_meta::{SourceMeta, SourceQuestions, source_meta};
pub use source_op::{image_reference, oci_layout_store};

/// One vertex of a build.
pub struct OpWork {
    vertex: Arc<Vertex>,
    parts: Arc<Parts>,
    inputs: Vec<InputSelection>,
    /// For sources: what `identity` found, for `run` to hand out.
    pinned: OnceCell<source_op::Pinned>,
}

impl OpWork {
    /// The work of a vertex.
    pub fn new(vertex: Arc<Vertex>, parts: Arc<Parts>) -> Self {
        let inputs = keys::input_selections(&vertex);
        OpWork {
            vertex,
            parts,
            inputs,
            pinned: OnceCell::new(),
        }
    }

    /// The vertex.
    pub fn op_vertex(&self) -> &Arc<Vertex> {
        &self.vertex
    }
}

#[async_trait]
impl Work for OpWork {
    type Output = Output;
    type Context = BuildContext;

    fn vertex(&self) -> Digest {
        self.vertex.digest
    }

    async fn identity(&self, context: &RunContext<BuildContext>) -> Result<Identity> {
        let Op::Source(source) = &self.vertex.op else {
            return Ok(keys::identity(&self.vertex));
        };
        let statuses = RunSink::of_vertex(context, self.vertex.digest);
        let pin = || source_op::pin(&self.parts, &self.vertex, source, context, &statuses);
        let pinned = self.pinned.get_or_try_init(pin).await;
        let pinned = pinned.map_err(|error| match source.identifier.starts_with("local://") {
            // What a client sends is its content, and not only its key.
            true => error,
            false if error.is_canceled() => error,
            false => error.context("failed to load cache key"),
        })?;
        Ok(pinned.identity())
    }

    fn input_key(&self, input: usize) -> InputKey {
        match self.inputs.get(input) {
            Some(InputSelection::Content(_)) => InputKey::Content,
            _ => InputKey::Definition,
        }
    }

    async fn content_digest(
        &self,
        context: &RunContext<BuildContext>,
        input: usize,
        output: &Output,
    ) -> Result<Digest> {
        let selectors = match self.inputs.get(input) {
            Some(InputSelection::Content(selectors)) => selectors.clone(),
            _ => Vec::new(),
        };
        self.parts
            .digest_content(output, selectors, context.cancel.clone())
            .await
    }

    async fn run(
        &self,
        context: &RunContext<BuildContext>,
        inputs: Vec<Output>,
    ) -> Result<Vec<Output>> {
        match &self.vertex.op {
            Op::Source(_) => {
                let pinned = self
                    .pinned
                    .get()
                    .ok_or_else(|| Error::internal("a source was run before it was pinned"))?;
                let output = pinned.fetch(&self.parts, &self.vertex, context).await?;
                Ok(vec![output])
            }
            Op::Exec(exec) => {
                exec::run_exec_op(&self.parts, &self.vertex, exec, inputs, context).await
            }
            Op::File(file) => {
                let (parts, file, name) = (self.parts.clone(), file.clone(), self.vertex.name());
                let cancel = context.cancel.clone();
                blocking(move || file::run_file_op(&parts, &file, &name, &inputs, &cancel)).await
            }
            Op::Merge(merge) => {
                let _line = self.line(context, "merging");
                self.merge(merge, &inputs)
            }
            Op::Diff(diff) => {
                let _line = self.line(context, "diffing");
                self.diff(diff, &inputs, context.cancel.clone()).await
            }
            Op::Build(build) => {
                let output = build::run_build_op(&self.parts, build, &inputs, context).await?;
                Ok(vec![output])
            }
        }
    }

    fn ignore_cache(&self) -> bool {
        self.vertex.meta.ignore_cache
    }

    fn keep(&self) -> bool {
        match (&self.vertex.op, self.pinned.get()) {
            (Op::Source(_), Some(pinned)) => pinned.keep(),
            _ => true,
        }
    }

    /// A folder of the client is looked at in each build.
    fn tells_reuse(&self) -> bool {
        !matches!(self.pinned.get(), Some(source_op::Pinned::Local(_)))
    }

    /// As with stock, sources count too.
    fn limited(&self) -> bool {
        matches!(self.vertex.op, Op::Exec(_) | Op::File(_) | Op::Source(_))
    }

    fn description(&self) -> String {
        self.vertex.name()
    }
}

impl OpWork {
    /// A line of work below the vertex, complete when it is dropped.
    fn line(&self, context: &RunContext<BuildContext>, id: &str) -> Line {
        Line::start(&RunSink::of_vertex(context, self.vertex.digest), id)
    }

    fn merge(&self, merge: &MergeOp, inputs: &[Output]) -> Result<Vec<Output>> {
        let mut stack = LayerStack::empty();
        for input in merge.inputs.iter().flatten() {
            stack = stack.joined(&input_stack(inputs, *input)?);
        }
        Ok(vec![Output::of(&self.parts.layers, stack)])
    }

    /// What the upper state has over the lower one: the layers between where it was made from it, else
    /// one layer that is found by comparing both.
    async fn diff(
        &self,
        diff: &DiffOp,
        inputs: &[Output],
        cancel: CancellationToken,
    ) -> Result<Vec<Output>> {
        let side = |input: Option<usize>| match input {
            Some(input) => input_stack(inputs, input),
            None => Ok(LayerStack::empty()),
        };
        let (lower, upper) = (side(diff.lower)?, side(diff.upper)?);
        if let Some(above) = upper.above(&lower) {
            return Ok(vec![Output::of(&self.parts.layers, above)]);
        }
        let (layers, note) = (
            self.parts.layers.clone(),
            LayerNote::new(self.vertex.name()),
        );
        let output = blocking(move || {
            let made = layers.difference(&lower, &upper, note, &|| cancel.is_cancelled())?;
            Ok(match made {
                Some((id, hold)) => Output::held(id.into(), hold),
                None => Output::empty(),
            })
        });
        Ok(vec![output.await?])
    }
}

fn input_stack(inputs: &[Output], input: usize) -> Result<LayerStack> {
    inputs
        .get(input)
        .map(|output| output.stack.clone())
        .ok_or_else(|| Error::invalid(format!("missing input {input}")))
}
