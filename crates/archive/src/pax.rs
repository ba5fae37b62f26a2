//! PAX extended header records: `<length> <key>=<value>\n`, the length counting itself.

use crate::{ArchiveError, Mtime, Result};

/// The prefix of a record that holds an extended attribute.
pub(crate) const XATTR: &[u8] = b"SCHILY.xattr.";

/// Splits the content of an extended header by the records' lengths; values may hold any byte.
pub(crate) fn parse(mut data: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let bad = || ArchiveError::Format("malformed PAX record".into());
    let mut records = Vec::new();
    while !data.is_empty() {
        // Some writers pad with NUL bytes.
        if data.iter().all(|&b| b == 0) {
            break;
        }
        let space = data
            .iter()
            .take(20)
            .position(|&b| b == b' ')
            .ok_or_else(bad)?;
        let length: usize = decimal(&data[..space]).ok_or_else(bad)?;
        if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|&b| b == b'=').ok_or_else(bad)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        data = &data[length..];
    }
    Ok(records)
}

/// Appends one record.
pub(crate) fn push(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + digits(rest);
    length = rest + digits(length);
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// A number in decimal digits and nothing else.
pub(crate) fn decimal<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A time such as `1350244992.023960108` or `-5`; more than nine decimals are cut off.
pub(crate) fn parse_time(text: &[u8]) -> Option<Mtime> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let cut = &fraction[..fraction.len().min(9)];
    let nanos: u32 = format!("{cut:0<9}").parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        // -1.25 is a quarter before -1: the second below and three quarters.
        return Some(Mtime {
            secs: secs.checked_sub(1)?,
            nanos: 1_000_000_000 - nanos,
        });
    }
    Some(Mtime { secs, nanos })
}

/// A time as [`parse_time`] reads it, without needless zeros.
pub(crate) fn format_time(time: Mtime) -> String {
    let Mtime { secs, nanos } = time;
    if nanos == 0 {
        return secs.to_string();
    }
    let (sign, secs, nanos) = match secs < 0 {
        true => ("-", -(secs + 1), 1_000_000_000 - nanos),
        false => ("", secs, nanos),
    };
    let text = format!("{sign}{secs}.{nanos:09}");
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_by_length_whatever_the_value_holds() {
        let mut data = Vec::new();
        push(&mut data, b"SCHILY.xattr.user.a", b"1\n5 b=c\n\0=");
        push(&mut data, b"k", b"");
        for length in 80..120 {
            push(&mut data, b"path", &vec![b'x'; length]);
        }
        let records = parse(&data).unwrap();
        assert_eq!(records[0].1, b"1\n5 b=c\n\0=");
        assert_eq!(records[1], (b"k".to_vec(), Vec::new()));
        assert_eq!(records.len(), 42);
        for bad in [
            &b"5 a=b"[..],
            b"99 a=b\n",
            b"x a=b\n",
            b"4 ab\n",
            b"6 ab\n\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_keep_sign_and_nanoseconds() {
        for (text, secs, nanos) in [
            ("0", 0, 0),
            ("-5", -5, 0),
            ("1350244992.023960108", 1350244992, 23960108),
            ("-1.25", -2, 750_000_000),
            ("-0.5", -1, 500_000_000),
        ] {
            let time = Mtime { secs, nanos };
            assert_eq!(parse_time(text.as_bytes()), Some(time), "{text}");
            assert_eq!(format_time(time), text);
        }
        assert_eq!(parse_time(b"1.x"), None);
        assert_eq!(parse_time(b"1.1234567899").unwrap().nanos, 123456789);
    }
}
