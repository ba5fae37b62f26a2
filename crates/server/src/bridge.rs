//! The gateway: a client drives a build with calls of its own (`LLBBridge`).
//!
//! Which build is meant says the header `buildkit-controlapi-buildid`. The client begins a build with
//! `Control.Solve` that names neither frontend nor definition; from then until [`Return`] the calls
//! here belong to it. What was returned becomes the result of that `Control.Solve`.
//!
//! [`Return`]: LlbBridge::return

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use diag::{Error, Result};
use futures::Stream;
use futures::future::try_join_all;
use oci::{Digest, Reference};
use ops::work::{
    Event, Outside, blocking, image_reference, layout_provider, oci_layout_store, registry_provider,
};
use parking_lot::Mutex;
use progress::VertexWarning;
use proto::gateway::llb_bridge_server::LlbBridge;
use proto::gateway::{
    EvaluateRequest, EvaluateResponse, ExecMessage, InputsRequest, InputsResponse,
    NewContainerRequest, NewContainerResponse, PingRequest, PongResponse, ReadDirRequest,
    ReadDirResponse, ReadFileRequest, ReadFileResponse, Ref, RefMap, RefMapDeprecated,
    ReleaseContainerRequest, ReleaseContainerResponse, ResolveImageConfigRequest,
    ResolveImageConfigResponse, ResolveSourceImageResponse, ResolveSourceMetaRequest,
    ResolveSourceMetaResponse, ReturnRequest, ReturnResponse, SolveRequest, SolveResponse,
    StatFileRequest, StatFileResponse, WarnRequest, WarnResponse, result,
};
use proto::pb;
use source::image::{ContentProvider, ImageRequest};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::capabilities;
use crate::errors::{from_rpc_status, to_status};
use crate::frontends::{FrontendRequest, run_frontend};
use crate::job::{BuildResult, Job, SolvedRef};
use crate::parts::ServerParts;
use crate::reading;

/// The header that names the build.
const BUILD_ID: &str = "buildkit-controlapi-buildid";
/// How long a call may come before the build it belongs to.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3);

/// A build that a client drives.
pub struct GatewayBuild {
    job: Arc<Job>,
    inputs: HashMap<String, pb::Definition>,
    returned: watch::Sender<Option<Arc<Returned>>>,
}

/// What a client made of its build.
type Returned = Mutex<Option<Result<BuildResult>>>;

impl GatewayBuild {
    /// A build that waits for its client.
    pub fn new(job: Arc<Job>, inputs: HashMap<String, pb::Definition>) -> Arc<Self> {
        Arc::new(GatewayBuild {
            job,
            inputs,
            returned: watch::Sender::new(None),
        })
    }

    /// Waits for what the client returns; can be had once.
    pub async fn returned(&self) -> Result<BuildResult> {
        let mut returned = self.returned.subscribe();
        let waited = returned.wait_for(Option::is_some).await;
        let outcome = waited
            .ok()
            .and_then(|outcome| outcome.as_ref()?.lock().take());
        outcome.unwrap_or_else(|| Err(Error::internal("the outcome of a build was taken twice")))
    }

    fn finish(&self, outcome: Result<BuildResult>) -> Result<()> {
        let fresh = self.returned.send_if_modified(|returned| {
            let fresh = returned.is_none();
            if fresh {
                *returned = Some(Arc::new(Mutex::new(Some(outcome))));
            }
            fresh
        });
        match fresh {
            true => Ok(()),
            false => Err(Error::new(
                diag::Code::FailedPrecondition,
                "return called more than once",
            )),
        }
    }
}

/// The gateway service of a server.
pub struct Gateway {
    parts: Arc<ServerParts>,
}

impl Gateway {
    /// The gateway of a server's builds.
    pub fn new(parts: Arc<ServerParts>) -> Self {
        Gateway { parts }
    }

    /// The build a call belongs to.
    async fn build<T>(
        &self,
        request: &Request<T>,
        call: &str,
    ) -> Result<Arc<GatewayBuild>, Status> {
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
        let entry = self.parts.builds.wait(id, BUILD_TIMEOUT).await;
        entry
            .and_then(|entry| entry.gateway)
            .ok_or_else(|| Status::not_found(format!("forwarding {call}: no such job {id}")))
    }
}

/// Answers a call with what the work gives.
async fn answer<T>(work: impl Future<Output = Result<T>>) -> Result<Response<T>, Status> {
    work.await
        .map(Response::new)
        .map_err(|error| to_status(&error))
}

