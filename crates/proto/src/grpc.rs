//! Clients and servers of the gRPC services written down in this crate, as `tonic`'s generator would make
//! them from a `.proto` file.
//!
//! A method is a line `KIND NAME = "Method" (Request) -> Answer;`, where the kind says which side sends
//! many messages: `unary` none, `server_streaming` the server, `streaming` both.

use std::pin::Pin;

use tonic::Status;
use tonic::codegen::tokio_stream::Stream;

/// Messages of an answer.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A client: a struct over any connection.
macro_rules! grpc_client {
    (
        $(#[$doc:meta])* $Client:ident of $service:literal;
        $($kind:ident $call:ident = $method:literal ($input:ty) -> $output:ty;)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $Client<T>(tonic::client::Grpc<T>);

        impl<T> $Client<T>
        where
            T: tonic::client::GrpcService<tonic::body::Body>,
            T::Error: Into<tonic::codegen::StdError>,
            T::ResponseBody:
                tonic::codegen::Body<Data = tonic::codegen::Bytes> + Send + 'static,
            <T::ResponseBody as tonic::codegen::Body>::Error:
                Into<tonic::codegen::StdError> + Send,
        {
            /// Over a connection that knows its origin.
            pub fn new(connection: T) -> Self {
                $Client(tonic::client::Grpc::new(connection))
            }

            pub fn with_origin(connection: T, origin: http::Uri) -> Self {
                $Client(tonic::client::Grpc::with_origin(connection, origin))
            }

            #[must_use]
            pub fn max_decoding_message_size(self, limit_bytes: usize) -> Self {
                $Client(self.0.max_decoding_message_size(limit_bytes))
            }

            $(pub async fn $call(
                &mut self,
                request: grpc_client!(@request $kind $input),
            ) -> Result<tonic::Response<grpc_client!(@answer $kind $output)>, tonic::Status> {
                self.0.ready().await.map_err(|error| {
                    tonic::Status::unknown(format!("Service was not ready: {}", error.into()))
                })?;
                let request = grpc_client!(@into $kind request);
                let path = http::uri::PathAndQuery::from_static(
                    concat!("/", $service, "/", $method),
                );
                self.0.$kind(request, path, tonic_prost::ProstCodec::default()).await
            })*
        }
    };
    (@request streaming $input:ty) => { impl tonic::IntoStreamingRequest<Message = $input> };
    (@request $kind:ident $input:ty) => { impl tonic::IntoRequest<$input> };
    (@into streaming $request:ident) => { $request.into_streaming_request() };
    (@into $kind:ident $request:ident) => { $request.into_request() };
    (@answer unary $output:ty) => { $output };
    (@answer $kind:ident $output:ty) => { tonic::Streaming<$output> };
}

/// A server: the trait of what answers, all of whose calls are refused unless they are implemented, and
/// the struct that serves it. Longer messages than `message_bytes_max` are refused.
macro_rules! grpc_server {
    (
        $(#[$doc:meta])* $Trait:ident by $Server:ident of $service:literal,
        message_bytes_max = $message_bytes_max:expr;
        $($kind:ident $call:ident = $method:literal ($input:ty) -> $output:ty;)*
    ) => {
        $(#[$doc])*
        #[tonic::async_trait]
        pub trait $Trait: Send + Sync + 'static {
            $(async fn $call(
                &self,
                _request: tonic::Request<grpc_server!(@request $kind $input)>,
            ) -> Result<tonic::Response<grpc_server!(@answer $kind $output)>, tonic::Status> {
                let text = concat!("method ", $method, " of ", $service, " is not offered");
                Err(tonic::Status::unimplemented(text))
            })*
        }

        #[doc = concat!("Serves a [`", stringify!($Trait), "`].")]
        #[derive(Debug)]
        pub struct $Server<T>(std::sync::Arc<T>);

        impl<T> $Server<T> {
            pub fn new(service: T) -> Self {
                $Server(std::sync::Arc::new(service))
            }
        }

        impl<T> Clone for $Server<T> {
            fn clone(&self) -> Self {
                $Server(self.0.clone())
            }
        }

        impl<T> tonic::server::NamedService for $Server<T> {
            const NAME: &'static str = $service;
        }

        impl<T, B> tonic::codegen::Service<http::Request<B>> for $Server<T>
        where
            T: $Trait,
            B: tonic::codegen::Body + Send + 'static,
            B::Error: Into<tonic::codegen::StdError> + Send + 'static,
        {
            type Response = http::Response<tonic::body::Body>;
            type Error = std::convert::Infallible;
            type Future = tonic::codegen::BoxFuture<Self::Response, Self::Error>;

            fn poll_ready(
                &mut self,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Result<(), Self::Error>> {
                std::task::Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<B>) -> Self::Future {
                let service = self.0.clone();
                Box::pin(async move {
                    Ok(match request.uri().path() {
                        $(concat!("/", $service, "/", $method) => {
                            struct Call<T>(std::sync::Arc<T>);
                            grpc_server!(@call $kind $Trait $call ($input) -> $output);
                            tonic::server::Grpc::new(tonic_prost::ProstCodec::default())
                                .max_decoding_message_size($message_bytes_max)
                                .$kind(Call(service), request)
                                .await
                        })*
                        other => {
                            let text = format!("unknown method {other}");
                            tonic::Status::unimplemented(text).into_http()
                        }
                    })
                })
            }
        }
    };
    (@call unary $Trait:ident $call:ident ($input:ty) -> $output:ty) => {
        grpc_server!(@impl unary UnaryService<> $Trait $call ($input) -> $output);
    };
    (@call server_streaming $Trait:ident $call:ident ($input:ty) -> $output:ty) => {
        grpc_server!(
            @impl server_streaming ServerStreamingService<ResponseStream>
            $Trait $call ($input) -> $output
        );
    };
    (@call streaming $Trait:ident $call:ident ($input:ty) -> $output:ty) => {
        grpc_server!(
            @impl streaming StreamingService<ResponseStream> $Trait $call ($input) -> $output
        );
    };
    (
        @impl $kind:ident $Service:ident<$($Stream:ident)?>
        $Trait:ident $call:ident ($input:ty) -> $output:ty
    ) => {
        impl<T: $Trait> tonic::server::$Service<$input> for Call<T> {
            type Response = $output;
            $(type $Stream = $crate::grpc::Answers<$output>;)?
            type Future = tonic::codegen::BoxFuture<
                tonic::Response<grpc_server!(@answer $kind $output)>,
                tonic::Status,
            >;

            fn call(
                &mut self,
                request: tonic::Request<grpc_server!(@request $kind $input)>,
            ) -> Self::Future {
                let service = self.0.clone();
                Box::pin(async move { service.$call(request).await })
            }
        }
    };
    (@request streaming $input:ty) => { tonic::Streaming<$input> };
    (@request $kind:ident $input:ty) => { $input };
    (@answer unary $output:ty) => { $output };
    (@answer $kind:ident $output:ty) => { $crate::grpc::Answers<$output> };
}

pub(crate) use {grpc_client, grpc_server};
