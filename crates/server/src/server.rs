//! A server: its state on disk, its services, and how it starts and stops.
//!
//! ```text
//! <root>/buildkitd.lock     locked while a server runs on it (also by upstream's)
//! <root>/v1/superblock      the version of what is below
//! <root>/v1/content/        blobs
//! <root>/v1/layers/         layers
//! <root>/v1/local/          what is known of clients' folders
//! <root>/v1/cache-mounts/   RUN --mount=type=cache
//! <root>/v1/keys.db         the solver's keys
//! <root>/v1/history.db      finished builds
//! <root>/v1/workerid
//! <root>/v1/cgroups         control groups made for `--cgroup-parent`, while there are any
//! <root>/v1/tmp/            sockets and exports under way; emptied at start
//! ```

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use content::ContentStore;
use diag::{Context, Error, Result};
use executor::{BridgeConfig, Executor, ExecutorConfig, NetworkConfig, StartObserver};
use layers::{Backend, LayerStore};
use ops::contenthash::FileDigests;
use ops::work::{CacheMounts, LogLimits, Output};
use parking_lot::Mutex;
use proto::content::ContentServer;
use proto::control::control_server::ControlServer;
use proto::gateway::llb_bridge_server::LlbBridgeServer;
use proto::otlp::TraceServiceServer;
use registry::RegistryHosts;
use session::SessionManager;
use solver::{KeyStore, Solver, SqliteKeyStore};
use source::git::GitSource;
use source::http::HttpSource;
use source::image::ImageSource;
use source::local::LocalSource;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server as GrpcServer;

use crate::bridge::Gateway;
use crate::config::Config;
use crate::content_service::ContentService;
use crate::control::ControlService;
use crate::damaged;
use crate::entitlements::Entitlements;
use crate::gc::Collector;
use crate::history::History;
use crate::listen::Listener;
use crate::metrics::Metrics;
use crate::parts::{Builds, ServerParts};
use crate::reserve::Reserve;
use crate::trace::{OtlpConfig, Tracer};
use crate::usage::Cache;
use crate::worker::Worker;

/// Version of the state directory.
const FORMAT: u32 = 1;
/// The largest message that is read or written, in bytes: definitions can be large.
pub(crate) const MESSAGE_SIZE_BYTES_MAX: usize = 128 << 20;
/// What one stream, and one connection, may have under way in bytes; sessions carry whole contexts.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// How long builds have to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the collector has to take the last traces.
const TRACES_TIMEOUT: Duration = Duration::from_secs(1);
/// How long clients have to take the last answers.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// A build server on a root directory.
pub struct Server {
    parts: Arc<ServerParts>,
    /// Locked as long as the server lives.
    _lock: RootLock,
}

/// What a server is told beside its configuration.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// The program, with its arguments, that starts steps; `None` is this executable.
    pub init: Option<(PathBuf, Vec<std::ffi::OsString>)>,
    /// Where traces are sent; `None` for nowhere.
    pub otlp: Option<OtlpConfig>,
}

