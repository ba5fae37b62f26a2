//! What else is made of a build's progress than a picture: `--trace` and `--debug-json-cache-metrics`.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Instant;

use oci::Digest;
use progress::{SolveStatus, Vertex};
use progress_ui::Progress;
use serde_json::json;

use crate::printer;

/// Steps that are not the user's.
const INTERNAL: [&str; 4] = ["[internal]", "[auth]", "importing cache", "exporting "];

/// Where progress goes on its way to the display.
pub(super) struct Taps {
    progress: Progress,
    thread: Option<JoinHandle<std::io::Result<Steps>>>,
    metrics: Option<Metrics>,
    since: Instant,
}

/// Where figures about the cache go.
enum Metrics {
    Stdout,
    Stderr,
    File(File),
}

/// The steps of a build, in the order in which they came up.
#[derive(Default)]
struct Steps {
    order: Vec<Step>,
    known: HashMap<Digest, usize>,
}

#[derive(Default)]
struct Step {
    name: String,
    cached: bool,
    completed: bool,
    from: bool,
}

impl Taps {
    /// Opens the files, before anything is built. The trace is added to what is in its file.
    pub(super) fn open(trace: Option<&Path>, metrics: &str) -> Result<Opened, diag::Error> {
        let open = |options: &mut OpenOptions, path: &Path| {
            options
                .create(true)
                .mode(0o600)
                .open(path)
                .map_err(|error| {
                    diag::Error::from(error).context(format!("open {}", path.display()))
                })
        };
        let trace = trace.filter(|path| !path.as_os_str().is_empty());
        let trace = trace.map(|path| open(OpenOptions::new().append(true), path));
        let metrics = match metrics {
            "" => None,
            "stdout" => Some(Metrics::Stdout),
            "stderr" => Some(Metrics::Stderr),
            path => {
                let mut options = OpenOptions::new();
                let file = open(options.write(true).truncate(true), Path::new(path))?;
                Some(Metrics::File(file))
            }
        };
        Ok(Opened {
            trace: trace.transpose()?,
            metrics,
            since: Instant::now(),
        })
    }

    /// Where statuses are to be sent.
    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Waits until everything sent before has reached the display and the trace.
    ///
    /// # Errors
    ///
    /// The trace could not be written.
    pub(super) fn close(&mut self) -> Result<Report, diag::Error> {
        let Some(thread) = self.thread.take() else {
            return Ok(Report(None));
        };
        self.progress.close();
        let steps = thread
            .join()
            .map_err(|_| diag::Error::internal("the reader of progress crashed"))??;
        let metrics = self.metrics.take();
        Ok(Report(metrics.map(|metrics| {
            let text = steps.report(self.since.elapsed().as_millis() as u64);
            (metrics, text)
        })))
    }
}

/// Files that were opened.
pub(super) struct Opened {
    trace: Option<File>,
    metrics: Option<Metrics>,
    since: Instant,
}

impl Opened {
    /// Begins to read what is on its way to a display.
    pub(super) fn start(self, display: Progress) -> Result<Taps, diag::Error> {
        let (mut progress, mut thread) = (display.clone(), None);
        if self.trace.is_some() || self.metrics.is_some() {
            let (sender, statuses) = Progress::channel();
            let mut trace = self.trace;
            progress = sender;
            let read = move || {
                let mut steps = Steps::default();
                let mut written = Ok(());
                for status in statuses {
                    if let (Some(file), Ok(())) = (&mut trace, &written) {
                        written = file.write_all(progress_ui::status_line(&status).as_bytes());
                    }
                    steps.note(&status);
                    display.send(status);
                }
                written.map(|()| steps)
            };
            let builder = std::thread::Builder::new().name("taps".to_owned());
            thread = Some(builder.spawn(read)?);
        }
        Ok(Taps {
            progress,
            thread,
            metrics: self.metrics,
            since: self.since,
        })
    }
}

/// Figures that are to be written when the display is closed.
pub(super) struct Report(Option<(Metrics, String)>);

