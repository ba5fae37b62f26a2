//! `--cache-from` and `--cache-to`: passed to the server, which knows the types.

use diag::Error;

use crate::csv;
use crate::environment::Environment;
use crate::spec::{Attributes, parse_bool};

/// Where caches come from or go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// Such as `registry`, `local`, `inline`, `gha`, `s3`.
    pub kind: String,
    /// What that type is told.
    pub attributes: Attributes,
}

/// The entries of a flag's values: each `type=…,key=value,…`, or names of images.
pub fn parse_cache_entries(values: &[String]) -> Result<Vec<CacheEntry>, Error> {
    let mut entries = Vec::new();
    for value in values.iter().filter(|value| !value.is_empty()) {
        let fields = csv::fields(value)?;
        if value.contains('=') {
            entries.push(entry(value, &fields)?);
            continue;
        }
        entries.extend(fields.into_iter().map(|reference| CacheEntry {
            kind: "registry".to_owned(),
            attributes: [("ref".to_owned(), reference)].into(),
        }));
    }
    Ok(entries)
}

impl CacheEntry {
    /// Refuses an entry of `--cache-to` that lacks what its type cannot do without.
    pub fn check_export(&self) -> Result<(), Error> {
        self.require("local", "dest", "exporter")?;
        self.require("registry", "ref", "exporter")
    }

    /// Refuses an entry of `--cache-from` that lacks what its type cannot do without.
    pub fn check_import(&self) -> Result<(), Error> {
        self.require("local", "src", "importer")?;
        self.require("registry", "ref", "importer")
    }

    fn require(&self, kind: &str, key: &str, what: &str) -> Result<(), Error> {
        let missing = self.attributes.get(key).is_none_or(String::is_empty);
        if self.kind == kind && missing {
            return Err(Error::invalid(format!(
                "{kind} cache {what} requires {key}"
            )));
        }
        Ok(())
    }

    /// Adds what the environment has for this type (GitHub's tokens); `None` when it cannot be used
    /// without.
    #[must_use]
    pub fn with_environment(mut self, env: &Environment) -> Option<Self> {
        if self.kind != "gha" {
            return Some(self);
        }
        let version_2 = match self.attributes.get("version") {
            Some(version) => version == "2",
            None => env
                .get("ACTIONS_CACHE_SERVICE_V2")
                .is_some_and(|value| parse_bool(value).unwrap_or(false)),
        };
        self.fill(env, "token", &["ACTIONS_RUNTIME_TOKEN"]);
        if version_2 {
            self.fill(env, "url_v2", &["ACTIONS_RESULTS_URL"]);
        }
        self.fill(env, "url", &["ACTIONS_CACHE_URL", "ACTIONS_RESULTS_URL"]);
        let has = |key: &str| self.attributes.get(key).is_some_and(|v| !v.is_empty());
        (has("token") && (has("url") || has("url_v2"))).then_some(self)
    }

    fn fill(&mut self, env: &Environment, key: &str, variables: &[&str]) {
        if self.attributes.contains_key(key) {
            return;
        }
        if let Some(value) = variables.iter().find_map(|name| env.get(name)) {
            self.attributes.insert(key.to_owned(), value.to_owned());
        }
    }
}

fn entry(text: &str, fields: &[String]) -> Result<CacheEntry, Error> {
    let mut kind = String::new();
    let mut attributes = Attributes::new();
    for field in fields {
        let Some((key, value)) = field.split_once('=') else {
            return Err(Error::invalid(format!("invalid value {field}")));
        };
        match key.to_lowercase().as_str() {
            "type" => kind = value.to_owned(),
            key => {
                attributes.insert(key.to_owned(), value.to_owned());
            }
        }
    }
    if kind.is_empty() {
        return Err(Error::invalid(format!("type required for {text:?}")));
    }
    Ok(CacheEntry { kind, attributes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<Vec<CacheEntry>, Error> {
        parse_cache_entries(&[value.to_owned()])
    }

    #[test]
    fn entries_are_types_or_names() {
        let names: Vec<_> = parse("user/app:cache,b").unwrap();
        assert_eq!(names.len(), 2);
        assert_eq!(names[0].attributes["ref"], "user/app:cache");
        let local = &parse("type=local,SRC=dir").unwrap()[0];
        assert_eq!(
            (local.kind.as_str(), &*local.attributes["src"]),
            ("local", "dir")
        );
        let error = parse("ref=a").unwrap_err().to_string();
        assert_eq!(error, "type required for \"ref=a\"");
    }

    #[test]
    fn what_a_type_cannot_do_without_is_asked_for() {
        let entry = |value: &str| parse(value).unwrap().remove(0);
        let refused = |result: Result<(), Error>| result.unwrap_err().to_string();
        assert_eq!(
            refused(entry("type=local").check_import()),
            "local cache importer requires src"
        );
        assert_eq!(
            refused(entry("type=local,src=x").check_export()),
            "local cache exporter requires dest"
        );
        assert_eq!(
            refused(entry("type=registry").check_export()),
            "registry cache exporter requires ref"
        );
        assert!(entry("type=inline").check_export().is_ok());
        assert!(entry("a").check_import().is_ok());
    }

    #[test]
    fn github_entries_need_their_tokens() {
        let entry = parse("type=gha").unwrap().remove(0);
        assert_eq!(
            entry.clone().with_environment(&Environment::default()),
            None
        );
        let env = Environment::new([("ACTIONS_RUNTIME_TOKEN", "t"), ("ACTIONS_CACHE_URL", "u")]);
        let entry = entry.with_environment(&env).unwrap();
        assert_eq!(entry.attributes["token"], "t");
        assert_eq!(entry.attributes["url"], "u");
    }
}
