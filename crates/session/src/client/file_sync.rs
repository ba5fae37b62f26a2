//! Directories the server may read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use pathmatch::{LinkTree, PathFilter};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status, Streaming};

use super::raw_service::{Answers, StreamMethod, with_result};
use crate::codec::flat;
use crate::diffcopy::{self, OUTBOUND_BATCHES, Progress, SendOptions};
use crate::error::SessionError;
use crate::filter::transfer_filter;
use crate::headers::{first, list};

/// A directory the server may read.
#[derive(Clone)]
pub struct LocalDir {
    /// Where it is.
    pub path: PathBuf,
    /// Whether its files are said to be root's whoever owns them, as is usual for contexts.
    pub reset_owner: bool,
    /// Told of the bytes that were sent.
    pub progress: Option<Progress>,
}

impl LocalDir {
    /// A directory whose files are said to be root's.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        LocalDir {
            path: path.into(),
            reset_owner: true,
            progress: None,
        }
    }
}

/// `moby.filesync.v1.FileSync`.
#[derive(Clone)]
pub struct FileSyncService {
    dirs: Arc<BTreeMap<String, LocalDir>>,
}

impl FileSyncService {
    pub const METHODS: [&'static str; 1] = ["/moby.filesync.v1.FileSync/DiffCopy"];

    pub fn new(dirs: BTreeMap<String, LocalDir>) -> Self {
        FileSyncService {
            dirs: Arc::new(dirs),
        }
    }
}

impl StreamMethod for FileSyncService {
    const SERVICE: &'static str = "moby.filesync.v1.FileSync";
    const METHOD: &'static str = "DiffCopy";

    async fn answer(self, request: Request<Streaming<Bytes>>) -> Result<Answers, Status> {
        let (metadata, _, inbound) = request.into_parts();
        let name = first(&metadata, "dir-name");
        let dir = self
            .dirs
            .get(&name)
            .cloned()
            .ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?;
        let root = dir.path.clone();
        let filter = tokio::task::spawn_blocking(move || requested_filter(&root, &metadata))
            .await
            .map_err(|_| Status::cancelled("session dropped"))??;
        let options = SendOptions {
            filter,
            reset_owner: dir.reset_owner,
            progress: dir.progress,
        };
        let (packets, outbound) = mpsc::channel(OUTBOUND_BATCHES);
        let sending = diffcopy::send(dir.path, options, inbound.boxed(), packets);
        Ok(with_result(flat(ReceiverStream::new(outbound)), sending))
    }
}

/// What of a directory a request asks for.
fn requested_filter(root: &Path, metadata: &MetadataMap) -> Result<PathFilter, SessionError> {
    let (include, exclude) = (
        list(metadata, "include-patterns"),
        list(metadata, "exclude-patterns"),
    );
    let follow = list(metadata, "followpaths");
    transfer_filter(&ContextTree { root }, include, &exclude, &follow)
}

struct ContextTree<'a> {
    root: &'a Path,
}

impl LinkTree for ContextTree<'_> {
    fn read_link(&self, path: &str) -> std::io::Result<Option<String>> {
        use std::io::ErrorKind::{InvalidInput, NotADirectory, NotFound};
        match std::fs::read_link(self.root.join(OsStr::from_bytes(path.as_bytes()))) {
            Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
            Err(error) if matches!(error.kind(), InvalidInput | NotADirectory | NotFound) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn read_dir(&self, path: &str) -> std::io::Result<Option<Vec<String>>> {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        let entries = match std::fs::read_dir(self.root.join(path)) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), NotADirectory | NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(Some(names))
    }
}
