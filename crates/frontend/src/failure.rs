//! Errors in stock's words.
//!
//! They carry the code `Unknown`, because clients print any other code in front of the text.

use diag::{Code, Error};

/// An error with exactly that text.
pub(crate) fn fail(message: impl Into<String>) -> Error {
    Error::new(Code::Unknown, message)
}

/// The error with its text run through `change`; everything else stays.
pub(crate) fn reworded(error: &Error, change: impl FnOnce(String) -> String) -> Error {
    let mut out = Error::new(error.code(), change(error.to_string()));
    for hint in error.hints() {
        out = out.hint(hint);
    }
    for location in error.locations() {
        out = out.at(location.clone());
    }
    if let Some(vertex) = error.failed_vertex() {
        out = out.vertex(vertex);
    }
    if let Some(code) = error.process_exit_code() {
        out = out.exit_code(code);
    }
    out
}
