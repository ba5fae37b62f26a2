//! Frontends that are images: each request runs one in a container, as any step, with the gateway
//! service of its build on its standard input and output (gRPC over HTTP/2, the frontend is the
//! client) and its standard error in the build's log.
//!
//! The frontend ends by `Return` and by exiting with 0. An error that it returned comes first, then a
//! bad end of the process, then what it returned. One that writes anything but HTTP/2 is killed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use diag::{Code, Error, Result, Secret, Unsupported};
use executor::{ExecError, ExitStatus, MountFlags, MountSource, ProcessMount, ProcessSpec, Stdio};
use frontend::BuildOptions;
use layers::WritableStack;
use llb::{GraphBuilder, NetMode, Op, SourceOp, VertexMeta};
use oci::{Digest, ImageConfig, Platform, Reference};
use ops::work::{ContainerFiles, Event, LogChunk, Output, Outside, blocking, forward_logs};
use progress::VertexLog;
use proto::pb;
use proto::prost::Message;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::frontends::{FrontendRequest, JobHost};
use crate::gateway_build::GatewayBuild;
use crate::job::{BuildResult, Job};
use crate::resolving::{ImageQuestion, registry_source, resolve_image};
use crate::stdio::{self, ConnectionEnd, pipe};

/// What is executed of an image without an entry point.
const DEFAULT_PROGRAM: &str = "/run";
/// Where the frontend finds the definition that it was itself made of.
const METADATA: &str = "/run/config/buildkit/metadata/frontend.bin";
/// What the server says its product is called, for hints in messages.
const PRODUCT: &str = "buildkit";
/// Labels of frontend images.
const LABEL_NO_NETWORK: &str = "moby.buildkit.frontend.network.none";
const LABEL_CAPABILITIES: &str = "moby.buildkit.frontend.caps";
/// The capability to get graphs as inputs.
const CAPABILITY_INPUTS: &str = "moby.buildkit.frontend.inputs";
/// How long what an ended frontend has written last may take to be read.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(5);

/// A frontend's image, unpacked.
struct FrontendImage {
    files: Output,
    config: ImageConfig,
    definition: pb::Definition,
    /// The vertex its log lines are shown under.
    vertex: Digest,
}

/// Runs the image that the option `source` names.
pub async fn run_frontend_image(job: &Arc<Job>, request: FrontendRequest) -> Result<BuildResult> {
    if request.attrs.contains_key("gateway-devel") {
        return Err(Error::invalid("development gateway is no longer supported"));
    }
    let source = request.attrs.get("source").cloned().unwrap_or_default();
    if source.is_empty() {
        return Err(Error::invalid("no source specified for gateway"));
    }
    check_source(job, &source)?;
    let image = load(job, &request, &source).await?;
    check_capabilities(&image.config, &request)?;
    let inputs = request.inputs.clone().into_iter().collect();
    let frontend = Frontend {
        build: GatewayBuild::new(job.clone(), inputs),
        spec: specification(job, &image, &request.attrs).await?,
        job: job.clone(),
        source,
        image,
        garbled: AtomicBool::new(false),
    };
    let cancel = CancellationToken::new();
    // Given up, it is killed, and what is left of it is taken away in the background.
    let _given_up = cancel.clone().drop_guard();
    let run = async move { frontend.run(cancel).await };
    let ended = job.tasks().spawn(run);
    ended.await.unwrap_or_else(|error| {
        Err(Error::internal(format!(
            "a frontend's run crashed: {error}"
        )))
    })
}

/// Fails for a source that the configuration does not allow.
pub fn check_source(job: &Job, source: &str) -> Result<()> {
    let configured = job.parts().config.frontend.get(crate::frontends::GATEWAY);
    configured.map_or(Ok(()), |gateway| {
        check_allowed(&gateway.allowed_repositories, source)
    })
}

/// Only images of these repositories, if any are named.
fn check_allowed(repositories: &[String], source: &str) -> Result<()> {
    if repositories.is_empty() {
        return Ok(());
    }
    let name = |text: &str| text.parse::<Reference>().map(|reference| reference.name());
    let wanted = name(source).map_err(|error| Error::invalid(error.to_string()))?;
    let known = repositories
        .iter()
        .any(|known| name(known).is_ok_and(|known| known == wanted));
    match known {
        true => Ok(()),
        false => Err(Error::new(
            Code::Unknown,
            format!("'{source}' is not an allowed gateway source"),
        )),
    }
}

