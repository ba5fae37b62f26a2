//! Why a process could not be run, or was ended from outside.

use diag::Code;

/// What can go wrong with running a process. A process that ran and exited with any code by itself
/// is no error, see [`crate::ExitStatus`].
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// No program of that name in `PATH`.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotFoundInPath(String),
    /// The program was named by a path where nothing is.
    #[error("exec: {0:?}: stat {0}: no such file or directory")]
    NoSuchFile(String),
    /// What was named is no program.
    #[error("exec: {program:?}: {reason}")]
    NotExecutable {
        /// What was to be executed.
        program: String,
        /// Such as `permission denied` or `is a directory`.
        reason: String,
    },
    /// The kernel does not know the format: mostly a program of another architecture.
    #[error("exec {program}: exec format error")]
    ExecFormat {
        /// What was to be executed.
        program: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// `execve` failed otherwise; a missing interpreter reads as `no such file or directory`.
    #[error("exec {program}: {reason}")]
    Exec {
        /// What was to be executed.
        program: String,
        /// The system's text for why.
        reason: String,
    },
    /// The kernel killed processes of the step because memory ran out.
    #[error("{}", oom_text(*.limit, *.reserved, *.peak))]
    OutOfMemory {
        /// The limit in bytes that held for it and the server together, if any did.
        limit: Option<u64>,
        /// What of that is kept for the server, in bytes.
        reserved: u64,
        /// The most it used in bytes.
        peak: Option<u64>,
        /// The exit code it had.
        exit_code: i32,
    },
    /// It was cancelled, and has been killed.
    #[error("context canceled")]
    Canceled,
    /// The specification cannot be carried out.
    #[error("{0}")]
    InvalidSpec(String),
    /// A step of making the process's surroundings failed.
    #[error("{what}: {reason}")]
    Setup {
        /// What was being done, such as ``mounting `/proc` ``.
        what: String,
        /// Why it failed.
        reason: String,
    },
    /// The supervising process ended without a report.
    #[error("the step's supervisor ended without a report ({0})")]
    SupervisorLost(String),
    /// The server could not start the supervisor.
    #[error("cannot start the step's supervisor: {0}")]
    Spawn(#[source] std::io::Error),
}

impl ExecError {
    /// The exit code that stock reports for a process that ended, or never started, this way.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            ExecError::NotFoundInPath(_)
            | ExecError::NoSuchFile(_)
            | ExecError::NotExecutable { .. }
            | ExecError::Setup { .. }
            | ExecError::InvalidSpec(_) => Some(1),
            ExecError::ExecFormat { .. } | ExecError::Exec { .. } => Some(255),
            ExecError::OutOfMemory { exit_code, .. } => Some(*exit_code),
            ExecError::Canceled | ExecError::SupervisorLost(_) | ExecError::Spawn(_) => None,
        }
    }
}

impl From<ExecError> for diag::Error {
    fn from(error: ExecError) -> Self {
        let code = match &error {
            ExecError::NotFoundInPath(_) | ExecError::NoSuchFile(_) => Code::NotFound,
            ExecError::NotExecutable { .. } | ExecError::InvalidSpec(_) => Code::InvalidArgument,
            ExecError::ExecFormat { .. } => Code::FailedPrecondition,
            ExecError::OutOfMemory { .. } => Code::ResourceExhausted,
            ExecError::Canceled => return diag::Error::canceled(),
            ExecError::Exec { .. } | ExecError::Setup { .. } => Code::Unknown,
            ExecError::SupervisorLost(_) | ExecError::Spawn(_) => Code::Internal,
        };
        let mut out = diag::Error::new(code, error.to_string());
        if let Some(exit_code) = error.exit_code() {
            out = out.exit_code(exit_code);
        }
        match error {
            ExecError::ExecFormat { hint: Some(hint), .. } => out.hint(hint),
            ExecError::OutOfMemory { limit: Some(_), .. } => out.hint(
                "all steps that run at a time share this limit: give the builder more memory (for a container: `--driver-opt memory=SIZE` at `create`), or have less run at a time",
            ),
            _ => out,
        }
    }
}

fn oom_text(limit: Option<u64>, reserved: u64, peak: Option<u64>) -> String {
    let mut text = "cannot allocate memory: the step was killed because memory ran out".to_owned();
    let mut facts = Vec::new();
    match limit {
        Some(limit) if reserved > 0 => facts.push(format!(
            "the builder's limit is {}, {} of it are kept for the build server",
            size_text(limit),
            size_text(reserved)
        )),
        Some(limit) => facts.push(format!("limit {}", size_text(limit))),
        None => {}
    }
    if let Some(peak) = peak {
        facts.push(format!("the step's peak was {}", size_text(peak)));
    }
    if !facts.is_empty() {
        text.push_str(&format!(" ({})", facts.join("; ")));
    }
    text
}

/// A size in MiB, as limits are mostly given, with a decimal where it has one; small ones in bytes.
fn size_text(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    let tenths = (bytes as f64 * 10.0 / MIB as f64).round() as u64;
    match (tenths / 10, tenths % 10) {
        (0, _) => format!("{bytes} bytes"),
        (whole, 0) => format!("{whole} MiB"),
        (whole, tenth) => format!("{whole}.{tenth} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_stock_runc_words_them() {
        assert_eq!(
            ExecError::NotFoundInPath("foo".into()).to_string(),
            "exec: \"foo\": executable file not found in $PATH"
        );
        assert_eq!(
            ExecError::NoSuchFile("/bin/sh".into()).to_string(),
            "exec: \"/bin/sh\": stat /bin/sh: no such file or directory"
        );
    }

    #[test]
    fn running_out_of_memory_names_limit_and_peak() {
        let error: diag::Error = ExecError::OutOfMemory {
            limit: Some(300 << 20),
            reserved: (300 << 20) / 8,
            peak: Some((262 << 20) + 1),
            exit_code: 137,
        }
        .into();
        let text = error.to_string();
        assert!(
            text.ends_with(
                "(the builder's limit is 300 MiB, 37.5 MiB of it are kept for the build server; \
                 the step's peak was 262 MiB)"
            ),
            "{text}"
        );
        assert_eq!(error.process_exit_code(), Some(137));
        assert_eq!(error.code(), Code::ResourceExhausted);
    }
}
