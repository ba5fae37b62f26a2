//! From the wire's status messages to ours.

use std::str::FromStr;

use bollard_buildkit_proto::google::protobuf;
use bytes::Bytes;
use jiff::Timestamp;
use oci::Digest;
use proto::{control, pb};

use crate::{ProgressGroup, SolveStatus, Vertex, VertexLog, VertexStatus, VertexWarning};

impl SolveStatus {
    /// Reads one message of the status stream.
    ///
    /// Nothing in it is refused: identities that are not digests are hashed into one, times out of
    /// range become the epoch, text that is not UTF-8 is read with replacement characters.
    pub fn from_proto(message: control::StatusResponse) -> Self {
        SolveStatus {
            vertexes: message.vertexes.into_iter().map(vertex).collect(),
            statuses: message.statuses.into_iter().map(status).collect(),
            logs: message.logs.into_iter().map(log).collect(),
            warnings: message.warnings.into_iter().map(warning).collect(),
        }
    }
}

fn vertex(vertex: control::Vertex) -> Vertex {
    Vertex {
        digest: identity(&vertex.digest),
        inputs: vertex.inputs.iter().map(|input| identity(input)).collect(),
        name: vertex.name,
        started: time(vertex.started),
        completed: time(vertex.completed),
        cached: vertex.cached,
        error: vertex.error,
        progress_group: vertex.progress_group.map(|group| ProgressGroup {
            id: group.id,
            name: group.name,
            weak: group.weak,
        }),
    }
}

fn status(status: control::VertexStatus) -> VertexStatus {
    VertexStatus {
        id: status.id,
        vertex: identity(&status.vertex),
        name: status.name,
        current: status.current,
        total: status.total,
        timestamp: time(status.timestamp).unwrap_or_default(),
        started: time(status.started),
        completed: time(status.completed),
    }
}

fn log(log: control::VertexLog) -> VertexLog {
    VertexLog {
        vertex: identity(&log.vertex),
        stream: log.stream,
        timestamp: time(log.timestamp).unwrap_or_default(),
        data: Bytes::from(log.msg),
    }
}

fn warning(warning: control::VertexWarning) -> VertexWarning {
    VertexWarning {
        vertex: identity(&warning.vertex),
        level: warning.level,
        short: String::from_utf8_lossy(&warning.short).into_owned(),
        detail: warning
            .detail
            .iter()
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect(),
        url: warning.url,
        location: location(warning.info, &warning.ranges),
    }
}

fn location(info: Option<pb::SourceInfo>, ranges: &[pb::Range]) -> Option<diag::SourceLocation> {
    Some(llb::source_location(&info?, ranges))
}

fn identity(text: &str) -> Digest {
    Digest::from_str(text).unwrap_or_else(|_| Digest::of(text))
}

fn time(time: Option<protobuf::Timestamp>) -> Option<Timestamp> {
    let time = time?;
    Some(Timestamp::new(time.seconds, time.nanos).unwrap_or_default())
}
