//! What a source stands for, without its files: for frontends that ask before they build.

use std::sync::Arc;

use diag::{Error, Result};
use llb::{GraphBuilder, Op, SourceOp, VertexMeta};
use oci::{Digest, Platform};
use solver::RunContext;
use source::attestations::AttestationChain;
use source::git::GitObjects;
use source::http::ChecksumAlgorithm;
use status::StatusSink;
use tokio_util::sync::CancellationToken;

use super::context::BuildContext;
use super::git::Access;
use super::http::ClientSecrets;
use super::parts::Parts;
use super::source_op::{self, Pinned};

/// What is wanted of a source besides the names of what it stands for.
#[derive(Default)]
pub struct SourceQuestions {
    /// Of a repository: the commit, and the annotated tag that was named, as they are stored.
    pub git_objects: bool,
    /// Of an image in a registry: what is said about it there, with the attestations of these types.
    pub attestations: Option<Vec<String>>,
    /// Of a file: another checksum, over its content and these bytes behind it.
    pub checksum: Option<(ChecksumAlgorithm, Vec<u8>)>,
}

/// What a source stands for now.
pub enum SourceMeta {
    /// Folders of clients and single blobs: nothing is known of them that is not in their names.
    Nothing,
    /// An image.
    Image {
        /// Of its index, or its manifest when there is none.
        digest: Digest,
        /// Its configuration, as stored.
        config: Vec<u8>,
        /// What is said about it, if that was asked for and it is in an index.
        attestations: Option<AttestationChain>,
    },
    /// A commit of a repository.
    Git {
        /// The full name of what was found, such as `refs/heads/main`; a commit's is itself.
        reference: String,
        /// The object it points to, in hexadecimal: a commit, or an annotated tag.
        object: String,
        /// The commit that an annotated tag is for.
        commit: Option<String>,
        /// The objects themselves, if they were asked for.
        objects: Option<GitObjects>,
    },
    /// A file of a web server.
    Http {
        /// Of its content.
        digest: Digest,
        /// The name it gets.
        filename: String,
        /// When it was changed, as the server says it (RFC 9110 date).
        last_modified: Option<String>,
        /// The other checksum, `algorithm:digits`, if one was asked for.
        checksum: Option<String>,
    },
}

/// Finds out what a source stands for, with the rights of the build's client.
///
/// # Errors
/// What pinning the source, or bringing it where its content was asked for, may fail with.
pub async fn source_meta(
    parts: &Arc<Parts>,
    source: SourceOp,
    platform: Option<Platform>,
    questions: SourceQuestions,
    build: BuildContext,
    cancel: CancellationToken,
) -> Result<SourceMeta> {
    let (scheme, _) = source.identifier.split_once("://").unwrap_or_default();
    if scheme == "local" {
        return Ok(SourceMeta::Nothing);
    }
    let mut graph = GraphBuilder::new();
    let op = Op::Source(source.clone());
    let edge = graph.add(op, Vec::new(), platform, VertexMeta::default(), Vec::new());
    let graph = graph.finish(Some(edge));
    let vertex = graph
        .vertex(&edge.vertex)
        .ok_or_else(|| Error::internal("a graph lost its vertex"))?;
    let context = RunContext::single(vertex.digest, build, cancel);
    // Nobody sees this vertex.
    let silent: Arc<dyn StatusSink> = Arc::new(status::Silent);
    Ok(
        match source_op::pin(parts, vertex, &source, &context, &silent).await? {
            Pinned::Image { image, provider } => SourceMeta::Image {
                digest: image.digest(),
                config: image.config.to_vec(),
                attestations: match questions.attestations {
                    Some(types) if scheme == "docker-image" => {
                        let chain = parts.images.attestation_chain(&*provider, &image, &types);
                        chain.await?
                    }
                    _ => None,
                },
            },
            Pinned::Git(commit) => {
                let (request, pin) = &*commit;
                let objects = match questions.git_objects {
                    false => None,
                    true => {
                        let access = Access::of_client(parts, vertex, &source, &context).await?;
                        Some(parts.git.objects(request, pin, &access.git).await?)
                    }
                };
                SourceMeta::Git {
                    reference: pin.reference.clone(),
                    object: pin.object.clone(),
                    commit: pin.commit.clone(),
                    objects,
                }
            }
            Pinned::Http(file) => {
                let (request, pin) = &*file;
                let checksum = match questions.checksum {
                    None => None,
                    Some((algorithm, suffix)) => {
                        let secrets = ClientSecrets::new(request, &context);
                        let sum = parts
                            .web
                            .checksum(request, pin, &secrets, algorithm, suffix);
                        Some(sum.await?)
                    }
                };
                SourceMeta::Http {
                    digest: pin.digest,
                    filename: pin.filename.clone(),
                    last_modified: pin.last_modified.clone(),
                    checksum,
                }
            }
            Pinned::Blob { .. } => SourceMeta::Nothing,
            Pinned::Local(_) => return Err(Error::internal("a local source was pinned")),
        },
    )
}
