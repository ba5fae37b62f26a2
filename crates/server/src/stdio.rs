//! Pipes as standard streams, and the gateway service on two of them.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use diag::{Context as _, Result};
use futures::StreamExt;
use parking_lot::Mutex;
use proto::gateway::llb_bridge_server::LlbBridgeServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::bridge::Gateway;
use crate::gateway_build::GatewayBuild;
use crate::server::MESSAGE_SIZE_BYTES_MAX;

/// How a connection over pipes stands.
#[derive(Clone, Debug, Default)]
pub struct ConnectionEnd {
    closed: CancellationToken,
    /// Whether the other side had closed it before.
    by_peer: Arc<Mutex<bool>>,
}

impl ConnectionEnd {
    /// Waits until nobody serves the connection any more; true when the peer has closed it, false
    /// when it was given up for what the peer wrote.
    pub async fn wait(&self) -> bool {
        self.closed.cancelled().await;
        *self.by_peer.lock()
    }
}

/// Serves the calls of one build on two pipes until this is dropped. What `end` tells is the end of
/// the connection.
pub async fn serve(
    build: Arc<GatewayBuild>,
    input: pipe::Receiver,
    output: pipe::Sender,
    end: ConnectionEnd,
) -> Result<()> {
    let connection = Connection {
        input,
        output,
        by_peer: end.by_peer,
        _closed: end.closed.drop_guard(),
    };
    // One connection and no second one; the end of the list would end the server.
    let incoming = futures::stream::iter([Ok::<_, std::io::Error>(connection)])
        .chain(futures::stream::pending());
    let (_health, health_service) = tonic_health::server::health_reporter();
    Server::builder()
        .add_service(
            LlbBridgeServer::new(Gateway::of_build(build))
                .max_decoding_message_size(MESSAGE_SIZE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_SIZE_BYTES_MAX),
        )
        .add_service(health_service)
        .serve_with_incoming(incoming)
        .await
        .map_err(|error| diag::Error::internal(error.to_string()))
        .context("serving a frontend")
}

/// A pipe for a stream of a process: the end to read, the end to write.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(std::io::Error::from)
        .context("pipe")
}

/// Two pipes as one connection.
struct Connection {
    input: pipe::Receiver,
    output: pipe::Sender,
    by_peer: Arc<Mutex<bool>>,
    _closed: DropGuard,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.input).poll_read(context, buffer);
        let ended = buffer.filled().len() == before && buffer.remaining() > 0;
        if ended && matches!(read, Poll::Ready(Ok(()))) {
            *self.by_peer.lock() = true;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.output).poll_write(context, data);
        if matches!(&written, Poll::Ready(Err(_))) {
            // Nobody reads any more: the peer has gone.
            *self.by_peer.lock() = true;
        }
        written
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.output).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.output).poll_shutdown(context)
    }
}
