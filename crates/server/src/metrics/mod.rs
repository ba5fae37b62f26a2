//! Numbers about the server for Prometheus. Those that BuildKit has too go by its names
//! (`buildkit_…`), the others are `cooperage_…` and `process_…`; docs/server.md has the table.
//!
//! What happens is counted as it happens; what is there (running builds, sizes of stores) is looked up
//! when somebody asks, so nothing is spent on numbers that nobody reads.

mod exposition;
mod histogram;
mod process;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use diag::Result;
use parking_lot::Mutex;
use proto::control::BuildHistoryRecord;

use crate::parts::ServerParts;
use crate::version;
use crate::wire::from_timestamp;
use exposition::Exposition;
pub use histogram::Histogram;

/// Upper bounds of a build's length, in seconds.
const BUILD_BOUNDS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
];
/// Upper bounds of what a step takes until its program runs, in seconds.
const START_BOUNDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];

/// The content type of [`scrape`]'s text.
pub const CONTENT_TYPE: &str = exposition::CONTENT_TYPE;

/// What is counted as it happens.
pub struct Metrics {
    /// Builds that ended, by gRPC's name of the error's code; `None` for those that succeeded.
    builds: Mutex<BTreeMap<Option<&'static str>, u64>>,
    succeeded: Histogram,
    failed: Histogram,
    completed_steps: AtomicU64,
    cached_steps: AtomicU64,
    total_steps: AtomicU64,
    warnings: AtomicU64,
    /// How long steps take from the decision to run them until their program runs.
    pub step_start: Histogram,
    gc_runs: AtomicU64,
    gc_freed_bytes: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            builds: Mutex::default(),
            succeeded: Histogram::new(BUILD_BOUNDS),
            failed: Histogram::new(BUILD_BOUNDS),
            completed_steps: AtomicU64::new(0),
            cached_steps: AtomicU64::new(0),
            total_steps: AtomicU64::new(0),
            warnings: AtomicU64::new(0),
            step_start: Histogram::new(START_BOUNDS),
            gc_runs: AtomicU64::new(0),
            gc_freed_bytes: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// A build ended with that record, and failed with an error of that code if there is one.
    pub fn build_ended(&self, record: &BuildHistoryRecord, failure: Option<diag::Code>) {
        *self
            .builds
            .lock()
            .entry(failure.map(code_name))
            .or_insert(0) += 1;
        for (counter, steps) in [
            (&self.completed_steps, record.num_completed_steps),
            (&self.cached_steps, record.num_cached_steps),
            (&self.total_steps, record.num_total_steps),
            (&self.warnings, record.num_warnings),
        ] {
            counter.fetch_add(u64::try_from(steps).unwrap_or(0), Ordering::Relaxed);
        }
        let at = |time: &Option<_>| time.as_ref().and_then(from_timestamp);
        if let (Some(start), Some(end)) = (at(&record.created_at), at(&record.completed_at)) {
            let histogram = match failure {
                None => &self.succeeded,
                Some(_) => &self.failed,
            };
            histogram.observe(Duration::try_from(end - start).unwrap_or_default());
        }
    }

    /// GC ran and freed so many bytes.
    pub fn gc_ran(&self, freed_bytes: u64) {
        self.gc_runs.fetch_add(1, Ordering::Relaxed);
        self.gc_freed_bytes
            .fetch_add(freed_bytes, Ordering::Relaxed);
    }

    fn write(&self, out: &mut Exposition) {
        let name = "buildkit_builds_total";
        out.family(
            name,
            "counter",
            "Builds that ended, by status and, for failures, by the gRPC code of the error.",
        );
        for (code, count) in self.builds.lock().iter() {
            match code {
                None => out.sample(name, &[("status", "success")], count),
                Some(code) => {
                    let labels = [("status", "failure"), ("error_code", *code)];
                    out.sample(name, &labels, count);
                }
            }
        }
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let name = "buildkit_builds_steps_total";
        out.family(
            name,
            "counter",
            "Steps of builds that ended, by kind; completed ones include cached ones.",
        );
        for (kind, counter) in [
            ("completed", &self.completed_steps),
            ("cached", &self.cached_steps),
            ("total", &self.total_steps),
            ("warnings", &self.warnings),
        ] {
            out.sample(name, &[("kind", kind)], load(counter));
        }
        let name = "buildkit_build_duration_seconds";
        out.family(name, "histogram", "How long builds took, by status.");
        self.succeeded.write(out, name, &[("status", "success")]);
        self.failed.write(out, name, &[("status", "failure")]);
        let (cached, completed) = (load(&self.cached_steps), load(&self.completed_steps));
        out.gauge(
            "cooperage_cache_hit_ratio",
            "Share of completed steps that were found in the cache, since the start.",
            if completed == 0 {
                0.0
            } else {
                cached as f64 / completed as f64
            },
        );
        let name = "cooperage_step_start_seconds";
        let help = "How long steps took from the decision to run them until their program ran.";
        out.family(name, "histogram", help);
        self.step_start.write(out, name, &[]);
        let help = "Runs of garbage collection.";
        out.counter("cooperage_gc_runs_total", help, load(&self.gc_runs));
        out.counter(
            "cooperage_gc_freed_bytes_total",
            "Bytes that garbage collection removed.",
            load(&self.gc_freed_bytes),
        );
    }
}

