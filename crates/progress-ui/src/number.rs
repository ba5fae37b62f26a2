//! Sizes and times as progress displays write them.

use jiff::SignedDuration;

const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];

/// A number of bytes in decimal units with two decimals: `60B`, `1.23kB`.
pub fn bytes_text(bytes: i64) -> String {
    let magnitude = bytes.unsigned_abs();
    let mut base: u64 = 1;
    let mut unit = 0;
    while unit + 1 < UNITS.len() && magnitude >= base.saturating_mul(1000) {
        base *= 1000;
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes}B");
    }
    format!("{:.2}{}", bytes as f64 / base as f64, UNITS[unit])
}

/// A length of time in seconds with that many decimals.
pub fn seconds_text(time: SignedDuration, decimals: usize) -> String {
    format!("{:.decimals$}", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_in_decimal_units() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (1234, "1.23kB"),
            (-1500, "-1.50kB"),
            (3_370_000, "3.37MB"),
            (i64::MAX, "9.22EB"),
        ] {
            assert_eq!(bytes_text(bytes), text);
        }
    }
}
