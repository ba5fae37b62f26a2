//! BuildKit's service of clients that judge sources
//! (`moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier`).
//!
//! Source: `sourcepolicy/policysession/policysession.proto` of BuildKit, since 0.27.

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::PolicyAction;
use bollard_buildkit_proto::pb;
use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::{IntoRequest, Response, Status};
use tonic_prost::ProstCodec;

/// The service's only method.
pub const CHECK_POLICY: &str =
    "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";

/// May this source be used?
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckPolicyRequest {
    #[prost(message, optional, tag = "1")]
    pub platform: Option<pb::Platform>,
    /// The source, and what is known of it so far.
    #[prost(message, optional, tag = "2")]
    pub source: Option<ResolveSourceMetaResponse>,
    #[prost(map = "string, bool", tag = "3")]
    pub caps: HashMap<String, bool>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckPolicyResponse {
    #[prost(oneof = "check_policy_response::Result", tags = "1, 2")]
    pub result: Option<check_policy_response::Result>,
}

pub mod check_policy_response {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Result {
        #[prost(message, tag = "1")]
        Decision(super::DecisionResponse),
        /// What must be known of the source before it can be judged.
        #[prost(message, tag = "2")]
        Request(super::ResolveSourceMetaRequest),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DecisionResponse {
    #[prost(enumeration = "PolicyAction", tag = "1")]
    pub action: i32,
    #[prost(message, repeated, tag = "2")]
    pub deny_messages: Vec<DenyMessage>,
    /// What to use instead, when the action is to convert.
    #[prost(message, optional, tag = "3")]
    pub update: Option<pb::SourceOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DenyMessage {
    #[prost(string, tag = "1")]
    pub message: String,
}

/// Asks a client.
#[derive(Clone, Debug)]
pub struct PolicyVerifierClient<T> {
    inner: Grpc<T>,
}

impl<T> PolicyVerifierClient<T>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    pub fn with_origin(service: T, origin: http::Uri) -> Self {
        PolicyVerifierClient {
            inner: Grpc::with_origin(service, origin),
        }
    }

    pub async fn check_policy(
        &mut self,
        request: impl IntoRequest<CheckPolicyRequest>,
    ) -> Result<Response<CheckPolicyResponse>, Status> {
        self.inner
            .ready()
            .await
            .map_err(|error| Status::unavailable(error.into().to_string()))?;
        let path = PathAndQuery::from_static(CHECK_POLICY);
        let codec = ProstCodec::default();
        self.inner.unary(request.into_request(), path, codec).await
    }
}
