//! Small conversions between our values and wire messages.

use bollard_buildkit_proto::google::protobuf;
use jiff::Timestamp;

/// A time as the wire has it.
pub fn timestamp(at: Timestamp) -> protobuf::Timestamp {
    protobuf::Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
    }
}

/// A time from the wire; `None` if it is none.
pub fn from_timestamp(at: &protobuf::Timestamp) -> Option<Timestamp> {
    Timestamp::new(at.seconds, at.nanos).ok()
}
