//! The words of OCI images: digests, descriptors, manifests, image configurations, platforms and
//! image names. Pure values: this crate does no I/O.
//!
//! Formats: <https://github.com/opencontainers/image-spec>, and Docker's additions to the image
//! configuration (`Healthcheck`, `OnBuild`, `Shell`, `ArgsEscaped`).

mod config;
mod digest;
mod manifest;
mod platform;
mod reference;

pub use config::{ContainerConfig, Empty, HealthConfig, History, ImageConfig, RootFs};
pub use digest::{Digest, DigestError, DigestHasher, DigestWriter};
pub use manifest::{Descriptor, ImageIndex, ImageManifest, media_type};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
