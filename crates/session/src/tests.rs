//! Both halves of a session against each other, through `Control.Session` over an in-memory pipe.

mod flow;
mod in_place;
mod services;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use proto::control::BytesMessage;
use proto::control::control_client::ControlClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};
use tower::Service;

use crate::connection::{self, Connection};
use crate::pipe::SpooledIo;
use crate::{
    ClientSession, OpenDir, Session, SessionHandle, SessionHeaders, SessionManager, SessionStream,
};

/// The one call of a control service that matters here.
#[derive(Clone)]
struct Control(SessionManager);

impl StreamingService<BytesMessage> for Control {
    type Response = BytesMessage;
    type ResponseStream = SessionStream;
    type Future = BoxFuture<'static, Result<Response<SessionStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<BytesMessage>>) -> Self::Future {
        let manager = self.0.clone();
        Box::pin(async move {
            let headers = SessionHeaders::from_metadata(request.metadata())?;
            let dirs = headers.local_dirs.iter().map(|(name, dir)| {
                let folder = std::fs::File::open(&dir.path).unwrap();
                let opened = OpenDir {
                    fd: Arc::new(folder.into()),
                    path: dir.path.clone(),
                };
                (name.clone(), opened)
            });
            let dirs = dirs.collect();
            let messages = manager.serve(headers, dirs, request.into_inner()).await?;
            Ok(Response::new(messages))
        })
    }
}

impl Service<http::Request<Body>> for Control {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            assert_eq!(request.uri().path(), "/moby.buildkit.v1.Control/Session");
            let codec = tonic_prost::ProstCodec::default();
            Ok(tonic::server::Grpc::new(codec)
                .streaming(service, request)
                .await)
        })
    }
}

/// A session, and what keeps it open.
struct Opened {
    session: Session,
    manager: SessionManager,
    handle: SessionHandle,
    _server: DropGuard,
}

/// Opens a session over a pipe between client and server, as a driver and a server would.
async fn open_over<C, S>(client: ClientSession, client_io: C, server_io: S) -> Opened
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let manager = SessionManager::new();
    let stop = CancellationToken::new();
    let server = connection::serve(
        SpooledIo::new(server_io),
        Control(manager.clone()),
        stop.clone(),
    );
    tokio::spawn(server);
    let connection = Connection::open(SpooledIo::new(client_io)).await.unwrap();
    let control = ControlClient::with_origin(connection, Connection::origin());
    let handle = client.run(control).unwrap();
    let session = manager
        .get(client.id(), Duration::from_secs(30))
        .await
        .unwrap();
    Opened {
        session,
        manager,
        handle,
        _server: stop.drop_guard(),
    }
}

async fn open(client: ClientSession) -> Opened {
    let (a, b) = tokio::io::duplex(4 << 10);
    open_over(client, a, b).await
}
