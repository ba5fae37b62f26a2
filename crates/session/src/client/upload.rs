//! Streams the server reads through URLs of the session.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::{Request as HttpRequest, Response as HttpResponse};
use llb::SESSION_HOST;
use parking_lot::Mutex;
use tokio::io::AsyncRead;
use tonic::body::Body;
use tonic::server::{NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tower::Service;

use super::builder::new_id;
use super::file_sync::{Answers, raw_grpc};
use crate::byte_stream::read_messages;
use crate::headers::first;

type Reader = Pin<Box<dyn AsyncRead + Send>>;

/// Streams, each of which is read once.
#[derive(Clone, Default)]
pub struct Uploads {
    readers: Arc<Mutex<HashMap<String, Reader>>>,
}

impl Uploads {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a stream; gives the URL by which a build names it.
    pub fn add(&self, reader: impl AsyncRead + Send + 'static) -> String {
        let id = new_id();
        let url = format!("http://{SESSION_HOST}/{id}");
        self.readers.lock().insert(id, Box::pin(reader));
        url
    }
}

/// `moby.upload.v1.Upload`.
#[derive(Clone)]
pub struct UploadService {
    uploads: Uploads,
}

impl UploadService {
    pub const METHODS: [&'static str; 1] = ["/moby.upload.v1.Upload/Pull"];

    pub fn new(uploads: Uploads) -> Self {
        UploadService { uploads }
    }
}

struct Pull(UploadService);

impl StreamingService<Bytes> for Pull {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = BoxFuture<'static, Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let path = first(request.metadata(), "urlpath");
        let id = path.rsplit('/').next().unwrap_or_default();
        let reader = self.0.uploads.readers.lock().remove(id);
        let answer = match reader {
            Some(reader) => {
                let messages = read_messages(reader).map(|data| data.map_err(Status::from));
                Ok(Response::new(messages.boxed()))
            }
            None => Err(Status::not_found(format!(
                "no http response from session for {id}"
            ))),
        };
        Box::pin(std::future::ready(answer))
    }
}

impl NamedService for UploadService {
    const NAME: &'static str = "moby.upload.v1.Upload";
}

impl Service<HttpRequest<Body>> for UploadService {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<HttpResponse<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(raw_grpc().streaming(Pull(service), request).await) })
    }
}
