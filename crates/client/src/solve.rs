//! One solve on one server: the call, its status stream, and its end.
//!
//! Cancellation: when the token is cancelled the call is dropped, which tells the server to stop; the
//! status stream is still read until it ends or has been silent for a while, so that the user sees
//! what was cancelled. Dropping the future drops everything.

use std::future::Future;
use std::time::Duration;

use diag::{Code, Error};
use jiff::Timestamp;
use progress::SolveStatus;
use progress_ui::Progress;
use proto::control::control_client::ControlClient;
use proto::control::{SolveRequest, StatusRequest};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

use crate::clock::ClockShift;
use crate::gateway;
use crate::response::Response;
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

/// Runs a solve to its end. With `by_gateway` the frontend is called over the gateway, and its
/// metadata is part of the response.
pub async fn solve(
    channel: Channel,
    request: SolveRequest,
    by_gateway: bool,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Response, SolveFailure> {
    if !by_gateway {
        let mut control = control_of(&channel);
        let reference = request.r#ref.clone();
        let work = async {
            let response = control.solve(request).await?;
            let response = response.into_inner().exporter_response;
            Ok(response.into_iter().collect())
        };
        return watched(&channel, reference, work, progress, cancel).await;
    }
    let (build, frontend) = gateway::take_frontend(request);
    let work = async |bridge: &mut gateway::Bridge| {
        let result = bridge.solve(frontend).await?;
        let metadata = result.metadata.clone();
        Ok((result, metadata))
    };
    let (mut response, metadata) = steered(channel, build, work, progress, cancel).await?;
    for (key, value) in metadata {
        response.insert(key, String::from_utf8_lossy(&value).into_owned());
    }
    Ok(response)
}

/// Runs a build that is steered from here to its end, showing its progress: see [`gateway::run`].
pub(crate) async fn steered<T>(
    channel: Channel,
    build: SolveRequest,
    work: impl AsyncFnOnce(&mut gateway::Bridge) -> Result<(proto::gateway::Result, T), Status>,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(Response, T), SolveFailure> {
    let mut control = control_of(&channel);
    let reference = build.r#ref.clone();
    let work = gateway::run(&mut control, channel.clone(), build, work);
    watched(&channel, reference, work, progress, cancel).await
}

/// The failure of a solve that was cancelled from here.
pub fn canceled() -> SolveFailure {
    SolveFailure {
        error: Error::new(Code::Canceled, "Canceled: context canceled").context("failed to solve"),
        connection_lost: false,
    }
}

fn control_of(channel: &Channel) -> ControlClient<Channel> {
    ControlClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Does a build's work while its progress is shown, until it ends or is cancelled.
async fn watched<T>(
    channel: &Channel,
    reference: String,
    work: impl Future<Output = Result<T, Status>>,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<T, SolveFailure> {
    let ended = CancellationToken::new();
    let statuses = forward_statuses(control_of(channel), reference, progress, &ended);
    let call = async {
        let _ended = ended.clone().drop_guard();
        tokio::select! {
            result = work => result.map_err(|status| failure(&status)),
            () = cancel.cancelled() => Err(canceled()),
        }
    };
    let (result, ()) = tokio::join!(call, statuses);
    result
}

fn failure(status: &Status) -> SolveFailure {
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
mod tests;
