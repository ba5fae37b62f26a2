//! Spans of time in which a vertex worked.

use jiff::{SignedDuration, Timestamp};

/// From a moment to a moment, or open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// When work started.
    pub start: Timestamp,
    /// When work stopped; `None` while it goes on.
    pub stop: Option<Timestamp>,
}

impl Interval {
    /// How long it took, or has taken by `now`.
    pub fn duration(&self, now: Timestamp) -> SignedDuration {
        self.stop.unwrap_or(now).duration_since(self.start)
    }
}

/// Joins intervals that overlap or touch; the result is sorted by start. Nothing follows an open one.
pub fn merge_intervals(mut intervals: Vec<Interval>) -> Vec<Interval> {
    intervals.sort_by_key(|interval| interval.start);
    let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
    for next in intervals {
        let Some(last) = merged.last_mut() else {
            merged.push(next);
            continue;
        };
        match (last.stop, next.stop) {
            (None, _) => break,
            (Some(stop), _) if stop < next.start => merged.push(next),
            (Some(_), None) => last.stop = None,
            (Some(stop), Some(next_stop)) => last.stop = Some(stop.max(next_stop)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spans: &[(i64, i64)]) -> Vec<Interval> {
        let at = |second| Timestamp::from_second(second).unwrap();
        spans
            .iter()
            .map(|(start, stop)| Interval {
                start: at(*start),
                // A negative stop stands for an open interval.
                stop: (*stop >= 0).then(|| at(*stop)),
            })
            .collect()
    }

    #[test]
    fn overlapping_and_touching_intervals_become_one() {
        for (input, expected) in [
            (&[][..], &[][..]),
            (&[(4, 6), (0, 2), (2, 4), (8, 9)], &[(0, 6), (8, 9)]),
            (&[(0, 10), (1, 2), (9, 10)], &[(0, 10)]),
            (&[(0, 3), (2, 5), (10, 12), (11, 14)], &[(0, 5), (10, 14)]),
            (&[(1, -1), (3, 5)], &[(1, -1)]),
            (&[(0, 5), (3, -1), (9, 10)], &[(0, -1)]),
            (&[(0, 5), (6, -1)], &[(0, 5), (6, -1)]),
        ] {
            assert_eq!(merge_intervals(of(input)), of(expected), "{input:?}");
        }
    }
}
