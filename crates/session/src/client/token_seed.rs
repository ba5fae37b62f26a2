//! What makes our keys ours: a random seed for each registry host, kept in Docker's configuration
//! directory under the name stock clients use, so that both derive the same keys.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

#[derive(Clone, Default, Serialize, Deserialize)]
struct Seed {
    #[serde(rename = "Seed")]
    seed: String,
}

/// The seed of a host, made when there is none. A directory that cannot be written gives a seed that
/// is good for this session only.
pub fn seed(dir: &Path, host: &str) -> io::Result<Vec<u8>> {
    std::fs::create_dir_all(dir).or_else(unwritable)?;
    let lock = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join(".token_seed.lock"));
    let _lock = match lock {
        Ok(file) => {
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            Some(file)
        }
        Err(error) => unwritable(error).map(|()| None)?,
    };
    let path = dir.join(".token_seed");
    // A file that was cut off in writing is as good as none.
    let mut seeds: BTreeMap<String, Seed> = std::fs::read(&path)
        .ok()
        .and_then(|data| serde_json::from_slice(&data).ok())
        .unwrap_or_default();
    if let Some(known) = seeds
        .get(host)
        .and_then(|seed| STANDARD.decode(&seed.seed).ok())
    {
        return Ok(known);
    }
    let fresh: [u8; 16] = rand::random();
    seeds.insert(
        host.to_owned(),
        Seed {
            seed: STANDARD.encode(fresh),
        },
    );
    write(dir, &path, &seeds).or_else(unwritable)?;
    Ok(fresh.to_vec())
}

fn write(dir: &Path, path: &Path, seeds: &BTreeMap<String, Seed>) -> io::Result<()> {
    let mut temp = tempfile::Builder::new()
        .prefix(".token_seed-")
        .tempfile_in(dir)?;
    serde_json::to_writer_pretty(&mut temp, seeds)?;
    temp.persist(path).map(drop).map_err(|error| error.error)
}

/// Takes a directory that cannot be written as no error.
fn unwritable(error: io::Error) -> io::Result<()> {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    match error.kind() {
        PermissionDenied | ReadOnlyFilesystem | NotFound | NotADirectory => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_stays_the_same_and_hosts_differ() {
        let dir = tempfile::tempdir().unwrap();
        let first = seed(dir.path(), "a").unwrap();
        assert_eq!(first.len(), 16);
        assert_ne!(first, seed(dir.path(), "b").unwrap());
        assert_eq!(first, seed(dir.path(), "a").unwrap());
        std::fs::write(dir.path().join(".token_seed"), "{").unwrap();
        assert_ne!(first, seed(dir.path(), "a").unwrap());
    }
}