impl GatewayBuild {
    async fn solve(&self, request: SolveRequest) -> Result<SolveResponse> {
        let definition = request.definition.filter(|given| !given.def.is_empty());
        let result = match (definition, request.frontend.as_str()) {
            (Some(_), frontend) if !frontend.is_empty() => {
                return Err(Error::invalid(
                    "cannot solve with both Definition and Frontend specified",
                ));
            }
            (Some(definition), _) => BuildResult::of(self.job.load_definition(definition)?),
            (None, "") => BuildResult::empty(),
            (None, frontend) => {
                let request = FrontendRequest {
                    frontend: frontend.to_owned(),
                    attrs: request.frontend_opt.into_iter().collect(),
                    inputs: request.frontend_inputs.into_iter().collect(),
                };
                run_frontend(&self.job, request).await?
            }
        };
        if request.evaluate {
            let refs = result.refs.iter().filter_map(|(_, r)| r.as_ref());
            try_join_all(refs.map(|reference| self.job.evaluate(reference))).await?;
        }
        if !result.single && !request.allow_result_return {
            return Err(Error::invalid("solve did not return default result"));
        }
        let reply = self.reply(&result, request.allow_result_array_ref);
        let mut response = SolveResponse::default();
        if !request.allow_result_return
            && let Some(result::Result::RefDeprecated(id) | result::Result::Ref(Ref { id, .. })) =
                &reply.result
        {
            response.r#ref.clone_from(id);
        }
        response.result = Some(reply);
        if request.r#final {
            self.finish(Ok(with_exporter_attr(result, &request.exporter_attr)?))?;
        }
        Ok(response)
    }

    /// A result as the client sees it; its graphs are kept under new names.
    fn reply(&self, result: &BuildResult, with_definitions: bool) -> proto::gateway::Result {
        let named = |reference: &Option<Arc<SolvedRef>>| match reference {
            None => Ref::default(),
            Some(reference) => Ref {
                id: self.job.keep(reference.clone()),
                def: with_definitions.then(|| reference.definition()),
            },
        };
        let refs = match (result.single, with_definitions) {
            (true, _) => {
                let reference = result.refs.first().and_then(|(_, r)| r.clone());
                let reference = named(&reference);
                match with_definitions {
                    true => result::Result::Ref(reference),
                    false => result::Result::RefDeprecated(reference.id),
                }
            }
            (false, true) => result::Result::Refs(RefMap {
                refs: result
                    .refs
                    .iter()
                    .map(|(id, reference)| (id.clone(), named(reference)))
                    .collect(),
            }),
            (false, false) => result::Result::RefsDeprecated(RefMapDeprecated {
                refs: result
                    .refs
                    .iter()
                    .map(|(id, reference)| (id.clone(), named(reference).id))
                    .collect(),
            }),
        };
        proto::gateway::Result {
            metadata: result.metadata.clone().into_iter().collect(),
            attestations: HashMap::new(),
            result: Some(refs),
        }
    }

    fn take_return(&self, request: ReturnRequest) -> Result<()> {
        if let Some(status) = request.error {
            return self.finish(Err(from_rpc_status(&status)));
        }
        let result = request.result.unwrap_or_default();
        if result
            .attestations
            .values()
            .any(|a| !a.attestation.is_empty())
        {
            return Err(Error::unimplemented(
                "attestations of frontends are not supported by this server",
            ));
        }
        let mut build = BuildResult {
            metadata: result.metadata.into_iter().collect(),
            ..BuildResult::empty()
        };
        let many = match result.result {
            None => None,
            Some(result::Result::RefDeprecated(id) | result::Result::Ref(Ref { id, .. })) => {
                build.refs = vec![(String::new(), self.job.find(&id)?)];
                None
            }
            Some(result::Result::RefsDeprecated(map)) => Some(map.refs),
            Some(result::Result::Refs(map)) => {
                let refs = map.refs.into_iter();
                Some(refs.map(|(platform, r)| (platform, r.id)).collect())
            }
        };
        if let Some(many) = many {
            // Maps of the wire have no order.
            let many: BTreeMap<String, String> = many.into_iter().collect();
            build.single = false;
            build.refs = many
                .into_iter()
                .map(|(platform, id)| Ok((platform, self.job.find(&id)?)))
                .collect::<Result<_>>()?;
        }
        self.finish(Ok(build))
    }

    async fn view(&self, id: &str) -> Result<Arc<ops::work::ReadOnly>> {
        match self.job.find(id)? {
            Some(reference) => self.job.view(&reference).await,
            None => Err(Error::not_found(format!("empty ref: {id}"))),
        }
    }

    async fn resolve_image(
        &self,
        provider: Arc<dyn ContentProvider>,
        scheme: &str,
        reference: Reference,
        platform: Option<&pb::Platform>,
        log_name: &str,
    ) -> Result<source::image::ResolvedImage> {
        let platform = platform.map_or_else(oci::Platform::host, llb::platform_from_proto);
        let identifier = format!("{scheme}://{reference}");
        let name = match log_name {
            "" => format!("resolve image config for {identifier}"),
            name => name.to_owned(),
        };
        let id = format!("{identifier}{platform}");
        let request = ImageRequest::new(reference, platform);
        let silent: Arc<dyn status::StatusSink> = Arc::new(status::Silent);
        let images = &self.job.parts().ops.images;
        self.job
            .running()
            .step(&name, &id, async {
                images.resolve(&*provider, &request, &silent).await
            })
            .await
    }

    async fn provider(
        &self,
        scheme: &str,
        session: &str,
        store: &str,
    ) -> Result<Arc<dyn ContentProvider>> {
        let running = self.job.running();
        if scheme != "oci-layout" {
            return Ok(registry_provider(running.registry()));
        }
        let session = match session {
            "" => running.session().await?,
            id => running.session_of(id).await?,
        };
        layout_provider(&session, store)
    }

    async fn resolve_image_config(
        &self,
        request: ResolveImageConfigRequest,
    ) -> Result<ResolveImageConfigResponse> {
        // 0 is a registry, 1 an OCI layout.
        let scheme = if request.resolver_type == 1 {
            "oci-layout"
        } else {
            "docker-image"
        };
        let provider = self.provider(scheme, &request.session_id, &request.store_id);
        let reference = request
            .r#ref
            .parse::<Reference>()
            .map_err(|error| Error::invalid(error.to_string()))?;
        let image = self
            .resolve_image(
                provider.await?,
                scheme,
                reference,
                request.platform.as_ref(),
                &request.log_name,
            )
            .await?;
        Ok(ResolveImageConfigResponse {
            digest: image.digest().to_string(),
            config: image.config.to_vec(),
            r#ref: image.reference.to_string(),
        })
    }

    async fn resolve_source_meta(
        &self,
        request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse> {
        let source = request
            .source
            .ok_or_else(|| Error::invalid("source is required"))?;
        let scheme = source.identifier.split("://").next().unwrap_or_default();
        if !matches!(scheme, "docker-image" | "oci-layout") {
            return Err(Error::unimplemented(format!(
                "metadata of {scheme}:// sources cannot be asked for from this server"
            )));
        }
        let op = llb::SourceOp {
            identifier: source.identifier.clone(),
            attrs: source.attrs.clone().into_iter().collect(),
        };
        let (session, store) = oci_layout_store(&op);
        let provider = self.provider(scheme, session, store).await?;
        let image = self
            .resolve_image(
                provider,
                scheme,
                image_reference(&op)?,
                request.platform.as_ref(),
                &request.log_name,
            )
            .await?;
        let no_config = request.image.is_some_and(|image| image.no_config);
        Ok(ResolveSourceMetaResponse {
            source: Some(source),
            image: Some(ResolveSourceImageResponse {
                digest: image.digest().to_string(),
                config: if no_config {
                    Vec::new()
                } else {
                    image.config.to_vec()
                },
                attestation_chain: None,
            }),
            git: None,
            http: None,
        })
    }

    fn warn(&self, request: WarnRequest) -> Result<()> {
        let vertex: Digest = request
            .digest
            .parse()
            .map_err(|error: oci::DigestError| Error::invalid(error.to_string()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let location = request
            .info
            .as_ref()
            .map(|info| llb::source_location(info, &request.ranges));
        let event = Event::Warning(VertexWarning {
            vertex,
            level: request.level,
            short: text(&request.short),
            detail: request.detail.iter().map(|line| text(line)).collect(),
            url: request.url,
            location,
        });
        self.job.running().event(&vertex, &event);
        Ok(())
    }
}

/// The metadata that clients before `Return` gave with their last solve, as a JSON map of base64.
fn with_exporter_attr(mut result: BuildResult, attr: &[u8]) -> Result<BuildResult> {
    use base64::Engine;
    if attr.is_empty() {
        return Ok(result);
    }
    let given: BTreeMap<String, String> =
        serde_json::from_slice(attr).map_err(|error| Error::invalid(error.to_string()))?;
    for (key, value) in given {
        let value = base64::engine::general_purpose::STANDARD
            .decode(value)
            .map_err(|error| Error::invalid(error.to_string()))?;
        result.metadata.entry(key).or_insert(value);
    }
    Ok(result)
}

fn no_containers<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented(
        "containers of gateway clients are not supported by this server",
    ))
}

