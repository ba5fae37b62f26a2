//! Removing old cache without being asked: after builds, and while they run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ops::work::blocking;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::allocator;
use crate::gc_policy::Policy;
use crate::metrics::Metrics;
use crate::usage::Cache;

/// How long after a build, or the start, GC begins: several builds in a row are followed by one.
const DELAY: Duration = Duration::from_secs(1);
/// The shortest time between two runs after builds.
const INTERVAL_MIN: Duration = Duration::from_secs(60);
/// The shortest time between two looks at what builds that still run have added.
const LOOK_INTERVAL_MIN: Duration = Duration::from_secs(2);
/// The longest time between two looks while builds run: a step may write much before it ends.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// How many times longer than a look the time until the next one is at least.
const LOOK_SHARE: u32 = 10;

/// Wakes the GC of a server.
#[derive(Clone, Default)]
pub struct Collector {
    idle: Arc<Notify>,
    grown: Arc<Notify>,
}

impl Collector {
    /// A build has ended: there may be something to remove.
    pub fn wake(&self) {
        self.idle.notify_one();
    }

    /// A build that runs has added something: there may be too much.
    pub fn grown(&self) {
        self.grown.notify_one();
    }

    /// Runs the policies when woken, and now and then while builds run, which `busy` tells, until `stop`
    /// fires. Without policies it does nothing.
    pub async fn run(
        self,
        cache: Arc<Cache>,
        policies: Vec<Policy>,
        metrics: Arc<Metrics>,
        busy: impl Fn() -> bool,
        stop: CancellationToken,
    ) {
        if policies.is_empty() {
            return;
        }
        let after_builds = async {
            loop {
                self.idle.notified().await;
                tokio::time::sleep(DELAY).await;
                collect(&cache, &policies, &metrics).await;
                // The look at everything takes memory for a moment. Nothing depends on this.
                let _ = tokio::task::spawn_blocking(allocator::give_back).await;
                tokio::time::sleep(INTERVAL_MIN).await;
            }
        };
        let during_builds = async {
            loop {
                let woken = tokio::time::timeout(LOOK_INTERVAL_MAX, self.grown.notified()).await;
                if woken.is_err() && !busy() {
                    continue;
                }
                let begun = Instant::now();
                let over = is_over(&cache, &policies).await;
                let pause = LOOK_INTERVAL_MIN.max(begun.elapsed() * LOOK_SHARE);
                let vain = over && collect(&cache, &policies, &metrics).await == 0;
                // What is there is used by builds: it does not help to look often.
                tokio::time::sleep(pause * if vain { 5 } else { 1 }).await;
            }
        };
        tokio::select! {
            () = async { tokio::join!(after_builds, during_builds); } => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn is_over(cache: &Arc<Cache>, policies: &[Policy]) -> bool {
    let (cache, policies) = (cache.clone(), policies.to_vec());
    match blocking(move || cache.is_over(&policies)).await {
        Ok(over) => over,
        Err(error) => {
            tracing::error!("gc error: {error}");
            false
        }
    }
}

/// Runs all policies; says how many bytes that freed.
async fn collect(cache: &Arc<Cache>, policies: &[Policy], metrics: &Metrics) -> i64 {
    let mut total = 0;
    for policy in policies {
        let (cache, policy) = (cache.clone(), policy.clone());
        let collected = blocking(move || {
            let mut freed = 0;
            cache.prune(&policy, |record| freed += record.size_bytes)?;
            Ok(freed)
        });
        match collected.await {
            Ok(0) => {}
            Ok(freed) => {
                total += freed;
                tracing::debug!("gc cleaned up {freed} bytes");
            }
            Err(error) => tracing::error!("gc error: {error}"),
        }
    }
    metrics.gc_ran(u64::try_from(total).unwrap_or(0));
    total
}
