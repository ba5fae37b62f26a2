//! Steering a build from here: the frontend is called over the gateway API on the control
//! connection, so that its answer, which is no image, comes back whole.

use diag::Code;
use prost::Message as _;
use proto::control::SolveRequest;
use proto::control::control_client::ControlClient;
use proto::gateway::llb_bridge_client::LlbBridgeClient;
use proto::gateway::{self, PingRequest, ReturnRequest};
use proto::rpc;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::solve::Response;

/// Names the build a gateway call is part of.
const BUILD_ID: &str = "buildkit-controlapi-buildid";

/// A solve taken apart: the build that waits for a result, and the call that makes it.
pub(crate) struct Call {
    build: SolveRequest,
    frontend: gateway::SolveRequest,
}

impl Call {
    /// Makes the request's frontend the one that is called.
    pub(crate) fn take_from(mut request: SolveRequest) -> Self {
        let frontend = gateway::SolveRequest {
            frontend: std::mem::take(&mut request.frontend),
            frontend_opt: request.frontend_attrs.clone(),
            frontend_inputs: std::mem::take(&mut request.frontend_inputs),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..gateway::SolveRequest::default()
        };
        Call {
            build: request,
            frontend,
        }
    }
}

/// Starts the build, calls the frontend in it and gives back its result.
pub(crate) async fn run(
    control: &mut ControlClient<Channel>,
    channel: Channel,
    call: Call,
) -> Result<Response, Status> {
    let reference = call.build.r#ref.clone();
    let steer = async {
        let mut bridge = LlbBridgeClient::new(channel);
        bridge.ping(tagged(PingRequest {}, &reference)?).await?;
        let solved = bridge.solve(tagged(call.frontend, &reference)?).await;
        let (answer, result) = match solved {
            Ok(response) => {
                let result = response.into_inner().result.unwrap_or_default();
                let answer = ReturnRequest {
                    result: Some(result.clone()),
                    error: None,
                };
                (answer, Ok(result.metadata))
            }
            Err(status) => {
                let answer = ReturnRequest {
                    result: None,
                    error: Some(to_rpc(&status)),
                };
                (answer, Err(status))
            }
        };
        bridge.r#return(tagged(answer, &reference)?).await?;
        result
    };
    let (built, metadata) = tokio::join!(control.solve(call.build), steer);
    // When both failed the build's error is the frontend's, told by the one who runs it.
    let mut response: Response = built?.into_inner().exporter_response.into_iter().collect();
    for (key, value) in metadata? {
        response.insert(key, String::from_utf8_lossy(&value).into_owned());
    }
    Ok(response)
}

fn tagged<T>(message: T, reference: &str) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(reference)
        .map_err(|_| Status::internal(format!("{reference:?} is no build reference")))?;
    request.metadata_mut().insert(BUILD_ID, value);
    Ok(request)
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
