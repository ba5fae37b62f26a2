//! Streams the server reads through URLs of the session.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use llb::SESSION_HOST;
use parking_lot::Mutex;
use tokio::io::AsyncRead;
use tonic::{Request, Status, Streaming};

use super::builder::new_id;
use super::raw_service::{Answers, StreamMethod};
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

impl StreamMethod for UploadService {
    const SERVICE: &'static str = "moby.upload.v1.Upload";
    const METHOD: &'static str = "Pull";

    async fn answer(self, request: Request<Streaming<Bytes>>) -> Result<Answers, Status> {
        let path = first(request.metadata(), "urlpath");
        let id = path.rsplit('/').next().unwrap_or_default();
        let reader = self.uploads.readers.lock().remove(id);
        match reader {
            Some(reader) => {
                let messages = read_messages(reader).map(|data| data.map_err(Status::from));
                Ok(messages.boxed())
            }
            None => Err(Status::not_found(format!(
                "no http response from session for {id}"
            ))),
        }
    }
}
