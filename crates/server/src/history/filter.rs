//! Which records a listener asks for.
//!
//! A filter is a list of selectors joined by commas, all of which must hold: containerd's on `ref`,
//! `status` and `repository`, and comparisons of `startedAt`, `completedAt` (an age such as `24h`, or
//! a time by RFC 3339) and `duration`. Several filters hold when one of them does. Where times are
//! compared, an age stands for the moment so long ago, as with stock: `startedAt>24h` is the last day.

use std::time::Duration;

use diag::{Error, Result};
use jiff::Timestamp;
use proto::control::BuildHistoryRecord;

use crate::config::Span;
use crate::filters::Filters;
use crate::wire::from_timestamp;

/// Some filters; none at all let everything through.
pub(super) struct RecordFilters(Vec<RecordFilter>);

struct RecordFilter {
    comparisons: Vec<Comparison>,
    fields: Filters,
}

struct Comparison {
    quantity: Quantity,
    operator: &'static str,
}

/// What is compared, with what it is compared to.
enum Quantity {
    /// Seconds since 1970.
    StartedAt(i64),
    /// Seconds since 1970.
    CompletedAt(i64),
    Duration(Duration),
}

/// In the order in which they are looked for.
const OPERATORS: [&str; 4] = [">=", "<=", ">", "<"];

impl RecordFilters {
    /// Reads filters.
    pub(super) fn parse(filters: &[String], now: Timestamp) -> Result<Self> {
        let filters = filters.iter().map(|text| RecordFilter::parse(text, now));
        filters.collect::<Result<_>>().map(RecordFilters)
    }

    /// Whether a record is asked for.
    pub(super) fn matches(&self, record: &BuildHistoryRecord) -> bool {
        let fits = |filter: &RecordFilter| {
            filter.comparisons.iter().all(|test| test.holds(record))
                && filter.fields.matches(|path| field(record, path))
        };
        self.0.is_empty() || self.0.iter().any(fits)
    }
}

impl RecordFilter {
    fn parse(text: &str, now: Timestamp) -> Result<Self> {
        let mut comparisons = Vec::new();
        let mut rest = Vec::new();
        for selector in fields_of_line(text)? {
            match Comparison::parse(&selector, now)? {
                Some(comparison) => comparisons.push(comparison),
                None => rest.push(selector),
            }
        }
        let fields = match rest.is_empty() {
            true => Filters::default(),
            false => Filters::parse(&[rest.join(",")])
                .map_err(|error| Error::from(error).context("failed to parse history filters"))?,
        };
        Ok(RecordFilter {
            comparisons,
            fields,
        })
    }
}

impl Comparison {
    /// `None` if the selector is of another kind.
    fn parse(selector: &str, now: Timestamp) -> Result<Option<Self>> {
        let found = OPERATORS.iter().find_map(|operator| {
            let (key, value) = selector.split_once(operator)?;
            Some((key, *operator, value))
        });
        let Some((key, operator, value)) = found else {
            return Ok(None);
        };
        let span = || value.parse::<Span>().ok().map(|span| span.0);
        let quantity = match key {
            "startedAt" | "completedAt" => {
                let at = match span() {
                    Some(age) => now.as_second() - age.as_secs() as i64,
                    None => value
                        .parse::<Timestamp>()
                        .map_err(|_| Error::invalid(format!("invalid time {value}")))?
                        .as_second(),
                };
                match key {
                    "startedAt" => Quantity::StartedAt(at),
                    _ => Quantity::CompletedAt(at),
                }
            }
            "duration" => Quantity::Duration(
                span().ok_or_else(|| Error::invalid(format!("invalid duration {value}")))?,
            ),
            _ => return Ok(None),
        };
        Ok(Some(Comparison { quantity, operator }))
    }

    fn holds(&self, record: &BuildHistoryRecord) -> bool {
        let created = record.created_at.as_ref().and_then(from_timestamp);
        let completed = record.completed_at.as_ref().and_then(from_timestamp);
        let seconds = |at: Option<Timestamp>| i128::from(at.map_or(0, |at| at.as_second()));
        let (value, bound) = match self.quantity {
            Quantity::StartedAt(at) => (seconds(created), i128::from(at)),
            Quantity::CompletedAt(at) => (seconds(completed), i128::from(at)),
            Quantity::Duration(bound) => {
                let nanos = |at: Option<Timestamp>| at.map(Timestamp::as_nanosecond);
                let took = nanos(completed)
                    .zip(nanos(created))
                    .map(|(end, start)| end - start);
                (took.unwrap_or(0), bound.as_nanos() as i128)
            }
        };
        match self.operator {
            ">=" => value >= bound,
            "<=" => value <= bound,
            ">" => value > bound,
            _ => value < bound,
        }
    }
}

