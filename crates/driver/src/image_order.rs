//! Where the base images of a build are looked for.

use std::str::FromStr;

/// The driver option that says so.
pub const IMAGE_ORDER_OPTION: &str = "engine-images";

/// Whether images of the user's Docker Engine may be bases of builds elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageOrder {
    /// What the Engine has is taken from there; no registry is asked.
    LocalFirst,
    /// The Engine is asked for what no registry has.
    #[default]
    RegistryFirst,
    /// Never: a build sees registries only.
    Off,
}

impl FromStr for ImageOrder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "local-first" => Ok(ImageOrder::LocalFirst),
            "registry-first" => Ok(ImageOrder::RegistryFirst),
            "off" => Ok(ImageOrder::Off),
            _ => Err(format!(
                "invalid value {text:?} for {IMAGE_ORDER_OPTION}: expecting \"local-first\", \
                 \"registry-first\" or \"off\""
            )),
        }
    }
}
