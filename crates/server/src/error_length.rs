//! How long an error may be on the wire.
//!
//! A gRPC status travels in HTTP/2 headers, of which stock clients take 16 MiB and others less. So a
//! text is cut in its middle, and of long sources only the lines around the place in question are
//! sent. Lines keep their numbers: those in front are sent empty. What fits is sent as it is.

use std::borrow::Cow;

use diag::SourceLocation;

/// The longest text sent whole, in bytes.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// How much of a text that was cut stands behind the gap, in bytes.
const TEXT_END_BYTES: usize = 16 << 10;
/// The most bytes of sources sent with one error.
const SOURCES_BYTES_MAX: usize = 256 << 10;
/// The most bytes of one other detail.
pub(crate) const DETAIL_BYTES_MAX: usize = 512 << 10;
/// The longest line of a source of which only an excerpt is sent, in bytes.
const LINE_BYTES_MAX: usize = 4 << 10;
/// How many lines clients show at most on either side of the marked ones.
const CONTEXT_LINES: usize = 4;

/// The text, or its beginning and its end.
pub(crate) fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= TEXT_BYTES_MAX {
        return Cow::Borrowed(text);
    }
    let start = text.floor_char_boundary(TEXT_BYTES_MAX - TEXT_END_BYTES);
    let end = text.ceil_char_boundary(text.len() - TEXT_END_BYTES);
    Cow::Owned(format!(
        "{} … {} bytes left out … {}",
        &text[..start],
        end - start,
        &text[end..]
    ))
}

/// The places, with excerpts of their sources where the sources are too long together.
pub(crate) fn fitting(locations: &[SourceLocation]) -> Cow<'_, [SourceLocation]> {
    let total: usize = locations.iter().map(|location| location.data.len()).sum();
    if total <= SOURCES_BYTES_MAX {
        return Cow::Borrowed(locations);
    }
    let budget = SOURCES_BYTES_MAX / locations.len();
    Cow::Owned(
        locations
            .iter()
            .map(|location| SourceLocation {
                data: excerpt(location, budget).into(),
                ..location.clone()
            })
            .collect(),
    )
}

/// The lines of a source that clients show, in their places; nothing when even the empty lines in
/// front of them are too many.
fn excerpt(location: &SourceLocation, budget: usize) -> Vec<u8> {
    if location.data.len() <= budget {
        return location.data.to_vec();
    }
    let starts = location.ranges.iter().map(|range| range.start.line);
    let ends = location.ranges.iter().map(|range| range.end.line);
    let Some((start, end)) = starts.min().zip(ends.max()) else {
        return Vec::new();
    };
    let (start, end) = (start as usize, end.max(start) as usize);
    let first = start.saturating_sub(CONTEXT_LINES).max(1);
    if first > budget {
        return Vec::new();
    }
    let mut out = vec![b'\n'; first - 1];
    let lines = location.data.split(|byte| *byte == b'\n');
    for line in lines.skip(first - 1).take(end + CONTEXT_LINES + 1 - first) {
        let shown = line_start(line);
        if out.len() + shown.len() > budget {
            break;
        }
        out.extend_from_slice(&shown);
        out.push(b'\n');
    }
    // The lines are joined, not each ended.
    out.pop();
    out
}

fn line_start(line: &[u8]) -> Cow<'_, [u8]> {
    if line.len() <= LINE_BYTES_MAX {
        return Cow::Borrowed(line);
    }
    let is_inside = |place: &usize| line[*place] & 0xc0 == 0x80;
    let end = (LINE_BYTES_MAX - 3..LINE_BYTES_MAX)
        .rev()
        .find(|place| !is_inside(place));
    let mut shown = line[..end.unwrap_or(LINE_BYTES_MAX)].to_vec();
    shown.extend_from_slice("…".as_bytes());
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use diag::Range;

    use super::*;

    fn location(data: &str, first: u32, last: u32) -> SourceLocation {
        SourceLocation {
            filename: "Dockerfile".into(),
            language: "Dockerfile".into(),
            data: data.as_bytes().into(),
            ranges: vec![Range::lines(first, last)],
        }
    }

    #[test]
    fn what_is_shown_of_a_long_source_does_not_change() {
        let count = SOURCES_BYTES_MAX as u32 / 10;
        let text: String = (1..=count).map(|n| format!("RUN step {n:06}\n")).collect();
        for (first, last) in [
            (1, 1),
            (2, 3),
            (count / 2, count / 2),
            (count / 2, count / 2 + 20),
            (count - 1, count),
            (count + 1, count + 1),
            (count, count + 7),
        ] {
            let whole = location(&text, first, last);
            let sent = fitting(std::slice::from_ref(&whole));
            assert!(sent[0].data.len() <= SOURCES_BYTES_MAX);
            assert_eq!(sent[0].excerpt(), whole.excerpt(), "{first} {last}");
        }
    }

    #[test]
    fn what_fits_is_sent_whole_and_what_cannot_be_placed_is_not_sent() {
        let fits = [location(&"x".repeat(SOURCES_BYTES_MAX), 1, 1)];
        assert_eq!(*fitting(&fits), fits);
        let line = SOURCES_BYTES_MAX as u32 + 10;
        let far = [location(&"\n".repeat(2 * SOURCES_BYTES_MAX), line, line)];
        assert!(fitting(&far)[0].data.is_empty());
        assert_eq!(fitting(&far)[0].excerpt(), "");
        // Of a range too long the first lines are shown.
        let long = [location(&"RUN 789\n".repeat(SOURCES_BYTES_MAX), 2, 99_999)];
        let shown = fitting(&long)[0].excerpt();
        assert!(shown.starts_with("Dockerfile:2\n"));
        assert!(shown.contains("\n   2 | >>> RUN 789\n   3 | >>> RUN 789\n"));
    }

    #[test]
    fn texts_are_cut_between_letters() {
        for letter in ["x", "ü", "€", "😀"] {
            let text = format!("a{}", letter.repeat(TEXT_BYTES_MAX));
            let short = shortened(&text);
            assert!(short.len() < TEXT_BYTES_MAX + 100);
            assert!(short.contains(" bytes left out "));
            let line = line_start(text.as_bytes()).into_owned();
            let line = String::from_utf8(line).unwrap();
            assert!(line.ends_with('…') && line.len() <= LINE_BYTES_MAX + 3);
        }
        assert_eq!(shortened("short"), "short");
    }
}
