//! Running a build op: the definition of a graph is read from a file of an input, and solved as a
//! part of the same build.

use std::path::Path;
use std::sync::Arc;

use diag::{Error, Result};
use llb::BuildOp;
use proto::pb;
use proto::prost::Message;
use rustix::fs::OFlags;
use solver::RunContext;

use super::context::BuildContext;
use super::output::Output;
use super::parts::{Parts, blocking};
use crate::{LastLink, is_regular};

/// The builder that solves definitions; there is no other.
const LLB_BUILDER: i64 = -1;
/// The input that holds the definition, and the name of its file.
const DEFINITION: &str = "buildkit.llb.definition";
/// The attribute that names another file.
const FILENAME: &str = "llbbuild.filename";
/// The largest definition that is read, in bytes; messages with one have the same limit.
const DEFINITION_SIZE_BYTES_MAX: u64 = 128 << 20;

/// Runs a build op on its inputs.
pub async fn run_build_op(
    parts: &Arc<Parts>,
    op: &BuildOp,
    inputs: &[Output],
    context: &RunContext<BuildContext>,
) -> Result<Output> {
    if op.builder != LLB_BUILDER {
        return Err(Error::invalid("only LLB builder is currently allowed"));
    }
    let input = op
        .inputs
        .get(DEFINITION)
        .ok_or_else(|| Error::invalid(format!("no llb definition input {DEFINITION} found")))?;
    let input = inputs
        .get(*input)
        .ok_or_else(|| Error::invalid(format!("invalid index {input}")))?;
    let name = op.attrs.get(FILENAME).map_or(DEFINITION, String::as_str);
    let (parts, input, name) = (parts.clone(), input.clone(), name.to_owned());
    let definition = blocking(move || read_definition(&parts, &input, &name)).await?;
    solve(definition, context).await
}

/// Solves it in one of the builds that wait for it. A build that ends before takes its part with it,
/// which is no reason for the others to fail.
async fn solve(definition: pb::Definition, context: &RunContext<BuildContext>) -> Result<Output> {
    loop {
        let build = context.first()?;
        let solving = build.solve_definition(definition.clone());
        let solved = tokio::select! {
            solved = solving => solved,
            () = context.cancel.cancelled() => return Err(Error::canceled()),
        };
        match solved {
            Err(error) if error.is_canceled() && !context.first()?.is(&build) => {}
            solved => return solved,
        }
    }
}

fn read_definition(parts: &Parts, input: &Output, name: &str) -> Result<pb::Definition> {
    use std::io::Read;
    let view = parts.read_only(&input.stack)?;
    let failed = |reason: &str| Error::not_found(format!("failed to open {name}: {reason}"));
    let resolved = view.root.resolve(Path::new(name), LastLink::Follow)?;
    let stat = view.root.stat(&resolved)?;
    let stat = stat.ok_or_else(|| failed("no such file or directory"))?;
    if !is_regular(&stat) {
        return Err(Error::invalid(format!("{name} is not a regular file")));
    }
    if stat.st_size as u64 > DEFINITION_SIZE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "{name} is larger than {DEFINITION_SIZE_BYTES_MAX} bytes"
        )));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(view.root.open_at(&resolved, OFlags::RDONLY)?).read_to_end(&mut bytes)?;
    pb::Definition::decode(bytes.as_slice())
        .map_err(|error| Error::invalid(format!("{name} holds no LLB definition: {error}")))
}
