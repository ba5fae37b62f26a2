//! The end of a failed command: what is printed, and the exit code.

use diag::{Code, Error};

/// What is printed of an error: the places in sources it points at, `ERROR: ` and its text, and what
/// the user can do.
pub fn error_report(error: &Error) -> String {
    let mut text = String::new();
    for location in error.locations() {
        text += &location.excerpt();
    }
    text += &format!("ERROR: {error}\n");
    for hint in error.hints() {
        text += &format!("hint: {hint}\n");
    }
    text
}

/// The exit code of a command that ended with an error: 130 when it was cancelled, 100 for a
/// server's own fault, 102 when something was used up, else 1.
pub fn exit_code(error: &Error) -> u8 {
    match error.code() {
        Code::Internal => 100,
        Code::ResourceExhausted => 102,
        Code::Canceled => 130,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_is_reported_with_its_line() {
        let status = crate::status_error::tests::failed_run();
        let error = crate::status_error::from_status(&status)
            .context("failed to solve")
            .context("failed to build");
        assert_eq!(
            error_report(&error),
            "\
Dockerfile:3
--------------------
   1 |     FROM busybox
   2 |     RUN true
   3 | >>> RUN exit 7
   4 |     \n--------------------
ERROR: failed to build: failed to solve: process \"/bin/sh -c exit 7\" did not complete successfully: exit code: 7
"
        );
        assert_eq!(exit_code(&error), 1);
        assert_eq!(exit_code(&Error::canceled()), 130);
    }
}
