//! `Control.Solve` from beginning to end: a request becomes a build, its result is exported, and what
//! happened is kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use diag::{Error, Result};
use exporter::{ClientTarget, ExportContext, ExportSource, ExporterSpec};
use futures::future::try_join_all;
use jiff::Timestamp;
use oci::Digest;
use ops::work::{Event, Outside, blocking};
use progress::{SolveStatus, VertexLog};
use proto::control::{
    BuildHistoryRecord, BuildResultInfo, CacheOptions, Descriptor, Exporter as ExporterRequest,
    SolveRequest, SolveResponse,
};
use tokio_util::sync::CancellationToken;

use crate::client_target::SessionTarget;
use crate::entitlements::Entitlements;
use crate::exporting::export_source;
use crate::frontends::{FrontendRequest, run_frontend};
use crate::gateway_build::GatewayBuild;
use crate::history::{Ended, new_record};
use crate::job::{BuildResult, Job, JobPolicy};
use crate::parts::{Entry, ServerParts};
use crate::running::Running;
use crate::source_policy::Rules;
use crate::trace::{BuildFacts, BuildTrace, TraceContext, time_of};
use crate::wire::timestamp;

/// How long a refused client's session is waited for.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);

/// How long the answer to a cancelled build waits for the end of its steps.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A request that was checked.
struct Plan {
    request: SolveRequest,
    exporters: Vec<ExporterSpec>,
    entitlements: Entitlements,
    rules: Rules,
}

/// What came of the exports.
#[derive(Default)]
struct Exports {
    response: BTreeMap<String, String>,
    /// Images made, by the number of their exporter.
    images: HashMap<i64, Descriptor>,
    /// Keep the blobs of those images until the record does.
    leases: Vec<content::Lease>,
}

/// What makes a build end before its time.
pub struct Ends {
    /// Its client went away.
    pub hang_up: CancellationToken,
    /// The server stops.
    pub stop: CancellationToken,
}

impl Ends {
    /// Waits for one of them; why the build ends.
    async fn come(&self) -> Error {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => stopping(),
            () = self.hang_up.cancelled() => Error::canceled(),
        }
    }

    /// Why a build ended that failed: what ends it makes its steps fail, too.
    fn explain(&self, error: Error) -> Error {
        match (self.stop.is_cancelled(), self.hang_up.is_cancelled()) {
            (true, _) => stopping(),
            (_, true) => Error::canceled(),
            _ => error,
        }
    }
}

fn stopping() -> Error {
    let text = "the build was given up: the server is stopping";
    Error::new(diag::Code::Unavailable, text)
}

/// Carries out a request, as part of its client's trace if it has one. When an end comes the build is
/// given up; its record is written all the same, so this must be waited for.
pub async fn solve(
    parts: Arc<ServerParts>,
    request: SolveRequest,
    client: Option<TraceContext>,
    ends: Ends,
) -> Result<SolveResponse> {
    let session = request.session.clone();
    let plan = match check(&parts, request) {
        Ok(plan) => plan,
        Err(error) => {
            await_session(&parts, &session).await;
            return Err(error);
        }
    };
    let request = &plan.request;
    let running = Running::new(
        &request.r#ref,
        &request.session,
        parts.sessions.clone(),
        &parts.registry,
    );
    let job = Job::new(
        parts.clone(),
        running.clone(),
        plan.entitlements.clone(),
        JobPolicy {
            rules: plan.rules.clone(),
            session: request.source_policy_session.clone(),
        },
    );
    let driven = request.frontend.is_empty() && request.definition.is_none();
    let gateway = driven.then(|| GatewayBuild::new(job.clone(), request.frontend_inputs.clone()));
    let listed = parts.builds.enter(Entry {
        running: running.clone(),
        gateway: gateway.clone(),
    })?;
    tell_of_state(&parts, &running).await;
    let record = record_of(&plan);
    if !request.internal {
        begin_record(&parts, record.clone()).await;
    }
    let outcome = tokio::select! {
        biased;
        end = ends.come() => Err(end),
        () = client_gone(&running) => Err(Error::canceled()),
        outcome = run(&plan, &job, gateway.as_deref()) => outcome,
    };
    let outcome = outcome.map_err(|error| ends.explain(error));
    if let Some(gateway) = &gateway {
        gateway.containers().release_all().await;
    }
    job.note_use().await;
    job.stop(STOP_PATIENCE).await;
    running.end();
    let outcome = outcome.map_err(|error| ops::hint_at_full_disk(running.locate(error)));
    if !request.internal {
        remember(&parts, record, &running, &outcome, client.as_ref()).await;
    }
    drop(listed);
    let given_up = outcome.as_ref().is_err_and(Error::is_canceled);
    if !given_up {
        tokio::select! {
            () = await_session(&parts, &session) => {}
            _ = ends.come() => {}
        }
    }
    let exports = outcome?;
    Ok(SolveResponse {
        exporter_response: exports.response.into_iter().collect(),
    })
}

