//! HTTP/2 over any byte stream, as its client and as its server.
//!
//! In a session the roles are turned round: the build server opened nothing and yet is the HTTP/2
//! client, because it is the one who asks. Windows: each stream has its own of [`STREAM_WINDOW`], the
//! connection as a whole practically none, so a stream nobody reads never holds up the others.

use std::convert::Infallible;
use std::future::Future;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;

/// Bytes a peer may send on a stream before it is read.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// The same for all streams of a connection together: only what HTTP/2 allows at most.
///
/// **Whoever carries sessions over HTTP/2 must set it too, or a window of that order** (`Control` on a
/// server, the connection of a driver): the HTTP/2 library closes connections on which more small DATA
/// frames wait than half of this window allows (`too_many_data_frames`), 136 of them with the default
/// window. A stock client that receives an export sends one for every file.
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// The largest frame a peer may send.
const FRAME_BYTES_MAX: u32 = 64 << 10;
/// Concurrent calls a peer may make.
const CONCURRENT_STREAMS_MAX: u32 = 1000;

/// The client's end of a connection on which gRPC calls are made.
#[derive(Clone, Debug)]
pub struct Connection {
    send: SendRequest<Body>,
    closed: CancellationToken,
}

impl Connection {
    /// Begins HTTP/2 on a byte stream whose other end serves.
    pub async fn open<T>(io: T) -> Result<Self, hyper::Error>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (send, driver) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES_MAX)
            .handshake(TokioIo::new(io))
            .await?;
        let closed = CancellationToken::new();
        let (ended, asked) = (closed.clone().drop_guard(), closed.clone());
        tokio::spawn(async move {
            let _ended = ended;
            tokio::select! {
                result = driver => if let Err(error) = result {
                    tracing::debug!(%error, "session connection ended");
                },
                () = asked.cancelled() => {}
            }
        });
        Ok(Connection { send, closed })
    }

    /// Cancelled when the connection has ended; cancelling it ends the connection.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// The origin that calls name; servers of sessions do not look at it.
    pub fn origin() -> Uri {
        Uri::from_static("http://localhost")
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.send.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.send.send_request(request))
    }
}

/// Serves gRPC on a byte stream until the peer goes or `stop` is cancelled.
pub async fn serve<T, S>(io: T, service: S, stop: CancellationToken) -> Result<(), hyper::Error>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut service = service.clone();
        service.call(
            request.map(|body| Body::new(body.map_err(|e| tonic::Status::from_error(Box::new(e))))),
        )
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(CONCURRENT_STREAMS_MAX)
        .serve_connection(TokioIo::new(io), service);
    tokio::select! {
        result = connection => result,
        () = stop.cancelled() => Ok(()),
    }
}
