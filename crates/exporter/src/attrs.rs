//! Attributes of exporters (`--output type=…,key=value`), read once into types.
//!
//! | key | exporters | meaning |
//! |---|---|---|
//! | `name` | image, docker, oci | names separated by commas; `*` takes the frontend's `image.name` |
//! | `push`, `push-by-digest`, `registry.insecure` | image | pushing |
//! | `store`, `unpack`, `name-canonical`, `dangling-name-prefix`, `danging-name-empty-only` | image | the worker's image store |
//! | `tar` | docker, oci | `false`: into the client's content store instead of an archive |
//! | `compression`, `compression-level`, `force-compression` | image, docker, oci | layers |
//! | `oci-mediatypes`, `oci-artifact`, `attestation-inline`, `prefer-nondist-layers` | image, docker, oci | manifests |
//! | `source-date-epoch`, `rewrite-timestamp` | all; image, docker, oci | times |
//! | `annotation…` | image, docker, oci | see [`Annotations`] |
//! | `attestation-prefix`, `platform-split`, `mode` | local, tar | files |

use std::collections::BTreeMap;

use archive::Compression;
use diag::{Error, Result};

use crate::annotations::Annotations;

/// What is to be made of a build's result.
#[derive(Clone, Debug, PartialEq)]
pub enum ExporterSpec {
    /// `image`: into the content store, and to a registry if asked.
    Image(ImageAttrs, PushAttrs),
    /// `docker`: an archive that `docker load` reads.
    Docker(ImageAttrs),
    /// `oci`: an archive in OCI's layout.
    Oci(ImageAttrs),
    /// `local`: files into a folder of the client.
    Local(FilesAttrs),
    /// `tar`: files into an archive.
    Tar(FilesAttrs),
}

/// Attributes common to exporters of images.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageAttrs {
    /// Names separated by commas, as given; may be empty or `*`.
    pub name: String,
    /// How new layers are compressed.
    pub compression: LayerCompression,
    /// OCI's media types; unset is the default, which is true.
    pub oci_types: Option<bool>,
    /// Attestations as OCI artifacts; unset follows `oci_types`.
    pub oci_artifact: Option<bool>,
    /// Attestations that exist only for inlining are attached too.
    pub force_inline_attestations: bool,
    /// Layers that may not be distributed keep their media type.
    pub prefer_nondistributable: bool,
    /// Annotations.
    pub annotations: Annotations,
    /// Seconds since 1970 that times are clamped to. `Some(None)`: explicitly none.
    pub epoch: Option<Option<i64>>,
    /// Files in layers get the epoch's time too.
    pub rewrite_timestamp: bool,
    /// False: into the client's content store and not as an archive.
    pub tar: bool,
    /// Metadata that takes the place of the frontend's (`containerimage.config…`).
    pub metadata: BTreeMap<String, Vec<u8>>,
}

/// How layers are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LayerCompression {
    /// The kind for layers that have no blob yet.
    pub kind: Compression,
    /// The level; `None` for the kind's usual one.
    pub level: Option<i32>,
    /// Existing blobs of another kind are made anew.
    pub force: bool,
}

/// Attributes of the `image` exporter alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushAttrs {
    /// Push to the registries of the names.
    pub push: bool,
    /// Push without tags.
    pub by_digest: bool,
    /// Plain HTTP and any certificate will do.
    pub insecure: bool,
    /// Keep the image.
    pub store: bool,
    /// Unpack it; the layers always are.
    pub unpack: bool,
    /// Additional names `NAME@DIGEST`.
    pub name_canonical: bool,
    /// Prefix of a name `PREFIX@DIGEST`; empty for none.
    pub dangling_prefix: String,
    /// That only if there is no other name.
    pub dangling_empty_only: bool,
}

/// Attributes of the `local` and `tar` exporters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesAttrs {
    /// Seconds since 1970 that all files get. `Some(None)`: explicitly none.
    pub epoch: Option<Option<i64>>,
    /// Prefix of the names of attestation files.
    pub attestation_prefix: String,
    /// A folder for each platform; unset: if there are several.
    pub platform_split: Option<bool>,
    /// Files that are not in the result are deleted from the client's folder.
    pub delete: bool,
}

