//! How often something took how long.

use std::time::Duration;

use parking_lot::Mutex;

use super::exposition::{Exposition, Labels};

/// Counts of lengths of time, in buckets by their upper bounds.
pub struct Histogram {
    /// In seconds, rising.
    bounds: &'static [f64],
    state: Mutex<State>,
}

#[derive(Clone, Default)]
struct State {
    /// Of each bucket alone; those longer than all bounds are in the last one.
    counts: Vec<u64>,
    sum_seconds: f64,
}

impl Histogram {
    /// An empty one with these upper bounds, in seconds.
    pub fn new(bounds: &'static [f64]) -> Self {
        let state = State {
            counts: vec![0; bounds.len() + 1],
            sum_seconds: 0.0,
        };
        Histogram {
            bounds,
            state: Mutex::new(state),
        }
    }

    /// Counts one.
    pub fn observe(&self, length: Duration) {
        let seconds = length.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        let mut state = self.state.lock();
        state.counts[bucket] += 1;
        state.sum_seconds += seconds;
    }

    /// Writes its samples; the family must have been begun.
    pub(super) fn write(&self, out: &mut Exposition, name: &str, labels: Labels<'_>) {
        let state = self.state.lock().clone();
        let mut total = 0;
        let bounds = self.bounds.iter().map(f64::to_string);
        for (count, bound) in state.counts.iter().zip(bounds.chain(["+Inf".to_owned()])) {
            total += count;
            let labels = [labels, &[("le", &bound)]].concat();
            out.sample(&format!("{name}_bucket"), &labels, total);
        }
        out.sample(&format!("{name}_sum"), labels, state.sum_seconds);
        out.sample(&format!("{name}_count"), labels, total);
    }
}
