//! Objects told as differences to others.
//!
//! Format: <https://git-scm.com/docs/pack-format#_deltified_representation>.

use diag::{Error, Result};

/// Makes an object of another and what is different.
///
/// # Errors
/// Differences that are malformed, or to another object than this.
pub(super) fn apply(base: &[u8], mut delta: &[u8], size_max: u64) -> Result<Vec<u8>> {
    let base_size = size(&mut delta).ok_or_else(malformed)?;
    let size = size(&mut delta).ok_or_else(malformed)?;
    if base_size != base.len() as u64 || size > size_max {
        return Err(malformed());
    }
    let mut out = Vec::with_capacity(size as usize);
    while let Some((&command, rest)) = delta.split_first() {
        delta = rest;
        let piece = if command & 0x80 != 0 {
            let offset = number(&mut delta, command, 4).ok_or_else(malformed)?;
            let length = match number(&mut delta, command >> 4, 3).ok_or_else(malformed)? {
                0 => 0x10000,
                length => length,
            };
            base.get(offset..offset + length).ok_or_else(malformed)?
        } else if command != 0 {
            let piece = delta.get(..usize::from(command)).ok_or_else(malformed)?;
            delta = &delta[piece.len()..];
            piece
        } else {
            return Err(malformed());
        };
        if out.len() + piece.len() > size as usize {
            return Err(malformed());
        }
        out.extend_from_slice(piece);
    }
    if out.len() as u64 != size {
        return Err(malformed());
    }
    Ok(out)
}

/// A size: seven bits a byte, the lowest first.
fn size(from: &mut &[u8]) -> Option<u64> {
    let mut size = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        size |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(size);
        }
    }
    None
}

/// A number of up to so many bytes, of which only those are there whose bit is set.
fn number(from: &mut &[u8], bits: u8, bytes: u8) -> Option<usize> {
    let mut number = 0;
    for at in 0..bytes {
        if bits & (1 << at) != 0 {
            let (&byte, rest) = from.split_first()?;
            *from = rest;
            number |= usize::from(byte) << (8 * at);
        }
    }
    Some(number)
}

fn malformed() -> Error {
    Error::invalid("a malformed delta in a pack")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_copied_and_inserted() {
        let base = b"0123456789";
        // Sizes 10 and 7; copy 4 bytes from 2; insert `ab`; copy 1 from 0.
        let delta = [10, 7, 0x91, 2, 4, 2, b'a', b'b', 0x90, 1];
        assert_eq!(apply(base, &delta, 100).unwrap(), b"2345ab0");
    }

    #[test]
    fn malformed_ones_are_errors() {
        let base = b"0123456789";
        for delta in [
            &[][..],
            &[10],
            &[9, 1, 0x90, 1],
            &[10, 4, 0x91, 8, 4],
            &[10, 1, 0],
            &[10, 1, 2, b'a'],
            &[10, 1, 2, b'a', b'b'],
            &[10, 9, 1, b'a'],
            &[10, 0x7f, 1, b'a'],
        ] {
            assert!(apply(base, delta, 100).is_err(), "{delta:?}");
        }
    }
}
