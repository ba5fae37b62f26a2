//! `prune`.

use std::time::Duration;

use builder::{LoadOptions, list_builders};
use clap::Args;
use driver::{Connection, parse_size};
use futures::future::{join_all, try_join_all};
use proto::control::control_client::ControlClient;
use proto::control::{InfoRequest, PruneRequest, UsageRecord};
use tokio::sync::mpsc;

use super::du::{connect_all, last_used};
use super::orphans::find_orphans;
use super::prune_filter::{RecordFilter, filter};
use super::timeout;
use crate::app::App;
use crate::format::{RecordWords, TabWriter, decimal_size, write_details};
use crate::printer;

const DANGLING_WARNING: &str =
    "WARNING! This will remove all dangling build cache. Are you sure you want to continue?";
const ALL_WARNING: &str =
    "WARNING! This will remove all build cache. Are you sure you want to continue?";
const ORPHANS_WARNING: &str = "WARNING! This will remove all containers and volumes of builders \
                               that no longer exist. Are you sure you want to continue?";

/// Flags of `prune`.
#[derive(Debug, Args)]
#[command(override_usage = "prune")]
pub(crate) struct PruneArgs {
    /// Include internal/frontend images
    #[arg(short, long)]
    all: bool,
    /// Provide filter values
    #[arg(long, value_name = "filter", value_parser = filter)]
    filter: Vec<String>,
    /// Amount of disk space always allowed to keep for cache
    #[arg(long, value_name = "bytes", default_value = "0", hide_default_value = true, value_parser = parse_size)]
    reserved_space: i64,
    /// Target amount of free disk space after pruning
    #[arg(long, value_name = "bytes", default_value = "0", hide_default_value = true, value_parser = parse_size)]
    min_free_space: i64,
    /// Maximum amount of disk space allowed to keep for cache
    #[arg(long, value_name = "bytes", default_value = "0", hide_default_value = true, value_parser = parse_size)]
    max_used_space: i64,
    /// Amount of disk space to keep for cache
    #[arg(long, value_name = "bytes", hide = true, value_parser = parse_size)]
    keep_storage: Option<i64>,
    /// Remove containers and volumes of builders that no longer exist
    #[arg(long)]
    orphans: bool,
    /// Provide a more verbose output
    #[arg(long)]
    verbose: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Override the default timeout for loading builder status
    #[arg(long, value_name = "duration", default_value = "20s", value_parser = timeout)]
    timeout: Duration,
    #[arg(hide = true)]
    pub(crate) arguments: Vec<String>,
}

/// Removes caches of a builder; one that does not run is booted.
pub(crate) async fn run(app: &App, args: &PruneArgs) -> Result<(), diag::Error> {
    if args.keep_storage.is_some() {
        printer::err_line(
            "Flag --keep-storage has been deprecated, keep-storage flag has been changed to reserved-space",
        );
    }
    let filter = RecordFilter::parse(&args.filter)?;
    let warning = match (args.orphans, args.all) {
        (true, _) => ORPHANS_WARNING,
        (false, true) => ALL_WARNING,
        (false, false) => DANGLING_WARNING,
    };
    if !args.force {
        let agreed = tokio::task::spawn_blocking(move || printer::confirm(warning)).await;
        if !agreed.unwrap_or(false) {
            return Ok(());
        }
    }
    if args.orphans {
        return remove_orphans(app, args.timeout).await;
    }
    let mut builder = app.load_builder()?;
    let connections = connect_all(&mut builder, args.timeout).await?;
    if args.max_used_space != 0 || args.min_free_space != 0 {
        try_join_all(connections.iter().map(check_version)).await?;
    }
    let (sender, mut receiver) = mpsc::channel::<UsageRecord>(64);
    let request = PruneRequest {
        filter: filter.filters,
        all: args.all,
        keep_duration: filter.unused_for.as_nanos() as i64,
        reserved_space: args.keep_storage.unwrap_or(args.reserved_space),
        max_used_space: args.max_used_space,
        min_free_space: args.min_free_space,
    };
    let pruning: Vec<_> = connections
        .iter()
        .map(|connection| prune_one(connection, request.clone(), sender.clone()))
        .collect();
    drop(sender);
    let pruning = try_join_all(pruning);
    let printing = async {
        let mut total = 0;
        let mut first = true;
        while let Some(record) = receiver.recv().await {
            total += record.size;
            printer::out(if args.verbose {
                details(&record)
            } else {
                row(&record, std::mem::take(&mut first))
            });
        }
        total
    };
    let (pruned, total) = tokio::join!(pruning, printing);
    pruned?;
    let mut writer = TabWriter::tabbed();
    writer.line(format!("Total:\t{}", decimal_size(total)));
    printer::out(writer.finish());
    Ok(())
}

