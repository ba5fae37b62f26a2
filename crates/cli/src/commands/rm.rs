//! `rm`.

use std::time::Duration;

use builder::{Builder, LoadOptions, RemoveRequest, Removed, list_builders};
use clap::Args;
use futures::future::join_all;

use super::timeout;
use crate::app::App;
use crate::printer;

const INACTIVE_WARNING: &str = "WARNING! This will remove all builders that are not in running \
                                state. Are you sure you want to continue?";

/// Flags of `rm`.
#[derive(Debug, Args)]
#[command(override_usage = "rm [OPTIONS] [NAME...]")]
pub(crate) struct RmArgs {
    /// Keep BuildKit state
    #[arg(long)]
    keep_state: bool,
    /// Keep the BuildKit daemon running
    #[arg(long)]
    keep_daemon: bool,
    /// Remove all inactive builders
    #[arg(long)]
    all_inactive: bool,
    /// Wait for running builds to end
    #[arg(long)]
    drain: bool,
    /// Do not prompt for confirmation, end running builds, forget what cannot be reached
    #[arg(short, long)]
    force: bool,
    /// Override the default timeout for loading builder status
    #[arg(long, value_name = "duration", default_value = "20s", value_parser = timeout)]
    timeout: Duration,
    #[arg(hide = true)]
    pub(crate) names: Vec<String>,
}

impl RmArgs {
    fn request(&self) -> RemoveRequest {
        RemoveRequest {
            keep_state: self.keep_state,
            keep_daemon: self.keep_daemon,
            force: self.force,
            drain: self.drain,
        }
    }
}

/// Removes builders, all at once.
pub(crate) async fn run(app: &App, args: &RmArgs) -> Result<(), diag::Error> {
    if args.all_inactive {
        if !args.names.is_empty() {
            return Err(diag::Error::invalid(
                "cannot specify builder name when --all-inactive is set",
            ));
        }
        return remove_inactive(app, args).await;
    }
    let names: Vec<String> = if args.names.is_empty() {
        // By its name, so that what is said of it says whom it is about.
        let current = Builder::load(&app.docker, app.builder.as_deref());
        let name = current.ok().map(|builder| builder.name().to_owned());
        vec![name.or_else(|| app.builder.clone()).unwrap_or_default()]
    } else {
        args.names.clone()
    };
    let removals = names.iter().map(|name| async move {
        let given = Some(name.as_str()).filter(|name| !name.is_empty());
        let result = Builder::remove(&app.docker, given, args.request()).await;
        report(name, &result);
        result.is_ok()
    });
    if join_all(removals).await.into_iter().all(|removed| removed) {
        return Ok(());
    }
    Err(diag::Error::new(
        diag::Code::Unknown,
        "failed to remove one or more builders",
    ))
}

fn report(name: &str, result: &Result<Removed, diag::Error>) {
    match result {
        Ok(removed) => {
            printer::err_line(format!("{} removed", removed.name));
            for remaining in &removed.remains {
                printer::warn(format!("not removed: {remaining}"));
            }
        }
        Err(error) => {
            printer::err_line(format!("failed to remove {name}: {error}"));
            for hint in error.hints() {
                printer::err_line(format!("hint: {hint}"));
            }
        }
    }
}

async fn remove_inactive(app: &App, args: &RmArgs) -> Result<(), diag::Error> {
    if !args.force && !printer::confirm(INACTIVE_WARNING) {
        return Ok(());
    }
    let builders = list_builders(&app.docker)?;
    let removals = builders
        .into_iter()
        .filter(|builder| !builder.is_context && builder.error.is_none())
        .map(|mut builder| async move {
            let options = LoadOptions::with_status(args.timeout);
            if let Err(error) = builder.load_nodes(options).await {
                return Err(error.context(format!("cannot load {}", builder.name())));
            }
            let unknown = builder.nodes().iter().any(|node| node.status.is_none());
            if !builder.is_inactive() || (unknown && !args.force) || builder.group.dynamic {
                return Ok(());
            }
            let result = builder.remove_loaded(args.request()).await;
            report(builder.name(), &result);
            result.map(|_| ())
        });
    join_all(removals).await.into_iter().collect()
}
