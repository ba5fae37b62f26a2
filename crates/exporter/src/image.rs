//! From layers and a frontend's configuration to the bytes of configuration, manifest and index.
//! Pure: nothing here reads or writes anything.
//!
//! The configuration is treated as stock treats it: `rootfs` and `history` are replaced, `created`
//! is filled in or clamped, everything else goes through as it came, top-level keys in order.

use std::collections::BTreeMap;

use diag::{Context, Error, Result};
use jiff::Timestamp;
use oci::{Descriptor, Digest, History, ImageConfig, ImageIndex, ImageManifest, RootFs};
use oci::{Platform, media_type};
use serde_json::Value;

use crate::go_json;

/// A layer as it goes into an image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageLayer {
    /// The blob; its annotations may have internal ones.
    pub descriptor: Descriptor,
    /// Digest of the plain tar.
    pub diff_id: Digest,
    /// What made it, for a history that lacks it; may be empty.
    pub description: String,
    /// When it was made, if that is known.
    pub created_at: Option<Timestamp>,
}

/// What the configuration is made of, besides the layers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConfigInput<'a> {
    /// The frontend's configuration; `None` for the default one.
    pub config: Option<&'a [u8]>,
    /// The configuration of the base image, whose times are not clamped.
    pub base_config: Option<&'a [u8]>,
    /// Inline cache, JSON.
    pub inline_cache: Option<&'a [u8]>,
    /// Seconds since 1970 that times are clamped to.
    pub epoch: Option<i64>,
}

/// The configuration for these layers, bottom first.
///
/// # Errors
/// A frontend's configuration that is not JSON or lacks `os` or `architecture`.
pub fn assemble_config(input: ConfigInput<'_>, layers: &[ImageLayer]) -> Result<Vec<u8>> {
    let default;
    let given = match input.config {
        Some(config) => config,
        None => {
            default = default_config()?;
            &default
        }
    };
    let invalid = |error: serde_json::Error| {
        Error::invalid(format!("invalid image config for export: {error}"))
    };
    let parsed: ImageConfig = serde_json::from_slice(given).map_err(invalid)?;
    let mut fields: BTreeMap<String, Value> = serde_json::from_slice(given).map_err(invalid)?;
    for (field, value) in [("os", &parsed.os), ("architecture", &parsed.architecture)] {
        if value.is_empty() {
            return Err(Error::invalid(format!(
                "invalid image config for export: missing {field}"
            )));
        }
    }
    let base: Option<ImageConfig> = match input.base_config {
        Some(bytes) => Some(
            serde_json::from_slice(bytes)
                .map_err(|error| Error::invalid(error.to_string()))
                .context("failed to unmarshal base image config")?,
        ),
        None => None,
    };
    let mut history = normalized_history(parsed.history, layers);
    if let Some(epoch) = input.epoch {
        clamp_history(&mut history, base.as_ref(), epoch)?;
    }
    let rootfs = RootFs {
        diff_ids: layers.iter().map(|layer| layer.diff_id).collect(),
        ..RootFs::default()
    };
    let internal = |error: serde_json::Error| Error::internal(error.to_string());
    fields.insert("rootfs".to_owned(), rootfs_value(&rootfs)?);
    let created = match (parsed.created, input.epoch) {
        (Some(created), Some(epoch)) => Some(clamp(&created, epoch)?),
        (Some(created), None) => Some(created),
        (None, _) => history.iter().rev().find_map(|h| h.created.clone()),
    };
    // A configuration with an explicit null keeps it.
    if created.is_some() || !fields.contains_key("created") {
        fields.insert("created".to_owned(), created.into());
    }
    let history = match history.is_empty() {
        true => Value::Null,
        false => serde_json::to_value(&history).map_err(internal)?,
    };
    fields.insert("history".to_owned(), history);
    if let Some(cache) = input.inline_cache {
        // Go writes bytes as base64.
        use base64::Engine as _;
        let text = base64::prelude::BASE64_STANDARD.encode(cache);
        fields.insert("moby.buildkit.cache.v0".to_owned(), text.into());
    }
    go_json::to_vec(&fields).map_err(internal)
}

