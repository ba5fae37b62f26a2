//! What a command may read of its surroundings: environment variables and the working directory.
//!
//! Passed around as a value, so that tests have their own and nothing is read behind one's back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::spec::parse_bool;

/// Variables and the working directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    directory: PathBuf,
}

impl Environment {
    /// These variables, and no particular directory.
    pub fn new<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Environment {
            variables: variables
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            directory: PathBuf::new(),
        }
    }

    /// Those of this process. Variables that are not UTF-8 are read with replacement characters.
    pub fn current() -> Self {
        let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
        Environment {
            variables: std::env::vars_os()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            directory: std::env::current_dir().unwrap_or_default(),
        }
    }

    /// With that working directory.
    #[must_use]
    pub fn in_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// A variable, if it is set; it may be empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// Whether a variable is set to a boolean that is true.
    pub fn is_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| parse_bool(value).unwrap_or(false))
    }

    /// A path as seen from the working directory.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
    }
}
