//! Exports to a client, over its session.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use content::ContentStore;
use diag::{Context, Result};
use exporter::{ClientTarget, SentBytes, Tree};
use llb::CopyAction;
use oci::Descriptor;
use ops::Root;
use ops::work::blocking;
use session::{SendDirRequest, Session};
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

/// One exporter of a client, by its number in the request.
pub struct SessionTarget {
    session: Session,
    exporter: usize,
    /// Where trees are put together that the client gets as one.
    staging: PathBuf,
}

impl SessionTarget {
    /// The exporter of that number. `staging` is a directory on the disk of the layers.
    pub fn new(session: Session, exporter: usize, staging: PathBuf) -> Self {
        SessionTarget {
            session,
            exporter,
            staging,
        }
    }
}

#[async_trait]
impl ClientTarget for SessionTarget {
    async fn send_file(
        &self,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Pin<Box<dyn AsyncWrite + Send>>> {
        let sink = self.session.send_file(self.exporter, metadata).await?;
        Ok(Box::pin(sink))
    }

    async fn send_trees(&self, trees: Vec<Tree>, delete: bool, sent: SentBytes) -> Result<()> {
        let progress: session::diffcopy::Progress = Arc::new(move |bytes, _| sent(bytes));
        let mut request = SendDirRequest {
            exporter: self.exporter,
            all_platforms: delete,
            progress: Some(progress),
            ..SendDirRequest::default()
        };
        let as_it_is = match trees.as_slice() {
            [
                Tree {
                    root,
                    folder: None,
                    mtime: None,
                },
            ] => Some(root.clone()),
            _ => None,
        };
        if let Some(root) = as_it_is {
            request.root = root;
            self.session.send_dir(request).await?;
            return Ok(());
        }
        let staging = Staging::make(self.staging.clone(), trees).await?;
        request.root = staging.0.clone();
        self.session.send_dir(request).await?;
        Ok(())
    }

    async fn send_blobs(&self, content: &ContentStore, blobs: Vec<Descriptor>) -> Result<()> {
        let store = self.session.content_store(session::EXPORT_STORE)?;
        for blob in blobs {
            let (content, digest) = (content.clone(), blob.digest);
            let file = blocking(move || Ok(content.open_blob(&digest)?)).await?;
            store.write(&digest, blob.size, file).await?;
        }
        Ok(())
    }
}

/// Trees put together in one directory; dropping it removes it.
struct Staging(PathBuf);

impl Staging {
    async fn make(dir: PathBuf, trees: Vec<Tree>) -> Result<Self> {
        blocking(move || {
            std::fs::create_dir_all(&dir).context("export")?;
            let path = dir.join(format!("{:016x}", rand::random::<u64>()));
            std::fs::create_dir(&path).context("export")?;
            let staging = Staging(path);
            for tree in trees {
                let copy = CopyAction {
                    src: "/".into(),
                    dest: format!("/{}", tree.folder.unwrap_or_default()),
                    dir_copy_contents: true,
                    create_dest_path: true,
                    timestamp: tree.mtime.map(|seconds| seconds * 1_000_000_000),
                    ..CopyAction::default()
                };
                let (source, target) = (Root::open(&tree.root)?, Root::open(&staging.0)?);
                let cancel = CancellationToken::new();
                ops::file_actions::copy(&source, &target, &copy, None, &cancel)?;
            }
            Ok(staging)
        })
        .await
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        let remove = move || {
            if let Err(error) = std::fs::remove_dir_all(&path) {
                tracing::warn!("staging directory {}: {error}", path.display());
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn_blocking(remove);
            }
            Err(_) => remove(),
        }
    }
}
