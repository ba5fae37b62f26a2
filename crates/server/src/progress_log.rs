//! What a build tells about itself, kept so that whoever comes late gets it from the start.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::Stream;
use parking_lot::Mutex;
use progress::SolveStatus;
use tokio::sync::watch;

/// How long events are gathered before they are sent on together.
const GATHER: std::time::Duration = std::time::Duration::from_millis(20);

/// The events of one build, in order; clones share it.
#[derive(Clone)]
pub struct ProgressLog(Arc<Inner>);

struct Inner {
    events: Mutex<Vec<Arc<SolveStatus>>>,
    /// Bytes of log lines among them.
    bytes: AtomicUsize,
    /// How many events there are, and whether that is all.
    length: watch::Sender<(usize, bool)>,
}

impl Default for ProgressLog {
    fn default() -> Self {
        Self::new()
    }
}

impl ProgressLog {
    /// No events yet.
    pub fn new() -> Self {
        ProgressLog(Arc::new(Inner {
            events: Mutex::new(Vec::new()),
            bytes: AtomicUsize::new(0),
            length: watch::Sender::new((0, false)),
        }))
    }

    /// Adds an event. After the end it is dropped.
    pub fn push(&self, event: SolveStatus) {
        if event.is_empty() {
            return;
        }
        let mut events = self.0.events.lock();
        self.0.length.send_if_modified(|(length, ended)| {
            if !*ended {
                let bytes = event.logs.iter().map(|log| log.data.len()).sum();
                self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
                events.push(Arc::new(event));
                *length = events.len();
            }
            !*ended
        });
    }

    /// Says that there will be no more.
    pub fn end(&self) {
        self.0.length.send_modify(|(_, ended)| *ended = true);
    }

    /// Whether there will be no more.
    pub fn has_ended(&self) -> bool {
        self.0.length.borrow().1
    }

    /// How many bytes of log lines it holds: nearly all of what it takes of memory, if that is much.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Arc<SolveStatus>> {
        self.0.events.lock().clone()
    }

    /// All events from the first one on, those close together in time as one; ends when the build
    /// does.
    pub fn follow(&self) -> impl Stream<Item = SolveStatus> + Send + 'static {
        let inner = self.0.clone();
        let length = inner.length.subscribe();
        futures::stream::unfold((inner, length, 0), |(inner, mut length, sent)| async move {
            let seen = *length
                .wait_for(|(n, ended)| *n > sent || *ended)
                .await
                .ok()?;
            if seen.0 == sent && seen.1 {
                return None;
            }
            if !seen.1 {
                tokio::time::sleep(GATHER).await;
            }
            let mut gathered = SolveStatus::default();
            let next = {
                let events = inner.events.lock();
                for event in &events[sent..] {
                    append(&mut gathered, event);
                }
                events.len()
            };
            Some((gathered, (inner, length, next)))
        })
    }
}

fn append(gathered: &mut SolveStatus, event: &SolveStatus) {
    gathered.vertexes.extend(event.vertexes.iter().cloned());
    // Of a counter only its newest state matters.
    for status in &event.statuses {
        let older = gathered
            .statuses
            .iter_mut()
            .find(|known| known.vertex == status.vertex && known.id == status.id);
        match older {
            Some(known) if known.completed.is_none() => known.clone_from(status),
            _ => gathered.statuses.push(status.clone()),
        }
    }
    gathered.logs.extend(event.logs.iter().cloned());
    gathered.warnings.extend(event.warnings.iter().cloned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use progress::Vertex;

    fn vertex(name: &str) -> SolveStatus {
        SolveStatus::of_vertexes(vec![Vertex::new(oci::Digest::of(name), name)])
    }

    #[tokio::test]
    async fn late_followers_get_everything_and_all_end_with_the_build() {
        let log = ProgressLog::new();
        log.push(vertex("a"));
        let early = tokio::spawn(log.follow().collect::<Vec<_>>());
        log.push(vertex("b"));
        log.end();
        log.push(vertex("dropped"));
        let names = |all: &[SolveStatus]| -> Vec<String> {
            all.iter()
                .flat_map(|status| status.vertexes.iter().map(|v| v.name.clone()))
                .collect()
        };
        assert_eq!(names(&early.await.unwrap()), ["a", "b"]);
        let late: Vec<_> = log.follow().collect().await;
        assert_eq!(names(&late), ["a", "b"]);
    }
}
