//! The `rawjson` display: one JSON object a status, with the fields and the escapes of Go's encoder.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use diag::SourceLocation;
use jiff::Timestamp;
use oci::Digest;
use progress::{ProgressGroup, SolveStatus, Vertex, VertexLog, VertexStatus, VertexWarning};
use serde::Serialize;

/// A status as one line of JSON, newline included.
pub fn status_line(status: &SolveStatus) -> String {
    let json = Status {
        vertexes: status.vertexes.iter().map(vertex).collect(),
        statuses: status.statuses.iter().map(piece).collect(),
        logs: status.logs.iter().map(log).collect(),
        warnings: status.warnings.iter().map(warning).collect(),
    };
    // Plain structures of strings and numbers always encode.
    let mut text = go_escapes(&serde_json::to_string(&json).unwrap_or_default());
    text.push('\n');
    text
}

/// A warning in the same form.
pub(crate) fn warning_value(value: &VertexWarning) -> serde_json::Value {
    serde_json::to_value(warning(value)).unwrap_or_default()
}

/// Encoded JSON with the escapes of Go's encoder for characters that HTML or JavaScript could
/// misread. They can only stand within strings, so they are replaced in the encoded text.
pub fn go_escapes(json: &str) -> String {
    let mut text = String::with_capacity(json.len() + 1);
    for character in json.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                text += &format!("\\u{:04x}", character as u32);
            }
            other => text.push(other),
        }
    }
    text
}

#[derive(Serialize)]
struct Status<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vertexes: Vec<JsonVertex<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    statuses: Vec<JsonStatus<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<JsonLog>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<JsonWarning<'a>>,
}

#[derive(Serialize)]
struct JsonVertex<'a> {
    digest: Digest,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    inputs: &'a [Digest],
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<Timestamp>,
    #[serde(skip_serializing_if = "is_false")]
    cached: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
    #[serde(rename = "progressGroup", skip_serializing_if = "Option::is_none")]
    progress_group: Option<JsonGroup<'a>>,
}

#[derive(Serialize)]
struct JsonGroup<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    weak: bool,
}

#[derive(Serialize)]
struct JsonStatus<'a> {
    id: &'a str,
    vertex: Digest,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    total: i64,
    current: i64,
    timestamp: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<Timestamp>,
}

#[derive(Serialize)]
struct JsonLog {
    vertex: Digest,
    #[serde(skip_serializing_if = "is_zero")]
    stream: i64,
    data: String,
    timestamp: Timestamp,
}

#[derive(Serialize)]
struct JsonWarning<'a> {
    vertex: Digest,
    #[serde(skip_serializing_if = "is_zero")]
    level: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    short: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    detail: Vec<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'a str,
    #[serde(rename = "sourceInfo", skip_serializing_if = "Option::is_none")]
    source: Option<JsonSource<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    range: Vec<JsonRange>,
}

#[derive(Serialize)]
struct JsonSource<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    filename: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    data: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    language: &'a str,
}

#[derive(Serialize)]
struct JsonRange {
    start: JsonPosition,
    end: JsonPosition,
}

#[derive(Serialize)]
struct JsonPosition {
    #[serde(skip_serializing_if = "is_zero_u32")]
    line: u32,
    #[serde(skip_serializing_if = "is_zero_u32")]
    character: u32,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

fn is_zero_u32(value: &u32) -> bool {
    *value == 0
}

fn vertex(vertex: &Vertex) -> JsonVertex<'_> {
    JsonVertex {
        digest: vertex.digest,
        inputs: &vertex.inputs,
        name: &vertex.name,
        started: vertex.started,
        completed: vertex.completed,
        cached: vertex.cached,
        error: &vertex.error,
        progress_group: vertex.progress_group.as_ref().map(group),
    }
}

fn group(group: &ProgressGroup) -> JsonGroup<'_> {
    JsonGroup {
        id: &group.id,
        name: &group.name,
        weak: group.weak,
    }
}

