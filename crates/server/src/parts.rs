//! What all builds of a server share.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use content::ContentStore;
use layers::LayerStore;
use ops::work::OpWork;
use parking_lot::Mutex;
use session::SessionManager;
use solver::Solver;
use tokio::sync::watch;

use crate::allocator;
use crate::config::Config;
use crate::entitlements::Entitlements;
use crate::gateway_build::GatewayBuild;
use crate::history::History;
use crate::metrics::Metrics;
use crate::running::Running;
use crate::trace::Tracer;
use crate::usage::Cache;
use crate::worker::Worker;

/// How long, and how many, ended builds are kept for clients that ask for them late.
const ENDED_AGE_MAX: Duration = Duration::from_secs(10);
const ENDED_MAX: usize = 128;
/// How many bytes those that are kept may have said, unless the last one alone said more.
const ENDED_BYTES_MAX: usize = 8 << 20;

/// What all builds of a server share.
pub struct ServerParts {
    /// The configuration it was started with.
    pub config: Config,
    /// Who it says it is.
    pub worker: Worker,
    /// Blobs.
    pub content: ContentStore,
    /// Layers.
    pub layers: LayerStore,
    /// What ops share.
    pub ops: Arc<ops::work::Parts>,
    /// The solver.
    pub solver: Solver<OpWork>,
    /// Clients.
    pub sessions: SessionManager,
    /// Registries, without anybody's credentials.
    pub registry: registry::Client,
    /// Exports.
    pub exporter: exporter::Exporter,
    /// Builds, running and finished.
    pub history: Arc<History>,
    /// Disk usage and pruning.
    pub cache: Arc<Cache>,
    /// What clients may be granted.
    pub entitlements: Entitlements,
    /// Builds that run now.
    pub builds: Builds,
    /// Where exports are put together.
    pub staging: PathBuf,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What becomes of traces.
    pub tracer: Tracer,
    /// What the user of the next build must be told of the server's state.
    pub notices: Mutex<Vec<String>>,
}

/// The builds that run now, by id.
#[derive(Default)]
pub struct Builds {
    state: Mutex<HashMap<String, Entry>>,
    /// Builds that ended a moment ago: a client may ask for one after a very short life.
    ended: Arc<Mutex<Ended>>,
    /// Changes whenever a build is entered, for those who wait for one.
    entered: watch::Sender<u64>,
}

/// Builds that ended, the first one first.
type Ended = VecDeque<(Instant, Arc<Running>)>;

/// A build that runs now.
#[derive(Clone)]
pub struct Entry {
    /// The build.
    pub running: Arc<Running>,
    /// Its gateway, if a client drives it.
    pub gateway: Option<Arc<GatewayBuild>>,
}

/// A build is listed until this is dropped.
pub struct Listed<'b> {
    builds: &'b Builds,
    id: String,
}

impl Builds {
    /// Lists a build.
    ///
    /// # Errors
    /// AlreadyExists, when one of that id runs.
    pub fn enter(&self, entry: Entry) -> diag::Result<Listed<'_>> {
        let id = entry.running.id().to_owned();
        let mut state = self.state.lock();
        if state.contains_key(&id) {
            return Err(diag::Error::new(
                diag::Code::AlreadyExists,
                format!("job ID {id} exists"),
            ));
        }
        state.insert(id.clone(), entry);
        drop(state);
        self.entered.send_modify(|count| *count += 1);
        Ok(Listed { builds: self, id })
    }

    /// What the build of that id says, waited for if it is not there yet: clients ask for a build in
    /// the moment they begin it, and a build from the cache may have ended before they do.
    pub async fn wait_for_progress(&self, id: &str, timeout: Duration) -> Option<Arc<Running>> {
        if let Some(entry) = self.get(id) {
            return Some(entry.running);
        }
        let ended = || {
            let ended = self.ended.lock();
            let found = ended.iter().find(|(_, running)| running.id() == id);
            found.map(|(_, running)| running.clone())
        };
        let mut entered = self.entered.subscribe();
        let found = async {
            loop {
                entered.borrow_and_update();
                // In this order: a build that ends leaves the one list only when it is in the other.
                let found = self.get(id).map(|entry| entry.running).or_else(ended);
                if found.is_some() {
                    return found;
                }
                entered.changed().await.ok()?;
            }
        };
        tokio::time::timeout(timeout, found).await.ok().flatten()
    }

    /// The build of that id, waited for if it is not there yet: clients ask for a build in the
    /// moment they begin it.
    pub async fn wait(&self, id: &str, timeout: Duration) -> Option<Entry> {
        let mut entered = self.entered.subscribe();
        let found = async {
            loop {
                entered.borrow_and_update();
                if let Some(entry) = self.get(id) {
                    return Some(entry);
                }
                entered.changed().await.ok()?;
            }
        };
        tokio::time::timeout(timeout, found).await.ok().flatten()
    }

    /// The build of that id, if it runs.
    pub fn get(&self, id: &str) -> Option<Entry> {
        self.state.lock().get(id).cloned()
    }

    /// How many builds run.
    pub fn len(&self) -> usize {
        self.state.lock().len()
    }

    /// True when none runs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut state = self.builds.state.lock();
        if let Some(entry) = state.remove(&self.id) {
            let mut ended = self.builds.ended.lock();
            ended.push_back((Instant::now(), entry.running));
            forget_old(&mut ended);
            // What a build said can be much: an idle server must not keep it.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                let ended = self.builds.ended.clone();
                runtime.spawn(async move {
                    tokio::time::sleep(ENDED_AGE_MAX).await;
                    let quiet = {
                        let mut ended = ended.lock();
                        forget_old(&mut ended);
                        ended.is_empty()
                    };
                    if quiet {
                        // Nothing depends on when it is done, nor on that it is.
                        let _ = tokio::task::spawn_blocking(allocator::give_back).await;
                    }
                });
            }
        }
    }
}

fn forget_old(ended: &mut Ended) {
    let old = |ended: &Ended| {
        let first = ended.front();
        first.is_some_and(|(at, _)| at.elapsed() >= ENDED_AGE_MAX)
    };
    let said = |(_, running): &(Instant, Arc<Running>)| running.progress().bytes();
    let mut bytes: usize = ended.iter().map(said).sum();
    while ended.len() > ENDED_MAX || old(ended) || (ended.len() > 1 && bytes > ENDED_BYTES_MAX) {
        let forgotten = ended.pop_front();
        bytes -= forgotten.as_ref().map_or(0, said);
    }
}
