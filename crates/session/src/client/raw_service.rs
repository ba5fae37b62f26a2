//! gRPC services of one method whose messages stay encoded, in both directions.

use std::convert::Infallible;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http::{Request as HttpRequest, Response as HttpResponse};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tower::Service;

use crate::codec::{MESSAGE_BYTES_MAX, RawCodec};
use crate::error::SessionError;

/// Encoded messages of an answer.
pub type Answers = BoxStream<'static, Result<Bytes, Status>>;

/// The only method of a service.
pub trait StreamMethod: Clone + Send + Sync + 'static {
    /// The service's full name.
    const SERVICE: &'static str;
    /// The method's name in it.
    const METHOD: &'static str;

    /// Answers a call.
    fn answer(
        self,
        request: Request<Streaming<Bytes>>,
    ) -> impl Future<Output = Result<Answers, Status>> + Send;
}

/// The service of a method.
#[derive(Clone)]
pub struct RawService<M>(pub M);

impl<M: StreamMethod> NamedService for RawService<M> {
    const NAME: &'static str = M::SERVICE;
}

impl<M: StreamMethod> Service<HttpRequest<Body>> for RawService<M> {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<HttpResponse<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let method = Method(self.0.clone());
        Box::pin(async move {
            let name = request.uri().path().rsplit('/').next();
            if name != Some(M::METHOD) {
                let text = format!("only {} is offered", M::METHOD);
                return Ok(Status::unimplemented(text).into_http());
            }
            let mut grpc =
                Grpc::new(RawCodec).apply_max_message_size_config(Some(MESSAGE_BYTES_MAX), None);
            Ok(grpc.streaming(method, request).await)
        })
    }
}

/// The method as tonic wants it.
struct Method<M>(M);

impl<M: StreamMethod> StreamingService<Bytes> for Method<M> {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = BoxFuture<'static, Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let method = self.0.clone();
        Box::pin(async move { method.answer(request).await.map(Response::new) })
    }
}

/// The messages of a stream, and when they are over how the work behind them ended. The work runs
/// while the stream exists.
pub fn with_result<T: Send + 'static>(
    messages: impl futures::Stream<Item = Bytes> + Send + 'static,
    work: impl Future<Output = Result<T, SessionError>> + Send + 'static,
) -> Answers {
    let work = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(work));
    let end = async move {
        match work.await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(Err(Status::from(error))),
            Err(_) => Some(Err(Status::cancelled("session dropped"))),
        }
    };
    let end = futures::stream::once(end).filter_map(std::future::ready);
    messages.map(Ok).chain(end).boxed()
}
