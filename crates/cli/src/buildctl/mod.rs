//! `buildctl`: what a driver and an operator need of it.

mod build;
mod dial_stdio;
mod records;
mod workers;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use builder::{Docker, DockerOptions};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use driver::engine::Engine;
use driver::{Connection, NodeConfig, ProxySettings};

use crate::arguments::prepare;
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
    /// debug utilities
    Debug(DebugArgs),
    /// Proxy the stdio stream to the daemon connection
    #[command(hide = true)]
    DialStdio,
}

#[derive(Debug, clap::Args)]
struct DebugArgs {
    #[command(subcommand)]
    command: DebugCommand,
}

#[derive(Debug, Subcommand)]
enum DebugCommand {
    /// list workers
    Workers(workers::WorkersArgs),
    /// display internal information
    Info(workers::InfoArgs),
}

/// Runs `buildctl`; the result is the exit code.
pub(crate) fn run(arguments: Vec<OsString>) -> i32 {
    let mut command = prepare(Root::command());
    let parsed = command
        .try_get_matches_from_mut(arguments)
        .and_then(|matches| Root::from_arg_matches(&matches));
    let root = match parsed {
        Ok(root) => root,
        Err(error) => {
            printer::err(error.to_string());
            return 1;
        }
    };
    if root.version {
        let revision = option_env!("COOPERAGE_REVISION").unwrap_or("unknown");
        let version = env!("CARGO_PKG_VERSION");
        printer::out_line(format!("buildctl cooperage v{version} {revision}"));
        return 0;
    }
    let (false, Some(_)) = (root.help, &root.command) else {
        printer::out(command.render_help().to_string());
        return 0;
    };
    match execute(root) {
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

fn execute(root: Root) -> Result<(), diag::Error> {
    if let Some(Command::DialStdio) = root.command {
        return dial_stdio::run(&root.addr, Duration::from_secs(root.timeout));
    }
    runtime::block_on(|cancel| async move {
        if let Some(Command::Build(args)) = &root.command {
            let connection = runtime::unless_cancelled(&cancel, connect(&root)).await?;
            return build::run(&connection, args, &cancel).await;
        }
        let work = async {
            let connection = connect(&root).await?;
            match root.command {
                Some(Command::Du(args)) => records::du(&connection, &args).await,
                Some(Command::Prune(args)) => records::prune(&connection, &args).await,
                Some(Command::Debug(args)) => match args.command {
                    DebugCommand::Workers(args) => workers::workers(&connection, &args).await,
                    DebugCommand::Info(args) => workers::info(&connection, &args).await,
                },
                Some(Command::DialStdio | Command::Build(_)) | None => Ok(()),
            }
        };
        runtime::unless_cancelled(&cancel, work).await
    })
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
            paths.into_iter().find(|path| path.exists())
        };
        ca = ca.or_else(|| first(["ca.pem", "ca.crt"]));
        cert = cert.or_else(|| first(["cert.pem", "tls.crt"]));
        key = key.or_else(|| first(["key.pem", "tls.key"]));
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