impl ExporterSpec {
    /// Reads the attributes of an exporter; returns with it the keys that it does not know.
    ///
    /// # Errors
    /// Unknown exporters, values that are not of a key's form, keys that contradict each other.
    pub fn parse(kind: &str, attrs: &BTreeMap<String, String>) -> Result<(Self, Vec<String>)> {
        let mut unknown = Vec::new();
        let spec = match kind {
            "image" => {
                let (mut image, rest) = ImageAttrs::parse(attrs, true)?;
                let push = PushAttrs::parse(rest, &mut image.metadata, &mut unknown)?;
                ExporterSpec::Image(image, push)
            }
            "docker" | "oci" => {
                let (mut image, rest) = ImageAttrs::parse(attrs, false)?;
                for (key, value) in rest {
                    match key {
                        "tar" => image.tar = flag(key, value)?,
                        // The client's side of the same exporter.
                        "dest" | "context" => {}
                        _ => other(key, value, &mut image.metadata, &mut unknown),
                    }
                }
                match kind {
                    "docker" => ExporterSpec::Docker(image),
                    _ => ExporterSpec::Oci(image),
                }
            }
            "local" => ExporterSpec::Local(FilesAttrs::parse(attrs, &mut unknown)?),
            "tar" => ExporterSpec::Tar(FilesAttrs::parse(attrs, &mut unknown)?),
            _ => {
                return Err(Error::not_found(format!(
                    "exporter \"{kind}\" could not be found"
                )));
            }
        };
        Ok((spec, unknown))
    }

    /// The exporter's name as in `type=`.
    pub fn kind(&self) -> &'static str {
        match self {
            ExporterSpec::Image(..) => "image",
            ExporterSpec::Docker(_) => "docker",
            ExporterSpec::Oci(_) => "oci",
            ExporterSpec::Local(_) => "local",
            ExporterSpec::Tar(_) => "tar",
        }
    }

    /// The name of the vertex under which it reports.
    pub fn vertex_name(&self) -> &'static str {
        match self {
            ExporterSpec::Image(..) => "exporting to image",
            ExporterSpec::Docker(_) => "exporting to docker image format",
            ExporterSpec::Oci(_) => "exporting to oci image format",
            ExporterSpec::Local(_) => "exporting to client directory",
            ExporterSpec::Tar(_) => "exporting to client tarball",
        }
    }

    /// The attributes of an image, for those exporters that make one.
    pub fn image(&self) -> Option<&ImageAttrs> {
        match self {
            ExporterSpec::Image(image, _)
            | ExporterSpec::Docker(image)
            | ExporterSpec::Oci(image) => Some(image),
            ExporterSpec::Local(_) | ExporterSpec::Tar(_) => None,
        }
    }
}

impl ImageAttrs {
    /// Reads what exporters of images have in common; the rest is given back.
    fn parse(
        attrs: &BTreeMap<String, String>,
        force_inline: bool,
    ) -> Result<(Self, Vec<(&str, &str)>)> {
        let mut image = ImageAttrs {
            force_inline_attestations: force_inline,
            ..Self::default()
        };
        let mut rest = Vec::new();
        for (key, value) in attrs {
            let (key, value) = (key.as_str(), value.as_str());
            match key {
                "name" => image.name = value.to_owned(),
                "compression" => image.compression.kind = compression(value)?,
                "compression-level" => image.compression.level = Some(level(value)?),
                "force-compression" => {
                    image.compression.force = value.is_empty()
                        || parse_bool(value).map_err(|reason| {
                            Error::invalid(format!(
                                "non-bool value {value} specified for {key}: {reason}"
                            ))
                        })?;
                }
                "oci-mediatypes" => image.oci_types = Some(boolean(key, value)?),
                "oci-artifact" => image.oci_artifact = Some(boolean(key, value)?),
                "attestation-inline" => image.force_inline_attestations = boolean(key, value)?,
                "prefer-nondist-layers" => image.prefer_nondistributable = boolean(key, value)?,
                "source-date-epoch" => image.epoch = Some(epoch(key, value)?),
                "rewrite-timestamp" => image.rewrite_timestamp = boolean(key, value)?,
                _ if image.annotations.add(key, value)? => {}
                _ => rest.push((key, value)),
            }
        }
        image.validate()?;
        Ok((image, rest))
    }

    /// Whether manifests have OCI's media types.
    pub fn uses_oci_types(&self) -> bool {
        self.oci_types.unwrap_or(true)
    }

    fn validate(&self) -> Result<()> {
        if self.uses_oci_types() {
            return Ok(());
        }
        if self.compression.kind == Compression::Zstd {
            return Err(Error::invalid(
                "exporter option \"compression=zstd\" conflicts with \"oci-mediatypes=false\"",
            ));
        }
        if self.oci_artifact == Some(true) {
            return Err(Error::invalid(
                "exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\"",
            ));
        }
        Ok(())
    }
}

