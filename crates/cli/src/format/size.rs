//! Sizes in bytes for people.

const DECIMAL: &[&str] = &["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
const BINARY: &[&str] = &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];

/// Four digits and a unit of 1000, such as `1.21GB`.
pub(crate) fn decimal_size(bytes: i64) -> String {
    let (value, unit) = scale(bytes as f64, 1000.0, DECIMAL);
    format!("{}{unit}", four_digits(value))
}

/// Four digits and a unit of 1024, such as `9.313GiB`.
pub(crate) fn binary_size(bytes: i64) -> String {
    let (value, unit) = scale(bytes as f64, 1024.0, BINARY);
    format!("{}{unit}", four_digits(value))
}

/// Two decimals and a unit of 1000, whole bytes without, as buildctl writes sizes.
pub(crate) fn buildctl_size(bytes: i64) -> String {
    if bytes.abs() < 1000 {
        return format!("{bytes}B");
    }
    let (value, unit) = scale(bytes as f64, 1000.0, DECIMAL);
    format!("{value:.2}{unit}")
}

fn scale(mut value: f64, base: f64, units: &[&'static str]) -> (f64, &'static str) {
    let mut index = 0;
    while value.abs() >= base && index < units.len() - 1 {
        value /= base;
        index += 1;
    }
    (value, units[index])
}

/// Go's `%.4g` of numbers below 10000: four significant digits without zeros at the end.
fn four_digits(value: f64) -> String {
    let whole_digits = if value.abs() < 1.0 {
        1
    } else {
        value.abs().log10().floor() as usize + 1
    };
    let text = format!("{value:.*}", 4usize.saturating_sub(whole_digits));
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_four_digits_at_most() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234567, "1.235MB"),
            (1_210_000_000, "1.21GB"),
            (8192, "8.192kB"),
        ] {
            assert_eq!(decimal_size(bytes), text);
        }
        assert_eq!(binary_size(10_000_000_000), "9.313GiB");
        assert_eq!(buildctl_size(1_234_567), "1.23MB");
        assert_eq!(buildctl_size(12), "12B");
    }
}
