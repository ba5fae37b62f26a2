//! What the ops of a server share.

use std::path::PathBuf;
use std::sync::Arc;

use executor::Executor;
use layers::{LayerStack, LayerStore};
use tokio_util::sync::CancellationToken;

use super::cache_mounts::CacheMounts;
use super::logs::LogLimits;
use super::output::Output;
use crate::contenthash::{FileDigests, Selector, Tree, content_digest};
use crate::{OpError, Root};

/// What the ops of a server share.
pub struct Parts {
    /// Where layers are made and mounted.
    pub layers: LayerStore,
    /// What runs processes.
    pub executor: Executor,
    /// Images.
    pub images: source::image::ImageSource,
    /// Clients' folders.
    pub locals: source::local::LocalSource,
    /// Repositories.
    pub git: source::git::GitSource,
    /// Files of web servers.
    pub web: source::http::HttpSource,
    /// Persistent cache mounts.
    pub cache_mounts: CacheMounts,
    /// Devices that steps may be given; none if the server gives none.
    pub devices: Option<cdi::Registry>,
    /// Digests of files seen.
    pub files: FileDigests,
    /// How much a step may write.
    pub log_limits: LogLimits,
    /// Where sockets of running steps are made; short, as the kernel limits socket paths.
    pub run_dir: PathBuf,
}

/// Reading a stack without changing it.
pub struct ReadOnly {
    mounted: layers::MountedStack,
    /// Its root.
    pub root: Root,
}

impl ReadOnly {
    /// Where it is seen.
    pub fn path(&self) -> &std::path::Path {
        self.mounted.path()
    }
}

impl Parts {
    /// Shows a stack to read. Blocks on the disk.
    pub fn read_only(&self, stack: &LayerStack) -> diag::Result<ReadOnly> {
        let mounted = self.layers.mount(stack)?;
        // The directories are held as long as the mount is.
        let root = match self.layers.dirs(stack)? {
            Some(dirs) => Root::of_layers(mounted.path(), dirs.paths())?,
            None => Root::open(mounted.path())?,
        };
        Ok(ReadOnly { mounted, root })
    }

    /// The digest of what selectors select of an output.
    pub async fn digest_content(
        self: &Arc<Self>,
        output: &Output,
        selectors: Vec<Selector>,
        cancel: CancellationToken,
    ) -> diag::Result<oci::Digest> {
        let (parts, output) = (self.clone(), output.clone());
        blocking(move || {
            let id = output.stack.top().map(|id| id.to_string());
            let digest = parts.content_of(&output.stack, |tree| {
                content_digest(tree, &selectors, &parts.files, &cancel)
            })?;
            digest.map_err(|error| {
                let canceled = matches!(error, OpError::Canceled);
                let error = diag::Error::from(error);
                if canceled {
                    return error;
                }
                error.context(format!(
                    "failed to calculate checksum of ref {}",
                    id.as_deref().unwrap_or("scratch")
                ))
            })
        })
        .await
    }

    /// Looks at a stack as a tree. Without a mount where that can be: what is mounted anew looks to the
    /// kernel, and to who remembers digests of its files, like nothing it has seen before.
    fn content_of<T>(&self, stack: &LayerStack, look: impl FnOnce(&Tree) -> T) -> diag::Result<T> {
        let dirs = self.layers.dirs(stack)?;
        let listing = self.locals.listing(stack);
        let tree = match (&dirs, listing) {
            (Some(dirs), None) => Tree::open(dirs.paths())?,
            (Some(dirs), Some(listing)) => match dirs.paths().last() {
                Some(top) => Tree::listed(top, listing)?,
                None => Tree::open(dirs.paths())?,
            },
            (None, listing) => {
                let mounted = self.layers.mount(stack)?;
                let tree = match listing {
                    Some(listing) => Tree::listed(mounted.path(), listing)?,
                    None => Tree::open([mounted.path()])?,
                };
                return Ok(look(&tree));
            }
        };
        Ok(look(&tree))
    }
}

/// Does blocking file work on a thread for it.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> diag::Result<T> + Send + 'static,
) -> diag::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(diag::Error::internal(format!("file work crashed: {error}"))))
}
