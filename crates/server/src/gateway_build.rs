//! A build that somebody drives with calls of the gateway: what was solved in it, and what it came
//! to.
//!
//! Who calls does not matter here: a client on the control socket, or a frontend on its standard
//! streams.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use diag::{Error, Result};
use futures::future::try_join_all;
use oci::Digest;
use ops::work::{Event, Outside};
use parking_lot::Mutex;
use progress::VertexWarning;
use proto::gateway::{
    CacheOptionsEntry, Ref, RefMap, RefMapDeprecated, ReturnRequest, SolveRequest, SolveResponse,
    WarnRequest, result,
};
use proto::pb;
use tokio::sync::watch;

use crate::errors::from_rpc_status;
use crate::frontends::{FrontendRequest, run_frontend};
use crate::gateway_containers::Containers;
use crate::job::{BuildResult, Job, SolvedRef};
use crate::source_policy::Rules;

/// A build that a client drives.
pub struct GatewayBuild {
    job: Arc<Job>,
    inputs: HashMap<String, pb::Definition>,
    containers: Containers,
    returned: watch::Sender<Option<Arc<Returned>>>,
}

/// What a client made of its build.
type Returned = Mutex<Option<Result<BuildResult>>>;

impl GatewayBuild {
    /// A build that waits for its client.
    pub fn new(job: Arc<Job>, inputs: HashMap<String, pb::Definition>) -> Arc<Self> {
        job.running().keep_failures();
        Arc::new(GatewayBuild {
            containers: Containers::new(job.clone()),
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

    /// Whether something was returned.
    pub fn has_returned(&self) -> bool {
        self.returned.borrow().is_some()
    }

    /// What was returned until now; can be had once.
    pub fn take_returned(&self) -> Option<Result<BuildResult>> {
        let returned = self.returned.borrow();
        returned.as_ref()?.lock().take()
    }

    /// The build as the server has it.
    pub fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// Graphs given along, by name.
    pub fn inputs(&self) -> &HashMap<String, pb::Definition> {
        &self.inputs
    }

    /// Its containers.
    pub fn containers(&self) -> &Containers {
        &self.containers
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

impl GatewayBuild {
    /// Takes a graph, or what a frontend makes of a request, into the build.
    pub async fn solve(&self, request: SolveRequest) -> Result<SolveResponse> {
        let rules = Rules::read(&request.source_policies)?;
        self.report_cache_imports(&request.cache_imports).await;
        let definition = request.definition.filter(|given| !given.def.is_empty());
        let result = match (definition, request.frontend.as_str()) {
            (Some(_), frontend) if !frontend.is_empty() => {
                return Err(Error::invalid(
                    "cannot solve with both Definition and Frontend specified",
                ));
            }
            (Some(definition), _) => {
                BuildResult::of(self.job.load_definition(definition, &rules).await?)
            }
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
            // In a map it must not be empty: its key would travel alone, and Go programs crash on that.
            None => Ref {
                def: with_definitions.then(pb::Definition::default),
                ..Ref::default()
            },
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

    /// Takes what the build is to come to: an error, or graphs that were solved in it.
    pub fn take_return(&self, request: ReturnRequest) -> Result<()> {
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

    /// The files of a graph, to be looked into.
    pub async fn view(&self, id: &str) -> Result<Arc<ops::work::ReadOnly>> {
        match self.job.find(id)? {
            Some(reference) => self.job.view(&reference).await,
            None => Err(Error::not_found(format!("empty ref: {id}"))),
        }
    }

    /// Shows a warning.
    pub fn warn(&self, request: WarnRequest) -> Result<()> {
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

    /// Imports that cannot be had are shown as failed steps and stop nothing, as with stock.
    async fn report_cache_imports(&self, imports: &[CacheOptionsEntry]) {
        for import in imports {
            let reference = import.attrs.get("ref").or_else(|| import.attrs.get("src"));
            let reference = reference.map_or(import.r#type.as_str(), String::as_str);
            let name = format!("importing cache manifest from {reference}");
            let failed = async {
                Err::<(), _>(Error::unimplemented(format!(
                    "cache imports of type {:?} are not supported by this server",
                    import.r#type
                )))
            };
            let _ = self.job.running().step(&name, "", failed).await;
        }
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
