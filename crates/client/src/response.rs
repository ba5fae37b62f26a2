//! What a server says of a result, by the keys it says it under.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use diag::Error;
use oci::{Descriptor, Reference};

/// Key of an image's digest.
pub const DIGEST: &str = "containerimage.digest";
/// Key of the digest of an image's configuration.
pub const CONFIG_DIGEST: &str = "containerimage.config.digest";
/// Key of an image's descriptor, as JSON in base64.
pub const DESCRIPTOR: &str = "containerimage.descriptor";
/// Key of an image's names.
pub const IMAGE_NAME: &str = "image.name";
/// Key of the build's identity: builder, node and reference.
pub const BUILD_REF: &str = "buildx.build.ref";

/// What a server said of a result: the exporters' answers, or a called frontend's metadata.
pub type Response = BTreeMap<String, String>;

/// The descriptor of an image in an exporter's answer.
pub(crate) fn announced_descriptor(answer: &Response) -> Option<Descriptor> {
    let json = STANDARD.decode(answer.get(DESCRIPTOR)?).ok()?;
    serde_json::from_slice(&json).ok()
}

/// The names of an image in an exporter's answer, in full.
pub(crate) fn announced_names(answer: &Response) -> Result<Vec<Reference>, Error> {
    let names = answer.get(IMAGE_NAME).map_or("", String::as_str);
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| {
            name.parse::<Reference>()
                .map_err(|error| Error::invalid(format!("{name}: {error}")))
        })
        .collect()
}
