//! The commands; one file each.

pub(crate) mod build;
pub(crate) mod create;
pub(crate) mod dial_stdio;
pub(crate) mod du;
pub(crate) mod inspect;
pub(crate) mod ls;
mod orphans;
pub(crate) mod prune;
mod prune_filter;
pub(crate) mod rm;
pub(crate) mod stop;
pub(crate) mod use_builder;
pub(crate) mod version;

use std::time::Duration;

use builder::Builder;
use clap::Subcommand;

use crate::app::App;
use crate::format::parse_duration;
use crate::printer;
use crate::runtime::unless_cancelled;

/// A command with its flags.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a build
    #[command(visible_alias = "b", override_usage = "build [OPTIONS] PATH | URL | -")]
    Build(build::BuildArgs),
    /// Create a new builder instance
    Create(create::CreateArgs),
    /// Proxy current stdio streams to builder instance
    DialStdio(dial_stdio::DialStdioArgs),
    /// Disk usage
    Du(du::DuArgs),
    /// Inspect current builder instance
    Inspect(inspect::InspectArgs),
    /// List builder instances
    Ls(ls::LsArgs),
    /// Remove build cache
    Prune(prune::PruneArgs),
    /// Remove one or more builder instances
    Rm(rm::RmArgs),
    /// Stop builder instance
    Stop(stop::StopArgs),
    /// Set the current builder instance
    Use(use_builder::UseArgs),
    /// Show buildx version information
    Version(version::VersionArgs),
}

/// How many arguments a command takes.
enum Count {
    None,
    One,
    AtMostOne,
    Any,
}

impl Command {
    /// What is wrong with the number of arguments, in the known words.
    pub(crate) fn count_problem(&self) -> Option<&'static str> {
        let (count, given) = match self {
            Command::Build(args) => (Count::One, args.contexts.len()),
            Command::Create(args) => (Count::AtMostOne, args.endpoint.len()),
            Command::DialStdio(args) => (Count::None, args.arguments.len()),
            Command::Du(args) => (Count::None, args.arguments.len()),
            Command::Inspect(args) => (Count::AtMostOne, args.name.len()),
            Command::Ls(args) => (Count::None, args.arguments.len()),
            Command::Prune(args) => (Count::None, args.arguments.len()),
            Command::Rm(args) => (Count::Any, args.names.len()),
            Command::Stop(args) => (Count::AtMostOne, args.name.len()),
            Command::Use(args) => (Count::AtMostOne, args.name.len()),
            Command::Version(args) => (Count::None, args.arguments.len()),
        };
        match count {
            Count::One if given != 1 => Some("requires 1 argument"),
            Count::None if given > 0 => Some("accepts no arguments"),
            Count::AtMostOne if given > 1 => Some("requires at most 1 argument"),
            _ => None,
        }
    }
}

/// Runs a command; the result is the exit code.
pub(crate) async fn run(app: App, command: Command) -> Result<i32, diag::Error> {
    if let Command::Build(args) = &command {
        // It ends by itself when it is asked to, and tells the server.
        return build::run(&app, args).await;
    }
    let cancel = app.cancel.clone();
    let work = async {
        match command {
            Command::Build(_) => Ok(()),
            Command::Create(args) => create::run(&app, &args).await,
            Command::DialStdio(args) => dial_stdio::run(&app, &args).await,
            Command::Du(args) => du::run(&app, &args).await,
            Command::Inspect(args) => inspect::run(&app, &args).await,
            Command::Ls(args) => ls::run(&app, &args).await,
            Command::Prune(args) => prune::run(&app, &args).await,
            Command::Rm(args) => rm::run(&app, &args).await,
            Command::Stop(args) => stop::run(&app, &args).await,
            Command::Use(args) => use_builder::run(&app, &args),
            Command::Version(_) => {
                version::run();
                Ok(())
            }
        }
    };
    unless_cancelled(&cancel, work).await.map(|()| 0)
}

/// Says on stderr when a builder whose nodes are loaded is not what its name stands for.
fn tell_stand_in(builder: &Builder) {
    if let Some(notice) = builder.stand_in() {
        printer::err_line(notice);
    }
}

/// `--timeout`.
pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    parse_duration(text)
}
