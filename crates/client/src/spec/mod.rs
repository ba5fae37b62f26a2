//! Values of build flags, parsed: what they mean by themselves, without machine or builder.

mod attest;
mod cache;
mod call;
mod export;
mod quantity;
mod secret;

pub use crate::csv::fields as csv_fields;
pub use attest::{Annotation, attest_attributes, parse_annotations, shorthand as attest_shorthand};
pub use cache::{CacheEntry, parse_cache_entries};
pub use call::{CallFunction, parse_call};
pub use export::{ExportSpec, parse_exports};
pub use quantity::{
    Entitlements, parse_context_names, parse_entitlements, parse_hosts, parse_key_values,
    parse_platforms, parse_resources, parse_tags, parse_ulimit, parse_ulimits,
};
pub use secret::{SecretSource, SecretSpec, SshSpec, parse_secrets, parse_ssh};

use std::collections::BTreeMap;

use diag::Error;

/// Attributes of an exporter, cache or attestation.
pub type Attributes = BTreeMap<String, String>;

/// A boolean as Go reads it: `1`, `t`, `TRUE`, `true`, `True` and their opposites.
pub fn parse_bool(text: &str) -> Result<bool, Error> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(Error::invalid(format!(
            "strconv.ParseBool: parsing {text:?}: invalid syntax"
        ))),
    }
}

/// Whether an attribute is there and true.
pub fn is_true(attributes: &Attributes, key: &str) -> bool {
    attributes
        .get(key)
        .is_some_and(|value| parse_bool(value).unwrap_or(false))
}
