//! File modes as Go's `os.FileMode` numbers them, which is how they travel in DiffCopy.

/// A directory.
pub const DIR: u32 = 1 << 31;
/// A symbolic link.
pub const SYMLINK: u32 = 1 << 27;
/// A device; with [`CHAR_DEVICE`] a character device, else a block device.
pub const DEVICE: u32 = 1 << 26;
/// A named pipe.
pub const NAMED_PIPE: u32 = 1 << 25;
/// A unix socket; never sent, the bit is cleared before.
pub const SOCKET: u32 = 1 << 24;
/// Set user id on execution.
pub const SETUID: u32 = 1 << 23;
/// Set group id on execution.
pub const SETGID: u32 = 1 << 22;
/// A character device, beside [`DEVICE`].
pub const CHAR_DEVICE: u32 = 1 << 21;
/// The sticky bit.
pub const STICKY: u32 = 1 << 20;
/// Something else without content that is known.
pub const IRREGULAR: u32 = 1 << 19;

/// Every bit that says what a file is; a file with none of them is regular.
pub const TYPE: u32 = DIR | SYMLINK | DEVICE | NAMED_PIPE | SOCKET | CHAR_DEVICE | IRREGULAR;

/// Whether the mode is that of a directory.
pub fn is_dir(mode: u32) -> bool {
    mode & DIR != 0
}

/// Whether the mode is that of a symbolic link.
pub fn is_symlink(mode: u32) -> bool {
    mode & SYMLINK != 0
}

/// Whether the mode is that of a file whose content can be asked for.
pub fn is_regular(mode: u32) -> bool {
    mode & TYPE == 0
}

/// The Go mode of a unix `st_mode`.
pub fn from_unix(unix: u32) -> u32 {
    let kind = match unix & libc::S_IFMT {
        libc::S_IFDIR => DIR,
        libc::S_IFLNK => SYMLINK,
        libc::S_IFBLK => DEVICE,
        libc::S_IFCHR => DEVICE | CHAR_DEVICE,
        libc::S_IFIFO => NAMED_PIPE,
        libc::S_IFSOCK => SOCKET,
        _ => 0,
    };
    let mut mode = kind | (unix & 0o777);
    for (unix_bit, bit) in SPECIAL {
        if unix & unix_bit != 0 {
            mode |= bit;
        }
    }
    mode
}

/// The permission bits of a Go mode as unix has them, with setuid, setgid and sticky.
pub fn permissions(mode: u32) -> u32 {
    let mut unix = mode & 0o777;
    for (unix_bit, bit) in SPECIAL {
        if mode & bit != 0 {
            unix |= unix_bit;
        }
    }
    unix
}

const SPECIAL: [(u32, u32); 3] = [
    (libc::S_ISUID, SETUID),
    (libc::S_ISGID, SETGID),
    (libc::S_ISVTX, STICKY),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        assert_eq!(
            from_unix(libc::S_IFDIR | 0o1777),
            0x8000_0000 | 0x10_0000 | 0o777
        );
        assert_eq!(from_unix(libc::S_IFREG | 0o4755), 0x80_0000 | 0o755);
        assert_eq!(from_unix(libc::S_IFCHR | 0o600), 0x420_0000 | 0o600);
        assert_eq!(permissions(from_unix(libc::S_IFREG | 0o6711)), 0o6711);
    }
}
