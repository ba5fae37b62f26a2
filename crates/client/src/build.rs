//! A whole build: nodes are chosen and booted, each gets its plan, all solve, results are joined.

use std::io::Read;
use std::sync::Arc;

use builder::{Builder, ResolvedNode};
use diag::Error;
use docker_config::DockerConfig;
use driver::engine::Engine;
use futures::future::try_join_all;
use oci::Reference;
use progress_ui::Progress;
use session::ClientSession;
use tokio_util::sync::CancellationToken;

use crate::environment::Environment;
use crate::export::{Export, Target, prepare_exports};
use crate::facts::node_facts;
use crate::git_info::GitInfo;
use crate::inputs::Inputs;
use crate::join::{Push, join_images};
use crate::node_solve::{NodeSolve, boot_progress, open_session, unless};
use crate::outcome::Outcome;
use crate::plan::{NodeFacts, PlanContext, SolvePlan, no_output_warning};
use crate::remote_dockerfile::fetch;
use crate::request::BuildRequest;
use crate::serve::Services;
use crate::spec::is_true;

/// What a build is done with.
pub struct BuildJob {
    /// What to build.
    pub request: BuildRequest,
    /// Variables and the working directory.
    pub env: Environment,
    /// Read when the request says so.
    pub stdin: Box<dyn Read + Send>,
    /// Whether binary results must not be written to standard output.
    pub stdout_is_terminal: bool,
    /// Where progress goes.
    pub progress: Progress,
    /// Asks the build to stop.
    pub cancel: CancellationToken,
    /// Told what the user should know, without the word `WARNING`.
    pub warn: Arc<dyn Fn(&str) + Send + Sync>,
    /// Told of every plan before it is carried out, for the record of builds.
    pub planned: Arc<dyn Fn(&NodeFacts, &SolvePlan) + Send + Sync>,
}

/// Everything that was found out before any node was touched.
struct Prepared {
    request: BuildRequest,
    env: Environment,
    inputs: Inputs,
    git: GitInfo,
    exports: Vec<Export>,
    services: Services,
}

/// Builds on a builder whose nodes are loaded.
pub async fn build(builder: &Builder, job: BuildJob) -> Result<Outcome, Error> {
    let (progress, cancel) = (job.progress.clone(), job.cancel.clone());
    let (warn, planned) = (job.warn.clone(), job.planned.clone());
    let ready = async {
        warn_of_no_output(builder, &job).await;
        let prepared = prepare(builder, job).await?;
        let nodes = boot(builder, &prepared.request, &progress).await?;
        let mut work = Vec::with_capacity(nodes.len());
        for node in nodes {
            let facts = facts_of(&node, &prepared).await?;
            work.push((node, facts));
        }
        Ok::<_, Error>((prepared, work))
    };
    let (mut prepared, nodes) = tokio::select! {
        ready = ready => ready?,
        () = cancel.cancelled() => return Err(Error::canceled()),
    };
    if let Some((node, _)) = nodes.first() {
        bring_dockerfile(node, &mut prepared, &cancel).await?;
    }
    let context = PlanContext {
        request: &prepared.request,
        inputs: &prepared.inputs,
        git: &prepared.git,
        exports: &prepared.exports,
        env: &prepared.env,
        several_nodes: nodes.len() > 1,
    };
    let mut work = Vec::with_capacity(nodes.len());
    for (node, facts) in nodes {
        let plan = SolvePlan::new(context, &facts, &node.platforms)?;
        check_moby_push(&plan, context.several_nodes)?;
        for note in &plan.notes {
            warn(note);
        }
        work.push((node, facts, plan));
    }
    let push = match context.several_nodes {
        true => split_push(&mut work, &prepared.request)?,
        false => None,
    };
    let solving = work.into_iter().map(|(node, facts, plan)| {
        planned(&facts, &plan);
        let work = NodeSolve {
            builder,
            node,
            facts,
            services: &prepared.services,
            cancel: &cancel,
        };
        work.run(plan)
    });
    let mut responses = try_join_all(solving).await?;
    let response = match push {
        Some(push) => {
            let config = &prepared.services.config;
            let name = format!("merging manifest list {}", push.names.join(","));
            let joining = |_| join_images(&responses, &push, config);
            crate::steps::Step::run(&progress, name, joining).await?
        }
        None => responses.swap_remove(0),
    };
    Ok(Outcome {
        response,
        dockerfile_source: prepared.inputs.dockerfile_source.clone(),
    })
}

/// Warns before anything is shown that the result will stay in the builder.
async fn warn_of_no_output(builder: &Builder, job: &BuildJob) {
    for node in builder.nodes() {
        let Ok(driver) = node.driver() else { continue };
        if driver.is_moby() {
            continue;
        }
        let features = driver.features().await;
        let default_load = features.get(&driver::Feature::DefaultLoad).copied();
        let warning = no_output_warning(
            &job.request,
            driver.name(),
            default_load.unwrap_or(false),
            &job.env,
        );
        if let Some(text) = warning {
            (job.warn)(&text);
        }
        return;
    }
}

