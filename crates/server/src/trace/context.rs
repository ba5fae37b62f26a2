//! The trace that a client's request belongs to, as W3C's trace context puts it into headers.
//!
//! Source: <https://www.w3.org/TR/trace-context/>.

use tonic::metadata::MetadataMap;

/// A span of somebody else's that ours belong under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Of the whole trace; never zero.
    pub trace_id: [u8; 16],
    /// Of the span; never zero.
    pub span_id: [u8; 8],
    /// Whether its spans are recorded by who began it.
    pub sampled: bool,
    /// What vendors add, passed on as it came.
    pub state: String,
}

impl TraceContext {
    /// From `traceparent` and `tracestate`; `None` when there is none, or it is not valid.
    pub fn from_metadata(metadata: &MetadataMap) -> Option<Self> {
        let text = |name| metadata.get(name)?.to_str().ok();
        Self::parse(text("traceparent")?, text("tracestate").unwrap_or_default())
    }

    fn parse(parent: &str, state: &str) -> Option<Self> {
        let mut parts = parent.trim().split('-');
        let version = hex::<1>(parts.next()?)?;
        let context = TraceContext {
            trace_id: hex(parts.next()?)?,
            span_id: hex(parts.next()?)?,
            sampled: hex::<1>(parts.next()?)?[0] & 1 == 1,
            state: state.to_owned(),
        };
        // Later versions may add parts, the first one has no more.
        let is_valid = version != [0xff]
            && (version != [0] || parts.next().is_none())
            && context.trace_id != [0; 16]
            && context.span_id != [0; 8];
        is_valid.then_some(context)
    }
}

/// Exactly `N` bytes in lower-case hexadecimal digits.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let is_lower = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 2 * N || !digits.iter().all(is_lower) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_read_and_what_is_not_one_is_passed_over() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let read = TraceContext::parse(&format!("00-{trace}-{span}-01"), "a=b").unwrap();
        assert_eq!((read.trace_id[0], read.span_id[7]), (0x0a, 0x31));
        assert!(read.sampled && read.state == "a=b");
        assert!(TraceContext::parse(&format!("01-{trace}-{span}-00-more"), "").is_some());
        for wrong in [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-ä{}-{span}-01", &trace[2..]),
        ] {
            assert_eq!(TraceContext::parse(&wrong, ""), None, "{wrong}");
        }
    }
}
