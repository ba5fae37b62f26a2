//! Signals while a build runs: the first asks it to stop, the third ends the process.

use std::io::Write as _;

use diag::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How many signals end the process.
const SIGNALS_MAX: u32 = 3;

/// A token that is cancelled by the first SIGINT or SIGTERM.
pub(super) fn cancel_on_signals() -> Result<CancellationToken, Error> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    tokio::spawn(async move {
        for count in 1..=SIGNALS_MAX {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            token.cancel();
            if count == SIGNALS_MAX {
                let text = "FATAL: got 3 SIGTERM/SIGINTs, forcibly terminating\n";
                let _ = std::io::stderr().write_all(text.as_bytes());
                std::process::exit(1);
            }
        }
    });
    Ok(cancel)
}
