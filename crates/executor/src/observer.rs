//! How long processes take to start, for whoever counts it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Told, for each process, how long it took from the call that starts it until its program ran.
#[derive(Clone)]
pub struct StartObserver(Arc<dyn Fn(Duration) + Send + Sync>);

impl StartObserver {
    /// Calls `told`, which must not block, from the tasks that wait for processes.
    pub fn new(told: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        StartObserver(Arc::new(told))
    }
}

impl fmt::Debug for StartObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StartObserver")
    }
}

/// The start of one process on its way.
#[derive(Debug)]
pub(crate) struct StartWatch {
    observer: StartObserver,
    begun: Instant,
}

impl StartWatch {
    /// Nothing is measured when nobody wants to know.
    pub(crate) fn begin(observer: &Option<StartObserver>) -> Option<Self> {
        let observer = observer.clone()?;
        let begun = Instant::now();
        Some(StartWatch { observer, begun })
    }

    /// The program runs.
    pub(crate) fn end(self) {
        (self.observer.0)(self.begun.elapsed());
    }
}
