//! Moments as Go prints them.

use jiff::Timestamp;
use jiff::tz::Offset;

/// `2026-11-22 02:03:50.87480188 +0000 UTC`.
pub(crate) fn go_time(time: Timestamp) -> String {
    let time = Offset::UTC.to_datetime(time);
    let mut text = format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    );
    let nanos = format!("{:09}", time.subsec_nanosecond());
    let nanos = nanos.trim_end_matches('0');
    if !nanos.is_empty() {
        text.push('.');
        text.push_str(nanos);
    }
    text.push_str(" +0000 UTC");
    text
}

/// A moment of the wire; one out of range is the epoch.
pub(crate) fn timestamp(seconds: i64, nanos: i32) -> Timestamp {
    Timestamp::new(seconds, nanos).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_no_zeros_at_its_end() {
        let time: Timestamp = "2026-11-22T02:03:50.87480188Z".parse().unwrap();
        assert_eq!(go_time(time), "2026-11-22 02:03:50.87480188 +0000 UTC");
        let time: Timestamp = "2026-11-22T02:03:50Z".parse().unwrap();
        assert_eq!(go_time(time), "2026-11-22 02:03:50 +0000 UTC");
    }
}
