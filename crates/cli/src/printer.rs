//! The one place that writes to the terminal: data to stdout, everything else to stderr.
//!
//! A reader that has gone away is not an error of ours.

use std::io::{BufRead, Write};

/// Writes text to stdout as it is.
pub(crate) fn out(text: impl AsRef<str>) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_ref().as_bytes());
    let _ = stdout.flush();
}

/// Writes bytes to stdout; that there is no room for them is an error.
pub(crate) fn out_bytes(bytes: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes a line to stdout.
pub(crate) fn out_line(text: impl AsRef<str>) {
    out(format!("{}\n", text.as_ref()));
}

/// Writes text to stderr as it is.
pub(crate) fn err(text: impl AsRef<str>) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_ref().as_bytes());
}

/// Writes a line to stderr.
pub(crate) fn err_line(text: impl AsRef<str>) {
    err(format!("{}\n", text.as_ref()));
}

/// Writes a warning to stderr.
pub(crate) fn warn(text: impl AsRef<str>) {
    err_line(format!("WARNING: {}", text.as_ref()));
}

/// Asks a question of which the answer is no unless it is `y`.
pub(crate) fn confirm(question: &str) -> bool {
    out(format!("{question} [y/N] "));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.is_ok() && answer.trim().eq_ignore_ascii_case("y")
}

/// Writes an error as stock does, the places it points at first and what to do last.
pub(crate) fn error(error: &diag::Error) {
    for location in error.locations() {
        err(location.excerpt());
    }
    err_line(format!("ERROR: {error}"));
    for hint in error.hints() {
        err_line(format!("hint: {hint}"));
    }
}
