//! Asking a server which builds run on it.

use proto::control::control_client::ControlClient;
use proto::control::{BuildHistoryEventType, BuildHistoryRequest};
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