/// What the request needs of the frontend must be among what its image promises.
fn check_capabilities(config: &ImageConfig, request: &FrontendRequest) -> Result<()> {
    let names = |list: &str| -> Vec<String> {
        let name = |entry: &str| entry.split('+').next().unwrap_or_default().to_owned();
        let names = list.split(',').map(name);
        names.filter(|name| !name.is_empty()).collect()
    };
    let label = config.config.labels.get(LABEL_CAPABILITIES);
    let has = names(label.map_or("", String::as_str));
    let mut needs = names(
        request
            .attrs
            .get("frontend.caps")
            .map_or("", String::as_str),
    );
    if !request.inputs.is_empty() {
        needs.push(CAPABILITY_INPUTS.to_owned());
    }
    match needs.iter().find(|needed| !has.contains(needed)) {
        None => Ok(()),
        Some(missing) => {
            let missing = Unsupported::FrontendCapability(missing.clone());
            Err(Error::unsupported(missing))
        }
    }
}

/// Brings the image: what a named context puts in its place, or what a registry has.
async fn load(job: &Arc<Job>, request: &FrontendRequest, source: &str) -> Result<FrontendImage> {
    let mut found = None;
    if request.attrs.keys().any(|key| key.starts_with("context:")) {
        let host = JobHost::new(job, &request.inputs)?;
        let options = BuildOptions::from_attrs(&request.attrs)?;
        found = frontend::frontend_source(&host, &options, source).await?;
    }
    let (graph, config) = match found {
        Some(found) => (found.graph, found.image.unwrap_or_default()),
        None => {
            let (op, config) = resolve(job, source).await?;
            let mut graph = GraphBuilder::new();
            let (op, meta) = (Op::Source(op), VertexMeta::default());
            let root = graph.add(op, Vec::new(), Some(Platform::host()), meta, Vec::new());
            (graph.finish(Some(root)), config)
        }
    };
    let vertex = graph.root.map(|root| root.vertex);
    let vertex = vertex.ok_or_else(|| Error::invalid(format!("frontend {source} has no files")))?;
    let reference = job.load(graph).await?;
    let output = job.evaluate(&reference).await?;
    Ok(FrontendImage {
        files: output,
        config,
        definition: reference.definition(),
        vertex,
    })
}

async fn resolve(job: &Arc<Job>, source: &str) -> Result<(SourceOp, ImageConfig)> {
    let reference = source
        .parse::<Reference>()
        .map_err(|error| Error::invalid(error.to_string()))?
        .with_default_tag();
    let question = ImageQuestion {
        source: registry_source(&reference),
        platform: Platform::host(),
        log_name: String::new(),
        policies: Vec::new(),
    };
    let image = resolve_image(job, question).await?;
    let config = serde_json::from_slice(&image.config)
        .map_err(|error| Error::invalid(error.to_string()).context("image configuration"))?;
    let pinned = image.reference.with_digest(image.digest);
    let op = SourceOp {
        identifier: format!("docker-image://{pinned}"),
        attrs: BTreeMap::from([("image.recordtype".to_owned(), "frontend".to_owned())]),
    };
    Ok((op, config))
}

/// The process, but for its root.
async fn specification(
    job: &Arc<Job>,
    image: &FrontendImage,
    attrs: &BTreeMap<String, String>,
) -> Result<ProcessSpec> {
    let config = &image.config.config;
    let mut env = config.env.clone();
    for (number, (name, value)) in attrs.iter().enumerate() {
        env.push(format!("BUILDKIT_FRONTEND_OPT_{number}={name}={value}"));
    }
    let session = job.running().session_id();
    env.push(format!("BUILDKIT_SESSION_ID={session}"));
    let parts = job.parts().clone();
    let workers = blocking(move || Ok(workers(&parts.worker.to_proto()))).await?;
    env.push(format!("BUILDKIT_WORKERS={workers}"));
    env.push(format!("BUILDKIT_EXPORTEDPRODUCT={PRODUCT}"));
    let default = || vec![DEFAULT_PROGRAM.to_owned()];
    let label = config.labels.get(LABEL_NO_NETWORK).map(String::as_str);
    let no_network = matches!(label, Some("1" | "t" | "T" | "true" | "TRUE" | "True"));
    let metadata = MountSource::File {
        data: Secret::new(image.definition.encode_to_vec()),
        uid: 0,
        gid: 0,
        mode: 0o400,
    };
    let mut metadata = ProcessMount::new(metadata, METADATA).readonly();
    metadata.flags = MountFlags::RESTRICTED;
    Ok(ProcessSpec {
        args: config.entrypoint.clone().unwrap_or_else(default),
        env,
        cwd: config.working_dir.clone(),
        mounts: vec![metadata],
        network: match no_network {
            true => NetMode::None,
            false => NetMode::Unset,
        },
        remove_mount_stubs_recursive: true,
        ..ProcessSpec::default()
    })
}

