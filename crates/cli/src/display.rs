//! Progress of booting, shown only when there is something to show.

use std::sync::{Arc, Mutex, PoisonError};

use builder::BootProgress;
use progress_ui::{Mode, Output, Printer, PrinterOptions, Progress};

/// A display on stderr that starts with the first status.
#[derive(Clone, Default)]
pub(crate) struct LazyDisplay {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
enum State {
    #[default]
    Waiting,
    Showing(Printer, Progress),
    /// No display could be started, or it was closed.
    Closed,
}

impl LazyDisplay {
    /// Where to report to.
    pub(crate) fn progress(&self) -> BootProgress {
        let state = self.state.clone();
        BootProgress::callback(move |status| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if let State::Waiting = *state {
                let options = PrinterOptions {
                    mode: Mode::Auto,
                    ..PrinterOptions::default()
                };
                *state = match Printer::start(options, Output::stderr()) {
                    Ok(printer) => {
                        let progress = printer.progress();
                        State::Showing(printer, progress)
                    }
                    Err(_) => State::Closed,
                };
            }
            if let State::Showing(_, progress) = &*state {
                progress.send(status);
            }
        })
    }

    /// Shows what is left and ends the display.
    pub(crate) fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Showing(printer, progress) = std::mem::replace(&mut *state, State::Closed) {
            drop(progress);
            printer.finish();
        }
    }
}
