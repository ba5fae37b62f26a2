//! The third stage: what one node is asked to do, [`SolvePlan`], and its wire form.

mod exports;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use diag::{Context, Error};
use oci::Platform;
use proto::control;
use proto::sourcepolicy::Policy;

use crate::environment::Environment;
use crate::export::Export;
use crate::git_info::GitInfo;
use crate::id::new_id;
use crate::inputs::{Inputs, Upload};
use crate::request::{BuildRequest, Network};
use crate::spec::{
    Attributes, CacheEntry, CallFunction, SecretSpec, SshSpec, is_true, parse_bool, parse_hosts,
};

/// What a plan must know of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// The builder's name.
    pub builder: String,
    /// The node's name.
    pub name: String,
    /// The driver's name.
    pub driver: String,
    /// Whether the server is inside a Docker Engine.
    pub is_moby: bool,
    /// Whether it exports OCI archives.
    pub oci_exporter: bool,
    /// Whether it exports docker archives.
    pub docker_exporter: bool,
    /// Whether it exports build caches.
    pub cache_export: bool,
    /// Whether it builds for several platforms at once.
    pub multi_platform: bool,
    /// Whether it pushes by itself.
    pub direct_push: bool,
    /// Whether the digest of an image, and not of its configuration, is its ID.
    pub prefer_image_digest: bool,
    /// Whether a build without output loads its image.
    pub default_load: bool,
    /// Whether the server makes attestations.
    pub attestations: bool,
    /// Whether the server takes several outputs.
    pub multiple_outputs: bool,
    /// Arguments every build gets, such as proxies.
    pub proxy_arguments: BTreeMap<String, String>,
    /// What tells this machine's directories from others' to the server.
    pub machine_id: String,
    /// What `host-gateway` stands for, or why that is unknown.
    pub host_gateway: Result<IpAddr, String>,
    /// Whether the Engine that images are loaded into takes OCI archives.
    pub engine_takes_oci: bool,
    /// The platform of that Engine, if it is known.
    pub engine_platform: Option<Platform>,
}

/// A build as one node does it.
#[derive(Clone, Debug)]
pub struct SolvePlan {
    /// The build's identity on the server.
    pub reference: String,
    /// The frontend; empty for a build that is steered from here.
    pub frontend: String,
    /// What the frontend is told.
    pub attributes: Attributes,
    /// What becomes of the result.
    pub exports: Vec<Export>,
    /// Where caches go.
    pub cache_to: Vec<CacheEntry>,
    /// Where caches come from.
    pub cache_from: Vec<CacheEntry>,
    /// What the build may do beyond the usual.
    pub entitlements: Vec<String>,
    /// Directories the session serves.
    pub local_dirs: BTreeMap<String, PathBuf>,
    /// OCI layouts the session serves.
    pub oci_layouts: BTreeMap<String, PathBuf>,
    /// Files the session serves.
    pub uploads: Vec<Upload>,
    /// Secrets the session serves.
    pub secrets: Vec<SecretSpec>,
    /// Agents the session serves.
    pub ssh: Vec<SshSpec>,
    /// What tells the session's directories from others.
    pub shared_key: String,
    /// What decides about sources.
    pub source_policy: Option<Policy>,
    /// What to ask the frontend instead of a build.
    pub call: Option<CallFunction>,
    /// What the user should know before the build starts.
    pub notes: Vec<String>,
}

/// Everything about a build that is the same for all its nodes.
#[derive(Clone, Copy)]
pub struct PlanContext<'a> {
    /// What to build.
    pub request: &'a BuildRequest,
    /// From which files.
    pub inputs: &'a Inputs,
    /// With what git says of them.
    pub git: &'a GitInfo,
    /// With these outputs.
    pub exports: &'a [Export],
    /// In this environment.
    pub env: &'a Environment,
    /// Whether several nodes build it together.
    pub several_nodes: bool,
}

const BACKENDS: &str = "https://docs.docker.com/go/build-cache-backends/";
const MULTI_PLATFORM: &str = "https://docs.docker.com/go/build-multi-platform/";
const ATTESTATIONS: &str = "https://docs.docker.com/go/attestations/";

