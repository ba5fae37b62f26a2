//! The repositories that are kept of remotes, for disk usage and pruning.

use std::path::Path;
use std::time::SystemTime;

use diag::Result;
use oci::Digest;

use super::{ADDRESS, GitSource, READY};

/// What was fetched from a remote, as it is listed.
#[derive(Clone, Debug)]
pub struct KeptRepository {
    /// Its identity for removal.
    pub id: String,
    /// The address of the remote, without passwords.
    pub remote: String,
    /// Bytes of disk blocks it occupies.
    pub size_bytes: u64,
    /// When it was made.
    pub created: SystemTime,
    /// When it was used last.
    pub last_used: SystemTime,
    /// Whether a build uses it now.
    pub in_use: bool,
}

impl GitSource {
    /// All repositories. Blocks on the disk: sizes are measured.
    pub fn repositories(&self) -> Result<Vec<KeptRepository>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let Some((id, key)) = identity(&path) else {
                continue;
            };
            let Ok(meta) = std::fs::metadata(&path) else {
                continue;
            };
            let used = std::fs::metadata(path.join(READY)).and_then(|meta| meta.modified());
            let created = meta.created().or_else(|_| meta.modified());
            let created = created.unwrap_or(SystemTime::UNIX_EPOCH);
            found.push(KeptRepository {
                id,
                remote: remote_of(&path),
                size_bytes: archive::allocated(&path, &|_| false),
                created,
                last_used: used.unwrap_or(created),
                in_use: self.flights.try_enter(key).is_none(),
            });
        }
        found.sort_by(|one, two| one.id.cmp(&two.id));
        Ok(found)
    }

    /// Removes a repository; says whether it was there and not in use. Blocks on the disk.
    pub fn remove_repository(&self, id: &str) -> Result<bool> {
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let Some((_, key)) = identity(&path).filter(|(found, _)| found == id) else {
                continue;
            };
            // Held until it is gone, so that nobody begins to use it.
            let Some(_alone) = self.flights.try_enter(key) else {
                return Ok(false);
            };
            // Without its mark it is half made, whatever happens while it is removed.
            match std::fs::remove_file(path.join(READY)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
            std::fs::remove_dir_all(path)?;
            return Ok(true);
        }
        Ok(false)
    }
}

/// A short name for a repository, and the key it is locked by.
fn identity(path: &Path) -> Option<(String, Digest)> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".git").or(name.strip_suffix(".packs"))?;
    let key = format!("sha256:{name}").parse().ok()?;
    Some((format!("git-{}", &name[..21]), key))
}

fn remote_of(repository: &Path) -> String {
    std::fs::read_to_string(repository.join(ADDRESS)).unwrap_or_default()
}
