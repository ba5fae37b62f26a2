//! What a stage carries from instruction to instruction besides its image configuration.

use std::collections::HashMap;

use dockerfile::shell::Variables;
use llb::NetMode;
use oci::Platform;

use crate::plan::Output;

/// A file system with what steps on it start from.
#[derive(Clone, Debug)]
pub(crate) struct FsState {
    pub(crate) output: Output,
    pub(crate) env: EnvList,
    pub(crate) dir: String,
    pub(crate) user: String,
    pub(crate) hostname: String,
    pub(crate) network: NetMode,
    pub(crate) platform: Option<Platform>,
}

impl FsState {
    /// The state of a file system that nothing else is known of.
    pub(crate) fn new(output: Output, platform: Option<Platform>) -> Self {
        FsState {
            output,
            env: EnvList::default(),
            dir: "/".to_owned(),
            user: String::new(),
            hostname: String::new(),
            network: NetMode::Unset,
            platform,
        }
    }
}

/// Variables in the order they were last set, which is the order steps get them in.
#[derive(Clone, Debug, Default)]
pub(crate) struct EnvList {
    entries: Vec<Option<(String, String)>>,
    index: HashMap<String, usize>,
}

impl EnvList {
    /// Sets a variable; it becomes the last one.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        if self.entries.len() > 2 * self.index.len() + 16 {
            self.compact();
        }
        self.index.insert(name.to_owned(), self.entries.len());
        self.entries.push(Some((name.to_owned(), value.to_owned())));
    }

    /// Drops the places of variables that were set again, so that their number stays bounded.
    fn compact(&mut self) {
        self.entries.retain(Option::is_some);
        for (place, entry) in self.entries.iter().enumerate() {
            if let Some((name, _)) = entry {
                self.index.insert(name.clone(), place);
            }
        }
    }

    /// Forgets a variable.
    pub(crate) fn remove(&mut self, name: &str) {
        if let Some(old) = self.index.remove(name) {
            self.entries[old] = None;
        }
    }

    /// The variables in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries
            .iter()
            .flatten()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// `NAME=value` texts in order.
    pub(crate) fn to_pairs(&self) -> Vec<String> {
        self.iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    /// The names in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }
}

impl Variables for EnvList {
    fn get(&self, name: &str) -> Option<&str> {
        let entry = self.entries[*self.index.get(name)?].as_ref()?;
        Some(&entry.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_set_again_becomes_the_last_one() {
        let mut env = EnvList::default();
        for (name, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
            env.set(name, value);
        }
        assert_eq!(env.to_pairs(), ["b=2", "a=3"]);
        env.remove("b");
        assert_eq!(env.get("b"), None);
        assert_eq!(env.get("a"), Some("3"));
    }
}
