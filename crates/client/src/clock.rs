//! Bringing a server's times to this machine's clock.

use jiff::{SignedDuration, Timestamp};
use progress::SolveStatus;

/// Shifts every time of a build's statuses by the same amount, so that its first vertex starts when
/// the build was sent.
#[derive(Debug)]
pub struct ClockShift {
    sent: Timestamp,
    ahead: Option<SignedDuration>,
}

impl ClockShift {
    /// For a build that is sent at `sent`.
    pub fn new(sent: Timestamp) -> Self {
        ClockShift { sent, ahead: None }
    }

    /// The status in this machine's time.
    pub fn apply(&mut self, mut status: SolveStatus) -> SolveStatus {
        if self.ahead.is_none() {
            let started = status
                .vertexes
                .iter()
                .rev()
                .find_map(|vertex| vertex.started);
            self.ahead = started.map(|started| started.duration_since(self.sent));
        }
        let Some(ahead) = self.ahead else {
            return status;
        };
        let shift = |time: &mut Timestamp| {
            if let Ok(shifted) = time.checked_sub(ahead) {
                *time = shifted;
            }
        };
        for vertex in &mut status.vertexes {
            vertex.started.as_mut().map(shift);
            vertex.completed.as_mut().map(shift);
        }
        for entry in &mut status.statuses {
            shift(&mut entry.timestamp);
            entry.started.as_mut().map(shift);
            entry.completed.as_mut().map(shift);
        }
        for log in &mut status.logs {
            shift(&mut log.timestamp);
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use oci::Digest;
    use progress::Vertex;

    use super::*;

    #[test]
    fn the_first_vertex_starts_when_the_build_was_sent() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut shift = ClockShift::new(at(100));
        let vertex = |started, completed: Option<i64>| Vertex {
            started: Some(at(started)),
            completed: completed.map(at),
            ..Vertex::new(Digest::of("a"), "a")
        };
        let first = shift.apply(SolveStatus::of_vertexes(vec![vertex(5000, None)]));
        assert_eq!(first.vertexes[0].started, Some(at(100)));
        let second = shift.apply(SolveStatus::of_vertexes(vec![vertex(5000, Some(5007))]));
        assert_eq!(second.vertexes[0].completed, Some(at(107)));
    }
}
