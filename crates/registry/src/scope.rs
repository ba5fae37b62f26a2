//! Token scopes: `type:name:action,action`.

use std::collections::{BTreeMap, BTreeSet};

/// A set of scopes in which each resource stands once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    /// Reading from a repository.
    pub(crate) fn pull(repository: &str) -> Self {
        let mut scopes = Self::default();
        scopes.add(&format!("repository:{repository}:pull"));
        scopes
    }

    /// Reading from and writing to a repository.
    pub(crate) fn push(repository: &str) -> Self {
        let mut scopes = Self::default();
        scopes.add(&format!("repository:{repository}:pull,push"));
        scopes
    }

    /// Adds scopes separated by spaces.
    pub(crate) fn add(&mut self, text: &str) {
        for scope in text.split_whitespace() {
            // A name may have a port and so a colon; the actions are what follows the last one.
            let (name, actions) = match scope.rsplit_once(':') {
                Some((name, actions)) if name.contains(':') => (name, actions),
                _ => (scope, ""),
            };
            let set = self.0.entry(name.to_owned()).or_default();
            set.extend(
                actions
                    .split(',')
                    .filter(|a| !a.is_empty())
                    .map(str::to_owned),
            );
        }
    }

    /// Both sets together.
    #[must_use]
    pub(crate) fn and(mut self, other: &Scopes) -> Self {
        for (name, actions) in &other.0 {
            let set = self.0.entry(name.clone()).or_default();
            set.extend(actions.iter().cloned());
        }
        self
    }

    /// The scopes as texts, sorted.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|(name, actions)| {
                let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
                format!("{name}:{}", actions.join(","))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_of_one_repository_are_joined_and_sorted() {
        let mut scopes = Scopes::pull("b/c");
        scopes.add("repository:b/c:push,pull repository:a:pull registry:catalog:*");
        assert_eq!(
            scopes.and(&Scopes::pull("d")).texts(),
            [
                "registry:catalog:*",
                "repository:a:pull",
                "repository:b/c:pull,push",
                "repository:d:pull",
            ]
        );
    }
}
