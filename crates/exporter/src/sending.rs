//! Blocking code among asynchronous: in general, and writing streams to the client.

use std::pin::Pin;

use diag::{Code, Error, Result};
use tokio::io::AsyncWrite;
use tokio_util::io::SyncIoBridge;

/// Bytes gathered before they go to the client's stream.
pub(crate) const BRIDGE_BUFFER: usize = 256 * 1024;

/// What to do about a result that does not fit where the client writes it.
const CLIENT_DISK_FULL: &str = "the disk that the result is written to is full, not the server's";

/// A stream to the client.
pub(crate) type ClientStream = Pin<Box<dyn AsyncWrite + Send>>;

/// Runs blocking work in a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    // It panicked, or the runtime is shutting down.
    joined.map_err(|error| Error::internal(error.to_string()))?
}

/// Lets blocking code write to a client's stream and waits until the client has everything. A client
/// that says that it has it already is content.
pub(crate) async fn send_through<F>(stream: Result<ClientStream>, write: F) -> Result<()>
where
    F: FnOnce(SyncIoBridge<ClientStream>) -> Result<SyncIoBridge<ClientStream>> + Send + 'static,
{
    let result = match stream {
        Ok(stream) => {
            let bridge = SyncIoBridge::new(stream);
            blocking(move || {
                let mut bridge = write(bridge)?;
                bridge.shutdown().map_err(Error::from)
            })
            .await
        }
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.code() == Code::AlreadyExists => Ok(()),
        Err(error) if error.code() == Code::ResourceExhausted => Err(error.hint(CLIENT_DISK_FULL)),
        other => other,
    }
}
