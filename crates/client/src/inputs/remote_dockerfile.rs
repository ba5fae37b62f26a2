//! A Dockerfile that the server fetches: `-f https://…`.
//!
//! The frontend is handed the file as an input, a graph with one source. So it is the builder's network
//! and trust that count, and not this machine's.

use std::collections::HashMap;

use bytes::Bytes;
use oci::Digest;
use prost::Message as _;
use proto::pb;

/// The graph whose only file is what the URL gives, called `Dockerfile`.
pub(super) fn graph(url: &str) -> pb::Definition {
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
