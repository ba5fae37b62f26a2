//! Errors on the wire: `diag::Error` ↔ gRPC status with the details stock clients read.
//!
//! A detail is a `google.protobuf.Any` whose type URL ends in `+json` and whose value is the JSON of
//! the message. Clients print the excerpt of a Dockerfile from `errdefs.Source`.
//!
//! Stock clients print every code but `Unknown` in front of the text, and stock servers give most
//! errors of a build no other code. So codes that only say what kind of mistake it was travel in a
//! detail of our own, [`DETAIL`], with the hints; others pass it over.
//!
//! A status travels in the headers of a response, whose length clients limit: what is too long for
//! them is cut ([`crate::error_length`]), so that the error itself always arrives.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bollard_buildkit_proto::google::protobuf::Any;
use diag::{Code, Error, Position, Range, SourceLocation, Unsupported};
use prost::Message;
use proto::prost;
use proto::rpc;
use serde_json::{Value, json};
use tonic::Status;

use crate::error_length::{self, shortened};

const SOURCE: &str = "github.com/moby/buildkit/errdefs.Source+json";
const VERTEX: &str = "github.com/moby/buildkit/errdefs.Vertex+json";
const FRONTEND_CAPABILITY: &str = "github.com/moby/buildkit/errdefs.FrontendCap+json";
const SUBREQUEST: &str = "github.com/moby/buildkit/errdefs.Subrequest+json";

/// The type of our own detail: `{"code": number, "hints": [text], "exitCode": number}`.
pub const DETAIL: &str = "cooperage/diag.Error+json";

/// The code that stands in the status itself.
fn wire_code(code: Code) -> Code {
    match code {
        Code::Canceled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Unimplemented
        | Code::Internal => code,
        // `Unavailable` too: clients take it for a connection to this server that broke.
        _ => Code::Unknown,
    }
}

/// The status of an error.
pub fn to_status(error: &Error) -> Status {
    from_message(to_rpc_status(error))
}

/// The status of an error of a server that stops, which clients take as they take a connection that
/// broke.
pub fn to_unavailable_status(error: &Error) -> Status {
    let mut status = to_rpc_status(error);
    status.code = Code::Unavailable as i32;
    from_message(status)
}

/// The status that a message stands for.
pub fn from_message(status: rpc::Status) -> Status {
    let code = tonic::Code::from_i32(status.code);
    let message = status.message.clone();
    if status.details.is_empty() {
        return Status::new(code, message);
    }
    Status::with_details(code, message, status.encode_to_vec().into())
}

/// The same as a message, as history records and gateway results carry it.
pub fn to_rpc_status(error: &Error) -> rpc::Status {
    let mut details = Vec::new();
    // Clients print the details in the order given, innermost first.
    for location in error_length::fitting(error.locations()).iter() {
        details.push(detail(SOURCE, &source_json(location)));
    }
    if let Some(digest) = error.failed_vertex() {
        details.push(detail(VERTEX, &json!({ "digest": digest })));
    }
    match error.lacks() {
        None => {}
        Some(Unsupported::FrontendCapability(name)) => {
            details.push(detail(FRONTEND_CAPABILITY, &json!({ "name": name })));
        }
        Some(Unsupported::Subrequest(name)) => {
            details.push(detail(SUBREQUEST, &json!({ "name": name })));
        }
    }
    let hints: Vec<_> = error.hints().iter().map(|hint| shortened(hint)).collect();
    let mut own = json!({ "code": error.code() as i32, "hints": hints });
    if let Some(exit_code) = error.process_exit_code() {
        own["exitCode"] = json!(exit_code);
    }
    details.push(detail(DETAIL, &own));
    rpc::Status {
        code: wire_code(error.code()) as i32,
        message: shortened(&error.to_string()).into_owned(),
        details,
    }
}

/// The error that a client returned as the outcome of its frontend.
pub fn from_rpc_status(status: &rpc::Status) -> Error {
    let mut error = Error::new(Code::from_number(status.code), status.message.clone());
    for detail in &status.details {
        let Ok(value) = serde_json::from_slice::<Value>(&detail.value) else {
            continue;
        };
        if detail.type_url.ends_with("errdefs.Source+json") {
            if let Some(location) = source_from_json(&value) {
                error = error.at(location);
            }
        } else if detail.type_url.ends_with("errdefs.Vertex+json") {
            if let Some(digest) = value["digest"].as_str() {
                error = error.vertex(digest);
            }
        } else if detail.type_url.ends_with("errdefs.FrontendCap+json") {
            if let Some(name) = value["name"].as_str() {
                error = error.lacking(Unsupported::FrontendCapability(name.to_owned()));
            }
        } else if detail.type_url.ends_with("errdefs.Subrequest+json") {
            if let Some(name) = value["name"].as_str() {
                error = error.lacking(Unsupported::Subrequest(name.to_owned()));
            }
        } else if detail.type_url == DETAIL {
            error = with_own_detail(error, &value);
        }
    }
    error
}

fn with_own_detail(mut error: Error, value: &Value) -> Error {
    if let Some(code) = value["code"].as_i64() {
        error = error.with_code(Code::from_number(code as i32));
    }
    if let Some(exit_code) = value["exitCode"].as_i64() {
        error = error.exit_code(exit_code as i32);
    }
    let hints = value["hints"].as_array().cloned().unwrap_or_default();
    hints
        .iter()
        .filter_map(Value::as_str)
        .fold(error, |error, hint| error.hint(hint))
}

fn detail(type_url: &str, value: &Value) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: value.to_string().into_bytes(),
    }
}

