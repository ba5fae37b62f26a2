//! Numbers that every process has, under Prometheus' usual names, from `/proc`.

use std::fs;

use super::exposition::Exposition;

/// Ticks a second in `/proc/PID/stat`: the same on every architecture, whatever the kernel's own.
const TICKS_PER_SECOND: f64 = 100.0;

/// Writes those that can be had.
pub(super) fn write(out: &mut Exposition) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name before the last parenthesis may hold anything.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    // Numbers as in proc(5), less the three that came before.
    let number = |at: usize| fields.get(at - 3)?.parse::<f64>().ok();
    if let (Some(user), Some(system)) = (number(14), number(15)) {
        out.counter(
            "process_cpu_seconds_total",
            "Seconds of processor time spent by the server itself.",
            (user + system) / TICKS_PER_SECOND,
        );
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = resident.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if let Some(kibibytes) = kibibytes {
        out.gauge(
            "process_resident_memory_bytes",
            "Resident memory of the server itself.",
            kibibytes * 1024,
        );
    }
    if let (Some(started), Some(boot)) = (number(22), boot_time()) {
        out.gauge(
            "process_start_time_seconds",
            "When the server started, in seconds since 1970.",
            boot + started / TICKS_PER_SECOND,
        );
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        let help = "Open file descriptors of the server.";
        // One of them is the directory that is being read.
        out.gauge("process_open_fds", help, open.count().saturating_sub(1));
    }
}

/// Seconds since 1970.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}
