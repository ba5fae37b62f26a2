//! Small deterministic tar archives (USTAR): configuration files and the server image.
//!
//! Only regular files, directories and symbolic links with names of at most 100 bytes, owned by
//! root, at the epoch: the same input always gives the same bytes.

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// A file of that many bytes, which follow the header, padded by [`padding`].
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link to that.
    Symlink(&'a str),
}

/// Why an entry cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is too long or too big for a tar archive")]
pub(crate) struct TooLong(String);

/// The 512 bytes before an entry.
pub(crate) fn header(name: &str, mode: u32, kind: Kind<'_>) -> Result<[u8; 512], TooLong> {
    let too_long = || TooLong(name.to_owned());
    let mut block = [0u8; 512];
    let (size, flag, link) = match kind {
        Kind::File(size) => (size, b'0', ""),
        Kind::Directory => (0, b'5', ""),
        Kind::Symlink(target) => (0, b'2', target),
    };
    if size >= 1 << 33 {
        return Err(too_long());
    }
    put(&mut block, 0, 100, name).ok_or_else(too_long)?;
    put(&mut block, 100, 8, &format!("{mode:07o}")).ok_or_else(too_long)?;
    put(&mut block, 108, 8, "0000000").ok_or_else(too_long)?;
    put(&mut block, 116, 8, "0000000").ok_or_else(too_long)?;
    put(&mut block, 124, 12, &format!("{size:011o}")).ok_or_else(too_long)?;
    put(&mut block, 136, 12, "00000000000").ok_or_else(too_long)?;
    block[156] = flag;
    put(&mut block, 157, 100, link).ok_or_else(too_long)?;
    put(&mut block, 257, 6, "ustar\0").ok_or_else(too_long)?;
    put(&mut block, 263, 2, "00").ok_or_else(too_long)?;
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut block, 148, 8, &format!("{sum:06o}\0")).ok_or_else(too_long)?;
    Ok(block)
}

/// Zeros after a file of that many bytes.
pub(crate) fn padding(size: u64) -> usize {
    ((512 - size % 512) % 512) as usize
}

/// The end of an archive.
pub(crate) const END: [u8; 1024] = [0; 1024];

fn put(block: &mut [u8; 512], at: usize, room: usize, text: &str) -> Option<()> {
    let bytes = text.as_bytes();
    if bytes.len() > room {
        return None;
    }
    block[at..at + bytes.len()].copy_from_slice(bytes);
    Some(())
}

/// An archive in memory.
#[derive(Default)]
pub(crate) struct Tarball(Vec<u8>);

impl Tarball {
    /// Adds a directory; the name ends with a slash.
    pub(crate) fn directory(&mut self, name: &str, mode: u32) -> Result<(), TooLong> {
        self.0.extend(header(name, mode, Kind::Directory)?);
        Ok(())
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, name: &str, target: &str) -> Result<(), TooLong> {
        self.0.extend(header(name, 0o777, Kind::Symlink(target))?);
        Ok(())
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<(), TooLong> {
        let size = data.len() as u64;
        self.0.extend(header(name, mode, Kind::File(size))?);
        self.0.extend(data);
        self.0.resize(self.0.len() + padding(size), 0);
        Ok(())
    }

    /// The bytes so far, without end.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.0
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend(END);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gnu_tar_lists_what_was_written() {
        let mut tar = Tarball::default();
        tar.directory("etc/", 0o755).unwrap();
        tar.file("etc/x", 0o600, b"hello").unwrap();
        tar.symlink("etc/y", "x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        std::fs::write(&path, tar.finish()).unwrap();
        let listed = std::process::Command::new("tar")
            .args(["--utc", "--full-time", "-tvf"])
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("drwxr-xr-x 0/0"), "{text}");
        assert!(lines[1].ends_with("1970-01-01 00:00:00 etc/x"), "{text}");
        assert!(lines[2].ends_with("etc/y -> x"), "{text}");
    }

    #[test]
    fn a_name_without_room_is_an_error() {
        assert!(header(&"a".repeat(101), 0o644, Kind::Directory).is_err());
    }
}