/// Everything there is to tell, as text. Blocks on the disk.
pub fn scrape(parts: &ServerParts) -> Result<String> {
    let mut out = Exposition::default();
    let name = "cooperage_build_info";
    out.family(name, "gauge", "Always 1; the version is in the labels.");
    let labels = [
        ("version", version::VERSION),
        ("revision", version::REVISION),
    ];
    out.sample(name, &labels, 1);
    parts.metrics.write(&mut out);
    out.gauge(
        "cooperage_builds_running",
        "Builds that run now.",
        parts.builds.len(),
    );
    out.gauge(
        "cooperage_steps_running",
        "Vertices that are being made now, for any build.",
        parts.solver.in_flight(),
    );
    out.gauge(
        "cooperage_sessions",
        "Clients' sessions that are open now.",
        parts.sessions.list().len(),
    );
    let traffic = parts.registry.traffic();
    out.counter(
        "cooperage_registry_pulled_bytes_total",
        "Bytes of blobs that came from registries.",
        traffic.pulled_bytes,
    );
    out.counter(
        "cooperage_registry_pushed_bytes_total",
        "Bytes of blobs that went to registries.",
        traffic.pushed_bytes,
    );
    write_stores(&mut out, parts)?;
    process::write(&mut out);
    Ok(out.into_text())
}

fn write_stores(out: &mut Exposition, parts: &ServerParts) -> Result<()> {
    let mut cache: BTreeMap<&str, (u64, i64)> = BTreeMap::new();
    for record in parts.cache.records()? {
        let entry = cache.entry(record.record_type.name()).or_default();
        entry.0 += 1;
        entry.1 += record.size_bytes;
    }
    let name = "cooperage_cache_records";
    out.family(name, "gauge", "Records of the build cache, by type.");
    for (kind, (count, _)) in &cache {
        out.sample(name, &[("type", kind)], count);
    }
    let name = "cooperage_cache_bytes";
    let help = "Bytes of disk that records of the build cache take, by type.";
    out.family(name, "gauge", help);
    for (kind, (_, bytes)) in &cache {
        out.sample(name, &[("type", kind)], bytes);
    }
    let blobs = parts.content.list()?;
    let help = "Blobs in the content store.";
    out.gauge("cooperage_content_blobs", help, blobs.len());
    out.gauge(
        "cooperage_content_bytes",
        "Bytes of the blobs in the content store.",
        blobs.iter().map(|blob| blob.size).sum::<u64>(),
    );
    Ok(())
}

/// gRPC's name of a code, as Go's `codes.Code` prints it.
fn code_name(code: diag::Code) -> &'static str {
    use diag::Code::*;
    match code {
        Canceled => "Canceled",
        Unknown => "Unknown",
        InvalidArgument => "InvalidArgument",
        DeadlineExceeded => "DeadlineExceeded",
        NotFound => "NotFound",
        AlreadyExists => "AlreadyExists",
        PermissionDenied => "PermissionDenied",
        ResourceExhausted => "ResourceExhausted",
        FailedPrecondition => "FailedPrecondition",
        Aborted => "Aborted",
        OutOfRange => "OutOfRange",
        Unimplemented => "Unimplemented",
        Internal => "Internal",
        Unavailable => "Unavailable",
        DataLoss => "DataLoss",
        Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::timestamp;

    #[test]
    fn the_table_of_metrics_names_what_is_counted() {
        let documented = include_str!("../../../../docs/server.md");
        let mut out = Exposition::default();
        Metrics::default().write(&mut out);
        let text = out.into_text();
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        for name in names.filter_map(|line| line.split(' ').next()) {
            assert!(documented.contains(&format!("`{name}")), "{name}");
        }
    }

    #[test]
    fn builds_are_counted_by_outcome() {
        let metrics = Metrics::default();
        let at = |second| Some(timestamp(jiff::Timestamp::from_second(second).unwrap()));
        let record = |seconds| BuildHistoryRecord {
            created_at: at(0),
            completed_at: at(seconds),
            num_completed_steps: 4,
            num_cached_steps: 3,
            num_total_steps: 5,
            ..BuildHistoryRecord::default()
        };
        metrics.build_ended(&record(2), None);
        metrics.build_ended(&record(7000), Some(diag::Code::Canceled));
        metrics.gc_ran(100);
        metrics.step_start.observe(Duration::from_millis(3));
        let mut out = Exposition::default();
        metrics.write(&mut out);
        let text = out.into_text();
        for line in [
            "buildkit_builds_total{status=\"success\"} 1",
            "buildkit_builds_total{status=\"failure\",error_code=\"Canceled\"} 1",
            "buildkit_builds_steps_total{kind=\"cached\"} 6",
            "buildkit_build_duration_seconds_bucket{status=\"success\",le=\"1\"} 0",
            "buildkit_build_duration_seconds_bucket{status=\"success\",le=\"2.5\"} 1",
            "buildkit_build_duration_seconds_bucket{status=\"failure\",le=\"3600\"} 0",
            "buildkit_build_duration_seconds_bucket{status=\"failure\",le=\"+Inf\"} 1",
            "buildkit_build_duration_seconds_sum{status=\"failure\"} 7000",
            "cooperage_cache_hit_ratio 0.75",
            "cooperage_step_start_seconds_bucket{le=\"0.005\"} 1",
            "cooperage_gc_freed_bytes_total 100",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn labels_and_help_are_escaped() {
        let mut out = Exposition::default();
        out.family("m", "gauge", "a\\b\nc")
            .sample("m", &[("l", "q\"\\\n")], 1);
        assert_eq!(
            out.into_text(),
            "# HELP m a\\\\b\\nc\n# TYPE m gauge\nm{l=\"q\\\"\\\\\\n\"} 1\n"
        );
    }
}
