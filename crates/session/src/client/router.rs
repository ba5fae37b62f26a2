//! From a gRPC path to the service that serves it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

type Call =
    dyn Fn(Request<Body>) -> BoxFuture<'static, Result<Response<Body>, Infallible>> + Send + Sync;

/// Services by name.
#[derive(Clone, Default)]
pub struct Router {
    services: Arc<HashMap<&'static str, Arc<Call>>>,
}

impl Router {
    /// Adds a service; only while the router is not shared yet.
    pub fn add<S>(&mut self, service: S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let call =
            move |request| -> BoxFuture<'static, _> { Box::pin(service.clone().call(request)) };
        if let Some(services) = Arc::get_mut(&mut self.services) {
            services.insert(S::NAME, Arc::new(call));
        }
    }
}

impl Service<Request<Body>> for Router {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path().trim_start_matches('/');
        let name = path.split_once('/').map_or(path, |(service, _)| service);
        match self.services.get(name) {
            Some(call) => call(request),
            None => {
                let status = Status::unimplemented(format!("unknown service {name}"));
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}