impl Server {
    /// Opens the state of a server. Blocks on the disk.
    ///
    /// # Errors
    /// Another server uses the root; state of a newer version; values of the configuration that
    /// cannot be honoured.
    pub fn open(config: Config, options: ServerOptions) -> Result<Self> {
        let root = config
            .root
            .clone()
            .ok_or_else(|| Error::invalid("a server needs a root directory"))?;
        let root = std::path::absolute(&root)?;
        // Files of images and contexts are in it, with the rights that they have there.
        let private = |dir: &Path| DirBuilder::new().recursive(true).mode(0o700).create(dir);
        private(&root).with_context(|| format!("failed to create {}", root.display()))?;
        let lock = RootLock::take(&root)?;
        let state = root.join("v1");
        private(&state)?;
        // Also that of a server that left it open.
        std::fs::set_permissions(&state, Permissions::from_mode(0o700))?;
        let reserve = Reserve::of(&state);
        reserve.give_way();
        let temporary = state.join("tmp");
        match std::fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::from(error).context(format!("{}", temporary.display())));
            }
            _ => std::fs::create_dir_all(&temporary)?,
        }
        content::check_superblock(&state, FORMAT)?;
        let mut notices = Vec::new();
        for (database, what) in [
            ("layers/layers.db", "the build cache"),
            ("keys.db", "the knowledge of what is cached"),
            ("history.db", "the history of builds"),
        ] {
            let missing = damaged::notice_if_missing(&state, database, what);
            let damaged = damaged::set_aside_if_damaged(&state.join(database), what)
                .with_context(|| format!("setting {database} aside"))?;
            notices.extend(missing.or(damaged));
        }
        let content = ContentStore::open(state.join("content"))?;
        let layers = LayerStore::open(state.join("layers"), backend(&config)?)?;
        let cache_mounts = CacheMounts::open(&state.join("cache-mounts"))?;
        let revived = layers.clone();
        let keys: Arc<dyn KeyStore<Output>> = Arc::new(SqliteKeyStore::open(
            &state.join("keys.db"),
            move |output: &Output| output.revive(&revived),
        )?);
        let history = Arc::new(History::open(
            &state.join("history.db"),
            content.clone(),
            config.history.clone(),
        )?);
        reserve.take();
        let metrics = Arc::new(Metrics::default());
        let ops = Arc::new(ops::work::Parts {
            layers: layers.clone(),
            executor: open_executor(&config, &options, &state, &metrics)?,
            images: ImageSource::new(content.clone(), layers.clone()),
            locals: LocalSource::open(state.join("local"), layers.clone())?,
            git: GitSource::open(state.join("git"), layers.clone())?,
            web: HttpSource::open(state.join("http"), layers.clone())?,
            cache_mounts,
            devices: open_devices(&config),
            files: FileDigests::new(),
            log_limits: LogLimits::from_env(),
            run_dir: temporary.join("run"),
        });
        let cache = Arc::new(Cache::new(
            ops.clone(),
            content.clone(),
            keys.clone(),
            history.clone(),
            state.clone(),
        ));
        let parts = ServerParts {
            worker: Worker::new(&config, &state, layers.backend().name())?,
            exporter: exporter::Exporter::new(content.clone(), layers.clone()),
            solver: Solver::new(keys, config.worker.oci.max_parallelism),
            sessions: SessionManager::new(),
            registry: registry_client(&config),
            entitlements: Entitlements::of_server(&config)?,
            builds: Builds::default(),
            notices: Mutex::new(notices),
            staging: temporary.join("staging"),
            metrics,
            tracer: Tracer::new(options.otlp, |name| std::env::var(name).ok())?,
            config,
            content,
            layers,
            ops,
            history,
            cache,
        };
        Ok(Server {
            parts: Arc::new(parts),
            _lock: lock,
        })
    }

    /// What its builds share.
    pub fn parts(&self) -> &Arc<ServerParts> {
        &self.parts
    }

    /// Serves clients until `stop` fires; builds under way are then cancelled and brought to their
    /// end.
    pub async fn serve(&self, listeners: Vec<Listener>, stop: CancellationToken) -> Result<()> {
        let collector = Collector::default();
        let builds = TaskTracker::new();
        let control = ControlService::new(
            self.parts.clone(),
            collector.clone(),
            stop.clone(),
            builds.clone(),
        );
        let (health, health_service) = tonic_health::server::health_reporter();
        health
            .set_service_status("", tonic_health::ServingStatus::Serving)
            .await;
        let routes = Routes::new(
            ControlServer::new(control)
                .max_decoding_message_size(MESSAGE_SIZE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_SIZE_BYTES_MAX),
        )
        .add_service(
            LlbBridgeServer::new(Gateway::new(self.parts.clone()))
                .max_decoding_message_size(MESSAGE_SIZE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_SIZE_BYTES_MAX),
        )
        .add_service(ContentServer::new(ContentService(
            self.parts.content.clone(),
        )))
        .add_service(TraceServiceServer::new(self.parts.tracer.clone()))
        .add_service(health_service);
        collector.wake();
        let growing = collector.clone();
        self.parts.layers.on_growth(move || growing.grown());
        let gc = collector.run(
            self.parts.cache.clone(),
            self.parts.worker.policies.clone(),
            self.parts.metrics.clone(),
            || !self.parts.builds.is_empty(),
            stop.clone(),
        );
        let serving = listeners
            .into_iter()
            .map(|listener| serve_listener(listener, routes.clone(), stop.clone(), builds.clone()));
        let (served, ()) = tokio::join!(futures::future::try_join_all(serving), gc);
        self.parts.tracer.drain(TRACES_TIMEOUT).await;
        served.map(|_| ())
    }
}

