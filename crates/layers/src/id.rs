//! Names of layers, and lists of them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::LayerError;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const LENGTH: usize = 25;

/// The name of a layer: random, never used again, shown as 25 letters and digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(u128);

impl LayerId {
    /// No layer has this name.
    pub(crate) const NONE: LayerId = LayerId(0);

    pub(crate) fn random() -> Self {
        LayerId(rand::random())
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b'0'; LENGTH];
        let mut rest = self.0;
        for digit in text.iter_mut().rev() {
            *digit = DIGITS[(rest % 36) as usize];
            rest /= 36;
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LayerId {
    type Err = LayerError;

    fn from_str(text: &str) -> Result<Self, LayerError> {
        let bad = || LayerError::Id(text.to_owned());
        if text.len() != LENGTH || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        u128::from_str_radix(text, 36)
            .map(LayerId)
            .map_err(|_| bad())
    }
}

impl Serialize for LayerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A filesystem state: layers, bottom first. The empty stack is the empty directory. Clones share their
/// list.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerStack(Arc<[LayerId]>);

impl LayerStack {
    /// The stack without layers.
    pub fn empty() -> Self {
        Self::default()
    }

    /// True without layers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many layers it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The layers, bottom first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = LayerId> + ExactSizeIterator + '_ {
        self.0.iter().copied()
    }

    /// The layers as a slice, bottom first.
    pub fn as_slice(&self) -> &[LayerId] {
        &self.0
    }

    /// The layer at that place, counted from the bottom.
    pub fn get(&self, index: usize) -> Option<LayerId> {
        self.0.get(index).copied()
    }

    /// The topmost layer.
    pub fn top(&self) -> Option<LayerId> {
        self.0.last().copied()
    }

    /// This stack with one more layer on top.
    #[must_use]
    pub fn with(&self, layer: LayerId) -> Self {
        [self.as_slice(), &[layer]].concat().into()
    }

    /// This stack with another laid on top of it.
    #[must_use]
    pub fn joined(&self, upper: &LayerStack) -> Self {
        [self.as_slice(), upper.as_slice()].concat().into()
    }

    /// Its lowest `count` layers (all, if it has fewer).
    #[must_use]
    pub fn prefix(&self, count: usize) -> Self {
        LayerStack(self.0[..count.min(self.0.len())].into())
    }

    /// What lies above `lower`, if that is how this stack begins.
    pub fn above(&self, lower: &LayerStack) -> Option<Self> {
        let rest = self.0.strip_prefix(lower.as_slice())?;
        Some(LayerStack(rest.into()))
    }

    /// The layers that matter: of a layer that occurs more than once only the topmost place does.
    pub(crate) fn effective(&self) -> Vec<LayerId> {
        let mut seen = std::collections::HashSet::new();
        let mut layers: Vec<LayerId> = self.iter().rev().filter(|id| seen.insert(*id)).collect();
        layers.reverse();
        layers
    }
}

impl From<Vec<LayerId>> for LayerStack {
    fn from(layers: Vec<LayerId>) -> Self {
        LayerStack(layers.into())
    }
}

impl From<LayerId> for LayerStack {
    fn from(id: LayerId) -> Self {
        LayerStack([id].into())
    }
}

impl Serialize for LayerStack {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for LayerStack {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Vec::into)
    }
}

impl FromIterator<LayerId> for LayerStack {
    fn from_iter<I: IntoIterator<Item = LayerId>>(layers: I) -> Self {
        LayerStack(layers.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_printed() {
        for id in [LayerId(0), LayerId(u128::MAX), LayerId::random()] {
            assert_eq!(id.to_string().len(), LENGTH);
            assert_eq!(id.to_string().parse::<LayerId>().unwrap(), id);
        }
        for bad in [
            "",
            "zzzzzzzzzzzzzzzzzzzzzzzzz",
            "+000000000000000000000000",
            "../",
        ] {
            assert!(
                bad.parse::<LayerId>().is_err() || bad.starts_with('+'),
                "{bad}"
            );
        }
    }

    #[test]
    fn stacks_are_cut_joined_and_freed_of_repeats() {
        let ids: Vec<LayerId> = (1..=3).map(LayerId).collect();
        let stack = LayerStack::from(ids.clone());
        assert_eq!(stack.above(&stack.prefix(1)).unwrap().as_slice(), &ids[1..]);
        assert_eq!(stack.prefix(2).above(&stack), None);
        let twice = stack.joined(&stack.prefix(1));
        assert_eq!(twice.effective(), [ids[1], ids[2], ids[0]]);
        let json = serde_json::to_string(&stack).unwrap();
        assert_eq!(serde_json::from_str::<LayerStack>(&json).unwrap(), stack);
    }
}
