//! `use`.

use builder::BuilderError;
use clap::Args;

use crate::app::App;

/// Flags of `use`.
#[derive(Debug, Args)]
#[command(override_usage = "use [OPTIONS] NAME")]
pub(crate) struct UseArgs {
    /// Builder persists context changes
    #[arg(long)]
    global: bool,
    /// Set builder as default for current context
    #[arg(long)]
    default: bool,
    #[arg(hide = true)]
    pub(crate) name: Vec<String>,
}

/// Makes a builder current.
pub(crate) fn run(app: &App, args: &UseArgs) -> Result<(), diag::Error> {
    let docker = &app.docker;
    let name = app.builder_name(args.name.first()).unwrap_or_default();
    let txn = docker.store().transaction();
    let endpoint = docker.current_endpoint();
    let find = |error: BuilderError| {
        diag::Error::from(error).context(format!("failed to find instance {name:?}"))
    };
    if txn.get(name).map_err(find)?.is_some() {
        return Ok(txn.set_current(&endpoint, name, args.global, args.default)?);
    }
    let current = docker.current_context();
    if name == "default" && current != "default" {
        return Err(diag::Error::invalid(
            "run `docker context use default` to switch to default context",
        ));
    }
    if name == current {
        return Ok(txn.set_current(&endpoint, "", false, false)?);
    }
    if docker.context(name).is_some() {
        return Err(diag::Error::invalid(format!(
            "run `docker context use {name}` to switch to context {name}"
        )));
    }
    let record = docker.store().record_path(name);
    Err(diag::Error::not_found(format!(
        "failed to find instance {name:?}: open {}: no such file or directory",
        record.display()
    )))
}
