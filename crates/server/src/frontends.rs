//! Running frontends inside the server: what they ask of it, and what becomes of their answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use diag::{Error, Result};
use frontend::{BuildOptions, FileStat, Host, OciStore, RefId, ResolvedImage, Warning};
use llb::{Graph, SourceOp};
use oci::{Platform, Reference};
use ops::work::{Event, Outside, blocking};
use progress::VertexWarning;
use proto::pb;

use crate::frontend_image::{check_source, run_frontend_image};
use crate::job::{BuildResult, Job};
use crate::reading::{self, Part};
use crate::resolving::{ImageQuestion, layout_source, registry_source, resolve_image};

/// The frontend that is part of the server.
const DOCKERFILE: &str = "dockerfile.v0";
/// The frontend that runs an image; those that are the built-in one by another name are served by it.
pub(crate) const GATEWAY: &str = "gateway.v0";

/// A request to a frontend.
#[derive(Clone, Debug, Default)]
pub struct FrontendRequest {
    /// Its name.
    pub frontend: String,
    /// Its options.
    pub attrs: BTreeMap<String, String>,
    /// Graphs given along, by name.
    pub inputs: BTreeMap<String, pb::Definition>,
}

/// Runs a frontend and takes the graphs it returns into the build. Nothing of them is solved yet.
pub async fn run_frontend(job: &Arc<Job>, mut request: FrontendRequest) -> Result<BuildResult> {
    let enabled = job.parts().config.frontend.get(&request.frontend);
    if enabled.and_then(|frontend| frontend.enabled) == Some(false) {
        return Err(unknown_frontend(&request.frontend));
    }
    match request.frontend.as_str() {
        DOCKERFILE => run_dockerfile(job, request).await,
        GATEWAY => {
            let source = request.attrs.get("source").map_or("", String::as_str);
            if is_dockerfile_frontend(source) {
                // Its image is not run, but who restricts images means this one too.
                check_source(job, source)?;
                request.attrs.remove("source");
                return run_dockerfile(job, request).await;
            }
            run_frontend_image(job, request).await
        }
        other => Err(unknown_frontend(other)),
    }
}

fn unknown_frontend(name: &str) -> Error {
    Error::invalid(format!("invalid frontend: {name}"))
}

/// Runs the frontend that is part of the server, or the one that the Dockerfile asks it for.
async fn run_dockerfile(job: &Arc<Job>, request: FrontendRequest) -> Result<BuildResult> {
    let options = BuildOptions::from_attrs(&request.attrs)?;
    let host = JobHost::new(job, &request.inputs)?;
    let made = frontend::build(&host, options).await?;
    if let Some(forward) = made.forward {
        let mut request = request;
        request.frontend = GATEWAY.to_owned();
        request.attrs.insert("source".into(), forward.image.clone());
        request
            .attrs
            .insert("cmdline".into(), forward.cmdline.clone());
        let enabled = job.parts().config.frontend.get(GATEWAY);
        let outcome = match enabled.and_then(|frontend| frontend.enabled) {
            Some(false) => Err(unknown_frontend(GATEWAY)),
            _ => run_frontend_image(job, request).await,
        };
        return outcome.map_err(|error| forward.blame(error));
    }
    let mut result = BuildResult {
        refs: Vec::new(),
        single: made.single,
        metadata: made.metadata,
    };
    for platform in made.refs {
        let reference = match platform.graph.root {
            Some(_) => Some(job.load(platform.graph).await?),
            None => None,
        };
        let id = match made.single {
            true => String::new(),
            false => platform.id,
        };
        result.refs.push((id, reference));
    }
    Ok(result)
}

/// True for the official Dockerfile frontends, by whatever tag or digest.
fn is_dockerfile_frontend(source: &str) -> bool {
    let Ok(reference) = source.parse::<Reference>() else {
        return source == DOCKERFILE;
    };
    source == DOCKERFILE
        || matches!(
            reference.familiar().split(['@', ':']).next(),
            Some("docker/dockerfile" | "docker/dockerfile-upstream")
        )
}

/// The server as a frontend sees it.
pub(crate) struct JobHost {
    job: Arc<Job>,
    inputs: BTreeMap<String, Graph>,
}

impl JobHost {
    /// The server as a frontend of that build sees it, with graphs given along.
    pub(crate) fn new(job: &Arc<Job>, inputs: &BTreeMap<String, pb::Definition>) -> Result<Self> {
        let inputs = inputs
            .iter()
            .map(|(name, definition)| Ok((name.clone(), llb::from_proto(definition.clone())?)))
            .collect::<Result<BTreeMap<String, Graph>>>()?;
        Ok(JobHost {
            job: job.clone(),
            inputs,
        })
    }

