//! Where commands run: a small runtime, and what ends them early.
//!
//! The first SIGINT or SIGTERM asks a command to end, the third ends the process. As a plugin, the
//! end of the connection to Docker's command line counts as the first.

use std::future::Future;
use std::os::linux::net::SocketAddrExt;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs a command to its end, or until it was asked to end and has done so.
pub(crate) fn block_on<T, F>(work: impl FnOnce(CancellationToken) -> F) -> Result<T, diag::Error>
where
    F: Future<Output = Result<T, diag::Error>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let cancel = CancellationToken::new();
    let result = runtime.block_on(async {
        tokio::spawn(watch_signals(cancel.clone()));
        if let Ok(name) = std::env::var("DOCKER_CLI_PLUGIN_SOCKET") {
            tokio::spawn(watch_plugin_socket(name, cancel.clone()));
        }
        work(cancel).await
    });
    // A thread that waits for input would hold the end up.
    runtime.shutdown_timeout(Duration::from_millis(50));
    result
}

/// Waits for `work`, and gives it up when the command was asked to end.
pub(crate) async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, diag::Error>>,
) -> Result<T, diag::Error> {
    tokio::select! {
        result = work => result,
        () = cancel.cancelled() => Err(diag::Error::canceled()),
    }
}

async fn watch_signals(cancel: CancellationToken) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return;
    };
    for _ in 0..3 {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
    }
    crate::printer::err_line("got 3 SIGTERM/SIGINTs, forcing shutdown");
    std::process::exit(1);
}

/// Docker's command line closes this connection when it is interrupted.
async fn watch_plugin_socket(name: String, cancel: CancellationToken) {
    let address = match name.strip_prefix('@') {
        Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name),
        None => std::os::unix::net::SocketAddr::from_pathname(&name),
    };
    let connect = || -> std::io::Result<tokio::net::UnixStream> {
        let stream = std::os::unix::net::UnixStream::connect_addr(&address?)?;
        stream.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(stream)
    };
    let Ok(mut stream) = connect() else { return };
    let mut byte = [0; 1];
    while !matches!(stream.read(&mut byte).await, Ok(0) | Err(_)) {}
    cancel.cancel();
}
