//! `buildctl`: what a driver and an operator need of it.

mod auth_tls;
mod build;
mod content;
mod dial_stdio;
mod dump_llb;
mod histories;
mod records;
mod taps;
mod workers;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use builder::{Docker, DockerOptions};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use driver::engine::Engine;
use driver::{Connection, NodeConfig, ProxySettings};

use crate::arguments::{find, prepare};
use crate::format::Template;
use crate::{printer, runtime};

/// The server's socket when nothing says otherwise.
const DEFAULT_ADDRESS: &str = "unix:///run/buildkit/buildkitd.sock";

#[derive(Debug, Parser)]
#[command(name = "buildctl", about = "build utility")]
struct Root {
    /// enable debug output in logs
    #[arg(long)]
    debug: bool,
    /// buildkitd address
    #[arg(long, value_name = "string", env = "BUILDKIT_HOST", default_value = DEFAULT_ADDRESS)]
    addr: String,
    /// log formatter: json or text
    #[arg(long, value_name = "string", default_value = "text")]
    log_format: String,
    /// buildkitd server name for certificate validation
    #[arg(long, value_name = "string")]
    tlsservername: Option<String>,
    /// CA certificate for validation
    #[arg(long, value_name = "string")]
    tlscacert: Option<PathBuf>,
    /// client certificate
    #[arg(long, value_name = "string")]
    tlscert: Option<PathBuf>,
    /// client key
    #[arg(long, value_name = "string")]
    tlskey: Option<PathBuf>,
    /// directory containing CA certificate, client certificate, and client key
    #[arg(long, value_name = "string")]
    tlsdir: Option<PathBuf>,
    /// timeout backend connection after value seconds
    #[arg(long, value_name = "int", default_value = "5")]
    timeout: u64,
    /// block RPCs until the connection becomes available
    #[arg(long)]
    wait: bool,
    /// print the version
    #[arg(short = 'v', long)]
    version: bool,
    /// show help
    #[arg(short = 'h', long, global = true)]
    help: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// build
    #[command(alias = "b")]
    Build(build::BuildArgs),
    /// disk usage
    Du(records::DuArgs),
    /// clean up build cache
    Prune(records::PruneArgs),
    /// clean up build histories
    PruneHistories(histories::HistoriesArgs),
    /// debug utilities
    Debug(DebugArgs),
    /// Shows a list of commands or help for one command
    #[command(alias = "h")]
    Help {
        /// The command
        #[arg(value_name = "command")]
        words: Vec<String>,
    },
    /// Proxy the stdio stream to the daemon connection
    #[command(hide = true)]
    DialStdio,
}

#[derive(Debug, clap::Args)]
struct DebugArgs {
    #[command(subcommand)]
    command: Option<DebugCommand>,
}

#[derive(Debug, Subcommand)]
enum DebugCommand {
    /// dump LLB in human-readable format. LLB can be also passed via stdin. This command does not require the daemon to be running.
    DumpLlb(dump_llb::DumpArgs),
    /// not supported: the records of this server are no BoltDB files
    #[command(hide = true)]
    DumpMetadata {
        /// path to state directory
        #[arg(long, value_name = "string")]
        root: Option<PathBuf>,
    },
    /// list workers
    Workers(workers::WorkersArgs),
    /// display internal information
    Info(workers::InfoArgs),
    /// display build events
    Monitor(histories::MonitorArgs),
    /// display build logs
    Logs(content::LogsArgs),
    /// control build records
    Ctl(histories::CtlArgs),
    /// retrieve a blob from contentstore
    Get(content::GetArgs),
    /// list build records
    Histories(histories::HistoriesArgs),
}

/// Runs `buildctl`; the result is the exit code.
pub(crate) fn run(arguments: Vec<OsString>) -> i32 {
    let mut command = prepare(Root::command());
    let words: Vec<String> = arguments
        .iter()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let parsed = command
        .try_get_matches_from_mut(arguments)
        .and_then(|matches| Root::from_arg_matches(&matches));
    let root = match parsed {
        Ok(root) => root,
        Err(error) => {
            let (text, code) = usage(&error);
            printer::err_line(text);
            return code;
        }
    };
    if root.version {
        let revision = option_env!("COOPERAGE_REVISION").unwrap_or("unknown");
        let version = env!("CARGO_PKG_VERSION");
        printer::out_line(format!("buildctl cooperage v{version} {revision}"));
        return 0;
    }
    let topic = match &root.command {
        Some(Command::Help { words }) => Some(words),
        None | Some(Command::Debug(DebugArgs { command: None })) => Some(&words),
        _ => root.help.then_some(&words),
    };
    if let Some(words) = topic {
        printer::out(help(&command, words));
        return 0;
    }
    match check(&root).and_then(|()| execute(root)) {
        Ok(()) => 0,
        Err(error) => {
            for location in error.locations() {
                printer::err(location.excerpt());
            }
            printer::err_line(format!("error: {error}"));
            1
        }
    }
}