impl Default for ImageAttrs {
    fn default() -> Self {
        ImageAttrs {
            name: String::new(),
            compression: LayerCompression::default(),
            oci_types: None,
            oci_artifact: None,
            force_inline_attestations: false,
            prefer_nondistributable: false,
            annotations: Annotations::default(),
            epoch: None,
            rewrite_timestamp: false,
            tar: true,
            metadata: BTreeMap::new(),
        }
    }
}

impl PushAttrs {
    fn parse(
        attrs: Vec<(&str, &str)>,
        metadata: &mut BTreeMap<String, Vec<u8>>,
        unknown: &mut Vec<String>,
    ) -> Result<Self> {
        let mut push = PushAttrs {
            push: false,
            by_digest: false,
            insecure: false,
            store: true,
            unpack: false,
            name_canonical: false,
            dangling_prefix: String::new(),
            dangling_empty_only: false,
        };
        for (key, value) in attrs {
            match key {
                "push" => push.push = flag(key, value)?,
                "push-by-digest" => push.by_digest = flag(key, value)?,
                "registry.insecure" => push.insecure = flag(key, value)?,
                "store" => push.store = flag(key, value)?,
                "unpack" => push.unpack = flag(key, value)?,
                "name-canonical" => push.name_canonical = flag(key, value)?,
                "dangling-name-prefix" => push.dangling_prefix = value.to_owned(),
                // The spelling is stock's.
                "danging-name-empty-only" => push.dangling_empty_only = flag(key, value)?,
                // Stock's tests alone use it; our store never lacks blobs.
                "unsafe-internal-store-allow-incomplete" => {}
                _ => other(key, value, metadata, unknown),
            }
        }
        Ok(push)
    }
}

impl FilesAttrs {
    fn parse(attrs: &BTreeMap<String, String>, unknown: &mut Vec<String>) -> Result<Self> {
        let mut files = FilesAttrs::default();
        for (key, value) in attrs {
            match key.as_str() {
                "source-date-epoch" => files.epoch = Some(epoch(key, value)?),
                "attestation-prefix" => files.attestation_prefix = value.clone(),
                "platform-split" => {
                    let split = parse_bool(value).map_err(|reason| {
                        Error::invalid(format!("non-bool value for {key}: {value}: {reason}"))
                    })?;
                    files.platform_split = Some(split);
                }
                "mode" => match value.trim().to_ascii_lowercase().as_str() {
                    "" | "copy" => files.delete = false,
                    "delete" => files.delete = true,
                    _ => {
                        let text = format!("invalid local exporter mode {value:?}");
                        return Err(Error::invalid(text));
                    }
                },
                // The client's side of the same exporter.
                "dest" => {}
                _ => unknown.push(key.clone()),
            }
        }
        Ok(files)
    }
}

/// Keeps what may be metadata and notes down everything else.
fn other(
    key: &str,
    value: &str,
    metadata: &mut BTreeMap<String, Vec<u8>>,
    unknown: &mut Vec<String>,
) {
    if key.starts_with("containerimage.") || key == "image.name" || key == "refs.platforms" {
        metadata.insert(key.to_owned(), value.as_bytes().to_vec());
    } else {
        unknown.push(key.to_owned());
    }
}

fn compression(value: &str) -> Result<Compression> {
    match Compression::from_name(value) {
        Some(kind) => Ok(kind),
        None if value == "estargz" => Err(Error::unimplemented(
            "compression type estargz is not implemented",
        )),
        None => Err(Error::invalid(format!(
            "unsupported compression type {value}"
        ))),
    }
}

fn level(value: &str) -> Result<i32> {
    value.parse().map_err(|_| {
        Error::invalid(format!(
            "non-integer value {value} specified for compression-level: strconv.ParseInt: parsing {value:?}: invalid syntax"
        ))
    })
}

/// A boolean for which nothing means true.
fn flag(key: &str, value: &str) -> Result<bool> {
    if value.is_empty() {
        return Ok(true);
    }
    boolean(key, value)
}

fn boolean(key: &str, value: &str) -> Result<bool> {
    parse_bool(value)
        .map_err(|reason| Error::invalid(format!("non-bool value specified for {key}: {reason}")))
}

/// The words that Go's `strconv.ParseBool` knows, and its error.
fn parse_bool(value: &str) -> std::result::Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!(
            "strconv.ParseBool: parsing {value:?}: invalid syntax"
        )),
    }
}

/// Seconds since 1970; an empty value means none.
fn epoch(key: &str, value: &str) -> Result<Option<i64>> {
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|_| {
        Error::invalid(format!(
            "invalid {key}: strconv.ParseInt: parsing {value:?}: invalid syntax"
        ))
    })
}

#[cfg(test)]
mod tests;