/// The manifest of a configuration and layers; layers get the media types of the same family.
pub fn assemble_manifest(
    config: &[u8],
    layers: &[ImageLayer],
    oci_types: bool,
    annotations: BTreeMap<String, String>,
) -> Result<(Descriptor, Descriptor, Vec<u8>)> {
    let (manifest_type, config_type) = match oci_types {
        true => (media_type::OCI_MANIFEST, media_type::OCI_CONFIG),
        false => (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG),
    };
    let config = Descriptor::of(config_type, config);
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: manifest_type.to_owned(),
        artifact_type: None,
        config: config.clone(),
        layers: layers
            .iter()
            .map(|layer| public_descriptor(&layer.descriptor, oci_types))
            .collect(),
        subject: None,
        annotations,
    };
    let bytes = indented(&manifest)?;
    Ok((Descriptor::of(manifest_type, &bytes), config, bytes))
}

/// The index of these manifests.
pub fn assemble_index(
    manifests: Vec<Descriptor>,
    oci_types: bool,
    annotations: BTreeMap<String, String>,
) -> Result<(Descriptor, Vec<u8>)> {
    let media_type = match oci_types {
        true => media_type::OCI_INDEX,
        false => media_type::DOCKER_INDEX,
    };
    let index = ImageIndex {
        schema_version: 2,
        media_type: media_type.to_owned(),
        artifact_type: None,
        manifests,
        subject: None,
        annotations,
    };
    let bytes = indented(&index)?;
    Ok((Descriptor::of(media_type, &bytes), bytes))
}

fn indented<T: serde::Serialize>(value: &T) -> Result<Vec<u8>> {
    go_json::to_vec_indented(value).map_err(|error| Error::internal(error.to_string()))
}

/// The configuration of a result whose frontend gave none.
fn default_config() -> Result<Vec<u8>> {
    let platform = Platform::host().normalized();
    let mut config = ImageConfig {
        architecture: platform.architecture,
        variant: platform.variant,
        os: platform.os,
        ..ImageConfig::default()
    };
    config.config.working_dir = "/".to_owned();
    config.config.env =
        vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    go_json::to_vec(&config).map_err(|error| Error::internal(error.to_string()))
}

/// Go writes an empty list that was never made as `null`.
fn rootfs_value(rootfs: &RootFs) -> Result<Value> {
    let mut value =
        serde_json::to_value(rootfs).map_err(|error| Error::internal(error.to_string()))?;
    if rootfs.diff_ids.is_empty() {
        value["diff_ids"] = Value::Null;
    }
    Ok(value)
}

/// A history that has an entry for every layer and a time for every entry.
fn normalized_history(mut history: Vec<History>, layers: &[ImageLayer]) -> Vec<History> {
    for entry in &mut history {
        entry.created = entry.created.take().map(|text| go_time(&text));
    }
    // More entries with layers than layers: the last of them cannot have one.
    let mut with_layer = 0;
    for entry in history.iter_mut().filter(|entry| !entry.empty_layer) {
        if with_layer == layers.len() {
            entry.empty_layer = true;
        } else {
            with_layer += 1;
        }
    }
    for layer in &layers[with_layer..] {
        history.push(History {
            created: layer.created_at.map(|time| time.to_string()),
            created_by: layer.description.clone(),
            comment: "buildkit.exporter.image.v0".to_owned(),
            ..History::default()
        });
    }
    let own = history.iter_mut().filter(|entry| !entry.empty_layer);
    for (entry, layer) in own.zip(layers) {
        if entry.created.is_none() {
            entry.created = layer.created_at.map(|time| time.to_string());
        }
    }
    fill_times(&mut history);
    history
}

/// Gives entries without a time that of the first later one that has one behind a gap, and after
/// that of the one before: a command that only changed metadata must not get the time of the base
/// image.
fn fill_times(history: &mut [History]) {
    let mut time = None;
    let mut gap = false;
    for entry in history.iter() {
        match &entry.created {
            Some(created) => {
                time = Some(created.clone());
                if gap {
                    break;
                }
            }
            None => gap = true,
        }
    }
    gap = false;
    for entry in history {
        match &entry.created {
            Some(created) if gap => time = Some(created.clone()),
            Some(_) => {}
            None => {
                gap = true;
                entry.created.clone_from(&time);
            }
        }
    }
}

