//! Asking a server whether it serves.

use std::time::Duration;

use proto::control::ListWorkersRequest;
use proto::control::control_client::ControlClient;
use tonic::transport::Channel;

use crate::connection::connect_once;
use crate::{BoxedIo, DriverError};

/// Dials a server and asks it whether it serves; `Err` says what it, or the connection, answered.
pub(crate) async fn dial_and_check(
    dial: impl Future<Output = Result<BoxedIo, DriverError>>,
    patience: Duration,
) -> Result<(), String> {
    let ask = async {
        let io = dial.await.map_err(|error| error.to_string())?;
        let connection = connect_once(io).await.map_err(|error| error.to_string())?;
        let answer = check_health(connection.channel.clone(), patience).await;
        answer.map_err(|reason| connection.trouble().unwrap_or(reason))
    };
    match tokio::time::timeout(patience, ask).await {
        Ok(answer) => answer,
        Err(_) => Err("no answer".to_owned()),
    }
}

/// `Err` says what the server, or the connection, answered.
async fn check_health(channel: Channel, patience: Duration) -> Result<(), String> {
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