/// Tells the first build after a damage to the server's state what was lost.
async fn tell_of_state(parts: &ServerParts, running: &Running) {
    let notices = std::mem::take(&mut *parts.notices.lock());
    if notices.is_empty() {
        return;
    }
    let name = "[internal] checking the state of the build server";
    let vertex = Digest::of(name);
    let told = running.step(name, "", async {
        for notice in notices {
            let log = VertexLog {
                vertex,
                stream: 2,
                timestamp: Timestamp::now(),
                data: format!("WARNING: {notice}\n").into(),
            };
            running.event(&vertex, &Event::Log(log));
        }
        Ok(())
    });
    // Telling cannot fail.
    let _ = told.await;
}

/// Waits until a client has its session: one whose build ends before closes it half open, and stock's
/// complains of that on its user's terminal.
async fn await_session(parts: &ServerParts, id: &str) {
    if !id.is_empty() {
        // The build has ended either way.
        let _ = parts.sessions.get(id, REFUSAL_PATIENCE).await;
    }
}

/// Returns when the session of the build's client ends after it was there once.
async fn client_gone(running: &Running) {
    if running.session_id().is_empty() {
        return std::future::pending().await;
    }
    match running.session().await {
        Ok(session) => session.closed().await,
        // A build that needs nothing of its client does without.
        Err(_) => std::future::pending().await,
    }
}