impl SolvePlan {
    /// Plans what a node does of a build: its platforms, or what it runs on if there are none.
    pub fn new(
        context: PlanContext<'_>,
        facts: &NodeFacts,
        platforms: &[Platform],
    ) -> Result<Self, Error> {
        let request = context.request;
        let mut plan = SolvePlan {
            reference: new_id(),
            frontend: "dockerfile.v0".to_owned(),
            attributes: Attributes::new(),
            exports: context.exports.to_vec(),
            cache_to: request.cache_to.clone(),
            cache_from: request.cache_from.clone(),
            entitlements: request.entitlements.server.clone(),
            local_dirs: context.inputs.local_dirs.clone(),
            oci_layouts: context.inputs.oci_layouts.clone(),
            uploads: context.inputs.uploads.clone(),
            secrets: request.secrets.clone(),
            ssh: request.ssh.clone(),
            shared_key: context.inputs.shared_key.clone(),
            source_policy: request.source_policy.clone(),
            call: request.call.clone(),
            notes: Vec::new(),
        };
        if plan.cache_to.iter().any(|entry| entry.kind != "inline") && !facts.cache_export {
            return Err(not_supported("Cache export", facts, BACKENDS));
        }
        plan.set_frontend(request, context.several_nodes)?;
        plan.set_attestations(request, facts, context.env)?;
        let mut platforms = platforms.to_vec();
        plan.set_exports(context, facts, &mut platforms)?;
        plan.set_arguments(context, facts)?;
        plan.set_platforms(facts, &platforms)?;
        plan.set_step_options(request, facts)?;
        plan.cache_to
            .iter()
            .try_for_each(CacheEntry::check_export)?;
        plan.cache_from
            .iter()
            .try_for_each(CacheEntry::check_import)?;
        Ok(plan)
    }

    /// The wire's message for a session.
    pub fn to_proto(&self, session: &str) -> control::SolveRequest {
        let first = self.exports.first();
        let map = |attributes: &Attributes| attributes.clone().into_iter().collect();
        let entries = |entries: &[CacheEntry]| {
            entries
                .iter()
                .map(|entry| control::CacheOptionsEntry {
                    r#type: entry.kind.clone(),
                    attrs: map(&entry.attributes),
                })
                .collect()
        };
        control::SolveRequest {
            r#ref: self.reference.clone(),
            session: session.to_owned(),
            frontend: self.frontend.clone(),
            frontend_attrs: map(&self.attributes),
            // Servers from before several outputs read the first one here.
            exporter_deprecated: first.map(|e| e.kind.clone()).unwrap_or_default(),
            exporter_attrs_deprecated: first.map(|e| map(&e.attributes)).unwrap_or_default(),
            exporters: self
                .exports
                .iter()
                .map(|export| control::Exporter {
                    r#type: export.kind.clone(),
                    attrs: map(&export.attributes),
                })
                .collect(),
            cache: Some(control::CacheOptions {
                exports: entries(&self.cache_to),
                imports: entries(&self.cache_from),
                ..control::CacheOptions::default()
            }),
            entitlements: self.entitlements.clone(),
            internal: self.call.is_some(),
            source_policy: self.source_policy.clone(),
            ..control::SolveRequest::default()
        }
    }

    fn attribute(&mut self, key: &str, value: impl Into<String>) {
        self.attributes.insert(key.to_owned(), value.into());
    }

    fn set_frontend(&mut self, request: &BuildRequest, several_nodes: bool) -> Result<(), Error> {
        if !request.cgroup_parent.is_empty() {
            self.attribute("cgroup-parent", &request.cgroup_parent);
        }
        if let Some(syntax) = request.build_args.get("BUILDKIT_SYNTAX") {
            let image = syntax.split_whitespace().next().ok_or_else(|| {
                Error::invalid(
                    "empty BUILDKIT_SYNTAX build-arg is invalid, use --build-arg BUILDKIT_SYNTAX without '=' for optional behavior",
                )
            })?;
            self.frontend = "gateway.v0".to_owned();
            self.attribute("source", image);
            self.attribute("cmdline", syntax);
        }
        // Several nodes make one index of what each of them made.
        if several_nodes || is_true(&request.build_args, "BUILDKIT_MULTI_PLATFORM") {
            self.attribute("multi-platform", "true");
        }
        Ok(())
    }

    fn set_attestations(
        &mut self,
        request: &BuildRequest,
        facts: &NodeFacts,
        env: &Environment,
    ) -> Result<(), Error> {
        let supported = facts.attestations && facts.multi_platform;
        for (kind, attest) in &request.attests {
            let Some(attest) = attest else { continue };
            if !facts.multi_platform {
                return Err(not_supported("Attestation", facts, ATTESTATIONS));
            }
            if !supported {
                return Err(Error::unimplemented(
                    "Attestations are not supported by the current BuildKit daemon",
                ));
            }
            self.attribute(&format!("attest:{kind}"), attest);
        }
        if supported && !request.attests.contains_key("provenance") {
            let off = match env.get("BUILDX_NO_DEFAULT_ATTESTATIONS") {
                Some(value) => {
                    parse_bool(value).context("invalid BUILDX_NO_DEFAULT_ATTESTATIONS")?
                }
                None => false,
            };
            if !off {
                self.attribute("attest:provenance", "mode=min,inline-only=true");
            }
        }
        Ok(())
    }

