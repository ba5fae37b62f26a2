//! `dial-stdio`: a builder's connection on our own standard streams.

use builder::LoadOptions;
use clap::Args;
use oci::Platform;
use progress_ui::{Mode, Output, Printer, PrinterOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::tell_stand_in;
use crate::app::App;

/// Flags of `dial-stdio`.
#[derive(Debug, Args)]
#[command(override_usage = "dial-stdio")]
pub(crate) struct DialStdioArgs {
    /// Target platform: this is used for node selection
    #[arg(
        long,
        value_name = "string",
        env = "DOCKER_DEFAULT_PLATFORM",
        hide_env = true
    )]
    platform: Option<String>,
    /// Set type of progress output ("auto", "plain", "rawjson", "tty"). Use plain to show container output
    #[arg(long, value_name = "string", default_value = "none")]
    progress: String,
    #[arg(hide = true)]
    pub(crate) arguments: Vec<String>,
}

/// Boots a node and copies bytes both ways until its server closes.
pub(crate) async fn run(app: &App, args: &DialStdioArgs) -> Result<(), diag::Error> {
    let mut builder = app.load_builder()?;
    builder.touch();
    builder.load_nodes(LoadOptions::default()).await?;
    tell_stand_in(&builder);
    let mode = match args.progress.as_str() {
        "none" => Mode::Quiet,
        other => other.parse()?,
    };
    let platforms = match args.platform.as_deref().filter(|text| !text.is_empty()) {
        None => Vec::new(),
        Some(text) => vec![text.parse::<Platform>().map_err(|error| {
            diag::Error::invalid(error.to_string()).context(format!("invalid platform {text:?}"))
        })?],
    };
    let printer = Printer::start(
        PrinterOptions {
            mode,
            phase: "dial-stdio".to_owned(),
            plain_description: format!("builder: {}", builder.name()),
            tty_description: format!("builder:{}", builder.name()),
        },
        Output::stderr(),
    )?;
    let shown = printer.progress();
    let progress = builder::BootProgress::callback(move |status| shown.send(status));
    let result = progress
        .vertex("Proxying to builder", |steps| {
            let (builder, progress, platforms) = (&builder, &progress, &platforms);
            async move {
                let dialed = steps.step("Dialing builder", async {
                    let resolved = builder.resolve(platforms, progress).await?;
                    let Some(first) = resolved.first() else {
                        return Err(diag::Error::not_found("no nodes available"));
                    };
                    Ok(first.node.driver()?.dial().await?)
                });
                proxy(dialed.await?).await
            }
        })
        .await;
    drop(progress);
    printer.finish();
    result
}

/// Copies both ways; neither waits for the other.
async fn proxy(connection: driver::BoxedIo) -> Result<(), diag::Error> {
    let (mut from_server, mut to_server) = tokio::io::split(connection);
    let upload = tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            match stdin.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(read) => {
                    if to_server.write_all(&chunk[..read]).await.is_err() {
                        return;
                    }
                    // A request waits for nobody to fill a buffer.
                    let _ = to_server.flush().await;
                }
            }
        }
        let _ = to_server.shutdown().await;
    });
    let mut stdout = tokio::io::stdout();
    let mut chunk = vec![0; 64 * 1024];
    let result = loop {
        match from_server.read(&mut chunk).await {
            Ok(0) => break Ok(()),
            Err(error) => break Err(error.into()),
            Ok(read) => {
                let written = stdout.write_all(&chunk[..read]).await;
                // A reader that is gone ends the connection, and that is all.
                if written.is_err() || stdout.flush().await.is_err() {
                    break Ok(());
                }
            }
        }
    };
    upload.abort();
    result
}
