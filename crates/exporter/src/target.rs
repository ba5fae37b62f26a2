//! The client's side of an export, seen from here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use content::ContentStore;
use diag::Result;
use oci::Descriptor;
use tokio::io::AsyncWrite;

/// A tree of files for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Where it is here.
    pub root: PathBuf,
    /// The name of the folder it goes into, such as `linux_amd64`; `None` for the client's folder
    /// itself.
    pub folder: Option<String>,
    /// Seconds since 1970 that every file (and the folder) gets as its time.
    pub mtime: Option<i64>,
}

/// Called with the number of bytes sent so far.
pub type SentBytes = Arc<dyn Fn(u64) + Send + Sync>;

/// Where a client takes what is exported to it: mostly its session.
#[async_trait]
pub trait ClientTarget: Send + Sync {
    /// A stream into the client's file. `metadata` is the export's response so far, which the client
    /// sees before the first byte. Shutting the stream down waits for the client to have it all.
    ///
    /// # Errors
    /// Code `AlreadyExists`, here or from the stream, says that the client needs nothing more, and
    /// is a success.
    async fn send_file(
        &self,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Pin<Box<dyn AsyncWrite + Send>>>;

    /// Sends trees into the client's folder. With `delete`, what is in none of them is removed
    /// there; so all trees of an export come in one call.
    async fn send_trees(&self, trees: Vec<Tree>, delete: bool, sent: SentBytes) -> Result<()>;

    /// Puts blobs into the client's content store, in this order, those that it lacks.
    async fn send_blobs(&self, content: &ContentStore, blobs: Vec<Descriptor>) -> Result<()>;
}
