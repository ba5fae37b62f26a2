//! The configuration of the image that a stage makes.

use diag::Result;
use oci::{ContainerConfig, History, ImageConfig, Platform};

use crate::failure::fail;

/// The search path of an image that has none.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What history entries say of who made them.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// Reads an image's configuration; its time of making is dropped, and lists that are there but
/// empty become absent, as they would be written.
pub(crate) fn read_config(data: &[u8]) -> Result<ImageConfig> {
    let mut image: ImageConfig = serde_json::from_slice(data)
        .map_err(|e| fail(e.to_string()).context("failed to parse image config"))?;
    image.created = None;
    let config = &mut image.config;
    for list in [&mut config.entrypoint, &mut config.cmd] {
        if list.as_ref().is_some_and(Vec::is_empty) {
            *list = None;
        }
    }
    Ok(image)
}

/// The configuration of an image made from nothing. Windows itself sets the path of its processes.
pub(crate) fn empty_image(platform: &Platform) -> ImageConfig {
    let env = match platform.os.as_str() {
        "windows" => Vec::new(),
        _ => vec![format!("PATH={DEFAULT_PATH}")],
    };
    ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
        config: ContainerConfig {
            working_dir: "/".to_owned(),
            env,
            ..ContainerConfig::default()
        },
        ..ImageConfig::default()
    }
}

/// Sets a variable in place, or adds it.
pub(crate) fn set_env(env: &mut Vec<String>, name: &str, value: &str) {
    let pair = format!("{name}={value}");
    let known = env
        .iter_mut()
        .find(|known| known.split('=').next() == Some(name));
    match known {
        Some(known) => *known = pair,
        None => env.push(pair),
    }
}

/// The command with the image's shell in front of it.
pub(crate) fn with_shell(image: &ImageConfig, words: &[String]) -> Vec<String> {
    let mut out = if !image.config.shell.is_empty() {
        image.config.shell.clone()
    } else if image.os == "windows" {
        vec!["cmd".to_owned(), "/S".to_owned(), "/C".to_owned()]
    } else {
        vec!["/bin/sh".to_owned(), "-c".to_owned()]
    };
    out.push(words.join(" "));
    out
}

/// Appends a history entry. `epoch`: seconds since 1970 that it is to be dated with.
pub(crate) fn add_history(
    image: &mut ImageConfig,
    created_by: String,
    makes_layer: bool,
    epoch: Option<i64>,
) {
    image.history.push(History {
        created: epoch.and_then(timestamp),
        created_by,
        comment: COMMENT.to_owned(),
        empty_layer: !makes_layer,
        ..History::default()
    });
}

/// Seconds since 1970 as RFC 3339; none out of range.
pub(crate) fn timestamp(seconds: i64) -> Option<String> {
    let time = jiff::Timestamp::from_second(seconds).ok()?;
    Some(time.to_string())
}
