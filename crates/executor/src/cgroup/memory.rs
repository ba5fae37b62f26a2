//! Memory limits: which one holds, and the part of it that steps may use.
//!
//! A limit on the server's container holds for the server and its steps together. So that steps
//! run out of memory among themselves and never take the server along, all of them together get
//! a little less: the kernel then looks for what to kill among the steps only.

use std::path::Path;

use super::step::number;

/// What is kept for the server: an eighth of the limit, and at most this many bytes.
const RESERVE_BYTES_MAX: u64 = 64 << 20;
/// The kernel rounds limits down to whole pages; this is the largest page there is.
const PAGE_BYTES_MAX: u64 = 64 << 10;

/// The smallest limit in bytes that is set on `dir` or above it up to `mount`.
pub(super) fn limit(dir: &Path, mount: &Path, v2: bool) -> Option<u64> {
    dir.ancestors()
        .take_while(|ancestor| ancestor.starts_with(mount))
        .filter_map(|ancestor| number(&ancestor.join(file(v2))))
        .filter(|limit| is_limit(*limit))
        .min()
}

/// Version 1 writes "no limit" as the largest multiple of the page size.
pub(super) fn is_limit(bytes: u64) -> bool {
    bytes < i64::MAX as u64 - (1 << 20)
}

/// What all steps together may use where `limit` bytes are for them and the server.
pub(super) fn for_steps(limit: u64) -> u64 {
    (limit - (limit / 8).min(RESERVE_BYTES_MAX)) / PAGE_BYTES_MAX * PAGE_BYTES_MAX
}

/// Limits `steps`, the cgroup of all steps, to what the limit on `server` leaves for them. A limit
/// that was changed meanwhile is followed.
pub(super) fn keep_reserve(steps: &Path, server: &Path, mount: &Path, v2: bool) {
    let wanted = limit(server, mount, v2).map(for_steps);
    let control = steps.join(file(v2));
    let present = number(&control).filter(|limit| is_limit(*limit));
    if wanted == present {
        return;
    }
    let value = match (wanted, v2) {
        (Some(bytes), _) => bytes.to_string(),
        (None, true) => "max".to_owned(),
        (None, false) => "-1".to_owned(),
    };
    // Running steps that use more already may be in the way; the next one tries again.
    if let Err(error) = std::fs::write(&control, value) {
        tracing::debug!(%error, "cannot keep memory for the server");
    }
}

fn file(v2: bool) -> &'static str {
    match v2 {
        true => "memory.max",
        false => "memory.limit_in_bytes",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_on_the_way_up_holds() {
        let mount = tempfile::tempdir().unwrap();
        let inner = mount.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let set = |dir: &Path, text: &str| std::fs::write(dir.join("memory.max"), text).unwrap();
        set(&inner, "max\n");
        assert_eq!(limit(&inner, mount.path(), true), None);
        set(mount.path(), "1000\n");
        set(&mount.path().join("a"), "3000\n");
        assert_eq!(limit(&inner, mount.path(), true), Some(1000));
        assert_eq!(limit(&inner, &mount.path().join("a"), true), Some(3000));
    }

    #[test]
    fn steps_get_all_but_a_reserve_and_follow_a_changed_limit() {
        let mount = tempfile::tempdir().unwrap();
        let (server, steps) = (mount.path().join("c"), mount.path().join("c/steps"));
        std::fs::create_dir_all(&steps).unwrap();
        let control = |dir: &Path| dir.join("memory.limit_in_bytes");
        let unlimited = (i64::MAX as u64 / PAGE_BYTES_MAX * PAGE_BYTES_MAX).to_string();
        for dir in [mount.path(), &server, &steps] {
            std::fs::write(control(dir), &unlimited).unwrap();
        }
        let kept = || {
            keep_reserve(&steps, &server, mount.path(), false);
            std::fs::read_to_string(control(&steps)).unwrap()
        };
        assert_eq!(kept(), unlimited);
        for (limit, left) in [(320 << 20, 280 << 20), (8 << 30, (8 << 30) - (64 << 20))] {
            std::fs::write(control(&server), u64::to_string(&limit)).unwrap();
            std::fs::write(control(&steps), &unlimited).unwrap();
            assert_eq!(kept(), u64::to_string(&left));
        }
    }
}
