//! Dockerfiles of a seed, to be built by two builders and compared.
//!
//! A seed gives one Dockerfile with its context, the same on every machine and for ever: the grammar
//! may grow only together with the seeds that are known to pass. Most are right; about one in four
//! has a single fault, so that only one error can come first. What is known to differ between the
//! Engine's BuildKit and newer ones is not generated: see the comments at the choices.

mod grammar;

use std::path::Path;

use serde_json::Value;

use super::bench::{Bench, Builder};
use super::case::{Case, Unit};
use super::compare::compare;
use super::record::as_recorded;

/// What a seed makes.
#[derive(Clone, Debug)]
pub struct FuzzCase {
    /// The seed.
    pub seed: u64,
    /// The Dockerfile.
    pub dockerfile: String,
    /// `case.toml`.
    pub spec: String,
    /// `.dockerignore`, if there is one.
    pub ignore: Option<String>,
}

/// What two builders made of a seed.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Stock built it, or answered the call, without an error.
    pub built: bool,
    /// The error stock gave, if it gave one.
    pub error: Option<String>,
    /// The first difference, if there is one.
    pub difference: Option<String>,
}

/// The Dockerfile of a seed.
pub fn generate(seed: u64) -> FuzzCase {
    grammar::generate(seed)
}

impl FuzzCase {
    /// Writes it below `folder` as a case of the corpus.
    pub fn unit(&self, folder: &Path) -> Unit {
        let path = folder.join(format!("fuzz-{}", self.seed));
        let write = |name: &str, content: &str| {
            let file = path.join(name);
            if let Some(parent) = file.parent() {
                std::fs::create_dir_all(parent).expect("make a folder");
            }
            std::fs::write(file, content).expect("write a file");
        };
        write("case.toml", &self.spec);
        write("ctx/Dockerfile", &self.dockerfile);
        for (name, content) in grammar::FILES {
            write(&format!("ctx/{name}"), content);
        }
        if let Some(ignore) = &self.ignore {
            write("ctx/.dockerignore", ignore);
        }
        let mut units = Case::read(&path).units();
        units.remove(0)
    }

    /// Builds it by both; fails where an outcome cannot even be looked at.
    pub fn judge(&self, bench: &Bench, stock: &Builder, ours: &Builder) -> Result<Verdict, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let unit = self.unit(folder.path());
        let wanted = bench
            .run(&unit, stock)
            .map_err(|error| format!("stock: {error}"))?;
        let got = bench
            .run(&unit, ours)
            .map_err(|error| format!("ours: {error}"))?;
        let wanted: Value = as_recorded(&wanted);
        Ok(Verdict {
            built: wanted["exit"] == 0,
            error: wanted["error"].as_str().map(str::to_owned),
            difference: compare(&unit, &wanted, &got, &bench.bases),
        })
    }
}
