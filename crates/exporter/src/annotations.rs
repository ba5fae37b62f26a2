//! Annotations asked for by attributes: `annotation[-TYPE][[PLATFORM]].KEY`, where TYPE is
//! `manifest` (the default), `manifest-descriptor`, `index` or `index-descriptor`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use diag::{Error, Result};
use oci::Platform;
use regex::Regex;

static KEY: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^annotation(?:-([a-z-]+))?(?:\[([A-Za-z0-9_/-]+)\])?\.(\S+)$").ok()
});

/// What an annotation is put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Manifest,
    ManifestDescriptor,
    Index,
    IndexDescriptor,
}

/// Annotations by where they go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations(BTreeMap<(Place, Option<Platform>, String), String>);

impl Annotations {
    /// Takes an attribute if it is an annotation; false if it is something else.
    ///
    /// # Errors
    /// Unknown types and platforms.
    pub fn add(&mut self, attribute: &str, value: &str) -> Result<bool> {
        let Some(found) = KEY.as_ref().and_then(|key| key.captures(attribute)) else {
            return Ok(false);
        };
        let place = match found.get(1).map(|kind| kind.as_str()) {
            None | Some("manifest") => Place::Manifest,
            Some("manifest-descriptor") => Place::ManifestDescriptor,
            Some("index") => Place::Index,
            Some("index-descriptor") => Place::IndexDescriptor,
            Some(other) => {
                return Err(Error::invalid(format!(
                    "unrecognized annotation type {other}"
                )));
            }
        };
        let platform = match found.get(2) {
            Some(text) => {
                let platform: Platform = text
                    .as_str()
                    .parse()
                    .map_err(|error: oci::PlatformError| Error::invalid(error.to_string()))?;
                Some(platform.normalized())
            }
            None => None,
        };
        self.0
            .insert((place, platform, found[3].to_owned()), value.to_owned());
        Ok(true)
    }

    /// Takes over the annotations of a frontend; those set already stay only where it has none.
    pub fn extend(&mut self, other: Annotations) {
        self.0.extend(other.0);
    }

    /// The platforms that are named.
    pub(crate) fn platforms(&self) -> impl Iterator<Item = &Platform> {
        self.0
            .keys()
            .filter_map(|(_, platform, _)| platform.as_ref())
    }

    /// True if there are some that Docker's media types have no place for.
    pub(crate) fn need_oci_types(&self) -> bool {
        self.0.keys().any(|(place, ..)| *place != Place::Manifest)
    }

    /// Those of the index; they may have been given for any platform.
    pub(crate) fn index(&self) -> BTreeMap<String, String> {
        self.of(Place::Index, |_| true)
    }

    /// Those of the descriptor of the index.
    pub(crate) fn index_descriptor(&self) -> BTreeMap<String, String> {
        self.of(Place::IndexDescriptor, |_| true)
    }

    /// Those of a manifest: the general ones, then those of its platform.
    pub(crate) fn manifest(&self, platform: Option<&Platform>) -> BTreeMap<String, String> {
        self.of(Place::Manifest, |own| {
            own.is_none() || own.as_ref() == platform
        })
    }

    /// Those of the descriptor of a manifest.
    pub(crate) fn manifest_descriptor(
        &self,
        platform: Option<&Platform>,
    ) -> BTreeMap<String, String> {
        self.of(Place::ManifestDescriptor, |own| {
            own.is_none() || own.as_ref() == platform
        })
    }

    fn of(
        &self,
        place: Place,
        counts: impl Fn(&Option<Platform>) -> bool,
    ) -> BTreeMap<String, String> {
        // General ones sort before those of platforms, which therefore win.
        self.0
            .iter()
            .filter(|((own, platform, _), _)| *own == place && counts(platform))
            .map(|((_, _, key), value)| (key.clone(), value.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_go_where_their_keys_say() {
        let mut annotations = Annotations::default();
        for (key, value) in [
            ("annotation.a", "1"),
            ("annotation-manifest[linux/arm64].a", "2"),
            ("annotation-manifest-descriptor.b", "3"),
            ("annotation-index.c", "4"),
            ("annotation-index-descriptor[linux/amd64].d.e", "5"),
        ] {
            assert!(annotations.add(key, value).unwrap(), "{key}");
        }
        assert!(!annotations.add("name", "x").unwrap());
        assert!(annotations.add("annotation-bogus.x", "y").is_err());
        let arm: Platform = "linux/arm64/v8".parse().unwrap();
        let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(annotations.manifest(None), one("a", "1"));
        assert_eq!(annotations.manifest(Some(&arm)), one("a", "2"));
        assert_eq!(annotations.manifest_descriptor(Some(&arm)), one("b", "3"));
        assert_eq!(annotations.index(), one("c", "4"));
        assert_eq!(annotations.index_descriptor(), one("d.e", "5"));
        assert!(annotations.need_oci_types());
    }
}