impl Report {
    /// Writes them.
    pub(super) fn write(self) -> Result<(), diag::Error> {
        match self.0 {
            None => {}
            Some((Metrics::Stdout, text)) => printer::out(text),
            Some((Metrics::Stderr, text)) => printer::err(text),
            Some((Metrics::File(mut file), text)) => file.write_all(text.as_bytes())?,
        }
        Ok(())
    }
}

impl Steps {
    fn note(&mut self, status: &SolveStatus) {
        for vertex in &status.vertexes {
            let at = *self.known.entry(vertex.digest).or_insert_with(|| {
                self.order.push(Step::default());
                self.order.len() - 1
            });
            self.order[at].note(vertex);
        }
    }

    /// A line for each step that was not cached, and all figures in the last.
    fn report(&self, milliseconds: u64) -> String {
        let count = |count: &dyn Fn(&&Step) -> bool| self.order.iter().filter(count).count();
        let missed = |step: &&Step| step.is_users() && !step.cached && !step.from;
        let mut text = String::new();
        for step in self.order.iter().filter(missed) {
            text += &format!("cache miss: {}\n", step.name);
        }
        let figures = json!({
            "total": self.order.len(),
            "completed": count(&|step| step.completed),
            "user_total": count(&|step| step.is_users()),
            "user_cached": count(&|step| step.is_users() && step.cached),
            "user_completed": count(&|step| step.is_users() && step.completed),
            "user_cacheable": count(&|step| step.is_users() && !step.from),
            "from": count(&|step| step.is_users() && step.from),
            "miss": count(&missed),
            "client_duration_ms": milliseconds,
        });
        format!("{text}{figures}\n")
    }
}

impl Step {
    fn note(&mut self, vertex: &Vertex) {
        if self.name.is_empty() {
            self.name.clone_from(&vertex.name);
        }
        // `[stage 1/2] FROM image`
        let from = |name: &str| name.starts_with('[') && name.contains("] FROM");
        self.from |= from(&vertex.name);
        self.cached |= vertex.cached;
        self.completed |= vertex.completed.is_some();
    }

    fn is_users(&self) -> bool {
        !INTERNAL.iter().any(|prefix| self.name.starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vertex(name: &str, cached: bool, completed: bool) -> Vertex {
        let mut vertex = Vertex::new(Digest::of(name), name);
        vertex.cached = cached;
        vertex.completed = completed.then(jiff::Timestamp::now);
        vertex
    }

    #[test]
    fn steps_are_counted_and_misses_named() {
        let mut steps = Steps::default();
        for (name, cached, completed) in [
            ("[internal] load", false, true),
            ("[1/2] FROM docker.io/x", false, false),
            ("[1/2] FROM docker.io/x", false, true),
            ("[2/2] RUN a", true, true),
            ("[2/2] RUN b", false, false),
            ("exporting to image", false, true),
        ] {
            steps.note(&SolveStatus::of_vertexes(vec![vertex(
                name, cached, completed,
            )]));
        }
        assert_eq!(
            steps.report(5),
            "cache miss: [2/2] RUN b\n\
             {\"total\":5,\"completed\":4,\"user_total\":3,\"user_cached\":1,\"user_completed\":2,\
             \"user_cacheable\":2,\"from\":1,\"miss\":1,\"client_duration_ms\":5}\n"
        );
    }

    #[test]
    fn everything_reaches_the_display_and_the_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        std::fs::write(&path, "before\n").unwrap();
        let (display, shown) = Progress::channel();
        let opened = Taps::open(Some(&path), "").unwrap();
        let mut taps = opened.start(display.clone()).unwrap();
        let kept = taps.progress();
        kept.send(SolveStatus::of_vertexes(vec![vertex("a", false, true)]));
        taps.close().unwrap().write().unwrap();
        display.close();
        assert_eq!(shown.count(), 1);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("before\n{\"vertexes\":[{\"digest\":"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 2);
    }
}
