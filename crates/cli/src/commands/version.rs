//! `version`.

use clap::Args;

use crate::printer;

/// Flags of `version`.
#[derive(Debug, Args)]
#[command(override_usage = "version")]
pub(crate) struct VersionArgs {
    #[arg(hide = true)]
    pub(crate) arguments: Vec<String>,
}

/// Prints package, version and revision.
pub(crate) fn run() {
    let revision = option_env!("COOPERAGE_REVISION").unwrap_or("unknown");
    printer::out_line(format!("cooperage {} {revision}", crate::VERSION));
}