/// The workers as the JSON list that frontends read.
fn workers(record: &proto::worker::WorkerRecord) -> String {
    let platforms = record.platforms.iter().map(llb::platform_from_proto);
    let version = record.buildkit_version.clone().unwrap_or_default();
    let devices = record.cdi_devices.iter().map(|device| {
        serde_json::json!({
            "name": device.name,
            "autoAllow": device.auto_allow,
            "annotations": device.annotations.iter().collect::<BTreeMap<_, _>>(),
            "onDemand": device.on_demand,
        })
    });
    let devices: Vec<_> = devices.collect();
    let worker = serde_json::json!({
        "id": record.id,
        "labels": record.labels.iter().collect::<BTreeMap<_, _>>(),
        "platforms": platforms.collect::<Vec<_>>(),
        "gcPolicy": null,
        "buildkitVersion": {
            "package": version.package,
            "version": version.version,
            "revision": version.revision,
        },
        // Go writes an empty list so.
        "cdiDevices": (!devices.is_empty()).then_some(devices),
    });
    serde_json::Value::Array(vec![worker]).to_string()
}

/// One run of a frontend.
struct Frontend {
    job: Arc<Job>,
    /// The name it was asked for by.
    source: String,
    build: Arc<GatewayBuild>,
    image: FrontendImage,
    spec: ProcessSpec,
    /// Whether it was killed for what it wrote.
    garbled: AtomicBool,
}

impl Frontend {
    async fn run(mut self, cancel: CancellationToken) -> Result<BuildResult> {
        let (layers, stack) = (
            self.job.parts().layers.clone(),
            self.image.files.stack.clone(),
        );
        let files = blocking(move || Ok(layers.writable(&stack)?)).await?;
        let spec = std::mem::take(&mut self.spec);
        let ended = self.run_process(spec, &files, cancel).await;
        self.build.containers().release_all().await;
        blocking(move || {
            drop::<WritableStack>(files);
            Ok(())
        })
        .await?;
        self.outcome(ended?)
    }