#[tonic::async_trait]
impl LlbBridge for Gateway {
    type ExecProcessStream = Pin<Box<dyn Stream<Item = Result<ExecMessage, Status>> + Send>>;

    async fn resolve_image_config(
        &self,
        request: Request<ResolveImageConfigRequest>,
    ) -> Result<Response<ResolveImageConfigResponse>, Status> {
        let build = self.build(&request, "ResolveImageConfig").await?;
        answer(build.resolve_image_config(request.into_inner())).await
    }

    async fn resolve_source_meta(
        &self,
        request: Request<ResolveSourceMetaRequest>,
    ) -> Result<Response<ResolveSourceMetaResponse>, Status> {
        let build = self.build(&request, "ResolveSourceMeta").await?;
        answer(build.resolve_source_meta(request.into_inner())).await
    }

    async fn solve(
        &self,
        request: Request<SolveRequest>,
    ) -> Result<Response<SolveResponse>, Status> {
        let build = self.build(&request, "Solve").await?;
        answer(build.solve(request.into_inner())).await
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let build = self.build(&request, "ReadFile").await?;
        let request = request.into_inner();
        answer(async move {
            let view = build.view(&request.r#ref).await?;
            let range = request.range.unwrap_or_default();
            let part = |number: i64| u64::try_from(number).unwrap_or(0);
            let (offset, length) = (part(range.offset), part(range.length));
            let path = request.file_path;
            let read = move || reading::read_file(&view.root, &path, offset, length);
            let data = blocking(read).await?;
            Ok(ReadFileResponse { data })
        })
        .await
    }

    async fn read_dir(
        &self,
        request: Request<ReadDirRequest>,
    ) -> Result<Response<ReadDirResponse>, Status> {
        let build = self.build(&request, "ReadDir").await?;
        let request = request.into_inner();
        answer(async move {
            let view = build.view(&request.r#ref).await?;
            let read =
                move || reading::read_dir(&view.root, &request.dir_path, &request.include_pattern);
            let entries = blocking(read).await?;
            Ok(ReadDirResponse { entries })
        })
        .await
    }

    async fn stat_file(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        let build = self.build(&request, "StatFile").await?;
        let request = request.into_inner();
        answer(async move {
            let view = build.view(&request.r#ref).await?;
            let stat = blocking(move || reading::stat_file(&view.root, &request.path)).await?;
            Ok(StatFileResponse { stat: Some(stat) })
        })
        .await
    }

    async fn evaluate(
        &self,
        request: Request<EvaluateRequest>,
    ) -> Result<Response<EvaluateResponse>, Status> {
        let build = self.build(&request, "Evaluate").await?;
        let id = request.into_inner().r#ref;
        answer(async move {
            if let Some(reference) = build.job.find(&id)? {
                build.job.evaluate(&reference).await?;
            }
            Ok(EvaluateResponse {})
        })
        .await
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PongResponse>, Status> {
        let build = self.build(&request, "Ping").await?;
        answer(async move {
            let parts = build.job.parts().clone();
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
        answer(async move {
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
            definitions: build.inputs.clone(),
        }))
    }

    async fn warn(&self, request: Request<WarnRequest>) -> Result<Response<WarnResponse>, Status> {
        let build = self.build(&request, "Warn").await?;
        answer(async move {
            build.warn(request.into_inner())?;
            Ok(WarnResponse {})
        })
        .await
    }

    async fn new_container(
        &self,
        _request: Request<NewContainerRequest>,
    ) -> Result<Response<NewContainerResponse>, Status> {
        no_containers()
    }

    async fn release_container(
        &self,
        _request: Request<ReleaseContainerRequest>,
    ) -> Result<Response<ReleaseContainerResponse>, Status> {
        no_containers()
    }

    async fn exec_process(
        &self,
        _request: Request<tonic::Streaming<ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        no_containers()
    }

    async fn read_file_container(
        &self,
        _request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        no_containers()
    }

    async fn read_dir_container(
        &self,
        _request: Request<ReadDirRequest>,
    ) -> Result<Response<ReadDirResponse>, Status> {
        no_containers()
    }

    async fn stat_file_container(
        &self,
        _request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        no_containers()
    }
}
