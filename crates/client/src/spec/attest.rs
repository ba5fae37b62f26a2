//! `--attest`, `--provenance`, `--sbom` and `--annotation`.

use std::collections::BTreeMap;

use diag::{Context, Error};
use oci::Platform;

use crate::csv;
use crate::spec::{Attributes, parse_bool};

/// A key of `--annotation`: where it goes, and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Annotation {
    /// `index`, `manifest`, `index-descriptor`, `manifest-descriptor`, or empty.
    pub level: String,
    /// Only the manifests of this platform.
    pub platform: Option<Platform>,
    /// The annotation's key.
    pub key: String,
}

impl Annotation {
    /// The exporter's attribute that sets it.
    pub fn attribute(&self) -> String {
        let platform = match (self.level.as_str(), &self.platform) {
            ("manifest" | "manifest-descriptor", Some(platform)) => format!("[{platform}]"),
            _ => String::new(),
        };
        match self.level.as_str() {
            "" => format!("annotation.{}", self.key),
            level => format!("annotation-{level}{platform}.{}", self.key),
        }
    }

    /// Whether it is put on the index and not on a manifest.
    pub fn is_index(&self) -> bool {
        self.level.starts_with("index")
    }
}

/// What `--provenance=VALUE` and `--sbom=VALUE` mean as a value of `--attest`.
pub fn shorthand(kind: &str, value: &str) -> String {
    match parse_bool(value) {
        Ok(on) => format!("type={kind},disabled={}", !on),
        Err(_) => format!("type={kind},{value}"),
    }
}

/// The attestations by type, each as the frontend takes it: `None` when it was switched off. Of
/// several of a type the first counts.
pub fn attest_attributes(values: &[String]) -> Result<BTreeMap<String, Option<String>>, Error> {
    let mut attests = BTreeMap::new();
    for value in values {
        let (kind, attest) = parse_attest(value)?;
        attests.entry(kind).or_insert(attest);
    }
    Ok(attests)
}

fn parse_attest(value: &str) -> Result<(String, Option<String>), Error> {
    let mut kind = String::new();
    let mut disabled = false;
    let mut attributes = Attributes::new();
    for field in csv::fields(value)? {
        let Some((key, value)) = field.split_once('=') else {
            return Err(Error::invalid(format!("invalid value {field}")));
        };
        match key.to_lowercase().trim() {
            "type" => kind = value.to_owned(),
            "disabled" => {
                disabled = parse_bool(value).with_context(|| format!("invalid value {field}"))?;
            }
            _ => {
                attributes.insert(key.to_owned(), value.to_owned());
            }
        }
    }
    if kind.is_empty() {
        return Err(Error::invalid("attestation type not specified"));
    }
    let pairs = attributes.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    let text = csv::join(std::iter::once(("type", kind.as_str())).chain(pairs));
    Ok((kind, (!disabled).then_some(text)))
}

/// The annotations of the flag's values, each `[LEVEL[PLATFORM],…:]KEY=VALUE`.
pub fn parse_annotations(values: &[String]) -> Result<BTreeMap<Annotation, String>, Error> {
    let mut annotations = BTreeMap::new();
    for text in values.iter().filter(|text| !text.is_empty()) {
        let Some((left, value)) = text.split_once('=') else {
            return Err(Error::invalid(format!(
                "invalid annotation {text:?}, expected key=value"
            )));
        };
        let Some((levels, key)) = left.split_once(':') else {
            let annotation = Annotation {
                level: String::new(),
                platform: None,
                key: left.to_owned(),
            };
            annotations.insert(annotation, value.to_owned());
            continue;
        };
        for level in levels.split(',') {
            annotations.insert(parse_level(level, key)?, value.to_owned());
        }
    }
    Ok(annotations)
}

fn parse_level(text: &str, key: &str) -> Result<Annotation, Error> {
    let invalid = || {
        Error::invalid(format!(
            "invalid annotation type {text:?}, expected type and optional platform in square brackets"
        ))
    };
    let (level, platform) = match text.split_once('[') {
        Some((level, rest)) => (level, Some(rest.strip_suffix(']').ok_or_else(invalid)?)),
        None => (text, None),
    };
    let is_word = |b: u8| b.is_ascii_lowercase() || b == b'-';
    if level.is_empty() || !level.bytes().all(is_word) || platform == Some("") {
        return Err(invalid());
    }
    if ![
        "index",
        "index-descriptor",
        "manifest",
        "manifest-descriptor",
    ]
    .contains(&level)
    {
        return Err(Error::invalid(format!("unknown annotation type {level:?}")));
    }
    let platform = platform
        .map(|text| {
            text.parse::<Platform>()
                .map_err(|error| Error::invalid(error.to_string()))
                .with_context(|| format!("invalid platform {text:?}"))
        })
        .transpose()?;
    Ok(Annotation {
        level: level.to_owned(),
        platform,
        key: key.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attests(values: &[&str]) -> Result<BTreeMap<String, Option<String>>, Error> {
        let values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        attest_attributes(&values)
    }

    #[test]
    fn shorthands_are_attestations() {
        let values = [
            shorthand("provenance", "mode=max"),
            shorthand("sbom", "false"),
        ];
        assert_eq!(
            values,
            ["type=provenance,mode=max", "type=sbom,disabled=true"]
        );
        let parsed = attest_attributes(&values).unwrap();
        assert_eq!(
            parsed["provenance"].as_deref(),
            Some("type=provenance,mode=max")
        );
        assert_eq!(parsed["sbom"], None);
        assert_eq!(
            attests(&["type=sbom,disabled=false"]).unwrap()["sbom"].as_deref(),
            Some("type=sbom")
        );
        let error = attests(&["mode=max"]).unwrap_err();
        assert_eq!(error.to_string(), "attestation type not specified");
    }

    #[test]
    fn annotations_become_exporter_attributes() {
        let values = ["a=1", "index,manifest[linux/amd64]:b=2"].map(str::to_owned);
        let parsed = parse_annotations(&values).unwrap();
        let attributes: Vec<String> = parsed.keys().map(Annotation::attribute).collect();
        assert_eq!(
            attributes,
            [
                "annotation.a",
                "annotation-index.b",
                "annotation-manifest[linux/amd64].b"
            ]
        );
        for (value, error) in [
            ("x", "invalid annotation \"x\", expected key=value"),
            ("foo:a=b", "unknown annotation type \"foo\""),
        ] {
            let result = parse_annotations(&[value.to_owned()]);
            assert_eq!(result.unwrap_err().to_string(), error);
        }
    }
}