/// Fields as Go's `encoding/json` writes the generated message: zero values are left out.
fn source_json(location: &SourceLocation) -> Value {
    let mut info = json!({});
    if !location.filename.is_empty() {
        info["filename"] = json!(location.filename);
    }
    if !location.data.is_empty() {
        info["data"] = json!(BASE64.encode(&location.data));
    }
    if !location.language.is_empty() {
        info["language"] = json!(location.language);
    }
    let ranges: Vec<Value> = location
        .ranges
        .iter()
        .map(|range| json!({ "start": position(range.start), "end": position(range.end) }))
        .collect();
    let mut source = json!({ "info": info });
    if !ranges.is_empty() {
        source["ranges"] = ranges.into();
    }
    source
}

fn position(position: Position) -> Value {
    let mut value = json!({});
    if position.line != 0 {
        value["line"] = json!(position.line);
    }
    if position.character != 0 {
        value["character"] = json!(position.character);
    }
    value
}

fn source_from_json(value: &Value) -> Option<SourceLocation> {
    let info = value.get("info")?;
    let text = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
    let data = BASE64.decode(text("data")).ok()?;
    let position = |value: &Value| Position {
        line: value["line"].as_u64().unwrap_or(0) as u32,
        character: value["character"].as_u64().unwrap_or(0) as u32,
    };
    let ranges = value["ranges"].as_array().cloned().unwrap_or_default();
    Some(SourceLocation {
        filename: text("filename"),
        language: text("language"),
        data: data.into(),
        ranges: ranges
            .iter()
            .map(|range| Range {
                start: position(&range["start"]),
                end: position(&range["end"]),
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_source_over_the_wire() {
        let location = SourceLocation {
            filename: "Dockerfile".into(),
            language: "Dockerfile".into(),
            data: b"FROM scratch\nRUN x\n".as_slice().into(),
            ranges: vec![Range::lines(2, 2)],
        };
        let vertex = format!("sha256:{}", "a".repeat(64));
        let error = Error::not_found("boom")
            .hint("look again")
            .exit_code(3)
            .at(location.clone())
            .vertex(vertex.clone());
        let status = to_status(&error);
        assert_eq!(status.message(), "boom");
        let decoded = rpc::Status::decode(status.details()).unwrap();
        assert_eq!(decoded.code, 2);
        let value: Value = serde_json::from_slice(&decoded.details[0].value).unwrap();
        assert_eq!(
            value.to_string(),
            r#"{"info":{"filename":"Dockerfile","data":"RlJPTSBzY3JhdGNoClJVTiB4Cg==","language":"Dockerfile"},"ranges":[{"start":{"line":2},"end":{"line":2}}]}"#
        );
        let back = from_rpc_status(&decoded);
        assert_eq!(back.locations(), [location]);
        assert_eq!(back.code(), Code::NotFound);
        assert_eq!(
            (back.hints(), back.process_exit_code()),
            (&["look again".to_owned()][..], Some(3))
        );
        assert_eq!(back.failed_vertex(), Some(vertex.as_str()));
    }

    #[test]
    fn only_a_server_that_stops_is_unavailable() {
        let error = Error::new(Code::Unavailable, "the registry is away");
        assert_eq!(to_status(&error).code(), tonic::Code::Unknown);
        let back = from_rpc_status(&to_rpc_status(&error));
        assert_eq!(back.code(), Code::Unavailable);
        // Stock clients exit with another code when something was used up.
        let full = Error::new(Code::ResourceExhausted, "no space left on device");
        assert_eq!(to_status(&full).code(), tonic::Code::ResourceExhausted);
        let stopping = to_unavailable_status(&error);
        assert_eq!(stopping.code(), tonic::Code::Unavailable);
        assert_eq!(stopping.message(), "the registry is away");
    }

    #[test]
    fn no_error_is_too_long_for_the_headers_it_travels_in() {
        let huge = "x".repeat(20 << 20);
        let error = Error::invalid(format!(
            "dockerfile parse error: unknown instruction: {huge}"
        ))
        .hint(format!("look at {huge}"))
        .at(SourceLocation {
            filename: "Dockerfile".into(),
            language: "Dockerfile".into(),
            data: format!("FROM scratch\n{huge}\nRUN x\n").into_bytes().into(),
            ranges: vec![Range::lines(2, 2)],
        });
        let status = to_status(&error);
        // Message and details are encoded with at most three bytes for one.
        let length = 3 * status.message().len() + status.details().len() * 4 / 3;
        assert!(length < 2 << 20, "{length}");
        let back = from_rpc_status(&rpc::Status::decode(status.details()).unwrap());
        assert!(
            back.to_string()
                .starts_with("dockerfile parse error: unknown")
        );
        let excerpt = back.locations()[0].excerpt();
        assert!(excerpt.starts_with("Dockerfile:2\n"));
        assert!(excerpt.contains("   1 |     FROM scratch\n   2 | >>> xxx"));
        assert!(excerpt.contains("   3 |     RUN x\n"));
    }

    #[test]
    fn clients_hear_what_a_frontend_does_not_know() {
        for (what, kind) in [
            (Unsupported::FrontendCapability("x".into()), "FrontendCap"),
            (Unsupported::Subrequest("x".into()), "Subrequest"),
        ] {
            let error = Error::unsupported(what.clone());
            let status = to_rpc_status(&error);
            assert_eq!(status.code, error.code() as i32);
            assert_eq!(
                status.details[0].type_url,
                format!("github.com/moby/buildkit/errdefs.{kind}+json")
            );
            assert_eq!(status.details[0].value, br#"{"name":"x"}"#);
            assert_eq!(from_rpc_status(&status).lacks(), Some(&what));
        }
    }
}
