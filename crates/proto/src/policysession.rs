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

use crate::grpc::grpc_client;

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

grpc_client! {
    /// Asks a client.
    PolicyVerifierClient of "moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier";
    unary check_policy = "CheckPolicy" (CheckPolicyRequest) -> CheckPolicyResponse;
}
