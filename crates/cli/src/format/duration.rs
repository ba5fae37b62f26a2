//! Durations as Go writes them: `20s`, `1h30m0s`, `1.5s`, `300ms`.

use std::time::Duration;

/// Writes a duration as Go does.
pub(crate) fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let fraction = |value: u128, unit: u128| {
        let whole = value / unit;
        let width = unit.ilog10() as usize;
        let rest = format!("{:0width$}", value % unit);
        match rest.trim_end_matches('0') {
            "" => whole.to_string(),
            digits => format!("{whole}.{digits}"),
        }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..=999 => format!("{nanos}ns"),
        1_000..=999_999 => format!("{}µs", fraction(nanos, 1_000)),
        1_000_000..=999_999_999 => format!("{}ms", fraction(nanos, 1_000_000)),
        _ => {
            let minutes = nanos / 60_000_000_000;
            let seconds = fraction(nanos % 60_000_000_000, 1_000_000_000);
            match minutes {
                0 => format!("{seconds}s"),
                1..=59 => format!("{minutes}m{seconds}s"),
                _ => format!("{}h{}m{seconds}s", minutes / 60, minutes % 60),
            }
        }
    }
}

/// Writes a duration in words: `About a minute`, `4 hours`.
pub(crate) fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let minutes = seconds / 60;
    // Hours are rounded, everything else is cut.
    let hours = (seconds + 1800) / 3600;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use driver::parse_duration;

    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, written) in [
            ("20s", "20s"),
            ("90s", "1m30s"),
            ("48h", "48h0m0s"),
            ("1.5s", "1.5s"),
            ("300ms", "300ms"),
            ("1h2m3.25s", "1h2m3.25s"),
            ("0", "0s"),
        ] {
            assert_eq!(go_duration(parse_duration(text).unwrap()), written);
        }
        assert_eq!(
            parse_duration("abc").unwrap_err(),
            "time: invalid duration \"abc\""
        );
        assert_eq!(
            parse_duration("5").unwrap_err(),
            "time: missing unit in duration \"5\""
        );
        assert_eq!(
            parse_duration("5x").unwrap_err(),
            "time: unknown unit \"x\" in duration \"5x\""
        );
    }

    #[test]
    fn durations_in_words() {
        for (seconds, words) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (86400 * 3, "3 days"),
            (86400 * 800, "2 years"),
        ] {
            assert_eq!(human_duration(Duration::from_secs(seconds)), words);
        }
    }
}
