//! What a server answered, as an error for users.
//!
//! BuildKit attaches typed details to a status: places in sources, the vertex that failed, the
//! process's exit code. On the wire each detail is an `Any` whose value is JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use diag::{Code, Error, Position, Range, SourceLocation, Unsupported};
use prost::Message as _;
use proto::rpc;
use serde::Deserialize;

const SOURCE: &str = "errdefs.Source+json";
const VERTEX: &str = "errdefs.Vertex+json";
const FRONTEND_CAPABILITY: &str = "errdefs.FrontendCap+json";
const SUBREQUEST: &str = "errdefs.Subrequest+json";
const EXIT: &str = "gatewayapi.ExitMessage+json";
/// Our own server's: hints, the code that stands for what happened, the exit code.
const OWN: &str = "cooperage/diag.Error+json";

/// The error a status stands for. Its text is the server's, after the name of the code unless that
/// is `Unknown`, as Go's clients print it. gRPC's own text of a connection that broke does not say
/// why, so the causes stand behind it.
pub fn from_status(status: &tonic::Status) -> Error {
    use std::error::Error as _;
    let code = Code::from_number(status.code() as i32);
    let error = described(
        code,
        &driver::with_causes(status.message(), status.source()),
    );
    match rpc::Status::decode(status.details()) {
        Ok(detailed) => with_details(error, &detailed),
        Err(_) => error,
    }
}

/// The same for a status within a message.
pub fn from_rpc_status(status: &rpc::Status) -> Error {
    with_details(
        described(Code::from_number(status.code), &status.message),
        status,
    )
}

/// Whether the connection failed and not the work.
pub fn is_connection_failure(status: &tonic::Status) -> bool {
    use std::error::Error as _;
    status.code() == tonic::Code::Unavailable || status.source().is_some()
}

fn described(code: Code, message: &str) -> Error {
    match code {
        Code::Unknown => Error::new(code, message),
        code => Error::new(code, format!("{}: {message}", code.name())),
    }
}

fn with_details(error: Error, status: &rpc::Status) -> Error {
    // Details stand on the wire outermost first; stock prints sources innermost first.
    status.details.iter().rev().fold(error, |error, detail| {
        if detail.type_url == OWN {
            return match serde_json::from_slice::<JsonOwn>(&detail.value) {
                Ok(own) => own.add_to(error),
                Err(_) => error,
            };
        }
        let kind = detail.type_url.rsplit('/').next().unwrap_or_default();
        // A detail that cannot be read costs its information, never the error.
        match kind {
            SOURCE => match serde_json::from_slice::<JsonSource>(&detail.value) {
                Ok(source) => error.at(source.into()),
                Err(_) => error,
            },
            VERTEX => match serde_json::from_slice::<JsonVertex>(&detail.value) {
                Ok(vertex) => error.vertex(vertex.digest),
                Err(_) => error,
            },
            FRONTEND_CAPABILITY => lacking(error, &detail.value, Unsupported::FrontendCapability),
            SUBREQUEST => lacking(error, &detail.value, Unsupported::Subrequest),
            EXIT => match serde_json::from_slice::<JsonExit>(&detail.value) {
                Ok(exit) => error.exit_code(exit.code as i32),
                Err(_) => error,
            },
            _ => error,
        }
    })
}

/// Names what is lacking before what the server said of it, as Go's clients print it.
fn lacking(error: Error, value: &[u8], what: impl FnOnce(String) -> Unsupported) -> Error {
    match serde_json::from_slice::<JsonName>(value) {
        Ok(found) => error.context(what(found.name).to_string()),
        Err(_) => error,
    }
}

#[derive(Deserialize)]
struct JsonName {
    name: String,
}

#[derive(Deserialize)]
struct JsonVertex {
    digest: String,
}

