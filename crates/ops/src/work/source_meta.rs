//! What a source stands for, without its files: for frontends that ask before they build.

use std::sync::Arc;

use diag::{Error, Result};
use llb::{GraphBuilder, Op, SourceOp, VertexMeta};
use oci::{Digest, Platform};
use solver::RunContext;
use tokio_util::sync::CancellationToken;

use super::context::BuildContext;
use super::parts::Parts;
use super::source_op::{self, Pinned};

/// What a source stands for now.
pub enum SourceMeta {
    /// An image.
    Image {
        /// Of its index, or its manifest when there is none.
        digest: Digest,
        /// Its configuration, as stored.
        config: Vec<u8>,
    },
    /// A commit of a repository.
    Git {
        /// The full name of what was found, such as `refs/heads/main`; a commit's is itself.
        reference: String,
        /// The object it points to, in hexadecimal: a commit, or an annotated tag.
        object: String,
        /// The commit that an annotated tag is for.
        commit: Option<String>,
    },
    /// A file of a web server.
    Http {
        /// Of its content.
        digest: Digest,
        /// The name it gets.
        filename: String,
        /// When it was changed, as the server says it (RFC 9110 date).
        last_modified: Option<String>,
    },
}

/// Finds out what a source stands for, with the rights of the build's client.
///
/// # Errors
/// Unimplemented, for sources that have nothing to tell (folders of clients).
pub async fn source_meta(
    parts: &Arc<Parts>,
    source: SourceOp,
    platform: Option<Platform>,
    build: BuildContext,
    cancel: CancellationToken,
) -> Result<SourceMeta> {
    let (scheme, _) = source.identifier.split_once("://").unwrap_or_default();
    if scheme == "local" || scheme.is_empty() {
        return Err(Error::unimplemented(format!(
            "{} has no metadata that could be asked for",
            diag::redact_url(&source.identifier)
        )));
    }
    let mut graph = GraphBuilder::new();
    let op = Op::Source(source.clone());
    let edge = graph.add(op, Vec::new(), platform, VertexMeta::default(), Vec::new());
    let graph = graph.finish(Some(edge));
    let vertex = graph
        .vertex(&edge.vertex)
        .ok_or_else(|| Error::internal("a graph lost its vertex"))?;
    let context = RunContext::single(vertex.digest, build, cancel);
    Ok(
        match source_op::pin(parts, vertex, &source, &context).await? {
            Pinned::Image { image, .. } => SourceMeta::Image {
                digest: image.digest(),
                config: image.config.to_vec(),
            },
            Pinned::Git(commit) => {
                let pin = &commit.1;
                SourceMeta::Git {
                    reference: pin.reference.clone(),
                    object: pin.object.clone(),
                    commit: pin.commit.clone(),
                }
            }
            Pinned::Http(file) => {
                let pin = &file.1;
                SourceMeta::Http {
                    digest: pin.digest,
                    filename: pin.filename.clone(),
                    last_modified: pin.last_modified.clone(),
                }
            }
            Pinned::Blob { .. } => {
                return Err(Error::unimplemented(
                    "what a blob source stands for is not told by ResolveSourceMeta",
                ));
            }
            Pinned::Local(_) => return Err(Error::internal("a local source was pinned")),
        },
    )
}