/// The value of a field of a record.
fn field(record: &BuildHistoryRecord, path: &[&str]) -> Option<String> {
    match path {
        ["ref"] => Some(record.r#ref.clone()),
        ["status"] => Some(status(record).to_owned()),
        ["repository"] => {
            let attrs = &record.frontend_attrs;
            let context = || frontend::git_remote(attrs.get("context")?);
            attrs.get("vcs:source").cloned().or_else(context)
        }
        _ => None,
    }
}

/// `running`, `completed`, `canceled` or `error`.
fn status(record: &BuildHistoryRecord) -> &'static str {
    match (&record.completed_at, &record.error) {
        (None, _) => "running",
        (_, None) => "completed",
        (_, Some(error)) if error.code == diag::Code::Canceled as i32 => "canceled",
        _ => "error",
    }
}

/// The fields of a line of comma-separated values; quotes around one are taken off, quotes inside one
/// are the selector's own.
fn fields_of_line(line: &str) -> Result<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            // A comma inside the selector's own quotes (`labels."a,b"`) ends nothing.
            let mut inside = false;
            let end = rest.find(|c| {
                inside ^= c == '"';
                c == ',' && !inside
            });
            fields.push(rest[..end.unwrap_or(rest.len())].to_owned());
            match end {
                Some(end) => rest = &rest[end + 1..],
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        let mut chars = quoted.char_indices().peekable();
        let end = loop {
            match chars.next() {
                Some((_, '"')) if chars.peek().is_some_and(|(_, c)| *c == '"') => {
                    chars.next();
                    field.push('"');
                }
                Some((at, '"')) => break at + 1,
                Some((_, c)) => field.push(c),
                None => return Err(Error::invalid(format!("invalid filter {line:?}"))),
            }
        };
        fields.push(field);
        match quoted[end..].strip_prefix(',') {
            Some(after) => rest = after,
            None if quoted[end..].is_empty() => return Ok(fields),
            None => return Err(Error::invalid(format!("invalid filter {line:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::wire::timestamp;

    const HOUR: i64 = 3600;

    /// Three builds of the last day: one minute long, running, ten minutes long.
    fn matching(filters: &[&str]) -> Vec<&'static str> {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let at = |second: i64| Some(timestamp(Timestamp::from_second(second).unwrap()));
        let day_ago = now.as_second() - 24 * HOUR;
        let attrs = |name: &str, value: &str| HashMap::from([(name.to_owned(), value.to_owned())]);
        let record = |name: &str, attrs, start: i64, end: Option<i64>| BuildHistoryRecord {
            r#ref: name.into(),
            frontend_attrs: attrs,
            created_at: at(start),
            completed_at: end.and_then(at),
            ..Default::default()
        };
        let git = "https://github.com/user/repo.git#abc";
        let records = [
            ("foo123", HashMap::new(), day_ago, Some(day_ago + 60)),
            ("bar456", attrs("context", git), day_ago + HOUR, None),
            (
                "foo789",
                attrs("vcs:source", "testrepo"),
                day_ago + 2 * HOUR,
                Some(day_ago + 2 * HOUR + 600),
            ),
        ];
        let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
        let filters = RecordFilters::parse(&filters, now).unwrap();
        let mut found = Vec::new();
        for (name, attrs, start, end) in records {
            if filters.matches(&record(name, attrs, start, end)) {
                found.push(name);
            }
        }
        found
    }

    #[test]
    fn records_are_chosen_as_stock_chooses_them() {
        for (filters, expected) in [
            (&["ref==foo"][..], &[][..]),
            (&["ref~=foo"], &["foo123", "foo789"]),
            (&["repository!=testrepo"], &["foo123", "bar456"]),
            (
                &["repository==https://github.com/user/repo.git"],
                &["bar456"],
            ),
            (&["repository!=testrepo,ref~=foo"], &["foo123"]),
            (&["completedAt>23h"], &["foo789"]),
            (&["startedAt<22h30m"], &["foo123", "bar456"]),
            (&["duration>=10m"], &["foo789"]),
            (
                &["duration>30s,\"ref~=foo\"", "status==running"],
                &["foo123", "bar456", "foo789"],
            ),
            (&["startedAt<2000-01-01T00:00:00Z"], &[]),
        ] {
            assert_eq!(matching(filters), expected, "{filters:?}");
        }
        let now = Timestamp::now();
        for wrong in ["ref+foo", "duration>soon", "startedAt>yesterday", "\"ref"] {
            assert!(
                RecordFilters::parse(&[wrong.to_owned()], now).is_err(),
                "{wrong}"
            );
        }
    }
}
