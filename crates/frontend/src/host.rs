//! What a frontend asks of whoever runs it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use diag::{Result, SourceLocation};
use llb::{Graph, SourceOp};
use oci::{Digest, Platform, Reference};

/// The build server as a frontend sees it.
///
/// A frontend gets one `Host` for one build and calls it from several tasks at once. Everything it
/// learns about images, contexts and files it learns here; it opens no connection and no file by
/// itself.
///
/// The names of steps that a call shows to the user are the frontend's: `log_name` of
/// [`Host::resolve_image`] is shown as it is, vertices given to [`Host::solve`] carry theirs.
///
/// Worked example: for `FROM busybox` with a local context a frontend calls, in this order,
/// `solve` with a graph of one `local://dockerfile` vertex, `read_file` for `Dockerfile` and
/// `Dockerfile.dockerignore`, `resolve_image` for `docker.io/library/busybox:latest` with the log
/// name `[internal] load metadata for docker.io/library/busybox:latest`, `solve` and `read_file`
/// for `.dockerignore`, and returns the graph of the build, which the server then solves.
#[async_trait]
pub trait Host: Send + Sync {
    /// The platforms that steps can run on, the native one first.
    fn worker_platforms(&self) -> Vec<Platform>;

    /// The session of the client whose files and credentials are used; empty if there is none.
    fn session_id(&self) -> String;

    /// The digest and configuration of an image in a registry. `mode` is `default`, `pull` or
    /// `local`. A [`ResolvedImage::reference`] other than the one asked for replaces it.
    async fn resolve_image(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        mode: &str,
        log_name: &str,
    ) -> Result<ResolvedImage>;

    /// The digest and configuration of an image in an OCI layout that the client offers. The
    /// reference carries the digest that is wanted; its name is only for show.
    async fn resolve_oci_layout(
        &self,
        reference: &Reference,
        store: &OciStore,
        platform: Option<&Platform>,
        log_name: &str,
    ) -> Result<ResolvedImage>;

    /// What a git or http source says of itself without its files.
    async fn resolve_source(&self, source: &SourceOp, log_name: &str) -> Result<SourceTime> {
        let _ = log_name;
        Err(diag::Error::unimplemented(format!(
            "the time of {} cannot be asked for",
            diag::redact_url(&source.identifier)
        )))
    }

    /// Solves a graph and keeps the outcome for reading while the build lasts.
    async fn solve(&self, graph: Graph) -> Result<RefId>;

    /// A file of a solved graph, whole; links are followed within it. A path that does not exist
    /// gives an error of the code `NotFound`.
    async fn read_file(&self, reference: &RefId, path: &str) -> Result<Vec<u8>>;

    /// The first bytes of a file of a solved graph, at most `length`.
    async fn read_file_start(
        &self,
        reference: &RefId,
        path: &str,
        length: usize,
    ) -> Result<Vec<u8>> {
        let mut data = self.read_file(reference, path).await?;
        data.truncate(length);
        Ok(data)
    }

    /// What is at a path of a solved graph.
    async fn stat_file(&self, reference: &RefId, path: &str) -> Result<FileStat>;

    /// The entries of a directory of a solved graph, sorted by name.
    async fn read_dir(&self, reference: &RefId, path: &str) -> Result<Vec<FileStat>>;

    /// Shows a warning to the user.
    async fn warn(&self, warning: Warning);

    /// The graphs that came with the request, by name.
    async fn inputs(&self) -> Result<BTreeMap<String, Graph>>;
}

/// The name of a solved graph, given by the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RefId(pub String);

/// An image that was found.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// The digest of its index or manifest; none if it has no digest.
    pub digest: Option<Digest>,
    /// Its configuration, as stored.
    pub config: Vec<u8>,
    /// Its name, with a tag or digest.
    pub reference: Reference,
}

/// An OCI layout that a client offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct OciStore {
    /// The client's session.
    pub session_id: String,
    /// The layout's name in that session.
    pub store_id: String,
}

/// When a remote source was changed, as far as it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceTime {
    /// Seconds since 1970: the commit's time, or the time a web server gives.
    pub seconds: Option<i64>,
}

/// What is at a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileStat {
    /// The name in its directory.
    pub path: String,
    /// Kind and permission bits as Go's `os.FileMode` has them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: i64,
    /// Nanoseconds since 1970.
    pub modified: i64,
    /// The target of a symbolic link.
    pub link_name: String,
}

/// A warning of a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The vertex it belongs to: the one that loaded the file.
    pub vertex: Option<Digest>,
    /// How important: 1 is the usual.
    pub level: i64,
    /// One line.
    pub short: String,
    /// More lines.
    pub detail: Vec<String>,
    /// A page about it; may be empty.
    pub url: String,
    /// Where in the user's files.
    pub location: Option<SourceLocation>,
}
