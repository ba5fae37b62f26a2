//! Sizes as people write them: `64m`, `1.5GiB`, `1024`.

/// Bytes; units are powers of 1024 and letter case does not matter. The error is the message.
pub fn parse(text: &str) -> Result<i64, String> {
    let invalid = || format!("invalid size: '{text}'");
    let end = text
        .rfind(|c: char| c.is_ascii_digit() || matches!(c, '.' | ' '))
        .ok_or_else(invalid)?;
    let (number, suffix) = if text.as_bytes()[end] == b' ' {
        (&text[..end], &text[end + 1..])
    } else {
        text.split_at(end + 1)
    };
    let value: f64 = number.parse().map_err(|_| invalid())?;
    if !value.is_finite() || value < 0.0 {
        return Err(invalid());
    }
    let suffix = suffix.to_ascii_lowercase();
    let (letter, tail) = match suffix.chars().next() {
        None => return Ok(value as i64),
        Some(letter) => (letter, &suffix[letter.len_utf8()..]),
    };
    let bad = || format!("invalid suffix: '{suffix}'");
    if letter == 'b' {
        return if tail.is_empty() {
            Ok(value as i64)
        } else {
            Err(bad())
        };
    }
    let power = "kmgtp".find(letter).ok_or_else(bad)? as i32 + 1;
    if !matches!(tail, "" | "b" | "ib") {
        return Err(bad());
    }
    Ok((value * 1024f64.powi(power)) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("1", 1),
            ("1b", 1),
            ("64m", 64 << 20),
            ("1.5 KiB", 1536),
            ("2GB", 2 << 30),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "1x", "1kx", "-1", "1bb"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
