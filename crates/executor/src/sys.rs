//! System calls that `rustix` does not have.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Makes a mount, or with `recursive` it and all below, read-only and restricted.
///
/// `fd` refers to the root of the mount. Kernels before 5.12 do not have the call: `ENOSYS`.
pub(crate) fn mount_setattr(fd: impl AsFd, attributes: u64, recursive: bool) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr = MountAttr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and `attr` lives through the call, its size is given.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &attr,
            size_of::<MountAttr>(),
        )
    };
    check(rc).map(drop)
}

/// Closes all descriptors from `first` on. Nobody may use them afterwards.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: numbers only; the caller has no use for what it closes.
    if unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } == 0 {
        return Ok(());
    }
    // Linux before 5.9.
    let numbers: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for fd in numbers.into_iter().filter(|fd| *fd >= first as i32) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Turns the answer of a raw system call into a result.
pub(crate) fn check(rc: libc::c_long) -> io::Result<libc::c_long> {
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(rc)
}

/// Attributes of [`mount_setattr`].
pub(crate) mod attr {
    /// Nothing can be written.
    pub(crate) const RDONLY: u64 = 0x1;
    /// Set-user-id bits have no effect.
    pub(crate) const NOSUID: u64 = 0x2;
    /// Device nodes cannot be opened.
    pub(crate) const NODEV: u64 = 0x4;
    /// Nothing can be executed.
    pub(crate) const NOEXEC: u64 = 0x8;
}