/// Later times become the epoch, except in what is still the base image's own history.
fn clamp_history(history: &mut [History], base: Option<&ImageConfig>, epoch: i64) -> Result<()> {
    let base = base.map_or(&[][..], |base| &base.history[..]);
    let shared = history
        .iter()
        .zip(base)
        .take_while(|(own, of_base)| same_entry(own, of_base))
        .count();
    for entry in &mut history[shared..] {
        entry.created = Some(match &entry.created {
            Some(created) => clamp(created, epoch)?,
            None => epoch_text(epoch)?,
        });
    }
    Ok(())
}

fn same_entry(own: &History, of_base: &History) -> bool {
    let mut other = of_base.clone();
    other.created = other.created.map(|text| go_time(&text));
    *own == other
}

fn clamp(time: &str, epoch: i64) -> Result<String> {
    let parsed: Timestamp = time.parse().map_err(|error| {
        Error::invalid(format!(
            "failed to unmarshal creation time \"{time}\": {error}"
        ))
    })?;
    if parsed > epoch_time(epoch)? {
        return epoch_text(epoch);
    }
    Ok(time.to_owned())
}

/// The epoch as a time.
pub(crate) fn epoch_time(epoch: i64) -> Result<Timestamp> {
    Timestamp::from_second(epoch)
        .map_err(|error| Error::invalid(format!("invalid source-date-epoch: {error}")))
}

fn epoch_text(epoch: i64) -> Result<String> {
    Ok(epoch_time(epoch)?.to_string())
}

/// A time as Go prints one that it has read: without zeros at the end of the fraction.
fn go_time(text: &str) -> String {
    match text.parse::<Timestamp>() {
        Ok(time) if text.ends_with('Z') => time.to_string(),
        _ => text.to_owned(),
    }
}

/// A layer's descriptor without what only builders care about and with the right media type.
pub(crate) fn public_descriptor(descriptor: &Descriptor, oci_types: bool) -> Descriptor {
    let mut public = descriptor.clone();
    public.media_type = layer_media_type(&descriptor.media_type, oci_types).to_owned();
    public.annotations.retain(|key, _| {
        oci_types
            && key != "containerd.io/uncompressed"
            && key != "buildkit/createdat"
            && !key.starts_with(SOURCE_PREFIX)
    });
    public
}

/// Annotations that name the repositories where a blob can be found; the host follows.
pub(crate) const SOURCE_PREFIX: &str = "containerd.io/distribution.source.";

/// The media type of the same layer in the other family; unknown ones stay.
fn layer_media_type(given: &str, oci_types: bool) -> &str {
    const PAIRS: &[(&str, &str)] = &[
        (media_type::OCI_LAYER, media_type::DOCKER_LAYER),
        (media_type::OCI_LAYER_GZIP, media_type::DOCKER_LAYER_GZIP),
        (media_type::OCI_LAYER_ZSTD, media_type::DOCKER_LAYER_ZSTD),
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.docker.image.rootfs.foreign.diff.tar",
        ),
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ),
    ];
    for (oci, docker) in PAIRS {
        if given == *oci || given == *docker {
            return if oci_types { oci } else { docker };
        }
    }
    given
}

/// The distributable media type for a layer that is not (or no longer) one that must not be
/// distributed.
pub(crate) fn distributable(given: &str) -> String {
    given
        .replace("layer.nondistributable.v1", "layer.v1")
        .replace("rootfs.foreign.diff", "rootfs.diff")
}