fn check(parts: &ServerParts, mut request: SolveRequest) -> Result<Plan> {
    if request.r#ref.is_empty() {
        return Err(Error::invalid("build ref cannot be empty"));
    }
    if request.exporters.is_empty() && !request.exporter_deprecated.is_empty() {
        request.exporters.push(ExporterRequest {
            r#type: std::mem::take(&mut request.exporter_deprecated),
            attrs: std::mem::take(&mut request.exporter_attrs_deprecated),
        });
    }
    // An empty definition is what clients send that drive the build themselves.
    request.definition = request.definition.filter(|given| !given.def.is_empty());
    if request.definition.is_some() && !request.frontend.is_empty() {
        return Err(Error::invalid(
            "cannot solve with both Definition and Frontend specified",
        ));
    }
    refuse_unsupported(&request)?;
    let rules = Rules::read(request.source_policy.as_slice())?;
    let entitlements = parts.entitlements.grant(&request.entitlements)?;
    let epoch = request
        .frontend_attrs
        .get("build-arg:SOURCE_DATE_EPOCH")
        .filter(|epoch| !epoch.is_empty())
        .cloned();
    let mut exporters = Vec::new();
    for exporter in &request.exporters {
        let mut attrs: BTreeMap<String, String> = exporter.attrs.clone().into_iter().collect();
        if let Some(epoch) = &epoch {
            attrs
                .entry("source-date-epoch".to_owned())
                .or_insert_with(|| epoch.clone());
        }
        let (spec, unknown) = ExporterSpec::parse(&exporter.r#type, &attrs)?;
        for key in unknown {
            tracing::warn!("exporter {}: unknown attribute `{key}`", exporter.r#type);
        }
        exporters.push(spec);
    }
    Ok(Plan {
        request,
        exporters,
        entitlements,
        rules,
    })
}

/// What a request may ask for that would silently be left out otherwise.
fn refuse_unsupported(request: &SolveRequest) -> Result<()> {
    let no_cache = CacheOptions::default();
    let cache = request.cache.as_ref().unwrap_or(&no_cache);
    if let Some(export) = cache.exports.first() {
        return Err(Error::unimplemented(format!(
            "cache exports of type {:?} are not supported by this server",
            export.r#type
        )));
    }
    // Clients ask by default for an attestation "inline only": where the exporter attaches such,
    // and ours do not. One that was asked for by name is not left out silently.
    let inline_only = |value: &str| value.split(',').any(|field| field == "inline-only=true");
    let attestation = request.frontend_attrs.iter().find(|(name, value)| {
        (name.starts_with("attest:") || name.starts_with("build-arg:BUILDKIT_ATTEST_"))
            && !inline_only(value)
    });
    if let Some((name, _)) = attestation {
        return Err(Error::unimplemented(format!(
            "attestations ({name}) are not supported by this server"
        )));
    }
    Ok(())
}

/// Makes the result and exports it.
async fn run(plan: &Plan, job: &Arc<Job>, gateway: Option<&GatewayBuild>) -> Result<Exports> {
    report_cache_imports(plan, job).await;
    let result = make_result(plan, job, gateway).await?;
    let source = export_source(job, &result).await?;
    let mut exports = export_all(plan, job, &source).await?;
    for (key, value) in &result.metadata {
        if key.starts_with("frontend.") {
            let value = String::from_utf8_lossy(value).into_owned();
            exports.response.insert(key.clone(), value);
        }
    }
    Ok(exports)
}

async fn make_result(
    plan: &Plan,
    job: &Arc<Job>,
    gateway: Option<&GatewayBuild>,
) -> Result<BuildResult> {
    let request = &plan.request;
    if let Some(gateway) = gateway {
        return gateway.returned().await;
    }
    if let Some(definition) = &request.definition {
        return Ok(BuildResult::of(
            job.load_definition(definition.clone(), &Rules::default())
                .await?,
        ));
    }
    let request = FrontendRequest {
        frontend: request.frontend.clone(),
        attrs: request.frontend_attrs.clone().into_iter().collect(),
        inputs: request.frontend_inputs.clone().into_iter().collect(),
    };
    run_frontend(job, request).await
}

/// Imports that cannot be had are shown as failed steps and stop nothing, as with stock.
async fn report_cache_imports(plan: &Plan, job: &Arc<Job>) {
    let Some(cache) = &plan.request.cache else {
        return;
    };
    for import in &cache.imports {
        let reference = import.attrs.get("ref").or_else(|| import.attrs.get("src"));
        let name = format!(
            "importing cache manifest from {}",
            reference.map_or(import.r#type.as_str(), String::as_str)
        );
        let failed = async {
            Err::<(), _>(Error::unimplemented(format!(
                "cache imports of type {:?} are not supported by this server",
                import.r#type
            )))
        };
        let _ = job.running().step(&name, "", failed).await;
    }
}

async fn export_all(plan: &Plan, job: &Arc<Job>, source: &ExportSource) -> Result<Exports> {
    let done = try_join_all(
        plan.exporters
            .iter()
            .enumerate()
            .map(|(number, spec)| export(job, number, spec, source)),
    )
    .await?;
    let mut exports = Exports::default();
    for (number, exported) in done.into_iter().enumerate() {
        exports.response.extend(exported.response);
        if let Some(image) = exported.image {
            let descriptor = Descriptor {
                media_type: image.descriptor.media_type.clone(),
                digest: image.descriptor.digest.to_string(),
                size: image.descriptor.size as i64,
                annotations: image.descriptor.annotations.clone().into_iter().collect(),
            };
            exports.images.insert(number as i64, descriptor);
            exports.leases.push(image.lease);
        }
    }
    Ok(exports)
}

async fn export(
    job: &Arc<Job>,
    number: usize,
    spec: &ExporterSpec,
    source: &ExportSource,
) -> Result<exporter::Exported> {
    let (running, parts) = (job.running(), job.parts());
    let (name, id) = (
        spec.vertex_name(),
        format!("{}-export-{number}", running.session_id()),
    );
    let statuses = running.sink(name, &id);
    running
        .step(name, &id, async {
            let needs_client = !matches!(spec, ExporterSpec::Image(..));
            let target = match needs_client {
                true => Some(SessionTarget::new(
                    running.session().await?,
                    number,
                    parts.staging.clone(),
                )),
                false => None,
            };
            let registry = running.registry();
            let context = ExportContext {
                client: target.as_ref().map(|target| target as &dyn ClientTarget),
                registry: &registry,
                statuses,
            };
            parts.exporter.export(spec, source, context).await
        })
        .await
}

fn record_of(plan: &Plan) -> BuildHistoryRecord {
    let request = &plan.request;
    BuildHistoryRecord {
        frontend: request.frontend.clone(),
        frontend_attrs: request.frontend_attrs.clone(),
        exporters: request.exporters.clone(),
        ..new_record(&request.r#ref)
    }
}

/// Writes the record of a build that begins.
async fn begin_record(parts: &Arc<ServerParts>, record: BuildHistoryRecord) {
    let (history, id) = (parts.history.clone(), record.r#ref.clone());
    if let Err(error) = blocking(move || history.start(record)).await {
        tracing::error!("build record of {id}: {error}");
    }
}

/// Writes the record of a build that ended.
async fn remember(
    parts: &Arc<ServerParts>,
    mut record: BuildHistoryRecord,
    running: &Running,
    outcome: &Result<Exports>,
    client: Option<&TraceContext>,
) {
    record.completed_at = Some(timestamp(Timestamp::now()));
    let counts = running.counts();
    record.num_total_steps = counts.total;
    record.num_completed_steps = counts.completed;
    record.num_cached_steps = counts.cached;
    record.num_warnings = counts.warnings;
    if let Ok(exports) = outcome {
        record.exporter_response = exports.response.clone().into_iter().collect();
        record.result = Some(BuildResultInfo {
            results: exports.images.clone(),
            ..BuildResultInfo::default()
        });
    }
    let failure = outcome.as_ref().err().map(Error::code);
    parts.metrics.build_ended(&record, failure);
    let events = running.progress().events();
    let trace = trace_of(&record, &events, outcome, client);
    let slot = parts.history.trace_slot(running.id());
    let (history, error) = (parts.history.clone(), outcome.as_ref().err().cloned());
    let written = blocking(move || {
        let ended = Ended {
            error: error.as_ref(),
            events: &events,
        };
        history.complete(record, ended)
    })
    .await;
    if let Err(error) = written {
        // The build itself is not worse for it.
        tracing::error!("build record of {}: {error}", running.id());
    }
    match trace {
        Ok(trace) => parts.tracer.finish(trace, slot),
        Err(error) => tracing::error!("trace of {}: {error}", running.id()),
    }
}

/// The spans of a build that ended.
fn trace_of(
    record: &BuildHistoryRecord,
    events: &[Arc<SolveStatus>],
    outcome: &Result<Exports>,
    client: Option<&TraceContext>,
) -> Result<BuildTrace> {
    let facts = BuildFacts {
        id: &record.r#ref,
        frontend: &record.frontend,
        start: time_of(record.created_at.as_ref())?,
        end: time_of(record.completed_at.as_ref())?,
        error: outcome.as_ref().err().map(Error::to_string),
    };
    Ok(BuildTrace::of(facts, events, client))
}
