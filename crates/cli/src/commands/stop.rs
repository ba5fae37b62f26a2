//! `stop`.

use builder::{Builder, LoadOptions, StopRequest};
use clap::Args;

use crate::app::App;

/// Flags of `stop`.
#[derive(Debug, Args)]
#[command(override_usage = "stop [NAME]")]
pub(crate) struct StopArgs {
    /// Wait for running builds to end
    #[arg(long)]
    drain: bool,
    /// Stop even if builds are running
    #[arg(short, long)]
    force: bool,
    #[arg(hide = true)]
    pub(crate) name: Vec<String>,
}

/// Stops a builder's servers.
pub(crate) async fn run(app: &App, args: &StopArgs) -> Result<(), diag::Error> {
    let mut builder = Builder::load(&app.docker, app.builder_name(args.name.first()))?;
    builder.load_nodes(LoadOptions::default()).await?;
    let request = StopRequest {
        force: args.force,
        drain: args.drain,
    };
    builder.stop(request).await
}