    async fn view(&self, reference: &RefId) -> Result<Arc<ops::work::ReadOnly>> {
        match self.job.find(&reference.0)? {
            Some(reference) => self.job.view(&reference).await,
            None => Err(Error::invalid("an empty reference cannot be read")),
        }
    }

    async fn resolve(
        &self,
        source: SourceOp,
        platform: Option<&Platform>,
        log_name: &str,
    ) -> Result<ResolvedImage> {
        let question = ImageQuestion {
            source,
            platform: platform.cloned().unwrap_or_else(Platform::host),
            log_name: log_name.to_owned(),
            policies: Vec::new(),
        };
        let image = resolve_image(&self.job, question).await?;
        Ok(ResolvedImage {
            digest: Some(image.digest),
            config: image.config,
            reference: image.reference,
        })
    }
}

#[async_trait]
impl Host for JobHost {
    fn worker_platforms(&self) -> Vec<Platform> {
        self.job.parts().worker.platforms()
    }

    fn session_id(&self) -> String {
        self.job.running().session_id().to_owned()
    }

    async fn resolve_image(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        _mode: &str,
        log_name: &str,
    ) -> Result<ResolvedImage> {
        // There is no store of images by tag here, so every mode asks the registry.
        self.resolve(registry_source(reference), platform, log_name)
            .await
    }

    async fn resolve_oci_layout(
        &self,
        reference: &Reference,
        store: &OciStore,
        platform: Option<&Platform>,
        log_name: &str,
    ) -> Result<ResolvedImage> {
        let source = layout_source(reference, &store.session_id, &store.store_id);
        self.resolve(source, platform, log_name).await
    }

    async fn solve(&self, graph: Graph) -> Result<RefId> {
        let reference = self.job.load(graph).await?;
        self.job.evaluate(&reference).await?;
        Ok(RefId(self.job.keep(reference)))
    }

    async fn read_file(&self, reference: &RefId, path: &str) -> Result<Vec<u8>> {
        self.read_file_start(reference, path, 0).await
    }

    async fn read_file_start(
        &self,
        reference: &RefId,
        path: &str,
        length: usize,
    ) -> Result<Vec<u8>> {
        let (view, path) = (self.view(reference).await?, path.to_owned());
        let length = (length > 0).then_some(length as u64);
        let part = Part { offset: 0, length };
        blocking(move || reading::read_file(&view.root, &path, part)).await
    }

    async fn stat_file(&self, reference: &RefId, path: &str) -> Result<FileStat> {
        let (view, path) = (self.view(reference).await?, path.to_owned());
        let stat = blocking(move || reading::stat_file(&view.root, &path)).await?;
        Ok(file_stat(stat))
    }

    async fn read_dir(&self, reference: &RefId, path: &str) -> Result<Vec<FileStat>> {
        let (view, path) = (self.view(reference).await?, path.to_owned());
        let entries = blocking(move || reading::read_dir(&view.root, &path, "")).await?;
        Ok(entries.into_iter().map(file_stat).collect())
    }

    async fn warn(&self, warning: Warning) {
        let Some(vertex) = warning.vertex else {
            tracing::warn!("a frontend's warning without a vertex: {}", warning.short);
            return;
        };
        let event = Event::Warning(VertexWarning {
            vertex,
            level: warning.level,
            short: warning.short,
            detail: warning.detail,
            url: warning.url,
            location: warning.location,
        });
        self.job.running().event(&vertex, &event);
    }

    async fn inputs(&self) -> Result<BTreeMap<String, Graph>> {
        Ok(self.inputs.clone())
    }
}

fn file_stat(stat: proto::fsutil::Stat) -> FileStat {
    FileStat {
        path: stat.path,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        modified: stat.mod_time,
        link_name: stat.linkname,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn official_frontend_images_are_the_built_in_one() {
        for name in [
            "dockerfile.v0",
            "docker/dockerfile:1",
            "docker.io/docker/dockerfile:1.7-labs",
            "docker/dockerfile-upstream:master",
        ] {
            assert!(is_dockerfile_frontend(name), "{name}");
        }
        for name in ["example.com/docker/dockerfile:1", "docker/other", ""] {
            assert!(!is_dockerfile_frontend(name), "{name}");
        }
    }
}
