//! How a layer directory says that something below it is gone.

use std::path::Path;

use rustix::fd::AsFd;
use rustix::fs::{FileType, Mode, Stat};
use rustix::io::Errno;

use crate::xattr;

/// Prefix of an entry in a layer archive that deletes the name after it.
pub(crate) const PREFIX: &[u8] = b".wh.";
/// Entry in a layer archive that hides everything below its directory.
pub(crate) const OPAQUE_ENTRY: &[u8] = b".wh..wh..opq";

/// The device of a whiteout where overlay's own cannot be made: on a filesystem that is itself an
/// overlay, which keeps 0/0 to itself. Major 0 is no driver's.
const STAND_IN_MINOR: u32 = 0x00_c0be;

/// The attribute of an opaque directory there.
pub const OPAQUE_STAND_IN: &str = "user.overlay.opaque";

/// True for a character device 0/0, or what stands in for it.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (stat.st_rdev == 0 || stat.st_rdev == stand_in())
}

/// True for a directory through which nothing of the layers below shows.
pub fn is_opaque(dir: &Path) -> rustix::io::Result<bool> {
    let has = |name: &str| -> rustix::io::Result<bool> {
        Ok(xattr::get(dir, name.as_bytes())?.as_deref() == Some(b"y"))
    };
    Ok(has(xattr::OPAQUE)? || has(OPAQUE_STAND_IN)?)
}

/// Whether the kernel's overlay would understand the marks that are made in this directory.
pub fn has_overlays_marks(dir: &Path) -> rustix::io::Result<bool> {
    let probe = dir.join("whiteout");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &probe,
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    );
    match made {
        Ok(()) => rustix::fs::unlink(&probe).map(|()| true),
        Err(Errno::PERM) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The attribute that makes the kernel look for whiteouts also in a directory that no other layer
/// has; without it they would be listed there as names of nothing.
const ORIGIN: &[u8] = b"trusted.overlay.origin";

/// Makes a whiteout named `name` in an open directory.
pub fn make_whiteout(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    let dir = dir.as_fd();
    let make =
        |device| rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), device);
    match make(0) {
        Err(Errno::PERM) => return make(stand_in()),
        made => made?,
    }
    // Empty: made from something that is not known. Where it cannot be set, there is no overlay
    // that would read it.
    let _ = xattr::set(&xattr::by_descriptor(dir, b"."), ORIGIN, b"");
    Ok(())
}

/// Marks a directory so that nothing of the layers below shows through it.
pub fn make_opaque(dir: &Path) -> rustix::io::Result<()> {
    match xattr::set(dir, xattr::OPAQUE.as_bytes(), b"y") {
        Err(Errno::PERM | Errno::NOTSUP) => xattr::set(dir, OPAQUE_STAND_IN.as_bytes(), b"y"),
        set => set,
    }
}

fn stand_in() -> u64 {
    rustix::fs::makedev(0, STAND_IN_MINOR)
}