/// A `--format`: a template, or the word `json`.
fn template(format: &str) -> Result<Template, diag::Error> {
    let text = match format {
        "json" => "{{json .}}",
        text => text,
    };
    Ok(Template::parse(text)?)
}

/// The help of the command that words name.
fn help(root: &clap::Command, words: &[String]) -> String {
    let path = find(root, words);
    let names: Vec<&str> = path.iter().map(|command| command.get_name()).collect();
    let found = path.last().copied().unwrap_or(root).clone();
    found.bin_name(names.join(" ")).render_help().to_string()
}

/// What is wrong with arguments, in the words of the flags library stock uses, and the exit code.
fn usage(error: &clap::Error) -> (String, i32) {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let argument = context(ContextKind::InvalidArg);
    // The parser names a flag with its value: `--timeout <int>`.
    let flag = argument.split([' ', '=']).next().unwrap_or_default();
    let flag = format!("-{}", flag.trim_start_matches('-'));
    let text = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand);
            return (format!("No help topic for '{name}'"), 3);
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            format!("flag provided but not defined: {flag}")
        }
        ErrorKind::UnknownArgument => format!("unexpected argument {argument:?}"),
        ErrorKind::InvalidValue if context(ContextKind::InvalidValue).is_empty() => {
            format!("flag needs an argument: {flag}")
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let value = context(ContextKind::InvalidValue);
            let reason = std::error::Error::source(error).map(ToString::to_string);
            let reason = reason.unwrap_or_default();
            format!("invalid value {value:?} for flag {flag}: {reason}")
        }
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.trim_start_matches("error: ").to_owned()
        }
    };
    (format!("error: {text}"), 1)
}

/// What flags say that contradict each other.
fn check(root: &Root) -> Result<(), diag::Error> {
    if !matches!(root.log_format.as_str(), "json" | "text" | "") {
        return Err(diag::Error::invalid(format!(
            "unsupported log type {:?}",
            root.log_format
        )));
    }
    let single = [&root.tlscacert, &root.tlscert, &root.tlskey];
    if root.tlsdir.is_some() && single.iter().any(|path| path.is_some()) {
        return Err(diag::Error::invalid(
            "cannot specify tlsdir and tlscacert/tlscert/tlskey at the same time",
        ));
    }
    Ok(())
}

fn execute(root: Root) -> Result<(), diag::Error> {
    match &root.command {
        Some(Command::DialStdio) => {
            return dial_stdio::run(&root.addr, Duration::from_secs(root.timeout));
        }
        Some(Command::Debug(DebugArgs {
            command: Some(DebugCommand::DumpLlb(args)),
        })) => return dump_llb::run(args),
        Some(Command::Debug(DebugArgs {
            command: Some(DebugCommand::DumpMetadata { .. }),
        })) => {
            return Err(diag::Error::unimplemented(
                "dump-metadata is not supported: the records of this server are SQLite databases, \
                 which `sqlite3 FILE .dump` shows",
            ));
        }
        _ => {}
    }
    runtime::block_on(|cancel| async move {
        if let Some(Command::Build(args)) = &root.command {
            let connection = runtime::unless_cancelled(&cancel, connect(&root)).await?;
            return build::run(&connection, args, &cancel).await;
        }
        runtime::unless_cancelled(&cancel, ask(&root)).await
    })
}

/// Carries out a command that asks the server something.
async fn ask(root: &Root) -> Result<(), diag::Error> {
    match &root.command {
        Some(Command::Du(args)) => records::du(&connect(root).await?, args).await,
        Some(Command::Prune(args)) => records::prune(&connect(root).await?, args).await,
        Some(Command::PruneHistories(args)) => histories::prune(&connect(root).await?, args).await,
        Some(Command::Debug(DebugArgs {
            command: Some(command),
        })) => debug(root, command).await,
        Some(Command::Debug(_) | Command::DialStdio | Command::Build(_) | Command::Help { .. })
        | None => Ok(()),
    }
}

