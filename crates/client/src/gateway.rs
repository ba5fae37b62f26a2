//! Steering a build from here: the gateway API is called on the control connection, so that a
//! frontend's answer which is no image comes back whole, and files of the server can be read.

use diag::Code;
use prost::Message as _;
use proto::control::SolveRequest;
use proto::control::control_client::ControlClient;
use proto::gateway::llb_bridge_client::LlbBridgeClient;
use proto::gateway::{self, PingRequest, ReturnRequest};
use proto::{fsutil, rpc};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::response::Response;

/// Names the build a gateway call is part of.
const BUILD_ID: &str = "buildkit-controlapi-buildid";

/// Takes a request apart: the build that waits for a result, and the call of its frontend.
pub(crate) fn take_frontend(mut build: SolveRequest) -> (SolveRequest, gateway::SolveRequest) {
    let frontend = gateway::SolveRequest {
        frontend: std::mem::take(&mut build.frontend),
        frontend_opt: build.frontend_attrs.clone(),
        frontend_inputs: std::mem::take(&mut build.frontend_inputs),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..gateway::SolveRequest::default()
    };
    (build, frontend)
}

/// The gateway of one build.
pub(crate) struct Bridge {
    client: LlbBridgeClient<Channel>,
    build: String,
}

impl Bridge {
    pub(crate) async fn solve(
        &mut self,
        request: gateway::SolveRequest,
    ) -> Result<gateway::Result, Status> {
        let request = self.tagged(request)?;
        let response = self.client.solve(request).await?;
        Ok(response.into_inner().result.unwrap_or_default())
    }

    pub(crate) async fn stat_file(
        &mut self,
        request: gateway::StatFileRequest,
    ) -> Result<fsutil::Stat, Status> {
        let request = self.tagged(request)?;
        let response = self.client.stat_file(request).await?;
        Ok(response.into_inner().stat.unwrap_or_default())
    }

    pub(crate) async fn read_file(
        &mut self,
        request: gateway::ReadFileRequest,
    ) -> Result<Vec<u8>, Status> {
        let request = self.tagged(request)?;
        let response = self.client.read_file(request).await?;
        Ok(response.into_inner().data.to_vec())
    }

    fn tagged<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        let value = MetadataValue::try_from(&self.build)
            .map_err(|_| Status::internal(format!("{:?} is no build reference", self.build)))?;
        request.metadata_mut().insert(BUILD_ID, value);
        Ok(request)
    }
}

/// Starts a build, lets `work` call its gateway, and ends the build with the result or the error of
/// that. Returns what the exporters answered, and what the work made besides.
pub(crate) async fn run<T>(
    control: &mut ControlClient<Channel>,
    channel: Channel,
    build: SolveRequest,
    work: impl AsyncFnOnce(&mut Bridge) -> Result<(gateway::Result, T), Status>,
) -> Result<(Response, T), Status> {
    let mut bridge = Bridge {
        client: LlbBridgeClient::new(channel),
        build: build.r#ref.clone(),
    };
    let steer = async {
        let ping = bridge.tagged(PingRequest {})?;
        bridge.client.ping(ping).await?;
        let (answer, made) = match work(&mut bridge).await {
            Ok((result, made)) => {
                let answer = ReturnRequest {
                    result: Some(result),
                    error: None,
                };
                (answer, Ok(made))
            }
            Err(status) => {
                let answer = ReturnRequest {
                    result: None,
                    error: Some(to_rpc(&status)),
                };
                (answer, Err(status))
            }
        };
        let answer = bridge.tagged(answer)?;
        bridge.client.r#return(answer).await?;
        made
    };
    let (built, made) = tokio::join!(control.solve(build), steer);
    // When both failed the build's error is the work's, told by the one who runs it.
    let response = built?.into_inner().exporter_response.into_iter().collect();
    Ok((response, made?))
}

fn to_rpc(status: &Status) -> rpc::Status {
    rpc::Status::decode(status.details())
        .ok()
        .filter(|detailed| !detailed.message.is_empty())
        .unwrap_or_else(|| rpc::Status {
            code: Code::from_number(status.code() as i32) as i32,
            message: status.message().to_owned(),
            details: Vec::new(),
        })
}
