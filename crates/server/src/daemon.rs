//! `buildkitd` as a process: command line, logging, mount namespace, signals.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use diag::{Context, Error, Result};
use executor::Executor;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::allocator;
use crate::config::Config;
use crate::debug::DebugListener;
use crate::flags::Flags;
use crate::idle::end_when_idle;
use crate::listen::listeners;
use crate::logging;
use crate::server::{Server, ServerOptions};
use crate::trace::OtlpConfig;
use crate::version::version_line;

/// How long the runtime has for what is left when the server has stopped.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a forced end may take.
const FORCED_TIMEOUT: Duration = Duration::from_secs(5);
/// The signal that forces the end, counted from 1.
const FORCING_SIGNAL: u32 = 3;

/// The stack of each thread, in bytes: vertices are resolved on top of one another.
const STACK: usize = 8 << 20;

/// Variables that stock's server obeys and this one does not, with the reason.
const UNUSED_VARIABLES: &[(&str, &str)] = &[
    ("JAEGER_TRACE", "traces are sent by OTLP alone"),
    (
        "OTEL_METRICS_EXPORTER",
        "metrics are at the debug address alone",
    ),
];

/// How this process is asked to end.
#[derive(Clone, Default)]
struct End {
    /// Builds are given up and told to their clients.
    stop: CancellationToken,
    /// Nobody is waited for any more.
    force: CancellationToken,
}

/// Runs the server; `args` begins with the program's name. Must be called before the process has
/// threads: it enters a mount namespace of its own, so that nothing stays mounted however it ends.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let flags = match Flags::parse_from_args(&args) {
        Ok(flags) => flags,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code().clamp(0, 255) as u8);
        }
    };
    if flags.version {
        let _ = writeln!(std::io::stdout(), "{}", version_line());
        return ExitCode::SUCCESS;
    }
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut stderr = std::io::stderr();
            let _ = writeln!(stderr, "buildkitd: {error}");
            for hint in error.hints() {
                let _ = writeln!(stderr, "hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<()> {
    let (config, remarks) = flags.configuration()?;
    logging::start(&config)?;
    for remark in flags.remarks() {
        tracing::warn!("{remark}");
    }
    for remark in remarks {
        tracing::warn!("{remark}");
    }
    for (name, why) in UNUSED_VARIABLES {
        let value = std::env::var_os(name).unwrap_or_default();
        if !value.is_empty() && value != "none" {
            tracing::warn!("{name} has no effect: {why}");
        }
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new(
            diag::Code::PermissionDenied,
            "rootless mode requires to be executed as the mapped root in a user namespace",
        ));
    }
    enter_mount_namespace()?;
    keep_out_of_core_dumps();
    allocator::limit();
    raise_limits();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("buildkitd")
        .thread_stack_size(STACK)
        .build()
        .context("runtime")?;
    let (end, executor) = (End::default(), Arc::new(OnceLock::new()));
    let served = serve(
        config,
        flags.idle_timeout.map(|span| span.0),
        end.clone(),
        executor.clone(),
    );
    let outcome = runtime.block_on(async {
        tokio::select! {
            served = served => served,
            () = end.force.cancelled() => {
                Err(Error::new(diag::Code::Aborted, "the end of the server was forced"))
            }
        }
    });
    runtime.shutdown_timeout(EXIT_TIMEOUT);
    // Threads that still work may keep it from being dropped.
    if let Some(executor) = executor.get() {
        executor.close();
    }
    outcome
}

async fn serve(
    config: Config,
    idle_timeout: Option<Duration>,
    end: End,
    executor: Arc<OnceLock<Executor>>,
) -> Result<()> {
    // Listening comes first: a client that connects while state is opened waits and is not refused.
    let mut listeners = listeners(&config.grpc)?;
    let stop = end.stop.clone();
    let idle = idle_timeout.map(|timeout| end_when_idle(&mut listeners, timeout, stop.clone()));
    stop_on_signals(end)?;
    let debug = match config.grpc.debug_address.as_str() {
        "" => None,
        address => Some(DebugListener::bind(address)?),
    };
    let options = ServerOptions {
        otlp: OtlpConfig::from_env(|name| std::env::var(name).ok())?,
        ..ServerOptions::default()
    };
    let server = tokio::task::spawn_blocking(|| Server::open(config, options))
        .await
        .map_err(|error| Error::internal(error.to_string()))??;
    // Nothing was there before.
    let _ = executor.set(server.parts().ops.executor.clone());
    let worker = server.parts().worker.to_proto();
    tracing::info!("found worker {:?}, labels={:?}", worker.id, worker.labels);
    let debug = debug.map(|debug| tokio::spawn(debug.serve(server.parts().clone())));
    notify(&stop);
    // Opening the state may take longer than the timeout: time counts from here.
    let idle = idle.map(tokio::spawn);
    let served = server.serve(listeners, stop).await;
    for task in debug.into_iter().chain(idle) {
        task.abort();
    }
    served?;
    tracing::info!("stopped");
    Ok(())
}

/// The first SIGTERM or SIGINT stops the server, which lets builds come to their end; the third ends it
/// without waiting for anybody. One that is meant once may come twice, as `timeout` sends it to its
/// child and then to the group of both, so the second means nothing. Steps, mounts, cgroups and
/// networks go either way.
fn stop_on_signals(end: End) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    tokio::spawn(async move {
        for count in 1..=FORCING_SIGNAL {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if count == 1 {
                tracing::info!("stopping server");
            }
            end.stop.cancel();
        }
        tracing::warn!("got {FORCING_SIGNAL} SIGTERM/SIGINTs, forcing shutdown");
        let watch = std::thread::Builder::new().spawn(|| {
            std::thread::sleep(FORCED_TIMEOUT);
            std::process::exit(1);
        });
        if watch.is_err() {
            std::process::exit(1);
        }
        end.force.cancel();
    });
    Ok(())
}

/// Tells systemd, if it started this, that the server is ready, and later that it stops.
fn notify(stop: &CancellationToken) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send_state(&socket, "READY=1") {
        tracing::warn!("telling the service manager: {error}");
        return;
    }
    let stop = stop.clone();
    tokio::spawn(async move {
        stop.cancelled().await;
        // Whoever asked for the end knows of it anyway.
        let _ = send_state(&socket, "STOPPING=1");
    });
}

/// Sends one state by systemd's protocol (`sd_notify(3)`): a datagram to a unix socket, whose name is
/// abstract if it begins with `@`.
fn send_state(socket: &OsStr, state: &str) -> std::io::Result<()> {
    let sender = UnixDatagram::unbound()?;
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// Mounts made from here on are seen by this process and its children alone, and vanish with them;
/// mounts made outside still come in.
fn enter_mount_namespace() -> Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: only the mount namespace is left, and this process has no other thread yet that could
    // rely on sharing it.
    let left = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
    let entered = left.and_then(|()| {
        mount_change(
            "/",
            MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM,
        )
    });
    entered
        .map_err(std::io::Error::from)
        .context("entering a mount namespace")
        .map_err(|error| {
            error.hint(
                "the server needs CAP_SYS_ADMIN: run it as root, in a container with --privileged",
            )
        })
}

/// Secrets of builds pass through this memory. What is started from here is as dumpable as any.
fn keep_out_of_core_dumps() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "a core dump of this server would hold secrets of builds");
    }
}

/// As many open files as are allowed, and the kernel's mercy when memory is short. Neither is
/// needed to work.
fn raise_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let files = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!("raising the limit of open files: {error}");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-500") {
        tracing::debug!("lowering the oom score: {error}");
    }
}
