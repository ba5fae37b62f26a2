//! Devices of this machine as the Container Device Interface describes them: files that say what has
//! to be done to a container so that a device works in it.
//!
//! A [`Registry`] is a list of directories; [`Registry::scan`] reads what is in them now, and
//! [`Devices`] answers which devices a name means and what has to be done for them ([`Edits`]).
//! The format is that of the CDI specification up to version 1.1.
//!
//! It knows nothing of builds, of containers or of who may use what: it reads files and decides
//! nothing. Invariant: a device that is listed comes from a file that was understood whole.

mod edits;
mod registry;
mod spec;
mod yaml;

pub use edits::{DeviceKind, DeviceNode, Edits, HostMount};
pub use registry::{Device, Devices, Fault, Registry};

/// Where specifications are looked for unless configured otherwise; later directories win.
pub const SPEC_DIRS: &[&str] = &["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"];

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CdiError {
    /// No file describes it.
    #[error("required device {0:?} is not registered")]
    NotRegistered(String),
    /// It needs what steps cannot be given.
    #[error("device {device} needs {what}, which is not supported")]
    Unsupported {
        /// Its name.
        device: String,
        /// What it needs, in the words of the format.
        what: String,
    },
    /// This machine has not what the description names.
    #[error("failed to stat CDI host device {path:?}: {reason}")]
    HostDevice {
        /// Path on this machine.
        path: String,
        /// What the system says.
        reason: String,
    },
}

impl From<CdiError> for diag::Error {
    fn from(error: CdiError) -> Self {
        let code = match &error {
            CdiError::Unsupported { .. } => diag::Code::Unimplemented,
            CdiError::NotRegistered(_) | CdiError::HostDevice { .. } => diag::Code::NotFound,
        };
        diag::Error::new(code, error.to_string())
    }
}
