//! A plan carried out on its node, with what a build has to live through: base images that only the
//! user's Engine has are lent, and a server that is lost in the middle is booted again.

use builder::{BootProgress, Builder, ResolvedNode};
use diag::{Code, Context, Error};
use driver::{Connection, IMAGE_ORDER_OPTION, ImageOrder, Loss};
use progress_ui::Progress;
use proto::control::control_client::ControlClient;
use session::{ClientSession, SessionHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::engine_image::ImageLender;
use crate::engine_push::push_names;
use crate::environment::Environment;
use crate::export::Export;
use crate::layout::enter_layouts;
use crate::plan::{NodeFacts, SolvePlan};
use crate::response::{BUILD_REF, CONFIG_DIGEST, Response};
use crate::serve::{Peer, Services, session_for};
use crate::solve::{SolveFailure, solve};
use crate::spec::is_true;

/// The variable that says where base images are looked for, for builders of all drivers.
const IMAGE_ORDER_VARIABLE: &str = "COOPERAGE_ENGINE_IMAGES";

/// A node with what its part of a build needs.
pub(crate) struct NodeSolve<'a> {
    /// The builder that has the node.
    pub(crate) builder: &'a Builder,
    pub(crate) node: ResolvedNode<'a>,
    pub(crate) facts: NodeFacts,
    pub(crate) services: &'a Services,
    /// Asks the build to stop.
    pub(crate) cancel: &'a CancellationToken,
}

impl NodeSolve<'_> {
    /// Carries out a plan. A server that is lost in the middle is booted again, once, and continues from
    /// its cache; one that somebody stopped or removed is not.
    pub(crate) async fn run(self, mut plan: SolvePlan) -> Result<Response, Error> {
        let order = image_order(&self.node, &self.services.env)?;
        let docker = self.builder.docker();
        let engine = match self.facts.is_moby {
            // It has its own images.
            true => None,
            false => docker.current_engine().ok(),
        };
        let records = docker.store().config().path();
        let mut lender = ImageLender::new(engine, order, &self.services.progress, records);
        unless(self.cancel, lender.lend_first(&mut plan)).await?;
        let response = self.solve(&mut plan, &mut lender).await?;
        self.finish(&plan, response).await
    }

    /// Solves as often as it takes.
    async fn solve(
        &self,
        plan: &mut SolvePlan,
        lender: &mut ImageLender,
    ) -> Result<Response, Error> {
        let mut connection = self.node.connection.clone();
        // What went into a stream cannot be taken back.
        let mut may_boot = !plan.exports.iter().any(Export::is_stream);
        loop {
            let attempt = self.attempt(connection.channel.clone(), plan, lender);
            let failure = match attempt.await {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            // Cancellation has its own error, which comes out below.
            let lending = lender.lend_unresolved(plan, &failure.error);
            let lent = self.cancel.run_until_cancelled(lending).await;
            if !lent.transpose()?.unwrap_or(false) {
                let may_boot = std::mem::take(&mut may_boot);
                connection = self.boot_again(&connection, failure, may_boot).await?;
            }
            plan.reference = crate::id::new_id();
        }
    }

    /// Opens the session, solves, and ends the session.
    async fn attempt(
        &self,
        channel: Channel,
        plan: &mut SolvePlan,
        lender: &ImageLender,
    ) -> Result<Response, SolveFailure> {
        let local = |error: Error| SolveFailure {
            error,
            connection_lost: false,
        };
        let driver = self.node.node.driver().map_err(local)?;
        let peer = Peer::new(channel.clone(), driver.is_on_this_machine());
        let session = session_for(plan, self.services, &peer).map_err(local)?;
        let session = lender.serve(session).build();
        let opening = open_session(&self.node, &channel, &session);
        let handle = opening.await.map_err(local)?;
        let request = plan.to_proto(session.id());
        let steered = plan.call.is_some();
        let progress = &self.services.progress;
        let result = solve(channel, request, steered, progress, self.cancel).await;
        handle.close();
        let response = result?;
        enter_layouts(plan, &response).await.map_err(local)?;
        Ok(response)
    }

    /// Boots the server again if the failure is that it was lost.
    ///
    /// # Errors
    /// The failure, with what is known of its cause, when it is another or the server is not to come
    /// back; or that of the boot.
    async fn boot_again(
        &self,
        connection: &Connection,
        failure: SolveFailure,
        may_boot: bool,
    ) -> Result<Connection, Error> {
        // A server that ends in good order cancels its builds first.
        let may_be_lost = failure.connection_lost || failure.error.is_canceled();
        if !may_be_lost || self.cancel.is_cancelled() {
            return Err(failure.error);
        }
        let node = self.node.node;
        let Some(Loss { cause, on_purpose }) = node.diagnose().await else {
            return Err(match connection.trouble() {
                Some(trouble) => failure.error.hint(trouble),
                None => failure.error,
            });
        };
        if on_purpose {
            return Err(ended_by_somebody(&cause));
        }
        if !self.builder.still_exists() {
            let cause = format!("builder {:?} was removed", self.builder.name());
            return Err(ended_by_somebody(&cause));
        }
        if !may_boot {
            return Err(failure.error.hint(cause));
        }
        tracing::info!(
            node = self.facts.name,
            cause,
            "the server was lost and is booted again"
        );
        node.disconnect().await;
        let progress = boot_progress(&self.services.progress);
        let booted = node.boot(&progress).await;
        booted.map_err(|error| error.hint(cause))
    }

    /// What is left to do when the server is done.
    async fn finish(&self, plan: &SolvePlan, mut response: Response) -> Result<Response, Error> {
        if plan.call.is_none() {
            let facts = &self.facts;
            let reference = format!("{}/{}/{}", facts.builder, facts.name, plan.reference);
            response.insert(BUILD_REF.to_owned(), reference);
        }
        if !self.facts.direct_push {
            let pushed = |export: &&Export| export.kind == "moby" && export.pushes();
            for export in plan.exports.iter().filter(pushed) {
                let names = export.attributes.get("name").map_or("", String::as_str);
                let node = self.node.node.driver()?.node();
                push_names(node, names, &mut response, &self.services.progress).await?;
            }
        }
        // The user asked for the ID that the Engine's store goes by.
        let by_image = |export: &Export| is_true(&export.attributes, "prefer-image-digest");
        if plan.exports.iter().any(by_image) {
            response.remove(CONFIG_DIGEST);
        }
        Ok(response)
    }
}

/// What tells of a boot on a display.
pub(crate) fn boot_progress(progress: &Progress) -> BootProgress {
    let progress = progress.clone();
    BootProgress::callback(move |status| progress.send(status))
}

/// Opens a session to the node's server.
pub(crate) async fn open_session(
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

/// What the work gives, unless it is to stop.
pub(crate) async fn unless<T>(
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
