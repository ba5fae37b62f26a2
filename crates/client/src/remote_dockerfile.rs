//! A Dockerfile that the server fetches for us: `-f https://…`.
//!
//! A build of its own, without a frontend and without a record, makes a source of the URL and reads the
//! file from it. So it is the builder's network and trust that count, and not this machine's; from
//! then on it is as if the file had come from standard input, whatever the context is.

use std::collections::HashMap;

use bytes::Bytes;
use oci::Digest;
use progress_ui::Progress;
use prost::Message as _;
use proto::{control, gateway, pb};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::gateway::Bridge;
use crate::id::new_id;
use crate::solve::{SolveFailure, steered};

/// The largest Dockerfile that is read.
const BYTES_MAX: i64 = 2 << 20;
/// The same for a user, in units of 1000 bytes.
const BYTES_MAX_SHOWN: &str = "2.097MB";

/// The text of the file that the URL gives to that server.
///
/// # Errors
/// What the server could not fetch, and files of more than 2 MiB.
pub(crate) async fn fetch(
    channel: Channel,
    session: &str,
    url: &str,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Vec<u8>, SolveFailure> {
    let request = control::SolveRequest {
        r#ref: new_id(),
        session: session.to_owned(),
        internal: true,
        cache: Some(control::CacheOptions::default()),
        ..control::SolveRequest::default()
    };
    let work = async |bridge: &mut Bridge| {
        let text = read(bridge, url).await?;
        // The build's own result is empty.
        let empty = gateway::Result {
            result: Some(gateway::result::Result::Ref(gateway::Ref::default())),
            ..gateway::Result::default()
        };
        Ok((empty, text))
    };
    let (_, text) = steered(channel, request, work, progress, cancel).await?;
    Ok(text)
}

async fn read(bridge: &mut Bridge, url: &str) -> Result<Vec<u8>, Status> {
    let solved = bridge
        .solve(gateway::SolveRequest {
            definition: Some(graph(url)),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..gateway::SolveRequest::default()
        })
        .await?;
    let Some(gateway::result::Result::Ref(file)) = solved.result else {
        return Err(Status::new(Code::Unknown, "the server gave no file"));
    };
    let name = "Dockerfile".to_owned();
    let stat = bridge
        .stat_file(gateway::StatFileRequest {
            r#ref: file.id.clone(),
            path: name.clone(),
            ..gateway::StatFileRequest::default()
        })
        .await?;
    if stat.size > BYTES_MAX {
        let text = format!(
            "Dockerfile {} bigger than allowed max size ({BYTES_MAX_SHOWN})",
            diag::redact_url(url)
        );
        return Err(Status::new(Code::Unknown, text));
    }
    bridge
        .read_file(gateway::ReadFileRequest {
            r#ref: file.id,
            file_path: name,
            ..gateway::ReadFileRequest::default()
        })
        .await
}

/// The graph whose only file is what the URL gives, called `Dockerfile`.
fn graph(url: &str) -> pb::Definition {
    let source = pb::Op {
        op: Some(pb::op::Op::Source(pb::SourceOp {
            identifier: url.to_owned(),
            attrs: [("http.filename".to_owned(), "Dockerfile".to_owned())]
                .into_iter()
                .collect(),
        })),
        constraints: Some(pb::WorkerConstraints::default()),
        ..pb::Op::default()
    };
    let source = source.encode_to_vec();
    let digest = Digest::of(&source).to_string();
    let last = pb::Op {
        inputs: vec![pb::Input {
            digest: digest.clone(),
            index: 0,
        }],
        ..pb::Op::default()
    };
    let last = last.encode_to_vec();
    let name = format!("[internal] load {}", diag::redact_url(url));
    let meta = pb::OpMetadata {
        description: [("llb.customname".to_owned(), name)].into_iter().collect(),
        ..pb::OpMetadata::default()
    };
    let metadata: HashMap<String, pb::OpMetadata> = [
        (Digest::of(&last).to_string(), pb::OpMetadata::default()),
        (digest, meta),
    ]
    .into_iter()
    .collect();
    pb::Definition {
        def: vec![Bytes::from(source).into(), Bytes::from(last).into()],
        metadata: metadata.into_iter().collect(),
        source: None,
    }
}
