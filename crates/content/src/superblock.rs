//! The file that says what a state directory is.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{ContentError, Result};

#[derive(Serialize, Deserialize)]
struct Superblock {
    format: u32,
}

/// Checks that `dir` is of format `known`, writing that down if nothing is written yet. Other
/// stores with a directory of their own use it too.
pub fn check_superblock(dir: &Path, known: u32) -> Result<()> {
    let path = dir.join("superblock");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return write(dir, &Superblock { format: known });
        }
        Err(error) => return Err(ContentError::io("read", path)(error)),
    };
    let found = match serde_json::from_slice::<Superblock>(&text) {
        Ok(superblock) if superblock.format == known => return Ok(()),
        Ok(superblock) => superblock.format,
        Err(_) => return Err(ContentError::Superblock(path)),
    };
    Err(ContentError::Format { path, found, known })
}

fn write(dir: &Path, superblock: &Superblock) -> Result<()> {
    let temporary = dir.join("superblock.new");
    let text = serde_json::to_vec(superblock)
        .map_err(|error| ContentError::io("write", &temporary)(io::Error::other(error)))?;
    fs::File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        })
        .map_err(ContentError::io("write", &temporary))?;
    let path = dir.join("superblock");
    fs::rename(&temporary, &path).map_err(ContentError::io("write", path))
}
