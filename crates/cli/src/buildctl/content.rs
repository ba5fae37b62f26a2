//! Blobs of the server and logs of its builds: `debug get` and `debug logs`.

use clap::Args;
use driver::Connection;
use oci::Digest;
use progress::SolveStatus;
use progress_ui::{Mode, Output, Printer, PrinterOptions};
use proto::content::{ContentClient, ReadContentRequest};
use proto::control::control_client::ControlClient;
use proto::control::{BuildHistoryRequest, StatusRequest};

use super::histories::listen;
use crate::printer;

/// Flags of `debug get`.
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// The blob
    #[arg(value_name = "digest")]
    digest: Option<String>,
}

/// Flags of `debug logs`.
#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// progress output type
    #[arg(long, value_name = "string", default_value = "auto")]
    progress: String,
    /// show opentelemetry trace
    #[arg(long)]
    trace: bool,
    /// The build
    #[arg(value_name = "ref")]
    reference: Option<String>,
}

impl GetArgs {
    /// The blob that is meant.
    pub(super) fn digest(&self) -> Result<Digest, diag::Error> {
        let Some(digest) = &self.digest else {
            return Err(diag::Error::invalid("blob digest must be specified"));
        };
        let digest = digest.parse();
        digest.map_err(|_| diag::Error::invalid("invalid checksum digest format"))
    }
}

impl LogsArgs {
    /// The build that is meant.
    pub(super) fn reference(&self) -> Result<&str, diag::Error> {
        let given = self.reference.as_deref();
        given.ok_or_else(|| diag::Error::invalid("build ref must be specified"))
    }
}

/// Prints a blob.
pub(super) async fn get(connection: &Connection, digest: Digest) -> Result<(), diag::Error> {
    let failed = |status: tonic::Status| connection.call_error(&status, "failed to read content");
    let request = ReadContentRequest {
        digest: digest.to_string(),
        offset: 0,
        size: 0,
    };
    let mut pieces = ContentClient::new(connection.channel.clone())
        .read(request)
        .await
        .map_err(failed)?
        .into_inner();
    while let Some(piece) = pieces.message().await.map_err(failed)? {
        printer::out_bytes(&piece.data)?;
    }
    Ok(())
}

/// Prints what a build said, or its spans.
pub(super) async fn logs(connection: &Connection, args: &LogsArgs) -> Result<(), diag::Error> {
    let reference = args.reference()?;
    if args.trace {
        return get(connection, trace_of(connection, reference).await?).await;
    }
    let mode: Mode = args.progress.parse()?;
    let failed = |status: tonic::Status| connection.call_error(&status, "failed to get status");
    let request = StatusRequest {
        r#ref: reference.to_owned(),
    };
    let mut statuses = ControlClient::new(connection.channel.clone())
        .max_decoding_message_size(64 << 20)
        .status(request)
        .await
        .map_err(failed)?
        .into_inner();
    let options = PrinterOptions {
        mode,
        ..PrinterOptions::default()
    };
    let display = Printer::start(options, Output::stdout())?;
    let progress = display.progress();
    let ended = loop {
        match statuses.message().await {
            Ok(Some(status)) => progress.send(SolveStatus::from_proto(status)),
            Ok(None) => break Ok(()),
            Err(status) => break Err(failed(status)),
        }
    };
    // Closing waits for the terminal, which may be slow.
    let closed = tokio::task::spawn_blocking(move || display.finish()).await;
    closed.map_err(|error| diag::Error::internal(error.to_string()))?;
    ended
}

/// The blob with the spans of a build.
async fn trace_of(connection: &Connection, reference: &str) -> Result<Digest, diag::Error> {
    let request = BuildHistoryRequest {
        r#ref: reference.to_owned(),
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    let event = listen(connection, request).await?.next().await?;
    let record = event.and_then(|event| event.record);
    let record =
        record.ok_or_else(|| diag::Error::not_found(format!("ref {reference} not found")))?;
    let trace = record
        .trace
        .ok_or_else(|| diag::Error::not_found(format!("ref {reference} does not have trace")))?;
    let digest = trace.digest.parse();
    digest.map_err(|_| diag::Error::invalid("invalid checksum digest format"))
}