async fn prepare(builder: &Builder, job: BuildJob) -> Result<Prepared, Error> {
    let BuildJob {
        request,
        env,
        stdin,
        stdout_is_terminal,
        progress,
        warn,
        ..
    } = job;
    let config: DockerConfig = builder.docker().config().clone();
    let looked_at = tokio::task::spawn_blocking(move || {
        let exports = prepare_exports(
            &request.exports,
            &env,
            request.entitlements.local_delete,
            stdout_is_terminal,
        )?;
        let inputs = Inputs::load(&request, &env, stdin)?;
        let git = GitInfo::find(&request.context, &request.dockerfile, &env);
        Ok::<_, Error>((request, env, exports, inputs, git))
    });
    let (request, env, exports, inputs, git) = looked_at
        .await
        .map_err(|error| Error::internal(error.to_string()))??;
    let git = git.unwrap_or_else(|error| {
        warn(&format!(
            "current commit information was not captured by the build: {error}"
        ));
        GitInfo::default()
    });
    let engine = load_engine(builder, &exports)?;
    Ok(Prepared {
        services: Services {
            config,
            engine,
            progress,
            env: env.clone(),
        },
        request,
        env,
        inputs,
        git,
        exports,
    })
}

/// The Engine that images are loaded into: that of the context the output names, or the current
/// one. A build without output may load by default.
fn load_engine(builder: &Builder, exports: &[Export]) -> Result<Option<Engine>, Error> {
    let named = exports.iter().find_map(|export| match &export.target {
        Target::Engine(context) => Some(context.clone()),
        _ => None,
    });
    match named {
        None if !exports.is_empty() => Ok(None),
        None => Ok(builder.docker().current_engine().ok()),
        Some(None) => Ok(Some(builder.docker().current_engine()?)),
        Some(Some(context)) => Ok(Some(builder.docker().engine(&context, None)?)),
    }
}

/// Chooses the nodes, boots and connects them.
async fn boot<'a>(
    builder: &'a Builder,
    request: &BuildRequest,
    progress: &Progress,
) -> Result<Vec<ResolvedNode<'a>>, Error> {
    let boot_progress = boot_progress(progress);
    builder.resolve(&request.platforms, &boot_progress).await
}

async fn facts_of(node: &ResolvedNode<'_>, prepared: &Prepared) -> Result<NodeFacts, Error> {
    let machine = node.node.driver()?.node().owner.clone();
    node_facts(
        node,
        &prepared.request,
        prepared.services.engine.as_ref(),
        &machine,
    )
    .await
}

/// Lets a server fetch the Dockerfile, if it is somewhere in the web.
async fn bring_dockerfile(
    node: &ResolvedNode<'_>,
    prepared: &mut Prepared,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let Some(url) = prepared.inputs.dockerfile_url.clone() else {
        return Ok(());
    };
    let channel = node.connection.channel.clone();
    let session = ClientSession::builder().build();
    let opening = open_session(node, &channel, &session);
    let handle = unless(cancel, opening).await?;
    let progress = &prepared.services.progress;
    let fetched = fetch(channel, session.id(), &url, progress, cancel).await;
    handle.close();
    let text = fetched.map_err(|failure| failure.error)?;
    let mut inputs = std::mem::take(&mut prepared.inputs);
    let placing = tokio::task::spawn_blocking(move || {
        inputs.set_dockerfile(&text)?;
        Ok::<_, Error>(inputs)
    });
    prepared.inputs = placing
        .await
        .map_err(|error| Error::internal(error.to_string()))??;
    Ok(())
}

fn check_moby_push(plan: &SolvePlan, several: bool) -> Result<(), Error> {
    let pushes = plan
        .exports
        .iter()
        .any(|export| export.kind == "moby" && export.pushes());
    if !pushes {
        return Ok(());
    }
    if several {
        return Err(Error::unimplemented(
            "multi-node push can't currently be performed with the docker driver, please switch to a different driver",
        ));
    }
    Ok(())
}

/// Nodes that build together push by digest, to the repositories of all names; the names are given
/// to what is joined from that.
fn split_push(
    work: &mut [(ResolvedNode<'_>, NodeFacts, SolvePlan)],
    request: &BuildRequest,
) -> Result<Option<Push>, Error> {
    let mut push: Option<Push> = None;
    for export in work.iter_mut().flat_map(|(_, _, plan)| &mut plan.exports) {
        match export.kind.as_str() {
            "oci" | "tar" => {
                return Err(Error::unimplemented(format!(
                    "{} for multi-node builds currently not supported",
                    export.kind
                )));
            }
            "image" if export.pushes() => {}
            _ => continue,
        }
        let names = export.attributes.get("name").cloned().unwrap_or_default();
        if names.is_empty() {
            return Err(Error::invalid("tag is needed when pushing to registry"));
        }
        let repositories = repositories(&names)?;
        export.attributes.insert("name".to_owned(), repositories);
        export
            .attributes
            .insert("push-by-digest".to_owned(), "true".to_owned());
        push.get_or_insert_with(|| Push {
            names: names.split(',').map(str::to_owned).collect(),
            insecure: is_true(&export.attributes, "registry.insecure"),
            annotations: request.annotations.clone(),
        });
    }
    Ok(push)
}

/// The repositories of names separated by commas, each once, without tags.
fn repositories(names: &str) -> Result<String, Error> {
    let mut repositories: Vec<String> = Vec::new();
    for name in names.split(',') {
        let reference: Reference = name
            .parse()
            .map_err(|error: oci::ReferenceError| Error::invalid(error.to_string()))?;
        if !repositories.contains(&reference.name()) {
            repositories.push(reference.name());
        }
    }
    Ok(repositories.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_named_once() {
        assert_eq!(
            repositories("a:1,docker.io/library/a:2,host:5000/b").unwrap(),
            "docker.io/library/a,host:5000/b"
        );
        assert!(repositories("A").is_err());
    }
}
