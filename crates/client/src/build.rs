//! A whole build: nodes are chosen and booted, each gets its plan, all solve, results are joined.

use std::io::Read;
use std::sync::Arc;

use builder::{BootProgress, Builder, ResolvedNode};
use diag::{Code, Context, Error};
use docker_config::DockerConfig;
use driver::engine::Engine;
use driver::{IMAGE_ORDER_OPTION, ImageOrder, Loss};
use futures::future::try_join_all;
use oci::Reference;
use progress_ui::Progress;
use proto::control::control_client::ControlClient;
use session::{ClientSession, SessionHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::engine_image::ImageLender;
use crate::engine_push::push_names;
use crate::environment::Environment;
use crate::export::{Export, Target, prepare_exports};
use crate::facts::node_facts;
use crate::git_info::GitInfo;
use crate::inputs::Inputs;
use crate::join::{Push, join_images};
use crate::layout::enter_layouts;
use crate::outcome::{BUILD_REF, CONFIG_DIGEST, Outcome};
use crate::plan::{NodeFacts, PlanContext, SolvePlan, no_output_warning};
use crate::remote_dockerfile::fetch;
use crate::request::BuildRequest;
use crate::serve::{Peer, Services, session_for};
use crate::solve::{Response, SolveFailure, solve};
use crate::spec::is_true;

/// The variable that says where base images are looked for, for builders of all drivers.
const IMAGE_ORDER_VARIABLE: &str = "COOPERAGE_ENGINE_IMAGES";

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
        solve_on(builder, node, facts, plan, &prepared.services, &cancel)
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

fn boot_progress(progress: &Progress) -> BootProgress {
    let progress = progress.clone();
    BootProgress::callback(move |status| progress.send(status))
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

/// Opens a session to the node's server.
async fn open_session(
    node: &ResolvedNode<'_>,
    channel: &Channel,
    session: &ClientSession,
) -> Result<SessionHandle, Error> {
    let pairs = session.headers().pairs().into_iter();
    let headers: Vec<(String, String)> = pairs.map(|(k, v)| (k.to_owned(), v)).collect();
    let io = node
        .node
        .driver()?
        .dial_session(&headers)
        .await
        .map_err(Error::from)
        .context("failed to open the session")?;
    Ok(match io {
        Some(io) => session.run_on_io(io),
        None => session.run(ControlClient::new(channel.clone()))?,
    })
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

/// Carries out a plan on its node. A server that is lost in the middle is booted again, once, and
/// continues from its cache; one that somebody stopped or removed is not.
async fn solve_on(
    builder: &Builder,
    node: ResolvedNode<'_>,
    facts: NodeFacts,
    mut plan: SolvePlan,
    services: &Services,
    cancel: &CancellationToken,
) -> Result<Response, Error> {
    let mut connection = node.connection.clone();
    let order = image_order(&node, &services.env)?;
    let engine = match facts.is_moby {
        // It has its own images.
        true => None,
        false => builder.docker().current_engine().ok(),
    };
    let mut lender = ImageLender::new(
        engine,
        order,
        &services.progress,
        builder.docker().store().config().path(),
    );
    unless(cancel, lender.lend_first(&mut plan)).await?;
    let mut retried = plan.exports.iter().any(Export::is_stream);
    let mut response = loop {
        let failure = match try_solve(
            &node,
            connection.channel.clone(),
            &mut plan,
            services,
            &lender,
            cancel,
        )
        .await
        {
            Ok(response) => break response,
            Err(failure) => failure,
        };
        // Cancellation has its own error, which comes out below.
        let lending = lender.lend_unresolved(&mut plan, &failure.error);
        let lent = cancel.run_until_cancelled(lending).await;
        if lent.transpose()?.unwrap_or(false) {
            plan.reference = crate::id::new_id();
            continue;
        }
        // A server that ends in good order cancels its builds first.
        let may_be_lost = failure.connection_lost || failure.error.is_canceled();
        if !may_be_lost || cancel.is_cancelled() {
            return Err(failure.error);
        }
        let Some(Loss { cause, on_purpose }) = node.node.diagnose().await else {
            return Err(match connection.trouble() {
                Some(trouble) => failure.error.hint(trouble),
                None => failure.error,
            });
        };
        if on_purpose {
            return Err(ended_by_somebody(&cause));
        }
        if !builder.still_exists() {
            let cause = format!("builder {:?} was removed", builder.name());
            return Err(ended_by_somebody(&cause));
        }
        if std::mem::replace(&mut retried, true) {
            return Err(failure.error.hint(cause));
        }
        tracing::info!(
            node = facts.name,
            cause,
            "the server was lost and is booted again"
        );
        node.node.disconnect().await;
        connection = node
            .node
            .boot(&boot_progress(&services.progress))
            .await
            .map_err(|error| error.hint(cause))?;
        plan.reference = crate::id::new_id();
    };
    if plan.call.is_none() {
        let reference = format!("{}/{}/{}", facts.builder, facts.name, plan.reference);
        response.insert(BUILD_REF.to_owned(), reference);
    }
    if !facts.direct_push {
        let pushed = plan
            .exports
            .iter()
            .filter(|export| export.kind == "moby" && export.pushes());
        for export in pushed {
            let names = export.attributes.get("name").map_or("", String::as_str);
            let node = node.node.driver()?.node();
            push_names(node, names, &mut response, &services.progress).await?;
        }
    }
    // The user asked for the ID that the Engine's store goes by.
    let by_image = |export: &Export| is_true(&export.attributes, "prefer-image-digest");
    if plan.exports.iter().any(by_image) {
        response.remove(CONFIG_DIGEST);
    }
    Ok(response)
}

/// What the work gives, unless it is to stop.
async fn unless<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let done = cancel.run_until_cancelled(work).await;
    done.unwrap_or_else(|| Err(Error::canceled()))
}

/// Where base images are looked for: the environment before the builder's option.
fn image_order(node: &ResolvedNode<'_>, env: &Environment) -> Result<ImageOrder, Error> {
    let options = &node.node.driver()?.node().options;
    let text = env
        .get(IMAGE_ORDER_VARIABLE)
        .filter(|text| !text.is_empty())
        .or_else(|| options.get(IMAGE_ORDER_OPTION).map(String::as_str));
    match text {
        Some(text) => text.parse().map_err(Error::invalid),
        None => Ok(ImageOrder::default()),
    }
}

/// The error of a build whose server is not to come back.
fn ended_by_somebody(cause: &str) -> Error {
    Error::new(Code::Unavailable, format!("{cause} during the build")).context("failed to solve")
}

/// Opens the session, solves, and ends the session.
async fn try_solve(
    node: &ResolvedNode<'_>,
    channel: Channel,
    plan: &mut SolvePlan,
    services: &Services,
    lender: &ImageLender,
    cancel: &CancellationToken,
) -> Result<Response, SolveFailure> {
    let local = |error: Error| SolveFailure {
        error,
        connection_lost: false,
    };
    let driver = node.node.driver().map_err(local)?;
    let peer = Peer::new(channel.clone(), driver.is_on_this_machine());
    let session = session_for(plan, services, &peer).map_err(local)?;
    let session = lender.serve(session).build();
    let handle = open_session(node, &channel, &session)
        .await
        .map_err(local)?;
    let request = plan.to_proto(session.id());
    let steered = plan.call.is_some();
    let result = solve(channel, request, steered, &services.progress, cancel).await;
    handle.close();
    let response = result?;
    enter_layouts(plan, &response).await.map_err(local)?;
    Ok(response)
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
