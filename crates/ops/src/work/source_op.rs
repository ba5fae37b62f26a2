//! Sources as work: pinned when they are keyed, fetched when they are run.

use std::sync::Arc;

use diag::{Error, Result};
use layers::RecordType;
use llb::{Op, SourceOp, Vertex};
use oci::{Platform, Reference};
use solver::{Identity, KeyPart, RunContext};
use source::blob::{BlobRequest, fetch_blob};
use source::git::{GitPin, GitRequest};
use source::http::{HttpPin, HttpRequest};
use source::image::{ContentProvider, ImageRequest, ResolvedImage};
use source::local::LocalSnapshot;
use status::StatusSink;

use super::blob::{blob_parts, blob_request};
use super::context::{BuildContext, RunSink};
use super::git::{Access, git_parts, git_request};
use super::http::{ClientSecrets, http_parts, http_request};
use super::output::Output;
use super::parts::Parts;
use super::provider::{layout_provider, registry_provider};

/// What a source stands for.
pub enum Pinned {
    /// An image whose manifest and configuration are here.
    Image {
        /// What it is.
        image: Box<ResolvedImage>,
        /// Who has its layers.
        provider: Arc<dyn ContentProvider>,
    },
    /// A folder of the client, brought already.
    Local(Box<LocalSnapshot>),
    /// A file of a web server.
    Http(Box<(HttpRequest, HttpPin)>),
    /// A commit of a repository.
    Git(Box<(GitRequest, GitPin)>),
    /// A single blob.
    Blob {
        /// Which, and what is made of it.
        request: Box<BlobRequest>,
        /// What is made of it, by name.
        key: Vec<KeyPart>,
        /// Who has it.
        provider: Arc<dyn ContentProvider>,
    },
}

/// Finds out what a source stands for now; what it does for an image is told to the sink.
pub async fn pin(
    parts: &Arc<Parts>,
    vertex: &Vertex,
    source: &SourceOp,
    context: &RunContext<BuildContext>,
    statuses: &Arc<dyn StatusSink>,
) -> Result<Pinned> {
    let (scheme, _) = source
        .identifier
        .split_once("://")
        .ok_or_else(|| Error::invalid(format!("invalid source {}", source.identifier)))?;
    match scheme {
        "docker-image" => {
            let provider = registry_provider(context.first()?.registry());
            pin_image(parts, vertex, source, provider, statuses).await
        }
        "oci-layout" => {
            let provider = layout_of_client(source, context).await?;
            pin_image(parts, vertex, source, provider, statuses).await
        }
        "docker-image+blob" => pin_blob(source, registry_provider(context.first()?.registry())),
        "oci-layout+blob" => {
            if oci_layout_store(source).1.is_empty() {
                return Err(Error::invalid("oci-layout blob source requires store id"));
            }
            pin_blob(source, layout_of_client(source, context).await?)
        }
        "local" => super::local::pin_local(parts, vertex, source, context)
            .await
            .map(|snapshot| Pinned::Local(Box::new(snapshot))),
        "git" => {
            let request = git_request(source)?;
            let pin = async {
                let access = Access::of_client(parts, vertex, source, context).await?;
                parts.git.pin(&request, &access.git).await
            };
            let pin = cancellable(context, pin).await?;
            Ok(Pinned::Git(Box::new((request, pin))))
        }
        "http" | "https" => {
            let request = http_request(source)?;
            let secrets = ClientSecrets::new(&request, context);
            let pin = cancellable(context, parts.web.pin(&request, &secrets)).await?;
            Ok(Pinned::Http(Box::new((request, pin))))
        }
        _ => Err(Error::unimplemented(format!(
            "sources of the kind {scheme}:// are not supported by this server"
        ))),
    }
}

impl Pinned {
    /// Equal for equal files.
    pub fn identity(&self) -> Identity {
        match self {
            Pinned::Image { image, .. } => {
                let files = image.chain_id().unwrap_or_else(|| image.digest());
                Identity::of(vec![
                    KeyPart::new("op", "source"),
                    KeyPart::new("image", files.to_string()),
                ])
            }
            Pinned::Local(snapshot) => Identity::of(vec![
                KeyPart::new("op", "source"),
                KeyPart::new("local", snapshot.digest.to_string()),
            ]),
            Pinned::Http(file) => Identity::of(http_parts(&file.0, &file.1)),
            Pinned::Git(commit) => Identity::of(git_parts(&commit.0, &commit.1)),
            Pinned::Blob { key, .. } => Identity::of(key.clone()),
        }
    }

    /// Whether what is fetched is kept for later builds.
    pub fn keep(&self) -> bool {
        true
    }

