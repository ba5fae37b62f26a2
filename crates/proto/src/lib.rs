//! BuildKit's wire messages and services, under the names the protocol froze.
//!
//! Generated code comes from `bollard-buildkit-proto`. What that crate lacks is written here:
//! [`content`], containerd's content service; [`policysession`], by which clients judge sources;
//! [`otlp`], OpenTelemetry's trace service. Nothing here knows what the messages mean.
#![allow(missing_docs)]

pub mod content;
pub mod grpc;
pub mod otlp;
pub mod policysession;

pub use bollard_buildkit_proto::fsutil::types as fsutil;
pub use bollard_buildkit_proto::google::rpc;
pub use bollard_buildkit_proto::health;
pub use bollard_buildkit_proto::moby::buildkit::secrets::v1 as secrets;
pub use bollard_buildkit_proto::moby::buildkit::v1 as control;
pub use bollard_buildkit_proto::moby::buildkit::v1::apicaps;
pub use bollard_buildkit_proto::moby::buildkit::v1::frontend as gateway;
pub use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy;
pub use bollard_buildkit_proto::moby::buildkit::v1::types as worker;
pub use bollard_buildkit_proto::moby::filesync::v1 as filesync;
pub use bollard_buildkit_proto::moby::sshforward::v1 as sshforward;
pub use bollard_buildkit_proto::moby::upload::v1 as upload;
pub use bollard_buildkit_proto::pb;

pub use prost;
pub use prost_types;
