//! A client of the Docker Engine API, as much of it as builders need: images, containers, exec,
//! volumes, networks and the hijacked connections `/grpc` and `/session`.
//!
//! It knows nothing of builders, BuildKit or Docker contexts: an [`EngineEndpoint`] says where the
//! Engine is. Works with API 1.41 (Engine 20.10) and newer; the version is negotiated on first use.
//!
//! Invariant: on a hijacked connection neither direction waits for the other (see [`ExecStream`]).
//!
//! API: <https://docs.docker.com/reference/api/engine/>.

mod client;
mod containers;
mod endpoint;
mod error;
mod exec;
mod images;
mod io;
mod multiplex;
mod ssh;
mod system;
mod tls;
mod volumes;

pub use client::Engine;
pub use containers::{
    ContainerConfig, ContainerCreate, ContainerInspect, ContainerMount, ContainerNetwork,
    ContainerState, ContainerSummary, DeviceRequest, HostConfig, Mount, NetworkSettings,
    RestartPolicy,
};
pub use endpoint::{EngineEndpoint, Transport};
pub use error::EngineError;
pub use exec::{ExecOutput, ExecStream};
pub use images::{
    ImageInspect, ImageSummary, JsonMessage, ManifestSummary, ProgressDetail, RegistryAuth,
};
pub use io::{BoxedIo, Io, boxed};
pub use multiplex::{Demultiplexer, Output, StderrTail};
pub use ssh::dial_ssh;
pub use system::{
    ApiVersion, ContainerEvent, EngineInfo, EngineVersion, EventActor, IndexConfig, Ipam,
    IpamConfig, NetworkInspect, RegistryConfig,
};
pub use tls::{TlsFiles, client_config};
pub use volumes::VolumeInspect;
