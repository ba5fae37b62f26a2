//! One entry's header, and the fixed-size block it is stored in.

use std::collections::BTreeMap;

use crate::{ArchiveError, Result};

/// Bytes in a block; everything in a tar archive is padded to it.
pub(crate) const BLOCK: usize = 512;

/// A time: seconds since 1970 (negative before) and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtime {
    /// Whole seconds.
    pub secs: i64,
    /// Below 1,000,000,000.
    pub nanos: u32,
}

impl Mtime {
    /// A time of whole seconds.
    pub fn from_secs(secs: i64) -> Self {
        Mtime { secs, nanos: 0 }
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file; its content follows the header.
    Regular,
    /// Another name of a file earlier in the archive, named by [`Header::link`].
    HardLink,
    /// A symbolic link to [`Header::link`].
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// Anything else, by its type flag.
    Other(u8),
}

impl EntryKind {
    pub(crate) fn from_flag(flag: u8) -> Self {
        match flag {
            b'0' | b'7' | b'S' | 0 => EntryKind::Regular,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => EntryKind::Other(other),
        }
    }

    /// The type flag of the ustar format.
    pub fn flag(self) -> u8 {
        match self {
            EntryKind::Regular => b'0',
            EntryKind::HardLink => b'1',
            EntryKind::Symlink => b'2',
            EntryKind::CharDevice => b'3',
            EntryKind::BlockDevice => b'4',
            EntryKind::Directory => b'5',
            EntryKind::Fifo => b'6',
            EntryKind::Other(flag) => flag,
        }
    }
}

/// What an archive says about an entry, extended headers taken into account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The name as it stands in the archive; directories usually end in `/`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky; no type bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Bytes of content; for a sparse file with its holes.
    pub size: u64,
    /// When the content changed last.
    pub mtime: Mtime,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    /// Owner's name, usually empty.
    pub uname: Vec<u8>,
    /// Group's name, usually empty.
    pub gname: Vec<u8>,
    /// Device number, major part.
    pub dev_major: u32,
    /// Device number, minor part.
    pub dev_minor: u32,
    /// Extended attributes by name, such as `security.capability`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Header {
    /// A header of that kind and name: mode 0644 (directories 0755), owner 0:0, time 0, no content.
    pub fn new(kind: EntryKind, path: impl Into<Vec<u8>>) -> Self {
        let mode = match kind {
            EntryKind::Directory => 0o755,
            EntryKind::Symlink => 0o777,
            _ => 0o644,
        };
        Header {
            path: path.into(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Mtime::default(),
            link: Vec::new(),
            uname: Vec::new(),
            gname: Vec::new(),
            dev_major: 0,
            dev_minor: 0,
            xattrs: BTreeMap::new(),
        }
    }

    /// A regular file of that many bytes.
    pub fn file(path: impl Into<Vec<u8>>, size: u64) -> Self {
        let mut header = Header::new(EntryKind::Regular, path);
        header.size = size;
        header
    }

    /// A directory; a `/` is added at the end of the name if it is missing.
    pub fn directory(path: impl Into<Vec<u8>>) -> Self {
        let mut path = path.into();
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        Header::new(EntryKind::Directory, path)
    }

    /// The name without `.`, `..` (never above the root), doubled and outer slashes; empty for the
    /// root itself.
    pub fn clean_path(&self) -> Vec<u8> {
        clean(&self.path).join(&b'/')
    }
}

/// The components of a name after resolving `.` and `..` by text alone; `..` at the root stays there.
pub(crate) fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts
}

/// The offsets of the fields in a header block.
pub(crate) mod field {
    use std::ops::Range;

    pub const NAME: Range<usize> = 0..100;
    pub const MODE: Range<usize> = 100..108;
    pub const UID: Range<usize> = 108..116;
    pub const GID: Range<usize> = 116..124;
    pub const SIZE: Range<usize> = 124..136;
    pub const MTIME: Range<usize> = 136..148;
    pub const CHECKSUM: Range<usize> = 148..156;
    pub const FLAG: usize = 156;
    pub const LINK: Range<usize> = 157..257;
    pub const MAGIC: Range<usize> = 257..265;
    pub const UNAME: Range<usize> = 265..297;
    pub const GNAME: Range<usize> = 297..329;
    pub const DEV_MAJOR: Range<usize> = 329..337;
    pub const DEV_MINOR: Range<usize> = 337..345;
    pub const PREFIX: Range<usize> = 345..500;
}

