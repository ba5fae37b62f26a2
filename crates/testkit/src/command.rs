//! Running a command-line tool in a hermetic environment, and making its output comparable.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;

/// A tool with the environment it is run in: nothing but `PATH`, `HOME` and what is set here.
#[derive(Clone, Debug)]
pub struct Tool {
    program: PathBuf,
    first_args: Vec<String>,
    directory: PathBuf,
    environment: Vec<(String, String)>,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Tool {
    /// A program whose home is `home`.
    pub fn new(program: impl Into<PathBuf>, home: &Path) -> Tool {
        let path = std::env::var("PATH").unwrap_or_default();
        Tool {
            program: program.into(),
            first_args: Vec::new(),
            directory: home.to_owned(),
            environment: vec![
                ("PATH".into(), format!("{path}:/usr/sbin:/sbin")),
                ("HOME".into(), home.display().to_string()),
                ("TZ".into(), "UTC".into()),
            ],
        }
    }

    /// The same with an argument before all others.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Tool {
        self.first_args.push(arg.to_owned());
        self
    }

    /// The same with a variable set.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Tool {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// The same, run in that directory.
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Tool {
        self.directory = directory.to_owned();
        self
    }

    /// The command, not yet run.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.first_args)
            .args(args)
            .current_dir(&self.directory)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs it to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        let output = self
            .command(args)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs it and panics with its output if it fails.
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        let output = self.run(args);
        let shown: Vec<_> = args
            .iter()
            .map(|arg| arg.as_ref().to_string_lossy())
            .collect();
        assert_eq!(
            output.code, 0,
            "{shown:?}\n{}\n{}",
            output.stdout, output.stderr
        );
        output
    }

    /// Runs it and panics with its output if it succeeds.
    pub fn fails<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        let output = self.run(args);
        let shown: Vec<_> = args
            .iter()
            .map(|arg| arg.as_ref().to_string_lossy())
            .collect();
        assert_ne!(
            output.code, 0,
            "{shown:?}\n{}\n{}",
            output.stdout, output.stderr
        );
        output
    }
}

/// A program of the test kit, which lies beside the running test or in the folder above.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test's own path");
    test.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("no `{name}` beside the tests: `cargo build -p testkit`"))
}

/// The text with what differs from run to run replaced: times, digests, sizes, versions.
pub fn normalized(text: &str) -> String {
    let rules = [
        (r"sha256:[0-9a-f]{64}", "sha256:DIGEST"),
        (r"\b[0-9a-f]{64}\b", "DIGEST"),
        (r"\b\d+\.\d+s\b", "TIMEs"),
        (r"(?m)^(#\d+) \d+\.\d+ ", "$1 TIME "),
        (r"\b\d+(\.\d+)?[kMG]?i?B\b", "SIZE"),
    ];
    let mut text = text.replace('\r', "");
    for (pattern, replacement) in rules {
        let pattern = Regex::new(pattern).expect("a valid pattern");
        text = pattern.replace_all(&text, replacement).into_owned();
    }
    text
}
