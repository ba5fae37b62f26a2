//! The gateway service (`LLBBridge`): somebody drives a build with calls of its own.
//!
//! On the control socket the header `buildkit-controlapi-buildid` says which build is meant. The
//! client begins it with `Control.Solve` that names neither frontend nor definition; from then until
//! [`Return`] the calls here belong to it, and what was returned becomes the result of that
//! `Control.Solve`. A frontend in a container has its calls served on its standard streams (see
//! [`crate::frontend_image`]); they all belong to the one build it was started for.
//!
//! [`Return`]: LlbBridge::return

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use diag::{Error, Result};
use futures::{Stream, StreamExt};
use ops::Root;
use ops::work::{ReadOnly, blocking};
use proto::gateway::llb_bridge_server::LlbBridge;
use proto::gateway::{
    EvaluateRequest, EvaluateResponse, ExecMessage, InputsRequest, InputsResponse,
    NewContainerRequest, NewContainerResponse, PingRequest, PongResponse, ReadDirRequest,
    ReadDirResponse, ReadFileRequest, ReadFileResponse, ReleaseContainerRequest,
    ReleaseContainerResponse, ResolveImageConfigRequest, ResolveImageConfigResponse,
    ResolveSourceMetaRequest, ResolveSourceMetaResponse, ReturnRequest, ReturnResponse,
    SolveRequest, SolveResponse, StatFileRequest, StatFileResponse, WarnRequest, WarnResponse,
};
use tonic::{Request, Response, Status};

use crate::capabilities;
use crate::exec_process;
use crate::failed_step;
use crate::gateway_build::GatewayBuild;
use crate::gateway_containers::Container;
use crate::parts::ServerParts;
use crate::reading::{self, Part};

/// The header that names the build.
const BUILD_ID: &str = "buildkit-controlapi-buildid";
/// How long a call may come before the build it belongs to.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3);

/// The gateway service.
pub struct Gateway {
    scope: Scope,
}

/// Whose calls are served.
enum Scope {
    /// Of the builds of a server, by the header.
    Server(Arc<ServerParts>),
    /// Of one build.
    Build(Arc<GatewayBuild>),
}

impl Gateway {
    /// The gateway of a server's builds.
    pub fn new(parts: Arc<ServerParts>) -> Self {
        Gateway {
            scope: Scope::Server(parts),
        }
    }

    /// The gateway of one build, whatever the calls say.
    pub fn of_build(build: Arc<GatewayBuild>) -> Self {
        Gateway {
            scope: Scope::Build(build),
        }
    }

    /// The build a call belongs to.
    async fn build<T>(
        &self,
        request: &Request<T>,
        call: &str,
    ) -> Result<Arc<GatewayBuild>, Status> {
        let parts = match &self.scope {
            Scope::Server(parts) => parts,
            Scope::Build(build) => return Ok(build.clone()),
        };
        let id = request
            .metadata()
            .get(BUILD_ID)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if id.is_empty() {
            return Err(Status::unknown(format!(
                "forwarding {call}: no buildid found in context"
            )));
        }
        let entry = parts.builds.wait(id, BUILD_TIMEOUT).await;
        entry
            .and_then(|entry| entry.gateway)
            .ok_or_else(|| Status::not_found(format!("forwarding {call}: no such job {id}")))
    }
}

/// Answers a call of a build with what the work gives; of a failed step its client hears more.
async fn answer<T>(
    build: &GatewayBuild,
    work: impl Future<Output = Result<T>>,
) -> Result<Response<T>, Status> {
    work.await
        .map(Response::new)
        .map_err(|error| failed_step::to_status(build.job(), &error))
}

/// Files that can be looked into.
enum Files {
    Solved(Arc<ReadOnly>),
    Container(Arc<Container>, PathBuf),
}

impl Files {
    async fn of_container(build: &GatewayBuild, id: &str, mount: i32) -> Result<Self> {
        let container = build.containers().get(id).ok_or_else(|| {
            Error::not_found(format!("container details for {id}@{mount} not found"))
        })?;
        let path = container.path(mount)?;
        Ok(Files::Container(container, path))
    }

    async fn look<T: Send + 'static>(
        self,
        look: impl FnOnce(&Root) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        blocking(move || match &self {
            Files::Solved(view) => look(&view.root),
            Files::Container(_kept, path) => look(&Root::open(path)?),
        })
        .await
    }

    async fn read_file(self, request: ReadFileRequest) -> Result<ReadFileResponse> {
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let part = request.range.map_or(Part::WHOLE, |range| Part {
            offset: number(range.offset),
            length: Some(number(range.length)),
        });
        let path = request.file_path;
        let read = move |root: &Root| reading::read_file(root, &path, part);
        let data = self.look(read).await?;
        Ok(ReadFileResponse { data })
    }

    async fn read_dir(self, request: ReadDirRequest) -> Result<ReadDirResponse> {
        let (path, include) = (request.dir_path, request.include_pattern);
        let read = move |root: &Root| reading::read_dir(root, &path, &include);
        let entries = self.look(read).await?;
        Ok(ReadDirResponse { entries })
    }

    async fn stat_file(self, request: StatFileRequest) -> Result<StatFileResponse> {
        let path = request.path;
        let stat = self.look(move |root| reading::stat_file(root, &path));
        let stat = Some(stat.await?);
        Ok(StatFileResponse { stat })
    }
}

#[tonic::async_trait]
impl LlbBridge for Gateway {
    type ExecProcessStream = Pin<Box<dyn Stream<Item = Result<ExecMessage, Status>> + Send>>;

