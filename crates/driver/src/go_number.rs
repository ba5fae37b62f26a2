//! Numbers, booleans, durations and sizes in option values, read as stock reads them and refused in the
//! words scripts know.

/// Reads a boolean: `1 t T TRUE true True 0 f F FALSE false False`.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!(
            "strconv.ParseBool: parsing {text:?}: invalid syntax"
        )),
    }
}

/// Reads a decimal integer of 64 bits.
pub fn parse_int(text: &str) -> Result<i64, String> {
    text.parse::<i64>().map_err(|error| {
        let what = match error.kind() {
            std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                "value out of range"
            }
            _ => "invalid syntax",
        };
        format!("strconv.ParseInt: parsing {text:?}: {what}")
    })
}

/// Reads a size in bytes: a decimal number and an optional unit (`b`, `k`, `m`, `g`, `t`, `p`, also
/// as `kb` and `kib`), all of 1024.
pub fn parse_size(text: &str) -> Result<i64, String> {
    let invalid = || format!("invalid size: '{text}'");
    let last = text
        .rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')
        .ok_or_else(invalid)?;
    let suffix = &text[last + 1..];
    let number = text[..=last].strip_suffix(' ').unwrap_or(&text[..=last]);
    let value: f64 = number
        .parse()
        .map_err(|_| format!("strconv.ParseFloat: parsing {number:?}: invalid syntax"))?;
    if value < 0.0 {
        return Err(invalid());
    }
    // Stock looks at the letters only of what could be a unit.
    let unit = match suffix.len() {
        0..=3 => suffix.to_ascii_lowercase(),
        _ => suffix.to_owned(),
    };
    let bad = || format!("invalid suffix: '{unit}'");
    let mut letters = unit.chars();
    let factor: f64 = match letters.next() {
        None => return Ok(value as i64),
        Some('b') if unit.len() == 1 => 1.0,
        Some('k') => 1024.0,
        Some('m') => 1024f64.powi(2),
        Some('g') => 1024f64.powi(3),
        Some('t') => 1024f64.powi(4),
        Some('p') => 1024f64.powi(5),
        Some(_) => return Err(bad()),
    };
    match letters.as_str() {
        "" | "b" | "ib" => Ok((value * factor) as i64),
        _ => Err(bad()),
    }
}

/// Reads a duration: `20s`, `1h30m0s`, `1.5s`, `300ms`. Negative ones are refused: nothing here takes them.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(std::time::Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos: f64 = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            unit => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        nanos += number * unit;
        rest = &rest[letters..];
    }
    if nanos > i64::MAX as f64 {
        return Err(invalid());
    }
    Ok(std::time::Duration::from_nanos(nanos as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("100", 100),
            ("100b", 100),
            ("64m", 64 << 20),
            ("1.5g", 3 << 29),
            ("2 GiB", 2 << 30),
            ("1kb", 1024),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn bad_values_are_refused_in_the_known_words() {
        for (text, words) in [
            ("abc", "invalid size: 'abc'"),
            ("-1", "invalid size: '-1'"),
            ("1x", "invalid suffix: 'x'"),
            ("1kkk", "invalid suffix: 'kkk'"),
            (
                "1.2.3",
                "strconv.ParseFloat: parsing \"1.2.3\": invalid syntax",
            ),
        ] {
            assert_eq!(parse_size(text), Err(words.to_owned()), "{text}");
        }
        assert_eq!(
            parse_int("1e3"),
            Err("strconv.ParseInt: parsing \"1e3\": invalid syntax".to_owned())
        );
        assert!(parse_bool("yes").is_err());
    }
}
