//! What long work says about how far it is: named lines with a start, an end and two numbers, as
//! they stand below a vertex in the progress display (`sha256:… 1.2MB / 3MB`, `exporting layers`).
//!
//! Workers (pulls, exports) write to a [`StatusSink`] and know nothing of vertices or wires; who
//! runs them adds the vertex.

use std::sync::Arc;

use jiff::Timestamp;

/// The present state of one line; a later state with the same ID replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What the line says, and its name among the lines of the work.
    pub id: String,
    /// How much is done: bytes, mostly.
    pub current: u64,
    /// How much there is; 0 if that is not known or has no meaning.
    pub total: u64,
    /// When it began.
    pub started: Timestamp,
    /// When it ended; `None` while it goes on.
    pub completed: Option<Timestamp>,
}

impl Status {
    /// What is done, in one word as clients may show it; empty where BuildKit says none.
    pub fn action(&self) -> &'static str {
        match self.id.split(' ').next() {
            Some("extracting") => "extracting",
            Some("copying") => "transferring",
            Some("merging") => "merging",
            Some("diffing") => "diffing",
            _ => "",
        }
    }
}

/// Where statuses go. Must not block: it is called from asynchronous code.
pub trait StatusSink: Send + Sync {
    /// Takes a new state of a line.
    fn status(&self, status: Status);
}

/// Takes all statuses and shows none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl StatusSink for Silent {
    fn status(&self, _status: Status) {}
}

/// A line of work under way. It is marked as complete by [`Line::finish`]; dropped before, for
/// example by an error, it is complete as well, since nothing more will come.
pub struct Line {
    sink: Arc<dyn StatusSink>,
    status: Status,
}

impl Line {
    /// Begins a line without numbers.
    pub fn start(sink: &Arc<dyn StatusSink>, id: impl Into<String>) -> Self {
        Self::start_sized(sink, id, 0)
    }

    /// Begins a line for work of a known size.
    pub fn start_sized(sink: &Arc<dyn StatusSink>, id: impl Into<String>, total: u64) -> Self {
        let status = Status {
            id: id.into(),
            current: 0,
            total,
            started: Timestamp::now(),
            completed: None,
        };
        sink.status(status.clone());
        Line {
            sink: Arc::clone(sink),
            status,
        }
    }

    /// Says how much is done now.
    pub fn advance_to(&mut self, current: u64) {
        self.status.current = current;
        self.sink.status(self.status.clone());
    }

    /// The work is done.
    pub fn finish(self) {}
}

impl Drop for Line {
    fn drop(&mut self) {
        self.status.completed = Some(Timestamp::now());
        self.sink.status(self.status.clone());
    }
}

/// Collects statuses, for tests and for who looks at them later.
#[derive(Debug, Default)]
pub struct Recorder(std::sync::Mutex<Vec<Status>>);

impl Recorder {
    /// All states so far, in order.
    pub fn all(&self) -> Vec<Status> {
        // A panic elsewhere while the list was held leaves it whole.
        self.0.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// The IDs of completed lines in the order of their ends.
    pub fn completed(&self) -> Vec<String> {
        let all = self.all().into_iter();
        all.filter(|status| status.completed.is_some())
            .map(|status| status.id)
            .collect()
    }
}

impl StatusSink for Recorder {
    fn status(&self, status: Status) {
        self.0
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .push(status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_said_in_buildkits_words() {
        let action = |id: &str| {
            let recorder = Arc::new(Recorder::default());
            let sink: Arc<dyn StatusSink> = recorder.clone();
            Line::start(&sink, id).finish();
            recorder.all()[0].action()
        };
        assert_eq!(action("extracting sha256:a"), "extracting");
        assert_eq!(action("copying files linux_amd64"), "transferring");
        assert_eq!(action("exporting layers"), "");
    }

    #[test]
    fn a_line_begins_advances_and_ends() {
        let recorder = Arc::new(Recorder::default());
        let sink: Arc<dyn StatusSink> = recorder.clone();
        let mut line = Line::start_sized(&sink, "sha256:x", 10);
        line.advance_to(4);
        assert!(recorder.completed().is_empty());
        line.finish();
        drop(Line::start(&sink, "exporting layers"));
        let seen: Vec<_> = recorder
            .all()
            .iter()
            .map(|s| (s.id.clone(), s.current, s.total, s.completed.is_some()))
            .collect();
        assert_eq!(
            seen,
            [
                ("sha256:x".into(), 0, 10, false),
                ("sha256:x".into(), 4, 10, false),
                ("sha256:x".into(), 4, 10, true),
                ("exporting layers".into(), 0, 0, false),
                ("exporting layers".into(), 0, 0, true),
            ]
        );
        assert_eq!(recorder.completed(), ["sha256:x", "exporting layers"]);
    }
}
