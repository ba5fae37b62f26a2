//! Spans as stock keeps them with a build's record: JSON objects one after the other, in the form in
//! which OpenTelemetry's Go library writes its span stubs. Stock's `history trace` reads them.

use serde_json::{Value as Json, json};

use super::spans::{BuildTrace, Span, Value};

/// What [`spans`](super::spans) are of, as attributes.
pub(super) type Resource = [(String, String)];

/// The blob of a trace.
pub(super) fn blob(trace: &BuildTrace, resource: &Resource) -> Vec<u8> {
    let mut blob = Vec::new();
    for span in &trace.spans {
        let text = stub(trace, span, resource).to_string();
        blob.extend_from_slice(text.as_bytes());
        blob.push(b'\n');
    }
    blob
}

fn stub(trace: &BuildTrace, span: &Span, resource: &Resource) -> Json {
    let children = |id| {
        let of = trace.spans.iter().filter(|other| other.parent == Some(id));
        of.count()
    };
    let attributes = span.attributes.iter().map(|(key, value)| match value {
        Value::Text(text) => attribute(key, "STRING", json!(text)),
        Value::Bool(value) => attribute(key, "BOOL", json!(value)),
        Value::Int(number) => attribute(key, "INT64", json!(number)),
    });
    let resource = resource
        .iter()
        .map(|(key, value)| attribute(key, "STRING", json!(value)));
    let (code, description) = match &span.error {
        Some(error) => ("Error", error.as_str()),
        None => ("Unset", ""),
    };
    json!({
        "Name": span.name,
        "SpanContext": context(trace, Some(span.id), false),
        "Parent": context(trace, span.parent, span.is_entry && span.parent.is_some()),
        // As Go numbers them: 1 is internal, 2 is a server's.
        "SpanKind": if span.is_entry { 2 } else { 1 },
        "StartTime": span.start.to_string(),
        "EndTime": span.end.to_string(),
        "Attributes": attributes.collect::<Vec<_>>(),
        "Events": null,
        "Links": null,
        "Status": { "Code": code, "Description": description },
        "DroppedAttributes": 0,
        "DroppedEvents": 0,
        "DroppedLinks": 0,
        "ChildSpanCount": children(span.id),
        "Resource": resource.collect::<Vec<_>>(),
        "InstrumentationLibrary": { "Name": super::SCOPE, "Version": "", "SchemaURL": "" },
    })
}

fn attribute(key: &str, kind: &str, value: Json) -> Json {
    json!({ "Key": key, "Value": { "Type": kind, "Value": value } })
}

/// A span's identity; all zeros for none.
fn context(trace: &BuildTrace, span: Option<[u8; 8]>, remote: bool) -> Json {
    let trace_id = span.map_or([0; 16], |_| trace.trace_id);
    json!({
        "TraceID": format!("{:032x}", u128::from_be_bytes(trace_id)),
        "SpanID": format!("{:016x}", u64::from_be_bytes(span.unwrap_or_default())),
        "TraceFlags": if span.is_some() { "01" } else { "00" },
        "TraceState": if span.is_some() { trace.state.as_str() } else { "" },
        "Remote": remote,
    })
}
