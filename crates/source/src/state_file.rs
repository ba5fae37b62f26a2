//! Small states of sources on disk, each a JSON file.
//!
//! **Invariant**: a state is there as a whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use diag::{Context, Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A state that cannot be read is none.
pub(crate) fn read_state<S: DeserializeOwned>(path: &Path) -> Option<S> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Writes a state so that it is seen as a whole.
pub(crate) fn write_state(path: &Path, state: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(state).map_err(|error| Error::internal(error.to_string()))?;
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    Ok(())
}

/// Removes the files of a directory that `kept` does not want.
pub(crate) fn sweep(dir: &Path, kept: impl Fn(&Path) -> bool) -> Result<()> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        paths.push(entry?.path());
    }
    // What belongs to a state is looked at after it: `json` before `sums`.
    paths.sort();
    for path in paths {
        if !kept(&path) {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}