    /// Arguments, labels, and what is known of the files.
    fn set_arguments(&mut self, context: PlanContext<'_>, facts: &NodeFacts) -> Result<(), Error> {
        let request = context.request;
        for (key, value) in &request.build_args {
            self.attribute(&format!("build-arg:{key}"), value);
        }
        for (key, value) in &request.labels {
            self.attribute(&format!("label:{key}"), value);
        }
        for (key, value) in &context.inputs.attributes {
            let value = match key.starts_with("sharedkey:localdir:") {
                true => format!("{value}:{}", facts.machine_id),
                false => value.clone(),
            };
            self.attribute(key, value);
        }
        if !self.shared_key.is_empty() {
            self.shared_key = format!("{}:{}", self.shared_key, facts.machine_id);
        }
        let mut capabilities: BTreeSet<&str> = context
            .inputs
            .capabilities
            .iter()
            .map(String::as_str)
            .collect();
        if let Some(call) = &request.call {
            capabilities.insert("moby.buildkit.frontend.subrequests+forward");
            self.attribute("requestid", format!("frontend.{}", call.name));
        }
        if !capabilities.is_empty() {
            let list: Vec<&str> = capabilities.into_iter().collect();
            self.attribute("frontend.caps", list.join(","));
        }
        for (key, value) in &facts.proxy_arguments {
            let given = |name: &String| name.eq_ignore_ascii_case(key);
            if !request.build_args.keys().any(given) {
                self.attribute(&format!("build-arg:{key}"), value);
            }
        }
        if !self.cache_from.is_empty() {
            self.attribute("cache-imports", cache_imports(&self.cache_from));
        }
        let local_dirs = self.local_dirs.clone();
        context.git.add_to(&mut self.attributes, local_dirs.iter());
        Ok(())
    }

    fn set_platforms(&mut self, facts: &NodeFacts, platforms: &[Platform]) -> Result<(), Error> {
        if platforms.len() > 1 && !facts.multi_platform {
            return Err(not_supported("Multi-platform build", facts, MULTI_PLATFORM));
        }
        if !platforms.is_empty() {
            let list: Vec<String> = platforms.iter().map(ToString::to_string).collect();
            self.attribute("platform", list.join(","));
        }
        Ok(())
    }

    /// How steps run and what of them is taken from the cache.
    fn set_step_options(&mut self, request: &BuildRequest, facts: &NodeFacts) -> Result<(), Error> {
        if request.pull {
            self.attribute("image-resolve-mode", "pull");
        } else if facts.is_moby {
            self.attribute("image-resolve-mode", "local");
        }
        if !request.target.is_empty() {
            self.attribute("target", &request.target);
        }
        if !request.no_cache_stages.is_empty() {
            self.attribute("no-cache", request.no_cache_stages.join(","));
        }
        if request.no_cache {
            self.attribute("no-cache", "");
        }
        match request.network {
            Network::Default => {}
            Network::None => self.attribute("force-network-mode", "none"),
            Network::Host => {
                self.attribute("force-network-mode", "host");
                self.entitlements.push("network.host".to_owned());
            }
        }
        let gateway = || facts.host_gateway.clone().map_err(Error::invalid);
        let hosts = parse_hosts(&request.add_hosts, gateway)?;
        if !hosts.is_empty() {
            self.attribute("add-hosts", hosts);
        }
        if request.shm_size_bytes > 0 {
            self.attribute("shm-size", request.shm_size_bytes.to_string());
        }
        if !request.ulimits.is_empty() {
            self.attribute("ulimit", request.ulimits.join(","));
        }
        self.attributes.extend(request.resources.clone());
        Ok(())
    }
}

/// The warning that a build leaves nothing behind, for a builder of that driver; `None` when it
/// does, or when the user does not want to be told.
pub fn no_output_warning(
    request: &BuildRequest,
    driver: &str,
    default_load: bool,
    env: &Environment,
) -> Option<String> {
    let wanted = no_default_load(env) || request.call.is_some() || !request.exports.is_empty();
    (!wanted && !default_load).then(|| {
        format!(
            "No output specified with {driver} driver. Build result will only remain in the build cache. To push result image into registry use --push or to load image into docker use --load"
        )
    })
}

fn no_default_load(env: &Environment) -> bool {
    env.is_true("BUILDX_NO_DEFAULT_LOAD")
}

fn not_supported(feature: &str, facts: &NodeFacts, docs: &str) -> Error {
    Error::unimplemented(format!(
        "{feature} is not supported for the {} driver.\nSwitch to a different driver, or turn on the containerd image store, and try again.\nLearn more at {docs}",
        facts.driver
    ))
}

/// Caches as the Dockerfile frontend reads them.
fn cache_imports(entries: &[CacheEntry]) -> String {
    let list: serde_json::Value = entries
        .iter()
        .map(|entry| serde_json::json!({ "Type": entry.kind, "Attrs": entry.attributes }))
        .collect();
    list.to_string()
}

#[cfg(test)]
mod tests;
