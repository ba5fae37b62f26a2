//! One solve on one server: the call, its status stream, and its end.
//!
//! Cancellation: when the token is cancelled the call is dropped, which tells the server to stop; the
//! status stream is still read until it ends or has been silent for a while, so that the user sees
//! what was cancelled. Dropping the future drops everything.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use diag::{Code, Error};
use jiff::Timestamp;
use progress::SolveStatus;
use progress_ui::Progress;
use proto::control::control_client::ControlClient;
use proto::control::{SolveRequest, StatusRequest};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::clock::ClockShift;
use crate::gateway;
use crate::status_error::{from_status, is_connection_failure};

/// How long a status stream may be silent after its build has ended.
const STATUS_SILENCE: Duration = Duration::from_secs(5);
/// The largest message accepted from a server.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Why a solve failed.
#[derive(Debug)]
pub struct SolveFailure {
    /// For the user.
    pub error: Error,
    /// Whether the connection to the server was lost, so that another try may succeed.
    pub connection_lost: bool,
}

/// What a server said of a result: the exporters' answers, or a called frontend's metadata.
pub type Response = BTreeMap<String, String>;

/// Runs a solve to its end. With `steered` the frontend is called over the gateway, and its metadata
/// is part of the response.
pub async fn solve(
    channel: Channel,
    request: SolveRequest,
    steered: bool,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Response, SolveFailure> {
    let reference = request.r#ref.clone();
    let mut control =
        ControlClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let ended = CancellationToken::new();
    let statuses = forward_statuses(control.clone(), reference.clone(), progress, &ended);
    let call = async {
        let _ended = ended.clone().drop_guard();
        let work = async {
            if steered {
                let call = gateway::Call::take_from(request);
                gateway::run(&mut control, channel, call).await
            } else {
                let response = control.solve(request).await?;
                Ok(response
                    .into_inner()
                    .exporter_response
                    .into_iter()
                    .collect())
            }
        };
        tokio::select! {
            result = work => result.map_err(|status: tonic::Status| failure(&status)),
            () = cancel.cancelled() => Err(canceled()),
        }
    };
    let (result, ()) = tokio::join!(call, statuses);
    result
}

/// The failure of a solve that was cancelled from here.
pub fn canceled() -> SolveFailure {
    SolveFailure {
        error: Error::new(Code::Canceled, "Canceled: context canceled").context("failed to solve"),
        connection_lost: false,
    }
}

fn failure(status: &tonic::Status) -> SolveFailure {
    let connection_lost = is_connection_failure(status);
    let error = from_status(status).context("failed to solve");
    let error = match error.code() {
        // HTTP/2's word for a connection that broke off, and not a server's for a fault of its own.
        Code::Internal if connection_lost => error.with_code(Code::Unavailable),
        _ => error,
    };
    SolveFailure {
        error,
        connection_lost,
    }
}

/// Shows what the server tells of a build, until it ends the stream, or is silent after `ended`.
async fn forward_statuses(
    mut control: ControlClient<Channel>,
    reference: String,
    progress: &Progress,
    ended: &CancellationToken,
) {
    let mut shift = ClockShift::new(Timestamp::now());
    let request = StatusRequest { r#ref: reference };
    let opened = until_silent(ended, control.status(request)).await;
    let mut stream = match opened {
        Some(Ok(response)) => response.into_inner(),
        Some(Err(status)) => {
            tracing::debug!(%status, "no progress from the server");
            return;
        }
        None => return,
    };
    loop {
        match until_silent(ended, stream.message()).await {
            Some(Ok(Some(message))) => {
                progress.send(shift.apply(SolveStatus::from_proto(message)));
            }
            Some(Ok(None)) | None => return,
            Some(Err(status)) => {
                tracing::debug!(%status, "progress from the server broke off");
                return;
            }
        }
    }
}

/// What the future gives, unless it takes too long after the build has ended.
async fn until_silent<T>(ended: &CancellationToken, future: impl Future<Output = T>) -> Option<T> {
    let silence = async {
        ended.cancelled().await;
        tokio::time::sleep(STATUS_SILENCE).await;
    };
    tokio::select! {
        biased;
        value = future => Some(value),
        () = silence => None,
    }
}

#[cfg(test)]
#[path = "solve_tests.rs"]
mod tests;
