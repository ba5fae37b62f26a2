//! Unpacking archives, as `ADD` does with what is in the context.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use archive::{ArchiveError, Reader, UnpackOptions, decompressor, unpack_tree};
use rustix::fs::OFlags;
use tokio_util::sync::CancellationToken;

use crate::make_dirs::{NewDirs, make_dirs};
use crate::root::{LastLink, is_regular};
use crate::tree_copy::CopyOptions;
use crate::{OpError, Root};

/// Unpacks a file into a directory if it is an archive, compressed or not; says whether it was.
pub(crate) fn unpack_archive(
    source: &Root,
    path: &str,
    target: &Root,
    dest: &str,
    options: &CopyOptions,
    cancel: &CancellationToken,
) -> Result<bool, OpError> {
    let from = source.resolve(Path::new(path), LastLink::Follow)?;
    match source.stat(&from)? {
        Some(stat) if is_regular(&stat) => {}
        _ => return Ok(false),
    }
    let failed = |error: ArchiveError| match error {
        ArchiveError::Io { .. } if cancel.is_cancelled() => OpError::Canceled,
        error => OpError::Archive {
            path: from.display(),
            message: error.to_string(),
        },
    };
    let mut file = File::from(source.open_at(&from, OFlags::RDONLY)?);
    if !is_archive(&mut file).map_err(failed)? {
        return Ok(false);
    }
    let to = target.resolve(Path::new(dest), LastLink::Follow)?;
    let how = NewDirs {
        mode: 0o755,
        owner: options.owner,
        timestamp: options.timestamp,
    };
    make_dirs(target, &to, &how)?;
    let dir = target.open_dir(&to)?;
    // The directory is named through its descriptor, so that no link can lead elsewhere.
    let opened = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    let unpack = UnpackOptions {
        owner: options.owner.map(|owner| (owner.uid, owner.gid)),
    };
    let stopping = Cancellable { file, cancel };
    let unpacked = decompressor(stopping).and_then(|reader| unpack_tree(reader, &opened, &unpack));
    match unpacked {
        Ok(_) => Ok(true),
        Err(_) if cancel.is_cancelled() => Err(OpError::Canceled),
        Err(error) => Err(failed(error)),
    }
}

/// Whether the file begins as an archive does; it is left at its start. What cannot be read is none.
fn is_archive(file: &mut File) -> Result<bool, ArchiveError> {
    let known = match decompressor(&mut *file) {
        Ok(reader) => matches!(Reader::new(reader).next_entry(), Ok(Some(_))),
        Err(_) => false,
    };
    file.seek(SeekFrom::Start(0))
        .map_err(ArchiveError::Stream)?;
    Ok(known)
}

/// A file whose reading fails as soon as the work is cancelled.
struct Cancellable<'c> {
    file: File,
    cancel: &'c CancellationToken,
}

impl std::io::Read for Cancellable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(std::io::Error::other("context canceled"));
        }
        self.file.read(buffer)
    }
}
