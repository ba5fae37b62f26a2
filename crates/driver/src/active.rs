//! Asking a server which builds run on it.

use std::time::Duration;

use proto::control::control_client::ControlClient;
use proto::control::{BuildHistoryEventType, BuildHistoryRequest, ListWorkersRequest};
use tonic::transport::Channel;

use crate::DriverError;

/// A build that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveBuild {
    /// The server's name of it.
    pub reference: String,
}

/// The builds that run; `None` when the server is too old to tell.
pub async fn active_builds(channel: Channel) -> Result<Option<Vec<ActiveBuild>>, DriverError> {
    let request = BuildHistoryRequest {
        active_only: true,
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    let unknown = |status: &tonic::Status| {
        matches!(
            status.code(),
            tonic::Code::Unimplemented | tonic::Code::Unknown
        )
    };
    let failed = |status: tonic::Status| DriverError::Call {
        context: "listing active builds",
        source: Box::new(status),
    };
    let mut events = match ControlClient::new(channel)
        .listen_build_history(request)
        .await
    {
        Ok(response) => response.into_inner(),
        Err(status) if unknown(&status) => return Ok(None),
        Err(status) => return Err(failed(status)),
    };
    let mut builds = Vec::new();
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                let Some(record) = event.record else { continue };
                let started = event.r#type == BuildHistoryEventType::Started as i32;
                if started && record.completed_at.is_none() {
                    builds.push(ActiveBuild {
                        reference: record.r#ref,
                    });
                }
            }
            Ok(None) => return Ok(Some(builds)),
            Err(status) if unknown(&status) => return Ok(None),
            Err(status) => return Err(failed(status)),
        }
    }
}

/// Asks a server whether it serves; `Err` says what it, or the connection, answered.
pub(crate) async fn check_health(channel: Channel, patience: Duration) -> Result<(), String> {
    let check = async {
        let request = proto::health::HealthCheckRequest {
            service: String::new(),
        };
        let mut health = proto::health::health_client::HealthClient::new(channel.clone());
        match health.check(request).await {
            Ok(answer) => {
                let status = answer.into_inner().status;
                let serving = proto::health::health_check_response::ServingStatus::Serving as i32;
                if status == serving {
                    Ok(())
                } else {
                    Err("the server is not serving yet".to_owned())
                }
            }
            // A server that has no health service answers anything at all only when it serves.
            Err(status) if status.code() == tonic::Code::Unimplemented => {
                ControlClient::new(channel)
                    .list_workers(ListWorkersRequest { filter: Vec::new() })
                    .await
                    .map(|_| ())
                    .map_err(|status| status.message().to_owned())
            }
            Err(status) => Err(status.message().to_owned()),
        }
    };
    match tokio::time::timeout(patience, check).await {
        Ok(result) => result,
        Err(_) => Err("the server does not answer".to_owned()),
    }
}
