//! `oci-layout://PATH[:TAG][@DIGEST]`.

use std::fmt;
use std::fs;
use std::path::Path;

use diag::{Context, Error};
use oci::{Digest, ImageIndex};

use crate::inputs::go_path_error;

const PREFIX: &str = "oci-layout://";
const TAG: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";

/// An image in a directory of OCI's layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciLayoutRef {
    /// The directory, or the name of the store that serves it.
    pub path: String,
    /// The image's tag within.
    pub tag: Option<String>,
    /// The image's digest.
    pub digest: Option<Digest>,
}

impl OciLayoutRef {
    /// Reads one; `None` when it is something else.
    pub fn parse(text: &str) -> Result<Option<Self>, Error> {
        let Some(mut path) = text.strip_prefix(PREFIX) else {
            return Ok(None);
        };
        let mut digest = None;
        if let Some((before, after)) = path.rsplit_once('@')
            && after.contains(':')
        {
            let parsed = after.parse::<Digest>();
            digest = Some(parsed.map_err(|error| Error::invalid(error.to_string()))?);
            path = before;
        }
        let mut tag = None;
        if let Some((before, after)) = path.rsplit_once(':')
            && is_tag(after)
        {
            tag = Some(after.to_owned());
            path = before;
        }
        if tag.is_none() && digest.is_none() {
            tag = Some("latest".to_owned());
        }
        Ok(Some(OciLayoutRef {
            path: path.to_owned(),
            tag,
            digest,
        }))
    }

    /// Finds the digest of the tag in the layout's index, unless it is known.
    pub(crate) fn resolve(&mut self, directory: &Path) -> Result<(), Error> {
        if self.digest.is_some() {
            return Ok(());
        }
        let file = directory.join("index.json");
        let text = fs::read(&file)
            .map_err(|error| go_path_error("open", &file.to_string_lossy(), &error))
            .with_context(|| format!("could not read {}", file.display()))?;
        let index: ImageIndex = serde_json::from_slice(&text)
            .map_err(|error| Error::invalid(error.to_string()))
            .with_context(|| format!("could not unmarshal {}", file.display()))?;
        let tag = self.tag.as_deref().unwrap_or_default();
        let named = index.manifests.iter().find(|descriptor| {
            [TAG, IMAGE_NAME].iter().any(|key| {
                let annotations = &descriptor.annotations;
                annotations.iter().any(|(k, v)| k == key && v == tag)
            })
        });
        let only = (index.manifests.len() == 1).then(|| &index.manifests[0]);
        let found = named.or(only).ok_or_else(|| {
            let count = index.manifests.len();
            Error::not_found("failed to resolve digest").hint(format!(
                "the layout has {count} images: name one, `oci-layout://{}:TAG` or `…@DIGEST`",
                self.path
            ))
        })?;
        self.digest = Some(found.digest);
        Ok(())
    }
}

impl fmt::Display for OciLayoutRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !text.is_empty()
        && text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_a_tag_or_a_digest() {
        let digest = Digest::of("x");
        for (text, path, tag) in [
            ("oci-layout://dir", "dir", Some("latest")),
            ("oci-layout://dir:1.0", "dir", Some("1.0")),
            (&format!("oci-layout:///a/b@{digest}"), "/a/b", None),
        ] {
            let parsed = OciLayoutRef::parse(text).unwrap().unwrap();
            assert_eq!(
                (&*parsed.path, parsed.tag.as_deref()),
                (path, tag),
                "{text}"
            );
        }
        assert_eq!(OciLayoutRef::parse("dir").unwrap(), None);
    }

    #[test]
    fn a_tag_is_looked_up_in_the_index() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of("image");
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":3,"annotations":{{"{TAG}":"v1"}}}}]}}"#
        );
        fs::write(dir.path().join("index.json"), index).unwrap();
        let mut reference = OciLayoutRef::parse("oci-layout://x:v1").unwrap().unwrap();
        reference.resolve(dir.path()).unwrap();
        assert_eq!(reference.to_string(), format!("oci-layout://x:v1@{digest}"));
    }
}
