//! From `docker-buildx …` to a command: flags, dispatch, errors, exit codes.
//!
//! | exit code | when |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 100 | an internal error, ours or the server's |
//! | 102 | resources exhausted |
//! | 125 | wrong flags, as a plugin |
//! | 130 | cancelled |

use std::ffi::OsString;
use std::path::Path;

use builder::{Builder, Docker, DockerOptions};
use clap::{CommandFactory, FromArgMatches, Parser};
use diag::Code;
use tokio_util::sync::CancellationToken;

use crate::arguments::{UsageError, explain, find, plain_booleans, prepare};
use crate::commands::Command;
use crate::plugin::{METADATA, ORIGINAL_COMMAND, global_flags, metadata};
use crate::{commands, help, printer, runtime};

/// What stands on every command line.
#[derive(Debug, Parser)]
#[command(
    about = "Docker Buildx",
    long_about = "Extended build capabilities with BuildKit"
)]
pub(crate) struct Root {
    /// Override the configured builder instance
    #[arg(long, global = true, value_name = "string")]
    builder: Option<String>,
    /// Enable debug logging
    #[arg(short = 'D', long, global = true)]
    debug: bool,
    /// Print usage
    #[arg(short = 'h', long, global = true, hide = true)]
    help: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What every command gets.
#[derive(Clone)]
pub(crate) struct App {
    /// Docker's configuration and the records of builders.
    pub(crate) docker: Docker,
    /// `--builder` or `BUILDX_BUILDER`.
    pub(crate) builder: Option<String>,
    /// `--debug`.
    pub(crate) debug: bool,
    /// Asks the command to end.
    pub(crate) cancel: CancellationToken,
}

impl App {
    /// The name a command is about: its argument, else `--builder`.
    pub(crate) fn builder_name<'a>(&'a self, argument: Option<&'a String>) -> Option<&'a str> {
        argument
            .map(String::as_str)
            .or(self.builder.as_deref())
            .filter(|name| !name.is_empty())
    }

