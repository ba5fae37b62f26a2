//! Byte streams to an Engine or a build server.

use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

/// A stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + 'static> Io for T {}

/// A stream whose kind does not matter to its user. Shutting it down closes our direction and
/// leaves the other open; dropping it closes both.
pub type BoxedIo = Pin<Box<dyn Io>>;

/// Boxes a stream.
pub fn boxed(io: impl Io) -> BoxedIo {
    Box::pin(io)
}
