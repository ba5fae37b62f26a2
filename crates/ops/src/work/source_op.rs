//! Sources: placeholder while the source crate is being written.
use std::sync::Arc;
use diag::Result;
use llb::{SourceOp, Vertex};
use solver::{Identity, RunContext, KeyPart};
use super::{BuildContext, Output, Parts};

pub struct Pinned;

pub async fn pin(_parts: &Arc<Parts>, _vertex: &Vertex, source: &SourceOp, _context: &RunContext<BuildContext>) -> Result<Pinned> {
    Err(diag::Error::unimplemented(format!("source {}", source.identifier)))
}

impl Pinned {
    pub fn identity(&self) -> Identity { Identity::of(vec![KeyPart::new("op", "source")]) }
    pub fn keep(&self) -> bool { true }
    pub async fn fetch(&self, _parts: &Arc<Parts>, _vertex: &Vertex, _context: &RunContext<BuildContext>) -> Result<Output> { Ok(Output::empty()) }
}