    /// The builder that commands on caches and builds work with.
    pub(crate) fn load_builder(&self) -> Result<Builder, diag::Error> {
        let builder = Builder::load(&self.docker, self.builder.as_deref())?;
        builder.validate()?;
        Ok(builder)
    }
}

/// How we were called.
struct Call {
    /// What users type before a command: `docker buildx`, or the program's name.
    program: String,
    /// The first word of error messages about arguments.
    binary: String,
    is_plugin: bool,
    docker: DockerOptions,
    debug: bool,
    arguments: Vec<String>,
}

/// Runs a command; the result is the exit code.
pub(crate) fn run(arguments: &[OsString]) -> i32 {
    let arguments: Vec<String> = arguments
        .iter()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    if arguments.get(1).is_some_and(|word| word == METADATA) {
        printer::out(metadata());
        return 0;
    }
    let call = match Call::new(&arguments) {
        Ok(call) => call,
        Err(text) => {
            printer::err_line(text);
            return 125;
        }
    };
    let root = prepare(Root::command().name("buildx"));
    match parse(&root, &call.arguments) {
        Ok(parsed) => execute(&root, &call, parsed),
        Err(error) => refuse(&root, &call, &error),
    }
}

impl Call {
    fn new(arguments: &[String]) -> Result<Self, String> {
        let name = arguments.first().map_or("cooperage", String::as_str);
        let name = Path::new(name).file_name().map_or_else(
            || name.to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        let rest = arguments.get(1..).unwrap_or_default();
        if std::env::var_os(ORIGINAL_COMMAND).is_none_or(|value| value.is_empty()) {
            return Ok(Call {
                program: name.clone(),
                binary: name,
                is_plugin: false,
                docker: DockerOptions::default(),
                debug: false,
                arguments: rest.to_vec(),
            });
        }
        let flags = global_flags(rest)?;
        let mut arguments = flags.rest;
        // Docker names the plugin, or the command that is an alias of it.
        if arguments
            .first()
            .is_some_and(|word| word == "buildx" || word == "builder")
        {
            arguments.remove(0);
        }
        Ok(Call {
            program: "docker buildx".to_owned(),
            binary: "docker".to_owned(),
            is_plugin: true,
            docker: flags.docker,
            debug: flags.debug,
            arguments,
        })
    }
}

fn parse(root: &clap::Command, arguments: &[String]) -> Result<Root, UsageError> {
    let arguments = plain_booleans(root, arguments)?;
    let words = std::iter::once("buildx".to_owned()).chain(arguments);
    let matches = root
        .clone()
        .try_get_matches_from(words)
        .map_err(|error| explain(&error))?;
    Root::from_arg_matches(&matches).map_err(|error| explain(&error))
}

fn execute(root: &clap::Command, call: &Call, parsed: Root) -> i32 {
    let path = find(root, &call.arguments);
    let (false, Some(command)) = (parsed.help, parsed.command) else {
        printer::out(help::page(&call.program, &path, terminal_width()));
        return 0;
    };
    if let Some(problem) = command.count_problem() {
        let owner = help::command_path(&call.program, &path);
        let usage = help::usage_line(&call.program, &path);
        return fail(&diag::Error::invalid(format!(
            "{}: '{owner}' {problem}\n\nUsage:  {usage}\n\nRun '{owner} --help' for more information",
            call.binary
        )));
    }
    let debug = parsed.debug
        || call.debug
        || std::env::var_os("DEBUG").is_some_and(|value| !value.is_empty());
    start_logging(debug);
    // A question about ourselves needs no configuration and no runtime.
    if let Command::Version(_) = command {
        commands::version::run();
        return 0;
    }
    let given = parsed
        .builder
        .or_else(|| std::env::var("BUILDX_BUILDER").ok());
    let result = Docker::from_environment(&call.docker).and_then(|docker| {
        if let Some(warning) = docker.warning() {
            printer::warn(warning);
        }
        runtime::block_on(|cancel| async move {
            let app = App {
                docker,
                builder: given.filter(|name| !name.is_empty()),
                debug,
                cancel,
            };
            commands::run(app, command).await
        })
    });
    match result {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

/// Prints an error and gives its exit code.
fn fail(error: &diag::Error) -> i32 {
    printer::error(error);
    match error.code() {
        Code::Internal => 100,
        Code::ResourceExhausted => 102,
        Code::Canceled => 130,
        _ => 1,
    }
}

/// Answers arguments that cannot be used.
fn refuse(root: &clap::Command, call: &Call, error: &UsageError) -> i32 {
    let path = find(root, &call.arguments);
    let owner = help::command_path(&call.program, &path);
    let usage = help::usage_line(&call.program, &path);
    let more = format!("Usage:  {usage}\n\nRun '{owner} --help' for more information");
    match error {
        UsageError::UnknownCommand(name) => {
            printer::out(help::page(&call.program, &path, terminal_width()));
            printer::err_line(format!("ERROR: unknown command: {name:?}"));
            1
        }
        UsageError::Flag(text) if call.is_plugin => {
            printer::err_line(format!("{text}\n\n{more}"));
            125
        }
        UsageError::Flag(text) => fail(&diag::Error::invalid(text)),
        UsageError::TooMany => fail(&diag::Error::invalid(format!(
            "{}: '{owner}' accepts no arguments\n\n{more}",
            call.binary
        ))),
    }
}

fn terminal_width() -> usize {
    rustix::termios::tcgetwinsize(rustix::stdio::stdout())
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|width| *width > 0)
        .unwrap_or(80)
}

/// Our own log goes to stderr; only with `--debug` is there much of it.
fn start_logging(debug: bool) {
    let level = if debug {
        tracing::Level::DEBUG
    } else {
        tracing::Level::WARN
    };
    // The libraries below us tell more than anybody wants to know.
    let filter = format!(
        "warn,cli={level},driver={level},builder={level},engine_api={level},client={level},session={level}"
    );
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Root, UsageError> {
        let root = prepare(Root::command().name("buildx"));
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        parse(&root, &words)
    }

    /// Such errors are answered with the usage, and as a plugin with exit code 125.
    #[test]
    fn values_that_a_flag_cannot_take_are_errors_of_the_flag() {
        let told = |words: &[&str]| match parsed(words) {
            Err(UsageError::Flag(text)) => text,
            other => panic!("{words:?}: {other:?}"),
        };
        for (words, text) in [
            (
                ["build", "--ulimit", "x"],
                "invalid argument \"x\" for \"--ulimit\" flag: invalid ulimit argument: x",
            ),
            (
                ["build", "--shm-size", "abc"],
                "invalid argument \"abc\" for \"--shm-size\" flag: invalid size: 'abc'",
            ),
            (
                ["du", "--filter", "x"],
                "invalid argument \"x\" for \"--filter\" flag: bad format of filter (expected name=value)",
            ),
            (
                ["prune", "--filter", "x"],
                "invalid argument \"x\" for \"--filter\" flag: bad format of filter (expected name=value)",
            ),
        ] {
            assert_eq!(told(&words), text);
        }
    }

    #[test]
    fn values_that_are_empty_are_taken() {
        for words in [
            ["build", "--iidfile", ""],
            ["build", "--metadata-file", ""],
            ["build", "--shm-size", ""],
            ["build", "--file", ""],
            ["create", "--config", ""],
            ["prune", "--filter", ""],
        ] {
            assert!(parsed(&words).is_ok(), "{words:?}");
        }
    }
}
