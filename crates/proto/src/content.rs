//! containerd's content service, `containerd.services.content.v1.Content`.
//!
//! The client side is reduced to what a reader needs; the server side answers the calls that would
//! write with `Unimplemented` unless they are implemented.

use std::collections::HashMap;

use prost_types::{FieldMask, Timestamp};

/// The gRPC name of the service.
pub const SERVICE_NAME: &str = "containerd.services.content.v1.Content";

/// A blob that is there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Info {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub size: i64,
    #[prost(message, optional, tag = "3")]
    pub created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "4")]
    pub updated_at: Option<Timestamp>,
    #[prost(map = "string, string", tag = "5")]
    pub labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoRequest {
    #[prost(string, tag = "1")]
    pub digest: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateRequest {
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
    #[prost(message, optional, tag = "2")]
    pub update_mask: Option<FieldMask>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateResponse {
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListContentRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListContentResponse {
    #[prost(message, repeated, tag = "1")]
    pub info: Vec<Info>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteContentRequest {
    #[prost(string, tag = "1")]
    pub digest: String,
}

/// A size of 0 means to the end.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadContentRequest {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub offset: i64,
    #[prost(int64, tag = "3")]
    pub size: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadContentResponse {
    #[prost(int64, tag = "1")]
    pub offset: i64,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

/// A write in progress.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    #[prost(message, optional, tag = "1")]
    pub started_at: Option<Timestamp>,
    #[prost(message, optional, tag = "2")]
    pub updated_at: Option<Timestamp>,
    #[prost(string, tag = "3")]
    pub r#ref: String,
    #[prost(int64, tag = "4")]
    pub offset: i64,
    #[prost(int64, tag = "5")]
    pub total: i64,
    #[prost(string, tag = "6")]
    pub expected: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusRequest {
    #[prost(string, tag = "1")]
    pub r#ref: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListStatusesRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListStatusesResponse {
    #[prost(message, repeated, tag = "1")]
    pub statuses: Vec<Status>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WriteAction {
    Stat = 0,
    Write = 1,
    Commit = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteContentRequest {
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    #[prost(string, tag = "2")]
    pub r#ref: String,
    #[prost(int64, tag = "3")]
    pub total: i64,
    #[prost(string, tag = "4")]
    pub expected: String,
    #[prost(int64, tag = "5")]
    pub offset: i64,
    #[prost(bytes = "vec", tag = "6")]
    pub data: Vec<u8>,
    #[prost(map = "string, string", tag = "7")]
    pub labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteContentResponse {
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    #[prost(message, optional, tag = "2")]
    pub started_at: Option<Timestamp>,
    #[prost(message, optional, tag = "3")]
    pub updated_at: Option<Timestamp>,
    #[prost(int64, tag = "4")]
    pub offset: i64,
    #[prost(int64, tag = "5")]
    pub total: i64,
    #[prost(string, tag = "6")]
    pub digest: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AbortRequest {
    #[prost(string, tag = "1")]
    pub r#ref: String,
}

pub mod content_client {
    use http::uri::PathAndQuery;
    use tonic::body::Body;
    use tonic::client::{Grpc, GrpcService};
    use tonic::codegen::{Body as HttpBody, Bytes, StdError};
    use tonic::{IntoRequest, IntoStreamingRequest, Response, Status, Streaming};
    use tonic_prost::ProstCodec;

    use super::*;

    /// Reads and writes somebody's content.
    #[derive(Clone, Debug)]
    pub struct ContentClient<T> {
        inner: Grpc<T>,
    }

    impl<T> ContentClient<T>
    where
        T: GrpcService<Body>,
        T::Error: Into<StdError>,
        T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
    {
        /// Over a connection that knows its origin.
        pub fn new(service: T) -> Self {
            ContentClient {
                inner: Grpc::new(service),
            }
        }

        pub fn with_origin(service: T, origin: http::Uri) -> Self {
            ContentClient {
                inner: Grpc::with_origin(service, origin),
            }
        }

        #[must_use]
        pub fn max_decoding_message_size(mut self, limit_bytes: usize) -> Self {
            self.inner = self.inner.max_decoding_message_size(limit_bytes);
            self
        }

        pub async fn info(
            &mut self,
            request: impl IntoRequest<InfoRequest>,
        ) -> Result<Response<InfoResponse>, Status> {
            self.ready().await?;
            self.inner
                .unary(request.into_request(), path("Info"), ProstCodec::default())
                .await
        }

        pub async fn list(
            &mut self,
            request: impl IntoRequest<ListContentRequest>,
        ) -> Result<Response<Streaming<ListContentResponse>>, Status> {
            self.ready().await?;
            self.inner
                .server_streaming(request.into_request(), path("List"), ProstCodec::default())
                .await
        }

        pub async fn read(
            &mut self,
            request: impl IntoRequest<ReadContentRequest>,
        ) -> Result<Response<Streaming<ReadContentResponse>>, Status> {
            self.ready().await?;
            self.inner
                .server_streaming(request.into_request(), path("Read"), ProstCodec::default())
                .await
        }

        pub async fn write(
            &mut self,
            request: impl IntoStreamingRequest<Message = WriteContentRequest>,
        ) -> Result<Response<Streaming<WriteContentResponse>>, Status> {
            self.ready().await?;
            self.inner
                .streaming(
                    request.into_streaming_request(),
                    path("Write"),
                    ProstCodec::default(),
                )
                .await
        }

        async fn ready(&mut self) -> Result<(), Status> {
            self.inner.ready().await.map_err(|error| {
                Status::unknown(format!("Service was not ready: {}", error.into()))
            })
        }
    }

    fn path(method: &'static str) -> PathAndQuery {
        PathAndQuery::from_static(match method {
            "Info" => "/containerd.services.content.v1.Content/Info",
            "List" => "/containerd.services.content.v1.Content/List",
            "Write" => "/containerd.services.content.v1.Content/Write",
            _ => "/containerd.services.content.v1.Content/Read",
        })
    }
}

pub mod content_server {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use tonic::body::Body;
    use tonic::codegen::tokio_stream::Stream;
    use tonic::codegen::{Body as HttpBody, BoxFuture, StdError, async_trait};
    use tonic::server::{
        Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService,
    };
    use tonic::{Request, Response, Status, Streaming};
    use tonic_prost::ProstCodec;

    use super::*;

    /// The largest message that is read: blobs are written in pieces of a peer's choice.
    const MESSAGE_BYTES_MAX: usize = 32 << 20;

    /// Messages of an answer.
    pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

    /// What a store answers; calls that are not implemented say so.
    #[async_trait]
    pub trait Content: Send + Sync + 'static {
        async fn info(
            &self,
            request: Request<InfoRequest>,
        ) -> Result<Response<InfoResponse>, Status>;

        async fn read(
            &self,
            request: Request<ReadContentRequest>,
        ) -> Result<Response<Answers<ReadContentResponse>>, Status>;

        async fn list(
            &self,
            _request: Request<ListContentRequest>,
        ) -> Result<Response<Answers<ListContentResponse>>, Status> {
            Err(read_only("List"))
        }

        async fn update(
            &self,
            _request: Request<UpdateRequest>,
        ) -> Result<Response<UpdateResponse>, Status> {
            Err(read_only("Update"))
        }

        async fn delete(
            &self,
            _request: Request<DeleteContentRequest>,
        ) -> Result<Response<()>, Status> {
            Err(read_only("Delete"))
        }

        async fn status(
            &self,
            _request: Request<StatusRequest>,
        ) -> Result<Response<StatusResponse>, Status> {
            Err(read_only("Status"))
        }

        async fn list_statuses(
            &self,
            _request: Request<ListStatusesRequest>,
        ) -> Result<Response<ListStatusesResponse>, Status> {
            Err(read_only("ListStatuses"))
        }

        async fn write(
            &self,
            _request: Request<Streaming<WriteContentRequest>>,
        ) -> Result<Response<Answers<WriteContentResponse>>, Status> {
            Err(read_only("Write"))
        }

        async fn abort(&self, _request: Request<AbortRequest>) -> Result<Response<()>, Status> {
            Err(read_only("Abort"))
        }
    }

    fn read_only(method: &str) -> Status {
        Status::unimplemented(format!(
            "method {method} is not offered by this content store"
        ))
    }

    /// Serves a [`Content`].
    #[derive(Debug)]
    pub struct ContentServer<T>(Arc<T>);

    impl<T> ContentServer<T> {
        pub fn new(content: T) -> Self {
            ContentServer(Arc::new(content))
        }
    }

    impl<T> Clone for ContentServer<T> {
        fn clone(&self) -> Self {
            ContentServer(self.0.clone())
        }
    }

    impl<T> NamedService for ContentServer<T> {
        const NAME: &'static str = SERVICE_NAME;
    }

    /// One method of the service, as tonic wants it.
    struct Method<T>(Arc<T>);

    macro_rules! method {
        ($service:ident $(<$stream:ident>)?, $call:ident, $input:ty, $request:ty, $answer:ty) => {
            impl<T: Content> $service<$input> for Method<T> {
                type Response = $answer;
                $(type $stream = Answers<$answer>;)?
                type Future = BoxFuture<method!(@answer $($stream)?, $answer), Status>;
                fn call(&mut self, request: Request<$request>) -> Self::Future {
                    let content = self.0.clone();
                    Box::pin(async move { content.$call(request).await })
                }
            }
        };
        (@answer ResponseStream, $answer:ty) => { Response<Answers<$answer>> };
        (@answer , $answer:ty) => { Response<$answer> };
    }

    method!(UnaryService, info, InfoRequest, InfoRequest, InfoResponse);
    method!(
        UnaryService,
        update,
        UpdateRequest,
        UpdateRequest,
        UpdateResponse
    );
    method!(
        UnaryService,
        delete,
        DeleteContentRequest,
        DeleteContentRequest,
        ()
    );
    method!(
        UnaryService,
        status,
        StatusRequest,
        StatusRequest,
        StatusResponse
    );
    method!(
        UnaryService,
        list_statuses,
        ListStatusesRequest,
        ListStatusesRequest,
        ListStatusesResponse
    );
    method!(UnaryService, abort, AbortRequest, AbortRequest, ());
    method!(
        ServerStreamingService<ResponseStream>,
        list,
        ListContentRequest,
        ListContentRequest,
        ListContentResponse
    );
    method!(
        ServerStreamingService<ResponseStream>,
        read,
        ReadContentRequest,
        ReadContentRequest,
        ReadContentResponse
    );
    method!(
        StreamingService<ResponseStream>,
        write,
        WriteContentRequest,
        Streaming<WriteContentRequest>,
        WriteContentResponse
    );

    impl<T, B> tonic::codegen::Service<http::Request<B>> for ContentServer<T>
    where
        T: Content,
        B: HttpBody + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<Self::Response, Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<B>) -> Self::Future {
            let content = self.0.clone();
            let method = request
                .uri()
                .path()
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned();
            macro_rules! answer {
                ($kind:ident, $input:ty, $output:ty) => {{
                    let mut grpc = Grpc::new(ProstCodec::<$output, $input>::default())
                        .max_decoding_message_size(MESSAGE_BYTES_MAX);
                    grpc.$kind(Method(content), request).await
                }};
            }
            Box::pin(async move {
                Ok(match &method[..] {
                    "Info" => answer!(unary, InfoRequest, InfoResponse),
                    "Update" => answer!(unary, UpdateRequest, UpdateResponse),
                    "List" => answer!(server_streaming, ListContentRequest, ListContentResponse),
                    "Delete" => answer!(unary, DeleteContentRequest, ()),
                    "Read" => answer!(server_streaming, ReadContentRequest, ReadContentResponse),
                    "Status" => answer!(unary, StatusRequest, StatusResponse),
                    "ListStatuses" => answer!(unary, ListStatusesRequest, ListStatusesResponse),
                    "Write" => answer!(streaming, WriteContentRequest, WriteContentResponse),
                    "Abort" => answer!(unary, AbortRequest, ()),
                    other => Status::unimplemented(format!("unknown method {other}")).into_http(),
                })
            })
        }
    }
}
