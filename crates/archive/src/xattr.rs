//! Extended attributes of open files and of paths, and which of them a layer carries.

use std::path::Path;

use rustix::fd::AsFd;
use rustix::io::Errno;

/// The attribute by which an overlay upper directory hides what is below it.
pub const OPAQUE: &str = "trusted.overlay.opaque";

/// True for an attribute that a layer carries in its archive: file capabilities and users' own.
/// The kernel's overlay bookkeeping and labels of a host's security policy stay where they are.
pub fn is_portable(name: &[u8]) -> bool {
    name == b"security.capability"
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// True for an attribute that unpacking an archive may set.
pub fn is_settable(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.")
        && !name.starts_with(b"user.overlay.")
        && name != b"security.selinux"
        && !name.contains(&0)
}

/// Names of the attributes of `path` itself (a symbolic link is not followed), sorted; none where
/// the filesystem has no attributes.
pub fn list(path: &Path) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut buffer = vec![0u8; 1024];
    loop {
        match rustix::fs::llistxattr(path, &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                break;
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => {
                let larger = buffer.len() * 8;
                buffer.resize(larger, 0);
            }
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    let mut names: Vec<Vec<u8>> = buffer
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    names.sort();
    Ok(names)
}

/// The value of one attribute of `path` itself, or `None` if it has no such attribute.
pub fn get(path: &Path, name: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0u8; 256];
    loop {
        match rustix::fs::lgetxattr(path, name, &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => {
                let larger = buffer.len() * 16;
                buffer.resize(larger, 0);
            }
            Err(Errno::NODATA | Errno::NOTSUP) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Sets one attribute of `path` itself.
pub fn set(path: &Path, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty())
}

/// The path by which calls that take no descriptor reach `name` in the directory `dir`, without
/// following anything that the tree itself says.
pub(crate) fn by_descriptor(dir: impl AsFd, name: &[u8]) -> std::path::PathBuf {
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    let mut path = std::path::PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()));
    path.push(std::ffi::OsStr::from_bytes(name));
    path
}
