//! The socket of a connection, which is closed when nobody wants the connection any more.

use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A socket that ends by itself when its token is cancelled: the task that owns it notices at once,
/// wherever it waits.
///
/// Both directions are to be polled by one task.
pub(super) struct Wire {
    socket: TcpStream,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Wire {
    pub(super) fn new(socket: TcpStream, end: CancellationToken) -> Wire {
        Wire {
            socket,
            end: Box::pin(end.cancelled_owned()),
        }
    }

    fn has_ended(&mut self, context: &mut Context<'_>) -> bool {
        self.end.as_mut().poll(context).is_ready()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        if self.has_ended(context) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize>> {
        if self.has_ended(context) {
            return Poll::Ready(Err(Error::from(ErrorKind::BrokenPipe)));
        }
        Pin::new(&mut self.socket).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
