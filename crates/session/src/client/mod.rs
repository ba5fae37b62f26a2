//! The client's half: what a build server may ask for, served on the session's connection.

mod auth;
mod builder;
mod content;
mod file_send;
mod file_sync;
mod health;
mod ingest;
mod raw_service;
mod router;
mod secrets;
mod ssh;
mod token;
mod token_seed;
mod upload;

use std::sync::Arc;

use futures::TryFutureExt;
use proto::control::control_client::ControlClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};

use crate::connection;
use crate::error::SessionError;
use crate::headers::SessionHeaders;
use crate::pipe::{MessageIo, SpooledIo};

pub use auth::{AuthNotice, AuthOptions};
pub use builder::ClientSessionBuilder;
pub use content::FillStore;
pub use file_send::{ExportTarget, ExportWriter};
pub use file_sync::LocalDir;
pub use secrets::SecretSource;
pub use ssh::{KeyError, SshAgent};
pub use upload::Uploads;

use router::Router;

/// A session that is ready to be opened to a server.
#[derive(Clone)]
pub struct ClientSession {
    headers: Arc<SessionHeaders>,
    router: Router,
}

/// A session that is open; it ends when this is dropped or the server goes.
pub struct SessionHandle {
    task: tokio::task::JoinHandle<Result<(), SessionError>>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl ClientSession {
    /// A session to which nothing was given yet.
    pub fn builder() -> ClientSessionBuilder {
        ClientSessionBuilder::new()
    }

    /// The id that builds name.
    pub fn id(&self) -> &str {
        &self.headers.id
    }

    /// What the server is told when the session is opened; needed by who opens the connection of
    /// [`ClientSession::run_on_io`].
    pub fn headers(&self) -> &SessionHeaders {
        &self.headers
    }

    /// Opens the session with `Control.Session` of a build server.
    pub fn run<T>(&self, mut control: ControlClient<T>) -> Result<SessionHandle, SessionError>
    where
        T: GrpcService<tonic::body::Body> + Send + 'static,
        T::Error: Into<StdError>,
        T::Future: Send,
        T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
    {
        let metadata = self.headers.to_metadata()?;
        // What is to be sent exists only once the stream of what comes does, which exists only once the
        // call was made with what is to be sent.
        let (give, taken) = tokio::sync::oneshot::channel::<crate::pipe::MessageStream>();
        let call = async move {
            let messages = taken
                .await
                .map_err(|_| tonic::Status::cancelled("session dropped"))?;
            let mut request = tonic::Request::new(messages);
            *request.metadata_mut() = metadata;
            control
                .session(request)
                .await
                .map(tonic::Response::into_inner)
        };
        let call = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(call));
        let inbound = call
            .unwrap_or_else(|_| Err(tonic::Status::cancelled("session dropped")))
            .try_flatten_stream();
        let (io, messages) = MessageIo::new(inbound);
        let _ = give.send(messages);
        Ok(self.start(io))
    }

    /// Serves the session on a connection that was opened with [`ClientSession::headers`], such as the
    /// one an Engine gives up after `POST /session`.
    pub fn run_on_io<T>(&self, io: T) -> SessionHandle
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.start(SpooledIo::new(io))
    }

    fn start<T>(&self, io: T) -> SessionHandle
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let stop = CancellationToken::new();
        let (router, stopped) = (self.router.clone(), stop.clone());
        let task = tokio::spawn(async move {
            connection::serve(io, router, stopped)
                .await
                .map_err(connection_failure)
        });
        SessionHandle {
            task,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        }
    }
}

impl SessionHandle {
    /// Returns when the session has ended; an error when it was not us or the server that ended it.
    pub async fn wait(&mut self) -> Result<(), SessionError> {
        (&mut self.task)
            .await
            .unwrap_or(Err(SessionError::Canceled))
    }

    /// Ends the session.
    pub fn close(&self) {
        self.stop.cancel();
    }
}

/// The server's gRPC error, which is inside the failure of the connection over it, comes first.
fn connection_failure(error: hyper::Error) -> SessionError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = source {
        if let Some(status) = inner.downcast_ref::<tonic::Status>() {
            return status.clone().into();
        }
        let io = inner.downcast_ref::<std::io::Error>();
        let boxed = io.and_then(std::io::Error::get_ref);
        if let Some(status) = boxed.and_then(|inner| inner.downcast_ref::<tonic::Status>()) {
            return status.clone().into();
        }
        source = inner.source();
    }
    SessionError::Io(std::io::Error::other(error))
}
