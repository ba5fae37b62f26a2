//! Disk space that is kept for making space: on a disk that is full to its last block the databases
//! could not note that something is removed, and a server could not even start to remove it.
//!
//! It is a file that takes space and is removed when that is needed; it comes back when there is room.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, StatVfs};

/// Bytes kept; less on a small file system.
const BYTES_MAX: u64 = 4 << 20;
/// The part of a file system that is kept at most: one in so many bytes.
const SHARE: u64 = 32;
/// How many times the reserve must be free before it is taken again.
const ROOM: u64 = 4;

/// The reserve of a state directory.
pub(crate) struct Reserve(PathBuf);

impl Reserve {
    /// That of the state directory `state`; nothing is taken yet.
    pub(crate) fn of(state: &Path) -> Self {
        Reserve(state.join("reserve"))
    }

    /// Gives the space up if the disk is full. Blocks on the disk.
    pub(crate) fn give_way(&self) {
        let Some(disk) = self.disk() else { return };
        if free(&disk) < wanted(&disk) && std::fs::remove_file(&self.0).is_ok() {
            tracing::warn!("the disk is full: the space kept for removing things is given up");
        }
    }

    /// Takes the space if there is room. Blocks on the disk.
    pub(crate) fn take(&self) {
        let Some(disk) = self.disk() else { return };
        let bytes = wanted(&disk);
        let taken = std::fs::metadata(&self.0).map_or(0, |meta| meta.blocks() * 512);
        if taken >= bytes || free(&disk) < ROOM * bytes {
            return;
        }
        if let Err(error) = fill(&self.0, bytes) {
            tracing::debug!("no space is kept for removing things: {error}");
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn disk(&self) -> Option<StatVfs> {
        rustix::fs::statvfs(self.0.parent()?).ok()
    }
}

fn fill(path: &Path, bytes: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            std::io::copy(
                &mut std::io::Read::take(std::io::repeat(0), bytes),
                &mut file,
            )?;
            Ok(())
        }
        result => Ok(result?),
    }
}

fn free(disk: &StatVfs) -> u64 {
    disk.f_bavail * disk.f_frsize
}

fn wanted(disk: &StatVfs) -> u64 {
    (disk.f_blocks * disk.f_frsize / SHARE).min(BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_once_where_there_is_room_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path());
        let disk = reserve.disk().unwrap();
        assert!(wanted(&disk) <= BYTES_MAX);
        if free(&disk) < 2 * ROOM * wanted(&disk) {
            // Nothing can be shown on a disk that is full.
            return;
        }
        for _ in 0..2 {
            reserve.take();
            let taken = std::fs::metadata(&reserve.0).unwrap();
            assert!(taken.blocks() * 512 >= wanted(&disk));
            reserve.give_way();
        }
    }
}