fn piece(status: &VertexStatus) -> JsonStatus<'_> {
    JsonStatus {
        id: &status.id,
        vertex: status.vertex,
        name: &status.name,
        total: status.total,
        current: status.current,
        timestamp: status.timestamp,
        started: status.started,
        completed: status.completed,
    }
}

fn log(log: &VertexLog) -> JsonLog {
    JsonLog {
        vertex: log.vertex,
        stream: log.stream,
        data: STANDARD.encode(&log.data),
        timestamp: log.timestamp,
    }
}

fn warning(warning: &VertexWarning) -> JsonWarning<'_> {
    JsonWarning {
        vertex: warning.vertex,
        level: warning.level,
        short: STANDARD.encode(&warning.short),
        detail: warning
            .detail
            .iter()
            .map(|line| STANDARD.encode(line))
            .collect(),
        url: &warning.url,
        source: warning.location.as_ref().map(source),
        range: warning.location.as_ref().map(ranges).unwrap_or_default(),
    }
}

fn source(location: &SourceLocation) -> JsonSource<'_> {
    JsonSource {
        filename: &location.filename,
        data: STANDARD.encode(&location.data),
        language: &location.language,
    }
}

fn ranges(location: &SourceLocation) -> Vec<JsonRange> {
    let position = |at: diag::Position| JsonPosition {
        line: at.line,
        character: at.character,
    };
    location
        .ranges
        .iter()
        .map(|range| JsonRange {
            start: position(range.start),
            end: position(range.end),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ns: i128) -> Timestamp {
        Timestamp::from_nanosecond(1_700_000_000_000_000_000 + ns).unwrap()
    }

    #[test]
    fn fields_stand_as_go_writes_them() {
        let digest = Digest::of("a");
        let status = SolveStatus {
            vertexes: vec![Vertex {
                inputs: vec![Digest::of("b")],
                started: Some(at(120_000_000)),
                ..Vertex::new(digest, "RUN a && b <c>")
            }],
            statuses: vec![VertexStatus {
                total: 5,
                ..VertexStatus::started(digest, "s", at(0))
            }],
            logs: vec![VertexLog {
                vertex: digest,
                stream: 2,
                timestamp: at(1),
                data: "hi\n".into(),
            }],
            warnings: vec![VertexWarning {
                vertex: digest,
                level: 1,
                short: "w".into(),
                detail: vec!["d".into()],
                url: "u".into(),
                location: Some(SourceLocation {
                    filename: "Dockerfile".into(),
                    language: String::new(),
                    data: b"x".as_slice().into(),
                    ranges: vec![diag::Range::lines(3, 3)],
                }),
            }],
        };
        let (a, b) = (digest, Digest::of("b"));
        let expected = format!(
            concat!(
                r#"{{"vertexes":[{{"digest":"{a}","inputs":["{b}"],"name":"RUN a \u0026\u0026 b \u003cc\u003e","#,
                r#""started":"2023-11-14T22:13:20.12Z"}}],"#,
                r#""statuses":[{{"id":"s","vertex":"{a}","total":5,"current":0,"timestamp":"2023-11-14T22:13:20Z","#,
                r#""started":"2023-11-14T22:13:20Z"}}],"#,
                r#""logs":[{{"vertex":"{a}","stream":2,"data":"aGkK","timestamp":"2023-11-14T22:13:20.000000001Z"}}],"#,
                r#""warnings":[{{"vertex":"{a}","level":1,"short":"dw==","detail":["ZA=="],"url":"u","#,
                r#""sourceInfo":{{"filename":"Dockerfile","data":"eA=="}},"range":[{{"start":{{"line":3}},"end":{{"line":3}}}}]}}]}}"#,
                "\n"
            ),
            a = a,
            b = b
        );
        assert_eq!(status_line(&status), expected);
        assert_eq!(status_line(&SolveStatus::default()), "{}\n");
    }
}
