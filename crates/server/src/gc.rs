//! Removing old cache without being asked.

use std::sync::Arc;
use std::time::Duration;

use ops::work::blocking;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::usage::{Cache, Policy};

/// How long after a build, or the start, GC begins: several builds in a row are followed by one.
const DELAY: Duration = Duration::from_secs(1);
/// The shortest time between two runs.
const INTERVAL_MIN: Duration = Duration::from_secs(60);

/// Wakes the GC of a server.
#[derive(Clone, Default)]
pub struct Collector(Arc<Notify>);

impl Collector {
    /// There may be something to remove.
    pub fn wake(&self) {
        self.0.notify_one();
    }

    /// Runs the policies when woken, until `stop` fires. Without policies it does nothing.
    pub async fn run(
        self,
        cache: Arc<Cache>,
        policies: Vec<Policy>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) {
        if policies.is_empty() {
            return;
        }
        let work = async {
            loop {
                self.0.notified().await;
                tokio::time::sleep(DELAY).await;
                collect(&cache, &policies, &metrics).await;
                tokio::time::sleep(INTERVAL_MIN).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn collect(cache: &Arc<Cache>, policies: &[Policy], metrics: &Metrics) {
    let mut all = 0;
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
                all += freed;
                tracing::debug!("gc cleaned up {freed} bytes");
            }
            Err(error) => tracing::error!("gc error: {error}"),
        }
    }
    metrics.gc_ran(u64::try_from(all).unwrap_or(0));
}