    /// Brings the files.
    pub async fn fetch(
        &self,
        parts: &Arc<Parts>,
        vertex: &Vertex,
        context: &RunContext<BuildContext>,
    ) -> Result<Output> {
        match self {
            Pinned::Image { image, provider } => {
                let statuses = RunSink::of_vertex(context, vertex.digest);
                let pull = parts.images.pull(&**provider, image, &statuses);
                let pulled = cancellable(context, pull).await?;
                Ok(Output::held(pulled.stack, pulled.hold))
            }
            Pinned::Local(snapshot) => {
                Ok(Output::held(snapshot.stack.clone(), snapshot.hold.clone()))
            }
            Pinned::Git(commit) => {
                let (request, pin) = &**commit;
                let Op::Source(source) = &vertex.op else {
                    return Err(Error::internal("a source that is none"));
                };
                let fetch = async {
                    let access = Access::of_client(parts, vertex, source, context).await?;
                    parts.git.fetch(request, pin, &access.git).await
                };
                let (stack, hold) = cancellable(context, fetch).await?;
                Ok(Output::held(stack, hold))
            }
            Pinned::Blob {
                request, provider, ..
            } => {
                let fetch = fetch_blob(&**provider, &parts.layers, request);
                let (stack, hold) = cancellable(context, fetch).await?;
                Ok(Output::held(stack, hold))
            }
            Pinned::Http(file) => {
                let (request, pin) = &**file;
                let secrets = ClientSecrets::new(request, context);
                let fetch = parts.web.fetch(request, pin, &secrets);
                let (stack, hold) = cancellable(context, fetch).await?;
                Ok(Output::held(stack, hold))
            }
        }
    }
}

/// Waits for work unless nobody wants it any more.
async fn cancellable<T>(
    context: &RunContext<BuildContext>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        done = work => done,
        () = context.cancel.cancelled() => Err(Error::canceled()),
    }
}

/// The OCI layout of a client that a source means.
async fn layout_of_client(
    source: &SourceOp,
    context: &RunContext<BuildContext>,
) -> Result<Arc<dyn ContentProvider>> {
    let (session, store) = oci_layout_store(source);
    let build = context.first()?;
    let session = match session {
        "" => build.session().await?,
        id => build.session_of(id).await?,
    };
    layout_provider(&session, store)
}

/// A blob is known by its digest: nobody is asked before its content is needed.
fn pin_blob(source: &SourceOp, provider: Arc<dyn ContentProvider>) -> Result<Pinned> {
    let request = blob_request(source)?;
    Ok(Pinned::Blob {
        key: blob_parts(&request)?,
        request: Box::new(request),
        provider,
    })
}

async fn pin_image(
    parts: &Arc<Parts>,
    vertex: &Vertex,
    source: &SourceOp,
    provider: Arc<dyn ContentProvider>,
    statuses: &Arc<dyn StatusSink>,
) -> Result<Pinned> {
    let platform = vertex.platform.clone().unwrap_or_else(Platform::host);
    let mut request = ImageRequest::new(image_reference(source)?, platform);
    for (name, value) in &source.attrs {
        match name.as_str() {
            "image.layerlimit" | "oci.layerlimit" => {
                let limit = value.parse().ok().filter(|limit| *limit > 0);
                request.layer_limit = Some(
                    limit.ok_or_else(|| Error::invalid(format!("invalid layer limit {value}")))?,
                );
            }
            "image.checksum" => {
                let digest = value.parse();
                let digest = digest.map_err(|error: oci::DigestError| {
                    Error::invalid(format!("invalid image checksum {value}: {error}"))
                })?;
                request.checksum = Some(digest);
            }
            // Images are kept nowhere by name, so each of the modes asks the registry.
            "image.resolvemode" if !matches!(value.as_str(), "" | "default" | "pull" | "local") => {
                return Err(Error::invalid(format!("invalid resolvemode: {value}")));
            }
            "image.recordtype" => {
                request.record_type = RecordType::from_name(value)
                    .ok_or_else(|| Error::invalid(format!("unknown record type {value}")))?;
            }
            _ => {}
        }
    }
    let image = parts.images.resolve(&*provider, &request, statuses).await?;
    Ok(Pinned::Image {
        image: Box::new(image),
        provider,
    })
}

/// The name of the image that a source means.
pub fn image_reference(source: &SourceOp) -> Result<Reference> {
    let name = source
        .identifier
        .split_once("://")
        .map_or("", |(_, name)| name);
    name.parse()
        .map_err(|error: oci::ReferenceError| Error::invalid(error.to_string()))
}

/// Session (empty for the build's own) and name of the layout that a source means.
pub fn oci_layout_store(source: &SourceOp) -> (&str, &str) {
    let attr = |name: &str| source.attrs.get(name).map_or("", String::as_str);
    (attr("oci.session"), attr("oci.store"))
}
