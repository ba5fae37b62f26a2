//! What gateway clients hear of a failed vertex besides its error: its op, and of a process
//! references to its files before and after, from which they can start containers to look around.
//!
//! Stock's debuggers find the place in the program by the digest of the op, so it is told whole.

use bollard_buildkit_proto::google::protobuf::Any;
use diag::Error;
use oci::Digest;
use ops::work::{FailedStep, Output};
use serde_json::{Value, json};
use tonic::Status;

use crate::error_length::DETAIL_BYTES_MAX;
use crate::errors::{from_message, to_rpc_status};
use crate::job::Job;

/// The detail that stock clients read.
const SOLVE: &str = "github.com/moby/buildkit/errdefs.Solve+json";

/// The status of an error of a build, with the op that failed and the files of its process if they
/// were kept.
pub fn to_status(job: &Job, error: &Error) -> Status {
    let mut status = to_rpc_status(error);
    if let Some(detail) = detail(job, error) {
        let value = detail.to_string().into_bytes();
        // An op that is too long for headers costs the look around, never the error.
        if value.len() <= DETAIL_BYTES_MAX {
            status.details.push(Any {
                type_url: SOLVE.to_owned(),
                value,
            });
        }
    }
    from_message(status)
}

fn detail(job: &Job, error: &Error) -> Option<Value> {
    let digest: Digest = error.failed_vertex()?.parse().ok()?;
    let vertex = job.vertex(&digest)?;
    let ids = |outputs: Vec<Option<Output>>| -> Vec<String> {
        let keep = |output: Option<Output>| output.map(|output| job.keep_output(output));
        outputs
            .into_iter()
            .map(|output| keep(output).unwrap_or_default())
            .collect()
    };
    let FailedStep { before, after } = job.running().failure(&digest).unwrap_or_default();
    Some(json!({
        "inputIDs": ids(before),
        "mountIDs": ids(after),
        "op": llb::op_json(&vertex.raw)?,
        "description": vertex.meta.description,
    }))
}