async fn prune_one(
    connection: &Connection,
    request: PruneRequest,
    sender: mpsc::Sender<UsageRecord>,
) -> Result<(), diag::Error> {
    let failed = |status: tonic::Status| connection.call_error(&status, "failed to call prune");
    let mut records = ControlClient::new(connection.channel.clone())
        .prune(request)
        .await
        .map_err(failed)?
        .into_inner();
    while let Some(record) = records.message().await.map_err(failed)? {
        if sender.send(record).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// A server older than 0.17 would ignore the new limits and remove everything.
async fn check_version(connection: &Connection) -> Result<(), diag::Error> {
    let too_old = || {
        diag::Error::new(
            diag::Code::FailedPrecondition,
            "buildkit v0.17.0+ is required for max-used-space and min-free-space filters",
        )
    };
    let answer = ControlClient::new(connection.channel.clone())
        .info(InfoRequest {})
        .await;
    let version = match answer {
        Ok(answer) => answer.into_inner().buildkit_version.unwrap_or_default(),
        Err(status) if status.code() == tonic::Code::Unimplemented => return Err(too_old()),
        Err(status) => return Err(connection.call_error(&status, "asking for the version")),
    };
    if version.package != "github.com/moby/buildkit" {
        return Ok(());
    }
    let mut numbers = version
        .version
        .trim_start_matches('v')
        .split(['.', '-', '+'])
        .map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(0), Some(minor)) if minor < 17 => Err(too_old()),
        _ => Ok(()),
    }
}

fn row(record: &UsageRecord, with_header: bool) -> String {
    let star = |shown: bool| if shown { "*" } else { "" };
    let mut writer = TabWriter::tabbed();
    if with_header {
        writer.line("ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED");
    }
    let id = format!("{}{}", record.id, star(record.mutable));
    let size = format!("{}{}", decimal_size(record.size), star(record.shared));
    writer.line(format!(
        "{id:<40}\t{:<5}\t{size:<10}\t{}",
        !record.in_use,
        last_used(record)
    ));
    writer.finish()
}

/// How Buildx words the details of a record.
const WORDS: RecordWords = RecordWords {
    parents: "Parent",
    between_parents: ",",
    size: decimal_size,
    last_used,
};

fn details(record: &UsageRecord) -> String {
    let mut writer = TabWriter::tabbed();
    write_details(&mut writer, record, &WORDS);
    writer.finish()
}

async fn remove_orphans(app: &App, timeout: Duration) -> Result<(), diag::Error> {
    let mut builders = list_builders(&app.docker)?;
    let options = LoadOptions::with_status(timeout);
    join_all(builders.iter_mut().map(|builder| async move {
        let _ = builder.load_nodes(options).await;
    }))
    .await;
    let mut failure = None;
    for found in find_orphans(&app.docker, &builders).await {
        let kind = found.orphan.kind();
        let name = &found.orphan.name;
        match found.orphan.remove(&found.engine).await {
            Ok(()) => printer::out_line(format!("{kind} {name}")),
            Err(error) => {
                let error = diag::Error::from(error).context(format!("removing {kind} {name}"));
                failure = Some(failure.unwrap_or(error));
            }
        }
    }
    failure.map_or(Ok(()), Err)
}