/// Text up to the first NUL.
pub(crate) fn text(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// A number: octal text, or base 256 (two's complement) when the first bit is set.
pub(crate) fn number(bytes: &[u8]) -> Result<i64> {
    if bytes.first().is_some_and(|b| b & 0x80 != 0) {
        return base256(bytes);
    }
    let digits = text(bytes).trim_ascii();
    let mut value: i64 = 0;
    for &digit in digits {
        if !(b'0'..=b'7').contains(&digit) {
            let shown = String::from_utf8_lossy(bytes);
            return Err(ArchiveError::Format(format!("`{shown}` is not octal")));
        }
        value = value
            .checked_mul(8)
            .and_then(|v| v.checked_add(i64::from(digit - b'0')))
            .ok_or_else(|| ArchiveError::Format("number too large".into()))?;
    }
    Ok(value)
}

fn base256(bytes: &[u8]) -> Result<i64> {
    let negative = bytes[0] & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (i, &byte) in bytes.iter().enumerate() {
        let byte = match (i, negative) {
            (0, false) => byte & 0x7f,
            _ => byte,
        };
        value = (value << 8) | i128::from(byte);
        if value > i128::from(i64::MAX) || value < i128::from(i64::MIN) {
            return Err(ArchiveError::Format("number too large".into()));
        }
    }
    i64::try_from(value).map_err(|_| ArchiveError::Format("number too large".into()))
}

/// True if `value` fits as octal text with its NUL into a field of `width` bytes.
pub(crate) fn fits_octal(width: usize, value: i64) -> bool {
    let bits = (width - 1) * 3;
    value >= 0 && (bits >= 63 || value < 1 << bits)
}

/// Writes octal digits, filled up with zeros, and a NUL; what does not fit becomes 0 (the real value
/// then stands in an extended header).
pub(crate) fn put_octal(field: &mut [u8], value: i64) {
    let width = field.len();
    let value = if fits_octal(width, value) { value } else { 0 };
    let digits = format!("{value:0digits$o}", digits = width - 1);
    field[..width - 1].copy_from_slice(digits.as_bytes());
    field[width - 1] = 0;
}

/// Writes text, cut to the field, NUL-terminated where there is room.
pub(crate) fn put_text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    if let Some(end) = field.get_mut(length) {
        *end = 0;
        return;
    }
    // A cut that ends in `/` would make old readers take a file for a directory.
    if text.len() > field.len() && field[field.len() - 1] == b'/' {
        let mut end = field.len() - 1;
        while end > 0 && field[end - 1] == b'/' {
            end -= 1;
        }
        field[end] = 0;
    }
}

/// Both ways of adding up the bytes of a header, its checksum field taken as spaces: unsigned as
/// POSIX has it, signed as old tars had it.
pub(crate) fn checksums(block: &[u8; BLOCK]) -> (i64, i64) {
    let mut unsigned = 0;
    let mut signed = 0;
    for (i, &byte) in block.iter().enumerate() {
        let byte = if field::CHECKSUM.contains(&i) {
            b' '
        } else {
            byte
        };
        unsigned += i64::from(byte);
        signed += i64::from(byte as i8);
    }
    (unsigned, signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000755\0").unwrap(), 0o755);
        assert_eq!(number(b"  755 \0\0").unwrap(), 0o755);
        assert_eq!(number(b"\0\0\0\0").unwrap(), 0);
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0").unwrap(), 256);
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfb").unwrap(), -5);
        assert!(number(b"12x\0").is_err());
        assert!(number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn names_are_cleaned_by_text_and_never_leave_the_root() {
        let path = |p: &str| Header::new(EntryKind::Regular, p).clean_path();
        assert_eq!(path("./a//b/"), b"a/b");
        assert_eq!(path("/../../a/../b"), b"b");
        assert_eq!(path("./"), b"");
    }
}
