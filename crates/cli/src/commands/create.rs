//! `create`.

use std::path::PathBuf;
use std::time::Duration;

use builder::{CreateRequest, create, leave};
use clap::Args;

use super::timeout;
use crate::app::App;
use crate::display::LazyDisplay;
use crate::printer;

/// Flags of `create`.
#[derive(Debug, Args)]
#[command(override_usage = "create [OPTIONS] [CONTEXT|ENDPOINT]")]
pub(crate) struct CreateArgs {
    /// Builder instance name
    #[arg(long, value_name = "string")]
    name: Option<String>,
    /// Driver to use (available: "docker-container", "embedded", "remote")
    #[arg(long, value_name = "string")]
    driver: Option<String>,
    /// Create/modify node with given name
    #[arg(long, value_name = "string")]
    node: Option<String>,
    /// Fixed platforms for current node
    #[arg(long, value_name = "stringArray")]
    platform: Vec<String>,
    /// Options for the driver
    #[arg(long, value_name = "stringArray")]
    driver_opt: Vec<String>,
    /// BuildKit daemon flags
    #[arg(long, value_name = "string")]
    buildkitd_flags: Option<String>,
    /// BuildKit daemon config file
    #[arg(
        long,
        alias = "config",
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    buildkitd_config: String,
    /// Boot builder after creation
    #[arg(long)]
    bootstrap: bool,
    /// Append a node to builder instead of changing it
    #[arg(long)]
    append: bool,
    /// Remove a node from builder instead of changing it
    #[arg(long)]
    leave: bool,
    /// Set the current builder instance
    #[arg(long = "use")]
    make_current: bool,
    /// Override the default timeout for loading builder status
    #[arg(long, value_name = "duration", default_value = "20s", value_parser = timeout)]
    timeout: Duration,
    #[arg(hide = true)]
    pub(crate) endpoint: Vec<String>,
}

/// Makes or changes a builder and prints its name.
pub(crate) async fn run(app: &App, args: &CreateArgs) -> Result<(), diag::Error> {
    if args.leave {
        return Ok(leave(
            &app.docker,
            args.name.as_deref(),
            args.node.as_deref(),
        )?);
    }
    let request = CreateRequest {
        name: args.name.clone(),
        driver: args.driver.clone(),
        node: args.node.clone(),
        platforms: args.platform.clone(),
        driver_opts: args.driver_opt.clone(),
        flags: args.buildkitd_flags.clone(),
        config: Some(PathBuf::from(&args.buildkitd_config))
            .filter(|path| !path.as_os_str().is_empty()),
        endpoint: args.endpoint.first().cloned(),
        append: args.append,
        make_current: args.make_current,
        timeout: args.timeout,
    };
    let mut builder = create(&app.docker, &request).await?;
    if args.bootstrap {
        let display = LazyDisplay::default();
        let booted = builder.boot(&display.progress()).await;
        display.finish();
        booted?;
    }
    printer::out_line(builder.name());
    Ok(())
}
