//! How a layer directory says that something below it is gone.

use std::path::Path;

use rustix::fd::AsFd;
use rustix::fs::{FileType, Mode, Stat};

use crate::xattr;

/// Prefix of an entry in a layer archive that deletes the name after it.
pub(crate) const PREFIX: &[u8] = b".wh.";
/// Entry in a layer archive that hides everything below its directory.
pub(crate) const OPAQUE_ENTRY: &[u8] = b".wh..wh..opq";

/// True for a character device 0/0.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// True for a directory through which nothing of the layers below shows.
pub fn is_opaque(dir: &Path) -> rustix::io::Result<bool> {
    Ok(xattr::get(dir, xattr::OPAQUE.as_bytes())?.as_deref() == Some(b"y"))
}

/// The attribute that makes the kernel look for whiteouts also in a directory that no other layer
/// has; without it they would be listed there as names of nothing.
const ORIGIN: &[u8] = b"trusted.overlay.origin";

/// Makes a whiteout named `name` in an open directory.
pub fn make_whiteout(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    let dir = dir.as_fd();
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)?;
    // Empty: made from something that is not known. Where it cannot be set, there is no overlay
    // that would read it.
    let _ = xattr::set(&xattr::by_descriptor(dir, b"."), ORIGIN, b"");
    Ok(())
}

/// Marks a directory so that nothing of the layers below shows through it.
pub fn make_opaque(dir: &Path) -> rustix::io::Result<()> {
    xattr::set(dir, xattr::OPAQUE.as_bytes(), b"y")
}
