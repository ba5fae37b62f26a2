//! Why a vertex was not found in the cache, by named components of its key.
//!
//! What is run is compared with records of the same description that were used lately; the one that
//! differs in the fewest components explains the miss best.

use std::collections::BTreeMap;

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::KeyPart;

/// Values longer than this are kept as their beginning and digest, in bytes.
const VALUE_SIZE_MAX: usize = 256;
/// How much of a long value is kept, in bytes.
const VALUE_START: usize = 96;

/// Why a vertex was run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Miss {
    /// The vertex was told to ignore its cache.
    Ignored,
    /// Nothing of this description is known.
    Unknown,
    /// It is known, but what it gave was removed.
    Evicted,
    /// It differs from what is known.
    Changed {
        /// The canonical key of the record it was compared with.
        record: String,
        /// The components that differ, by name.
        parts: Vec<PartChange>,
    },
}

/// A component of a key that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartChange {
    /// What it is, such as `env PATH` or `input 1 content`.
    pub name: String,
    /// What it was; `None` if there was none of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What it is; `None` if there is none any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// The best explanation by records of the same description.
pub(crate) fn explain(parts: &[KeyPart], known: &[(Digest, Vec<KeyPart>)]) -> Miss {
    let nearest = known
        .iter()
        .map(|(record, before)| (record, changes(before, parts)))
        .min_by_key(|(_, changes)| changes.len());
    match nearest {
        None => Miss::Unknown,
        Some((record, parts)) => Miss::Changed {
            record: record.to_string(),
            parts,
        },
    }
}

/// The parts as they are kept: long values by their beginning and digest.
pub(crate) fn shortened(parts: Vec<KeyPart>) -> Vec<KeyPart> {
    parts
        .into_iter()
        .map(|part| match part.value.len() > VALUE_SIZE_MAX {
            false => part,
            true => {
                let start = part.value.floor_char_boundary(VALUE_START);
                let digest = Digest::of(&part.value);
                KeyPart::new(part.name, format!("{}… {digest}", &part.value[..start]))
            }
        })
        .collect()
}

fn changes(before: &[KeyPart], after: &[KeyPart]) -> Vec<PartChange> {
    // A name may occur more than once; then order counts.
    type Values<'p> = (Vec<&'p str>, Vec<&'p str>);
    let mut by_name: BTreeMap<&str, Values<'_>> = BTreeMap::new();
    for part in before {
        by_name.entry(&part.name).or_default().0.push(&part.value);
    }
    for part in after {
        by_name.entry(&part.name).or_default().1.push(&part.value);
    }
    let joined = |values: Vec<&str>| (!values.is_empty()).then(|| values.join(" "));
    by_name
        .into_iter()
        .filter(|(_, (before, after))| before != after)
        .map(|(name, (before, after))| PartChange {
            name: name.to_owned(),
            before: joined(before),
            after: joined(after),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(pairs: &[(&str, &str)]) -> Vec<KeyPart> {
        pairs.iter().map(|(n, v)| KeyPart::new(*n, *v)).collect()
    }

    #[test]
    fn the_nearest_record_explains_by_name_what_changed() {
        let far = parts(&[("args", "make"), ("cwd", "/"), ("env A", "1")]);
        let near = parts(&[("args", "make"), ("cwd", "/src"), ("env A", "1")]);
        let now = parts(&[("args", "make"), ("cwd", "/src"), ("env B", "1")]);
        let known = [(Digest::of("far"), far), (Digest::of("near"), near)];
        let Miss::Changed { record, parts } = explain(&now, &known) else {
            panic!("a change");
        };
        assert_eq!(record, Digest::of("near").to_string());
        let named: Vec<_> = parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(named, ["env A", "env B"]);
        assert_eq!(parts[0].before.as_deref(), Some("1"));
        assert_eq!(parts[0].after, None);
        assert_eq!(explain(&now, &[]), Miss::Unknown);
    }

    #[test]
    fn long_values_are_told_apart_by_digest() {
        let one = shortened(parts(&[("args", &"ä".repeat(1000))]));
        let two = shortened(parts(&[("args", &format!("{}!", "ä".repeat(1000)))]));
        assert!(one[0].value.len() < 256);
        assert_ne!(one, two);
    }
}
