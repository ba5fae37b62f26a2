//! From our statuses to the wire's messages.

use bollard_buildkit_proto::google::protobuf;
use jiff::Timestamp;
use proto::{control, pb};

use crate::{SolveStatus, Vertex, VertexLog, VertexStatus, VertexWarning};

/// Logs of more bytes than this are split over several messages: receivers limit the size of one.
const LOG_BYTES_MAX: usize = 1 << 20;

/// What a log message costs beside its data, about.
const LOG_OVERHEAD: usize = 96;

impl SolveStatus {
    /// The messages that say the same: one, or several when there is much log.
    pub fn to_proto(&self) -> Vec<control::StatusResponse> {
        let mut message = control::StatusResponse {
            vertexes: self.vertexes.iter().map(vertex).collect(),
            statuses: self.statuses.iter().map(status).collect(),
            logs: Vec::new(),
            warnings: self.warnings.iter().map(warning).collect(),
        };
        let mut messages = Vec::new();
        let mut size = 0;
        for entry in &self.logs {
            let cost = entry.data.len() + LOG_OVERHEAD;
            if size > 0 && size + cost > LOG_BYTES_MAX {
                messages.push(std::mem::take(&mut message));
                size = 0;
            }
            size += cost;
            message.logs.push(log(entry));
        }
        messages.push(message);
        messages
    }
}

fn vertex(vertex: &Vertex) -> control::Vertex {
    control::Vertex {
        digest: vertex.digest.to_string(),
        inputs: vertex.inputs.iter().map(ToString::to_string).collect(),
        name: vertex.name.clone(),
        cached: vertex.cached,
        started: vertex.started.map(time),
        completed: vertex.completed.map(time),
        error: vertex.error.clone(),
        progress_group: vertex
            .progress_group
            .as_ref()
            .map(|group| pb::ProgressGroup {
                id: group.id.clone(),
                name: group.name.clone(),
                weak: group.weak,
            }),
    }
}

fn status(status: &VertexStatus) -> control::VertexStatus {
    control::VertexStatus {
        id: status.id.clone(),
        vertex: status.vertex.to_string(),
        name: status.name.clone(),
        current: status.current,
        total: status.total,
        timestamp: Some(time(status.timestamp)),
        started: status.started.map(time),
        completed: status.completed.map(time),
    }
}

fn log(log: &VertexLog) -> control::VertexLog {
    control::VertexLog {
        vertex: log.vertex.to_string(),
        timestamp: Some(time(log.timestamp)),
        stream: log.stream,
        msg: log.data.to_vec(),
    }
}

fn warning(warning: &VertexWarning) -> control::VertexWarning {
    let location = warning.location.as_ref();
    control::VertexWarning {
        vertex: warning.vertex.to_string(),
        level: warning.level,
        short: warning.short.clone().into_bytes(),
        detail: warning
            .detail
            .iter()
            .map(|line| line.clone().into_bytes())
            .collect(),
        url: warning.url.clone(),
        info: location.map(|location| pb::SourceInfo {
            filename: location.filename.clone(),
            data: location.data.to_vec(),
            definition: None,
            language: location.language.clone(),
        }),
        ranges: location
            .map(|location| location.ranges.iter().map(range).collect())
            .unwrap_or_default(),
    }
}

fn range(range: &diag::Range) -> pb::Range {
    let position = |at: diag::Position| pb::Position {
        line: at.line as i32,
        character: at.character as i32,
    };
    pb::Range {
        start: Some(position(range.start)),
        end: Some(position(range.end)),
    }
}

fn time(time: Timestamp) -> protobuf::Timestamp {
    // The wire counts nanoseconds forward from the second, jiff away from the epoch.
    let nanos = time.as_nanosecond();
    protobuf::Timestamp {
        seconds: nanos.div_euclid(1_000_000_000) as i64,
        nanos: nanos.rem_euclid(1_000_000_000) as i32,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use oci::Digest;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::new(seconds, 500).unwrap()
    }

    fn full() -> SolveStatus {
        let digest = Digest::of("v");
        SolveStatus {
            vertexes: vec![Vertex {
                inputs: vec![Digest::of("i")],
                started: Some(at(1)),
                completed: Some(at(-2)),
                cached: true,
                error: "no".into(),
                progress_group: Some(crate::ProgressGroup {
                    id: "g".into(),
                    name: "group".into(),
                    weak: true,
                }),
                ..Vertex::new(digest, "[1/2] RUN a")
            }],
            statuses: vec![VertexStatus {
                current: 3,
                total: 9,
                completed: Some(at(4)),
                ..VertexStatus::started(digest, "extracting", at(3))
            }],
            logs: vec![VertexLog {
                vertex: digest,
                stream: 2,
                timestamp: at(5),
                data: Bytes::from_static(b"\xffhello\n"),
            }],
            warnings: vec![VertexWarning {
                vertex: digest,
                level: 1,
                short: "short".into(),
                detail: vec!["more".into()],
                url: "https://docs".into(),
                location: Some(diag::SourceLocation {
                    filename: "Dockerfile".into(),
                    language: "Dockerfile".into(),
                    data: b"FROM a\n".as_slice().into(),
                    ranges: vec![diag::Range::lines(1, 1)],
                }),
            }],
        }
    }

    #[test]
    fn what_goes_over_the_wire_comes_back_the_same() {
        let status = full();
        let mut messages = status.to_proto();
        assert_eq!(messages.len(), 1);
        assert_eq!(SolveStatus::from_proto(messages.remove(0)), status);
    }

    #[test]
    fn much_log_is_split_and_loses_nothing() {
        let mut status = full();
        let entry = VertexLog {
            data: Bytes::from(vec![b'x'; 400_000]),
            ..status.logs[0].clone()
        };
        status.logs = vec![entry; 7];
        let messages = status.to_proto();
        assert_eq!(messages.len(), 4);
        assert_eq!(messages[0].vertexes.len(), 1);
        assert!(
            messages[1..]
                .iter()
                .all(|message| message.vertexes.is_empty())
        );
        let logs: usize = messages.iter().map(|message| message.logs.len()).sum();
        assert_eq!(logs, 7);
    }

    #[test]
    fn identities_that_are_no_digests_are_still_told_apart() {
        let message = control::StatusResponse {
            vertexes: ["random:a", "random:b"]
                .map(|digest| control::Vertex {
                    digest: digest.into(),
                    ..Default::default()
                })
                .to_vec(),
            ..Default::default()
        };
        let status = SolveStatus::from_proto(message);
        assert_ne!(status.vertexes[0].digest, status.vertexes[1].digest);
    }
}