    async fn run_process(
        &self,
        spec: ProcessSpec,
        files: &WritableStack,
        cancel: CancellationToken,
    ) -> Result<Result<ExitStatus, ExecError>> {
        let spec = ProcessSpec {
            rootfs: files.path(),
            ..spec
        };
        let (stdin, to_frontend) = pipe()?;
        let (from_frontend, stdout) = pipe()?;
        let (errors, stderr) = pipe()?;
        let end = ConnectionEnd::default();
        let serving = stdio::serve(
            self.build.clone(),
            pipe::Receiver::from_owned_fd(from_frontend)?,
            pipe::Sender::from_owned_fd(to_frontend)?,
            end.clone(),
        );
        let _serving = AbortOnDropHandle::new(tokio::spawn(serving));
        let stdio = Stdio {
            stdin: Some(stdin),
            stdout,
            stderr,
        };
        let parts = &self.job.parts().ops;
        let id = ContainerFiles::process_id();
        let kill = cancel.child_token();
        let run = parts.executor.run(&id, spec, stdio, kill.clone());
        let log = forward_logs(errors, 2, parts.log_limits, |chunk| self.log(chunk));
        let ended = async { tokio::join!(run, log) };
        let (ended, tail) = tokio::select! {
            ended = ended => ended,
            never = self.kill_when_garbled(&end, &kill) => match never {},
        };
        // What it called last is heard before it is said that it returned nothing.
        let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, end.wait()).await;
        let tail = tail.unwrap_or_default();
        if !tail.is_empty() && !matches!(&ended, Ok(status) if status.success()) {
            self.log(LogChunk {
                stream: 2,
                timestamp: jiff::Timestamp::now(),
                data: tail,
            });
        }
        Ok(ended)
    }
    /// A frontend that writes something else than the protocol cannot go on.
    async fn kill_when_garbled(&self, end: &ConnectionEnd, kill: &CancellationToken) -> Infallible {
        let by_peer = end.wait().await;
        if !by_peer && !self.build.has_returned() {
            self.garbled.store(true, Ordering::Relaxed);
            kill.cancel();
        }
        std::future::pending().await
    }

    fn log(&self, chunk: LogChunk) {
        let vertex = self.image.vertex;
        let event = Event::Log(VertexLog {
            vertex,
            stream: chunk.stream,
            timestamp: chunk.timestamp,
            data: Bytes::from(chunk.data),
        });
        self.job.running().event(&vertex, &event);
    }

    /// What it all comes to. An error that was returned is in the frontend's own words.
    fn outcome(&self, ended: Result<ExitStatus, ExecError>) -> Result<BuildResult> {
        let whose = |error: Error| error.context(format!("frontend {}", self.source));
        let failure = match ended {
            Ok(status) if status.success() => None,
            Ok(status) => {
                let text = format!("exit code: {}", status.code);
                Some(Error::new(Code::Unknown, text).exit_code(status.code))
            }
            Err(ExecError::Canceled) if self.garbled.load(Ordering::Relaxed) => Some(
                Error::new(Code::Unknown, "frontend grpc server closed unexpectedly").hint(
                    "the frontend wrote to its standard output something else than gRPC: \
                     what it has to say belongs on standard error",
                ),
            ),
            Err(ExecError::Canceled) => Some(Error::canceled()),
            Err(error) => Some(error.into()),
        };
        match (self.build.take_returned(), failure) {
            (Some(Err(error)), _) => Err(error),
            (_, Some(failure)) => Err(whose(failure)),
            (Some(Ok(result)), None) => Ok(result),
            (None, None) => Err(whose(
                Error::new(Code::Unknown, "no result for incomplete build")
                    .hint("the frontend ended well without having returned anything"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_repositories_are_run() {
        let allowed = ["docker/dockerfile".to_owned(), "example.com/a/b".to_owned()];
        for source in ["example.com/a/b:1", "docker.io/docker/dockerfile"] {
            check_allowed(&allowed, source).unwrap();
        }
        let error = check_allowed(&allowed, "example.com/a/c").unwrap_err();
        assert_eq!(
            error.to_string(),
            "'example.com/a/c' is not an allowed gateway source"
        );
        check_allowed(&[], "anything").unwrap();
    }

    #[test]
    fn what_a_request_needs_must_be_promised() {
        let promising = |label: &str| {
            let mut config = ImageConfig::default();
            let labels = &mut config.config.labels;
            labels.insert(LABEL_CAPABILITIES.to_owned(), label.to_owned());
            config
        };
        let asking = |caps: &str, inputs: bool| {
            let mut request = FrontendRequest::default();
            let caps = ("frontend.caps".to_owned(), caps.to_owned());
            request.attrs.extend([caps]);
            if inputs {
                let input = ("a".to_owned(), pb::Definition::default());
                request.inputs.extend([input]);
            }
            request
        };
        let label = "moby.buildkit.frontend.inputs,x.contexts+forward";
        check_capabilities(&promising(label), &asking("x.contexts", true)).unwrap();
        check_capabilities(&ImageConfig::default(), &asking("", false)).unwrap();
        let error = check_capabilities(&ImageConfig::default(), &asking("", true)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unsupported frontend capability moby.buildkit.frontend.inputs"
        );
        assert!(check_capabilities(&promising("x"), &asking("y+z", false)).is_err());
    }

    #[test]
    fn workers_are_told_as_frontends_read_them() {
        let record = proto::worker::WorkerRecord {
            id: "w".into(),
            platforms: vec![llb::platform_to_proto(&Platform::host())],
            ..proto::worker::WorkerRecord::default()
        };
        let list: serde_json::Value = serde_json::from_str(&workers(&record)).unwrap();
        assert_eq!(list[0]["id"], "w");
        assert_eq!(list[0]["platforms"][0]["os"], "linux");
        assert!(list[0]["buildkitVersion"]["version"].is_string());
    }
}