/// The devices that steps may be given; says which of their descriptions cannot be used.
fn open_devices(config: &Config) -> Option<cdi::Registry> {
    let registry = config.cdi.registry()?;
    for fault in registry.scan().faults() {
        tracing::warn!("devices of {}: {}", fault.path.display(), fault.reason);
    }
    Some(registry)
}

/// Serves one listener until `stop` fires and builds have ended.
async fn serve_listener(
    listener: Listener,
    routes: Routes,
    stop: CancellationToken,
    builds: TaskTracker,
) -> Result<()> {
    let address = listener.address.clone();
    tracing::info!("running server on {address}");
    let connections = listener.connections();
    let stopping = stop.clone();
    let shutdown = async move {
        stopping.cancelled().await;
        builds.close();
        // Answers are given while connections are still served.
        let _ = tokio::time::timeout(STOP_TIMEOUT, builds.wait()).await;
    };
    let server = GrpcServer::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(60)))
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, shutdown);
    let goodbye = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_TIMEOUT + GOODBYE_TIMEOUT).await;
    };
    tokio::select! {
        served = server => served.map_err(|error| {
            Error::internal(error.to_string()).context(format!("serving {address}"))
        }),
        // A client that keeps its connection open does not keep the server.
        () = goodbye => Ok(()),
    }
}

fn backend(config: &Config) -> Result<Backend> {
    match config.worker.oci.snapshotter.as_str() {
        "" | "auto" => Ok(Backend::Auto),
        "overlayfs" => Ok(Backend::Overlay),
        "native" => Ok(Backend::Copy),
        other => Err(Error::invalid(format!(
            "unsupported snapshotter {other:?}: auto, overlayfs and native are known"
        ))),
    }
}

fn open_executor(
    config: &Config,
    options: &ServerOptions,
    state: &Path,
    metrics: &Arc<Metrics>,
) -> Result<Executor> {
    let worker = &config.worker.oci;
    let bridge = match worker.network_mode.as_str() {
        "" | "auto" | "host" => None,
        "bridge" => Some(BridgeConfig {
            name: worker.bridge_name.clone(),
            subnet: worker.bridge_subnet.clone(),
        }),
        other => {
            return Err(Error::unimplemented(format!(
                "network mode {other:?} is not offered: auto, host and bridge are"
            )));
        }
    };
    let mut network = NetworkConfig::default();
    network.nameservers.clone_from(&config.dns.nameservers);
    network.search.clone_from(&config.dns.search_domains);
    network.options.clone_from(&config.dns.options);
    let mut executor = ExecutorConfig::new(state.join("tmp/executor"));
    executor.cgroup_journal = Some(state.join("cgroups"));
    executor.network = network;
    executor.bridge = bridge;
    if let Some(init) = &options.init {
        executor.init = init.clone();
    }
    if !worker.default_cgroup_parent.is_empty() {
        executor.cgroup_parent = Some(worker.default_cgroup_parent.clone());
    }
    let counted = metrics.clone();
    executor.on_start = Some(StartObserver::new(move |took| {
        counted.step_start.observe(took);
    }));
    // Steps die before their server when memory is short.
    executor.oom_score_adj = Some(STEP_OOM_SCORE_ADJ);
    Ok(Executor::new(executor)?)
}

fn registry_client(config: &Config) -> registry::Client {
    let hosts = RegistryHosts::new(config.registry.clone());
    let client = registry::Client::new(hosts);
    match config.system.max_registry_concurrency {
        Some(count) => client.with_concurrency(usize::try_from(count).unwrap_or(usize::MAX)),
        None => client,
    }
}

/// What steps have over their server in the kernel's choice when memory is short.
const STEP_OOM_SCORE_ADJ: i32 = 500;

/// The lock that says that a server runs on a root.
struct RootLock(#[expect(dead_code, reason = "locked as long as it is open")] std::fs::File);

impl RootLock {
    fn take(root: &Path) -> Result<Self> {
        let path = root.join("buildkitd.lock");
        let file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("could not lock {}", path.display()))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(RootLock(file)),
            Err(_) => Err(Error::new(
                diag::Code::FailedPrecondition,
                format!(
                    "could not lock {}, another instance running?",
                    path.display()
                ),
            )
            .hint("stop the other server, or give this one a `--root` of its own")),
        }
    }
}