#[derive(Deserialize)]
struct JsonExit {
    #[serde(default, alias = "Code")]
    code: u32,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct JsonOwn {
    code: Option<i32>,
    hints: Vec<String>,
    exit_code: Option<i32>,
}

impl JsonOwn {
    /// The text stays as the status has it; it names only codes that stock servers send.
    fn add_to(self, error: Error) -> Error {
        let error = match self.code {
            Some(code) => error.with_code(Code::from_number(code)),
            None => error,
        };
        let error = match self.exit_code {
            Some(code) => error.exit_code(code),
            None => error,
        };
        self.hints.into_iter().fold(error, Error::hint)
    }
}

#[derive(Deserialize)]
struct JsonSource {
    #[serde(default)]
    info: JsonInfo,
    #[serde(default)]
    ranges: Vec<JsonRange>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JsonInfo {
    filename: String,
    data: String,
    language: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JsonRange {
    start: JsonPosition,
    end: JsonPosition,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JsonPosition {
    line: i32,
    character: i32,
}

impl From<JsonPosition> for Position {
    fn from(position: JsonPosition) -> Self {
        Position {
            line: position.line.max(0) as u32,
            character: position.character.max(0) as u32,
        }
    }
}

impl From<JsonSource> for SourceLocation {
    fn from(source: JsonSource) -> Self {
        let data = STANDARD.decode(&source.info.data).unwrap_or_default();
        let range = |range: JsonRange| {
            let start = Position::from(range.start);
            let end = Position::from(range.end).max(start);
            Range { start, end }
        };
        SourceLocation {
            filename: source.info.filename,
            language: source.info.language,
            data: data.into(),
            ranges: source.ranges.into_iter().map(range).collect(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A status with details as BuildKit sends it.
    pub(crate) fn failed_run() -> tonic::Status {
        let message = "process \"/bin/sh -c exit 7\" did not complete successfully: exit code: 7";
        let dockerfile = STANDARD.encode("FROM busybox\nRUN true\nRUN exit 7\n");
        let source = format!(
            r#"{{"info":{{"filename":"Dockerfile","data":"{dockerfile}","language":"Dockerfile"}},"ranges":[{{"start":{{"line":3}},"end":{{"line":3}}}}]}}"#
        );
        let detail = |kind: &str, json: &str| bollard_buildkit_proto::google::protobuf::Any {
            type_url: format!("github.com/moby/buildkit/{kind}"),
            value: json.as_bytes().to_vec(),
        };
        let status = rpc::Status {
            code: 2,
            message: message.to_owned(),
            details: vec![
                detail("stack.Stack+json", "{}"),
                detail(EXIT, r#"{"Code":7}"#),
                detail(VERTEX, r#"{"digest":"sha256:abc"}"#),
                detail(SOURCE, &source),
                detail(SOURCE, "not json"),
            ],
        };
        tonic::Status::with_details(tonic::Code::Unknown, message, status.encode_to_vec().into())
    }

    #[test]
    fn details_say_where_and_what_failed() {
        let error = from_status(&failed_run());
        assert_eq!(
            error.to_string(),
            "process \"/bin/sh -c exit 7\" did not complete successfully: exit code: 7"
        );
        assert_eq!(error.process_exit_code(), Some(7));
        assert_eq!(error.failed_vertex(), Some("sha256:abc"));
        assert_eq!(error.locations().len(), 1);
        let excerpt = error.locations()[0].excerpt();
        assert!(
            excerpt.starts_with("Dockerfile:3\n--------------------\n"),
            "{excerpt}"
        );
        assert!(excerpt.contains("   3 | >>> RUN exit 7\n"), "{excerpt}");
    }

    #[test]
    fn what_our_own_server_adds_is_read() {
        let own = r#"{"code":9,"hints":["install an emulator","or do not"],"exitCode":255}"#;
        let status = rpc::Status {
            code: 2,
            message: "exec /x: exec format error".to_owned(),
            details: vec![bollard_buildkit_proto::google::protobuf::Any {
                type_url: OWN.to_owned(),
                value: own.as_bytes().to_vec(),
            }],
        };
        let error = from_rpc_status(&status);
        assert_eq!(error.to_string(), "exec /x: exec format error");
        assert_eq!(error.hints(), ["install an emulator", "or do not"]);
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert_eq!(error.process_exit_code(), Some(255));
    }

    #[test]
    fn codes_stand_before_the_text_as_go_writes_them() {
        let error = from_status(&tonic::Status::cancelled("context canceled"));
        assert_eq!(error.to_string(), "Canceled: context canceled");
        assert!(error.is_canceled());
        let error = from_status(&tonic::Status::unknown("boom"));
        assert_eq!(error.to_string(), "boom");
    }

    #[test]
    fn a_connection_that_broke_is_told_with_its_cause() {
        #[derive(Debug)]
        struct Transport(std::io::Error);
        impl std::fmt::Display for Transport {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("transport error")
            }
        }
        impl std::error::Error for Transport {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let alert = std::io::Error::other("received fatal alert: CertificateRequired");
        let error = from_status(&tonic::Status::from_error(Box::new(Transport(alert))));
        assert_eq!(
            error.to_string(),
            "transport error: received fatal alert: CertificateRequired"
        );
    }
}
