//! How a build's progress is shown: `plain`, `tty`, `rawjson`, `quiet`, as stock Buildx shows it.
//!
//! Each printer is a state machine without a clock, a terminal or an output: it is given statuses,
//! the time, and for a terminal its size, and returns bytes. Only [`Printer`] has a thread, a clock
//! and a writer. Nothing here knows of builders or of the wire.

mod colors;
mod number;
mod plain;
mod printer;
mod rawjson;
mod screen;
mod tty;
mod warnings;

use std::str::FromStr;

pub use colors::Colors;
pub use printer::{Output, Printer, PrinterOptions, Progress, Statuses};
pub use rawjson::{go_escapes, status_line};
pub use tty::Size;
pub use warnings::{warnings_block, warnings_json};

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// `tty` where there is a terminal, `plain` otherwise.
    #[default]
    Auto,
    /// Lines of text, one after the other.
    Plain,
    /// A live picture of the build on a terminal.
    Tty,
    /// One JSON object a status.
    RawJson,
    /// Nothing.
    Quiet,
}

/// The words of `--progress` and `BUILDKIT_PROGRESS` that name a mode.
impl FromStr for Mode {
    type Err = diag::Error;

    fn from_str(text: &str) -> diag::Result<Self> {
        Ok(match text {
            "" | "auto" => Mode::Auto,
            "plain" => Mode::Plain,
            "tty" => Mode::Tty,
            "rawjson" => Mode::RawJson,
            "quiet" => Mode::Quiet,
            other => {
                return Err(diag::Error::invalid(format!(
                    "invalid progress mode {other}"
                )));
            }
        })
    }
}
