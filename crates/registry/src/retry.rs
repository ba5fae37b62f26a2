//! When and after how long a failed request is made again.

use std::time::Duration;

use rand::Rng;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// Patience with a registry that fails in ways that may pass: connections that break, 5xx, 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a request is made in all.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles with every further one.
    pub first_wait: Duration,
    /// No wait is longer, whatever the registry's `Retry-After` says.
    pub wait_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            attempts: 6,
            first_wait: Duration::from_millis(500),
            wait_max: Duration::from_secs(30),
        }
    }
}

impl RetryPolicy {
    /// How long to wait after the given number of failures (1 for the first); `None` to give up.
    /// A quarter of the wait is random, so that many clients do not come back at once.
    pub(crate) fn wait(&self, failures: u32, asked: Option<Duration>) -> Option<Duration> {
        if failures >= self.attempts {
            return None;
        }
        let doubled = self.first_wait.saturating_mul(1 << (failures - 1).min(16));
        let base = asked.unwrap_or(doubled).min(self.wait_max);
        let jitter = rand::rng().random_range(0.0..0.25);
        Some(base + base.mul_f64(jitter))
    }
}

/// The registry's `Retry-After`, if it is a number of seconds.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_end() {
        let policy = RetryPolicy {
            attempts: 4,
            first_wait: Duration::from_secs(1),
            wait_max: Duration::from_secs(3),
        };
        for (failures, least) in [(1, 1), (2, 2), (3, 3)] {
            let wait = policy.wait(failures, None).unwrap();
            assert!(wait >= Duration::from_secs(least) && wait < Duration::from_secs(least * 2));
        }
        assert_eq!(policy.wait(4, None), None);
        let asked = policy.wait(1, Some(Duration::from_secs(900))).unwrap();
        assert!(asked < Duration::from_secs(4));
    }
}
