//! gRPC over whatever a driver dials.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use proto::control::ListWorkersRequest;
use proto::control::control_client::ControlClient;
use proto::worker::WorkerRecord;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::{BoxedIo, Driver, DriverError};

/// HTTP/2 window of one stream, in bytes.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// HTTP/2 window of the connection, in bytes; less than what an exec stream queues.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// How large the headers of an answer may be: an error carries the Dockerfile it is about.
const HEADERS_BYTES_MAX: u32 = 16 << 20;

/// A connection to a server. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Connection {
    /// What clients of the server's services are made from.
    pub channel: Channel,
    trouble: Trouble,
}

/// The last thing that went wrong below gRPC.
#[derive(Clone, Default)]
struct Trouble(Arc<Mutex<Option<String>>>);

impl Connection {
    /// What went wrong below gRPC, when a call failed with a transport error: gRPC's own text
    /// does not say.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.0.lock().clone()
    }

    /// A failed call as an error for users: the server's own text, or what broke the connection.
    pub fn call_error(&self, status: &tonic::Status, context: &str) -> diag::Error {
        use std::error::Error as _;
        // Only what failed on this side has a source.
        let broke = status.code() == tonic::Code::Unavailable || status.source().is_some();
        let text = match self.trouble() {
            Some(trouble) if broke => trouble,
            _ => with_causes(status.message(), status.source()),
        };
        diag::Error::new(diag::Code::from_number(status.code() as i32), text).context(context)
    }
}

/// Connects to a node's server. The first dial happens here, so that its error is the caller's;
/// when the connection is lost, the next call dials again.
pub async fn connect(driver: Arc<dyn Driver>) -> Result<Connection, DriverError> {
    let first = driver.dial().await?;
    let trouble = Trouble::default();
    let ready = Arc::new(Mutex::new(Some(Watched::new(first, trouble.clone()))));
    let authority = driver.authority();
    let noted = trouble.clone();
    let connector = service_fn(move |_: Uri| {
        let (driver, ready, noted) = (driver.clone(), ready.clone(), noted.clone());
        async move {
            let waiting = ready.lock().take();
            if let Some(io) = waiting {
                return Ok(TokioIo::new(io));
            }
            match driver.dial().await {
                Ok(io) => Ok(TokioIo::new(Watched::new(io, noted))),
                Err(error) => {
                    *noted.0.lock() = Some(error.to_string());
                    Err(std::io::Error::other(error.to_string()))
                }
            }
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .or_else(|_| Endpoint::from_shared("http://localhost"))
        .map_err(|e| DriverError::Connection(e.to_string()))?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADERS_BYTES_MAX);
    let channel = match endpoint.connect_with_connector(connector).await {
        Ok(channel) => channel,
        Err(error) => {
            let text = trouble.0.lock().clone();
            return Err(DriverError::Connection(
                text.unwrap_or_else(|| describe(&error)),
            ));
        }
    };
    Ok(Connection { channel, trouble })
}

/// Connects over one stream, and never again when that is lost.
pub(crate) async fn connect_once(io: BoxedIo) -> Result<Connection, DriverError> {
    let trouble = Trouble::default();
    let ready = Arc::new(Mutex::new(Some(Watched::new(io, trouble.clone()))));
    let connector = service_fn(move |_: Uri| {
        let io = ready.lock().take();
        async move {
            io.map(TokioIo::new)
                .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected))
        }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    match endpoint.connect_with_connector(connector).await {
        Ok(channel) => Ok(Connection { channel, trouble }),
        Err(error) => {
            let text = trouble.0.lock().clone();
            Err(DriverError::Connection(
                text.unwrap_or_else(|| describe(&error)),
            ))
        }
    }
}

/// The workers of the server at the other end.
pub(crate) async fn workers_over(io: BoxedIo) -> Result<Vec<WorkerRecord>, DriverError> {
    let connection = connect_once(io).await?;
    let answer = ControlClient::new(connection.channel.clone())
        .list_workers(ListWorkersRequest { filter: Vec::new() })
        .await
        .map_err(|status| DriverError::Call {
            context: "listing workers",
            source: Box::new(status),
        })?;
    Ok(answer.into_inner().record)
}

/// An error with its causes: tonic's own text is only a class.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    with_causes(&error.to_string(), error.source())
}

/// A text and what it does not yet say of its causes, outermost first.
pub fn with_causes(text: &str, mut source: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut text = text.to_owned();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}

/// A stream that notes its errors where gRPC's callers can find them.
struct Watched {
    io: BoxedIo,
    trouble: Trouble,
}

impl Watched {
    fn new(io: BoxedIo, trouble: Trouble) -> Self {
        Watched { io, trouble }
    }

    fn note<T>(&self, poll: Poll<std::io::Result<T>>) -> Poll<std::io::Result<T>> {
        if let Poll::Ready(Err(error)) = &poll {
            let mut trouble = self.trouble.0.lock();
            // The first error is the cause, later ones follow from it.
            if trouble.is_none() {
                *trouble = Some(error.to_string());
            }
        }
        poll
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let poll = self.io.as_mut().poll_read(cx, buf);
        self.note(poll)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let poll = self.io.as_mut().poll_write(cx, data);
        self.note(poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let poll = self.io.as_mut().poll_flush(cx);
        self.note(poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.io.as_mut().poll_shutdown(cx)
    }
}
