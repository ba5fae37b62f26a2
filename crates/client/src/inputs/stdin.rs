//! What standard input brings: an archive or a Dockerfile.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use diag::Error;

/// How much is looked at to tell an archive: two headers of a tar archive.
const HEAD_BYTES: usize = 1024;
const TAR_HEADER_BYTES: usize = 512;

/// The first bytes of a reader, fewer only at its end.
pub(crate) fn peek(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    reader.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// Whether it starts as a bzip2, gzip or xz stream or as a tar archive.
pub fn is_archive(head: &[u8]) -> bool {
    const MAGICS: [&[u8]; 3] = [
        b"BZh",
        &[0x1f, 0x8b, 0x08],
        &[0xfd, b'7', b'z', b'X', b'Z', 0],
    ];
    MAGICS.iter().any(|magic| head.starts_with(magic)) || is_tar(head)
}

/// Copies everything into a file without a name. Nodes may each read it, and more than once.
pub fn spool(mut reader: impl Read) -> Result<File, Error> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut reader, &mut file)?;
    file.flush()?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Whether the first header's checksum is right, or the archive is empty.
fn is_tar(head: &[u8]) -> bool {
    let Some(header) = head.get(..TAR_HEADER_BYTES) else {
        return false;
    };
    if header.iter().all(|byte| *byte == 0) {
        // An archive without members is two blocks of zeros; Go's reader reports its end.
        return false;
    }
    let field = &header[148..156];
    let digits: String = field
        .iter()
        .map(|byte| char::from(*byte))
        .filter(|c| !matches!(c, ' ' | '\0'))
        .collect();
    let Ok(stored) = i64::from_str_radix(&digits, 8) else {
        return false;
    };
    let sum = |signed: bool| -> i64 {
        let value = |byte: u8| match signed {
            true => i64::from(byte as i8),
            false => i64::from(byte),
        };
        let spaces = 8 * i64::from(b' ');
        let bytes = header[..148].iter().chain(&header[156..]);
        spaces + bytes.map(|byte| value(*byte)).sum::<i64>()
    };
    // Old programs summed signed bytes.
    stored == sum(false) || stored == sum(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn tar_header() -> Vec<u8> {
        let mut header = vec![0u8; 512];
        header[..1].copy_from_slice(b"a");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header
    }

    #[test]
    fn archives_are_told_by_their_first_bytes() {
        assert!(is_archive(&[0x1f, 0x8b, 0x08, 0]));
        assert!(is_archive(b"BZh91AY"));
        assert!(is_archive(&tar_header()));
        assert!(!is_archive(b"FROM busybox\n"));
        assert!(!is_archive(&[b'a'; 1024]));
        assert!(!is_archive(&[]));
    }
}