    async fn resolve_image_config(
        &self,
        request: Request<ResolveImageConfigRequest>,
    ) -> Result<Response<ResolveImageConfigResponse>, Status> {
        let build = self.build(&request, "ResolveImageConfig").await?;
        answer(&build, build.resolve_image_config(request.into_inner())).await
    }

    async fn resolve_source_meta(
        &self,
        request: Request<ResolveSourceMetaRequest>,
    ) -> Result<Response<ResolveSourceMetaResponse>, Status> {
        let build = self.build(&request, "ResolveSourceMeta").await?;
        answer(&build, build.resolve_source_meta(request.into_inner())).await
    }

    async fn solve(
        &self,
        request: Request<SolveRequest>,
    ) -> Result<Response<SolveResponse>, Status> {
        let build = self.build(&request, "Solve").await?;
        answer(&build, build.solve(request.into_inner())).await
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let build = self.build(&request, "ReadFile").await?;
        let request = request.into_inner();
        answer(&build.clone(), async move {
            let view = build.view(&request.r#ref).await?;
            Files::Solved(view).read_file(request).await
        })
        .await
    }

    async fn read_dir(
        &self,
        request: Request<ReadDirRequest>,
    ) -> Result<Response<ReadDirResponse>, Status> {
        let build = self.build(&request, "ReadDir").await?;
        let request = request.into_inner();
        answer(&build.clone(), async move {
            let view = build.view(&request.r#ref).await?;
            Files::Solved(view).read_dir(request).await
        })
        .await
    }

    async fn stat_file(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        let build = self.build(&request, "StatFile").await?;
        let request = request.into_inner();
        answer(&build.clone(), async move {
            let view = build.view(&request.r#ref).await?;
            Files::Solved(view).stat_file(request).await
        })
        .await
    }

    async fn evaluate(
        &self,
        request: Request<EvaluateRequest>,
    ) -> Result<Response<EvaluateResponse>, Status> {
        let build = self.build(&request, "Evaluate").await?;
        let id = request.into_inner().r#ref;
        answer(&build.clone(), async move {
            if let Some(reference) = build.job().find(&id)? {
                build.job().evaluate(&reference).await?;
            }
            Ok(EvaluateResponse {})
        })
        .await
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PongResponse>, Status> {
        let build = self.build(&request, "Ping").await?;
        answer(&build.clone(), async move {
            let parts = build.job().parts().clone();
            let worker = blocking(move || Ok(parts.worker.to_proto())).await?;
            Ok(PongResponse {
                frontend_api_caps: capabilities::frontend(),
                llb_caps: capabilities::llb(),
                workers: vec![worker],
            })
        })
        .await
    }

    async fn r#return(
        &self,
        request: Request<ReturnRequest>,
    ) -> Result<Response<ReturnResponse>, Status> {
        let build = self.build(&request, "Return").await?;
        answer(&build.clone(), async move {
            build.take_return(request.into_inner())?;
            Ok(ReturnResponse {})
        })
        .await
    }

    async fn inputs(
        &self,
        request: Request<InputsRequest>,
    ) -> Result<Response<InputsResponse>, Status> {
        let build = self.build(&request, "Inputs").await?;
        Ok(Response::new(InputsResponse {
            definitions: build.inputs().clone(),
        }))
    }

    async fn warn(&self, request: Request<WarnRequest>) -> Result<Response<WarnResponse>, Status> {
        let build = self.build(&request, "Warn").await?;
        answer(&build.clone(), async move {
            build.warn(request.into_inner())?;
            Ok(WarnResponse {})
        })
        .await
    }

    async fn new_container(
        &self,
        request: Request<NewContainerRequest>,
    ) -> Result<Response<NewContainerResponse>, Status> {
        let build = self.build(&request, "NewContainer").await?;
        answer(&build.clone(), async move {
            build.containers().create(request.into_inner()).await?;
            Ok(NewContainerResponse {})
        })
        .await
    }

    async fn release_container(
        &self,
        request: Request<ReleaseContainerRequest>,
    ) -> Result<Response<ReleaseContainerResponse>, Status> {
        let build = self.build(&request, "ReleaseContainer").await?;
        answer(&build.clone(), async move {
            let id = request.into_inner().container_id;
            build.containers().release(&id).await?;
            Ok(ReleaseContainerResponse {})
        })
        .await
    }

    async fn exec_process(
        &self,
        request: Request<tonic::Streaming<ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let build = self.build(&request, "ExecProcess").await?;
        let replies = exec_process::serve(build, request.into_inner());
        Ok(Response::new(replies.boxed()))
    }

    async fn read_file_container(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let build = self.build(&request, "ReadFileContainer").await?;
        let request = request.into_inner();
        answer(&build.clone(), async move {
            let files = Files::of_container(&build, &request.r#ref, request.mount_index).await?;
            files.read_file(request).await
        })
        .await
    }

    async fn read_dir_container(
        &self,
        request: Request<ReadDirRequest>,
    ) -> Result<Response<ReadDirResponse>, Status> {
        let build = self.build(&request, "ReadDirContainer").await?;
        let request = request.into_inner();
        answer(&build.clone(), async move {
            let files = Files::of_container(&build, &request.r#ref, request.mount_index).await?;
            files.read_dir(request).await
        })
        .await
    }

    async fn stat_file_container(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        let build = self.build(&request, "StatFileContainer").await?;
        let request = request.into_inner();
        answer(&build.clone(), async move {
            let files = Files::of_container(&build, &request.r#ref, request.mount_index).await?;
            files.stat_file(request).await
        })
        .await
    }
}