async fn debug(root: &Root, command: &DebugCommand) -> Result<(), diag::Error> {
    match command {
        DebugCommand::Workers(args) => workers::workers(&connect(root).await?, args).await,
        DebugCommand::Info(args) => workers::info(&connect(root).await?, args).await,
        DebugCommand::Monitor(args) => histories::monitor(&connect(root).await?, args).await,
        DebugCommand::Logs(args) => {
            args.reference()?;
            content::logs(&connect(root).await?, args).await
        }
        DebugCommand::Ctl(args) => {
            let request = args.request()?;
            histories::update(&connect(root).await?, request).await
        }
        DebugCommand::Get(args) => {
            let digest = args.digest()?;
            content::get(&connect(root).await?, digest).await
        }
        DebugCommand::Histories(args) => histories::histories(&connect(root).await?, args).await,
        DebugCommand::DumpLlb(_) | DebugCommand::DumpMetadata { .. } => Ok(()),
    }
}

/// Connects to the server, through the same driver that `--driver remote` uses.
async fn connect(root: &Root) -> Result<Connection, diag::Error> {
    let mut options = std::collections::BTreeMap::new();
    let (mut ca, mut cert, mut key) = (
        root.tlscacert.clone(),
        root.tlscert.clone(),
        root.tlskey.clone(),
    );
    if let Some(dir) = &root.tlsdir {
        let first = |names: [&str; 2]| {
            let paths = names.map(|name| dir.join(name));
            let found = paths.into_iter().find(|path| path.exists());
            found.map(Some).ok_or_else(|| {
                diag::Error::not_found(format!(
                    "directory did not contain one of the needed files: {} or {}",
                    names[0], names[1]
                ))
            })
        };
        ca = first(["ca.pem", "ca.crt"])?;
        cert = first(["cert.pem", "tls.crt"])?;
        key = first(["key.pem", "tls.key"])?;
    }
    for (name, path) in [("cacert", ca), ("cert", cert), ("key", key)] {
        if let Some(path) = path {
            let path = std::path::absolute(path)?;
            options.insert(name.to_owned(), path.display().to_string());
        }
    }
    if let Some(name) = &root.tlsservername {
        options.insert("servername".to_owned(), name.clone());
    }
    let node = NodeConfig {
        builder: "buildctl".to_owned(),
        name: "buildctl".to_owned(),
        endpoint: root.addr.clone(),
        engine: container_engine(&root.addr)?,
        flags: Vec::new(),
        files: Default::default(),
        options,
        platforms: Vec::new(),
        auth: None,
        proxies: ProxySettings::default(),
        owner: String::new(),
        executable: PathBuf::new(),
    };
    let driver = driver::create("remote", node)?;
    let patience = Duration::from_secs(root.timeout.max(1));
    let dialing = async {
        loop {
            match driver::connect(Arc::clone(&driver)).await {
                Err(_) if root.wait => tokio::time::sleep(Duration::from_millis(100)).await,
                result => return result,
            }
        }
    };
    if root.wait {
        return Ok(dialing.await?);
    }
    match tokio::time::timeout(patience, dialing).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(diag::Error::new(
            diag::Code::DeadlineExceeded,
            format!("{} does not answer", root.addr),
        )),
    }
}

/// The Engine in which an address `docker-container://NAME[?context=CONTEXT]` names a container:
/// that of the context, or the current one.
fn container_engine(address: &str) -> Result<Option<Engine>, diag::Error> {
    let Some(name) = address.strip_prefix("docker-container://") else {
        return Ok(None);
    };
    let context = name
        .split_once('?')
        .into_iter()
        .flat_map(|(_, query)| query.split('&'))
        .find_map(|pair| pair.strip_prefix("context="));
    let docker = Docker::from_environment(&DockerOptions::default())?;
    Ok(Some(match context {
        Some(context) if docker.context(context).is_none() => {
            return Err(diag::Error::not_found(format!(
                "context {context:?} does not exist"
            )));
        }
        Some(context) => docker.engine(context, None)?,
        None => docker.current_engine()?,
    }))
}