/// True for layers that registries do not take.
pub(crate) fn is_nondistributable(given: &str) -> bool {
    given.contains(".nondistributable.") || given.contains(".foreign.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(text: &str) -> ImageLayer {
        ImageLayer {
            descriptor: Descriptor::of(media_type::OCI_LAYER_GZIP, text.as_bytes()),
            diff_id: Digest::of(text),
            description: format!("made {text}"),
            created_at: Some("2025-01-02T03:04:05.5Z".parse().unwrap()),
        }
    }

    fn assemble(
        config: &str,
        epoch: Option<i64>,
        base: Option<&str>,
        layers: &[ImageLayer],
    ) -> String {
        let input = ConfigInput {
            config: Some(config.as_bytes()),
            base_config: base.map(str::as_bytes),
            epoch,
            inline_cache: None,
        };
        String::from_utf8(assemble_config(input, layers).unwrap()).unwrap()
    }

    const CONFIG: &str = r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=<b>"],"Cmd":null},"rootfs":{"type":"x","diff_ids":null},"history":[{"created":"2024-01-01T00:00:00.100Z","created_by":"base"},{"created_by":"ENV A=b","empty_layer":true},{"created_by":"RUN x"}],"moby.extra":1}"#;

    #[test]
    fn layers_and_times_are_filled_into_a_frontends_configuration() {
        let (a, b) = (layer("a"), layer("b"));
        let expected = format!(
            r#"{{"architecture":"amd64","config":{{"Env":["A=\u003cb\u003e"],"Cmd":null}},"created":"2025-01-02T03:04:05.5Z","history":[{{"created":"2024-01-01T00:00:00.1Z","created_by":"base"}},{{"created":"2025-01-02T03:04:05.5Z","created_by":"ENV A=b","empty_layer":true}},{{"created":"2025-01-02T03:04:05.5Z","created_by":"RUN x"}}],"moby.extra":1,"os":"linux","rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}}"#,
            a.diff_id, b.diff_id
        );
        assert_eq!(assemble(CONFIG, None, None, &[a, b]), expected);
    }

    #[test]
    fn missing_and_superfluous_history_is_evened_out() {
        let three = [layer("a"), layer("b"), layer("c")];
        let made = assemble(CONFIG, None, None, &three);
        assert!(
            made.contains(
                r#"{"created":"2025-01-02T03:04:05.5Z","created_by":"made c","comment":"buildkit.exporter.image.v0"}"#
            ),
            "{made}"
        );
        let one = assemble(CONFIG, None, None, &three[..1]);
        assert!(
            one.contains(r#""created_by":"RUN x","empty_layer":true}"#),
            "{one}"
        );
    }

    #[test]
    fn an_epoch_clamps_everything_but_the_base_images_past() {
        let base = r#"{"history":[{"created":"2024-01-01T00:00:00.100Z","created_by":"base"}]}"#;
        let made = assemble(CONFIG, Some(86400), Some(base), &[layer("a"), layer("b")]);
        assert!(
            made.contains(r#"{"created":"2024-01-01T00:00:00.1Z","created_by":"base"}"#),
            "{made}"
        );
        assert_eq!(made.matches("1970-01-02T00:00:00Z").count(), 3, "{made}");
    }

    #[test]
    fn an_empty_image_has_nulls_like_gos() {
        let made = assemble(r#"{"architecture":"amd64","os":"linux"}"#, None, None, &[]);
        assert_eq!(
            made,
            r#"{"architecture":"amd64","created":null,"history":null,"os":"linux","rootfs":{"type":"layers","diff_ids":null}}"#
        );
        assert!(
            assemble_config(
                ConfigInput {
                    config: Some(br#"{"os":"linux"}"#),
                    ..Default::default()
                },
                &[]
            )
            .is_err()
        );
    }

    #[test]
    fn media_types_follow_the_family_and_internal_annotations_stay_inside() {
        let mut one = layer("a");
        one.descriptor.annotations = BTreeMap::from([
            ("containerd.io/uncompressed".to_owned(), "x".to_owned()),
            (format!("{SOURCE_PREFIX}r"), "a".to_owned()),
            ("kept".to_owned(), "y".to_owned()),
        ]);
        let (_, _, bytes) =
            assemble_manifest(b"{}", &[one.clone()], true, BTreeMap::new()).unwrap();
        let manifest: ImageManifest = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(manifest.layers[0].annotations.len(), 1);
        assert_eq!(manifest.layers[0].media_type, media_type::OCI_LAYER_GZIP);
        let (descriptor, config, bytes) =
            assemble_manifest(b"{}", &[one], false, BTreeMap::new()).unwrap();
        assert_eq!(descriptor.media_type, media_type::DOCKER_MANIFEST);
        assert_eq!(config.media_type, media_type::DOCKER_CONFIG);
        let expected = format!(
            "{{\n  \"schemaVersion\": 2,\n  \"mediaType\": \"{}\",\n  \"config\": {{\n    \"mediaType\": \"{}\",\n    \"digest\": \"{}\",\n    \"size\": 2\n  }},\n  \"layers\": [\n    {{\n      \"mediaType\": \"{}\",\n      \"digest\": \"{}\",\n      \"size\": 1\n    }}\n  ]\n}}",
            media_type::DOCKER_MANIFEST,
            media_type::DOCKER_CONFIG,
            Digest::of("{}"),
            media_type::DOCKER_LAYER_GZIP,
            Digest::of("a")
        );
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
}
