//! From what was typed to what is meant: [`BuildFlags`] → [`BuildRequest`].
//!
//! A request is complete and checked as far as it can be without looking at files or builders.

use std::collections::BTreeMap;
use std::fmt;

use diag::Error;
use driver::parse_size;
use oci::Platform;
use proto::sourcepolicy::Policy;

use crate::csv;
use crate::environment::Environment;
use crate::git_ref;
use crate::source_policy::source_policy_of_environment;
use crate::spec::{
    Annotation, Attributes, CacheEntry, CallFunction, Entitlements, ExportSpec, SecretSpec,
    SshSpec, attest_attributes, attest_shorthand, parse_annotations, parse_cache_entries,
    parse_call, parse_context_names, parse_entitlements, parse_exports, parse_key_values,
    parse_platforms, parse_resources, parse_secrets, parse_ssh, parse_ulimits,
};

/// The values of the flags of `build` that say what to build, as they were typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildFlags {
    /// PATH, URL or `-`.
    pub context: String,
    /// `--file`
    pub file: String,
    /// `--tag`
    pub tags: Vec<String>,
    /// `--target`
    pub target: String,
    /// `--build-arg`
    pub build_args: Vec<String>,
    /// `--label`
    pub labels: Vec<String>,
    /// `--platform`
    pub platforms: Vec<String>,
    /// `--no-cache`
    pub no_cache: bool,
    /// `--no-cache-filter`
    pub no_cache_filter: Vec<String>,
    /// `--pull`
    pub pull: bool,
    /// `--push`
    pub push: bool,
    /// `--load`
    pub load: bool,
    /// `--output`
    pub outputs: Vec<String>,
    /// `--secret`
    pub secrets: Vec<String>,
    /// `--ssh`
    pub ssh: Vec<String>,
    /// `--build-context`
    pub build_contexts: Vec<String>,
    /// `--add-host`
    pub add_hosts: Vec<String>,
    /// `--network`
    pub network: String,
    /// `--shm-size`
    pub shm_size: String,
    /// `--ulimit`
    pub ulimits: Vec<String>,
    /// `--resource`, and the flags of old that mean the same, as `KEY=VALUE`
    pub resources: Vec<String>,
    /// `--allow`
    pub allow: Vec<String>,
    /// `--cgroup-parent`
    pub cgroup_parent: String,
    /// `--cache-from`
    pub cache_from: Vec<String>,
    /// `--cache-to`
    pub cache_to: Vec<String>,
    /// `--attest`
    pub attests: Vec<String>,
    /// `--provenance`
    pub provenance: String,
    /// `--sbom`
    pub sbom: String,
    /// `--annotation`
    pub annotations: Vec<String>,
    /// `--call`
    pub call: String,
    /// Whether `--iidfile` was given.
    pub wants_image_id_file: bool,
}

/// What `RUN` steps see of the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// What the builder has.
    #[default]
    Default,
    /// The host's.
    Host,
    /// None.
    None,
}

/// A build, resolved.
#[derive(Clone, Default, PartialEq)]
pub struct BuildRequest {
    /// Where the files are: a directory, a URL, or `-`.
    pub context: String,
    /// The Dockerfile: a path, `-`, a URL, or empty for the usual one.
    pub dockerfile: String,
    /// Further contexts, by name.
    pub named_contexts: BTreeMap<String, String>,
    /// Names of the image.
    pub tags: Vec<String>,
    /// The stage to build; empty for the last.
    pub target: String,
    /// Arguments of the Dockerfile.
    pub build_args: BTreeMap<String, String>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// What to build for; empty for what the builder runs on.
    pub platforms: Vec<Platform>,
    /// Whether every step runs.
    pub no_cache: bool,
    /// Stages whose steps run.
    pub no_cache_stages: Vec<String>,
    /// Whether images are looked up anew.
    pub pull: bool,
    /// What becomes of the result.
    pub exports: Vec<ExportSpec>,
    /// Secrets for steps.
    pub secrets: Vec<SecretSpec>,
    /// Agents for steps.
    pub ssh: Vec<SshSpec>,
    /// Entries for `/etc/hosts`, unchecked: `host-gateway` is the builder's to know.
    pub add_hosts: Vec<String>,
    /// The network of steps.
    pub network: Network,
    /// Bytes of `/dev/shm`; 0 for the builder's choice.
    pub shm_size_bytes: i64,
    /// Limits of steps, each `NAME=SOFT:HARD`.
    pub ulimits: Vec<String>,
    /// Resource limits of steps, as attributes of the frontend.
    pub resources: Attributes,
    /// Parent cgroup of steps.
    pub cgroup_parent: String,
    /// What the build may do beyond the usual.
    pub entitlements: Entitlements,
    /// Where caches come from.
    pub cache_from: Vec<CacheEntry>,
    /// Where caches go.
    pub cache_to: Vec<CacheEntry>,
    /// Attestations by type; `None` are switched off.
    pub attests: BTreeMap<String, Option<String>>,
    /// Annotations of the image.
    pub annotations: BTreeMap<Annotation, String>,
    /// What decides about sources.
    pub source_policy: Option<Policy>,
    /// What to ask the frontend instead of a build.
    pub call: Option<CallFunction>,
}

/// Values of arguments may be secret: only names are shown.
impl fmt::Debug for BuildRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildRequest")
            .field("context", &diag::redact_url(&self.context))
            .field("dockerfile", &self.dockerfile)
            .field("target", &self.target)
            .field("build_args", &self.build_args.keys())
            .field("platforms", &self.platforms)
            .field(
                "exports",
                &self.exports.iter().map(|e| &e.kind).collect::<Vec<_>>(),
            )
            .finish_non_exhaustive()
    }
}

impl BuildRequest {
    /// What the flags mean in this environment.
    pub fn from_flags(flags: &BuildFlags, env: &Environment) -> Result<Self, Error> {
        let mut build_args = parse_key_values(&flags.build_args, Some(env))?;
        let labels = parse_key_values(&flags.labels, None)?;
        if let Some(epoch) = env
            .get("SOURCE_DATE_EPOCH")
            .filter(|epoch| !epoch.is_empty())
        {
            build_args
                .entry("SOURCE_DATE_EPOCH".to_owned())
                .or_insert_with(|| epoch.to_owned());
        }
        let source_policy = source_policy_of_environment(env)?;
        let attests = attest_attributes(&attest_values(flags))?;
        let named_contexts = parse_context_names(&flags.build_contexts)?;
        let exports = parse_exports(&flags.outputs)?;
        let writes_files = |export: &ExportSpec| matches!(&*export.kind, "local" | "tar");
        if flags.wants_image_id_file && exports.iter().any(writes_files) {
            return Err(Error::invalid(
                "local and tar exporters are incompatible with image ID file",
            ));
        }
        let cache = |values: &[String]| -> Result<Vec<CacheEntry>, Error> {
            let entries = parse_cache_entries(values)?.into_iter();
            Ok(entries.filter_map(|e| e.with_environment(env)).collect())
        };
        let (cache_from, cache_to) = (cache(&flags.cache_from)?, cache(&flags.cache_to)?);
        let secrets = parse_secrets(&flags.secrets)?;
        let call = parse_call(&flags.call)?;
        let mut request = BuildRequest {
            context: flags.context.clone(),
            dockerfile: flags.file.clone(),
            named_contexts,
            tags: flags.tags.clone(),
            target: flags.target.clone(),
            build_args,
            labels,
            no_cache: flags.no_cache,
            no_cache_stages: flags.no_cache_filter.clone(),
            pull: flags.pull,
            exports,
            secrets,
            ssh: parse_ssh(&flags.ssh),
            add_hosts: add_hosts(&flags.add_hosts)?,
            shm_size_bytes: shm_size(&flags.shm_size)?,
            ulimits: parse_ulimits(&flags.ulimits)?,
            cgroup_parent: flags.cgroup_parent.clone(),
            cache_from,
            cache_to,
            attests,
            source_policy,
            call,
            ..BuildRequest::default()
        };
        // What is wrong with these is told as a failure of the build and not of the command line.
        request
            .add_checked(flags)
            .map_err(|error| error.context("failed to build"))?;
        request.use_default_agent();
        request.add_push_and_load(flags.push, flags.load);
        request.add_inline_cache();
        Ok(request)
    }

    fn add_checked(&mut self, flags: &BuildFlags) -> Result<(), Error> {
        if flags.no_cache && !flags.no_cache_filter.is_empty() {
            return Err(Error::invalid(
                "--no-cache and --no-cache-filter cannot currently be used together",
            ));
        }
        self.resources = parse_resources(&flags.resources)?;
        self.platforms = parse_platforms(&flags.platforms)?;
        self.entitlements = parse_entitlements(&flags.allow)?;
        self.annotations = parse_annotations(&flags.annotations)
            .map_err(|error| error.context("parse annotations"))?;
        self.network = parse_network(&flags.network)?;
        Ok(())
    }

    /// A git context over ssh needs an agent even when none was named.
    fn use_default_agent(&mut self) {
        if self.ssh.is_empty() && git_ref::is_git_ssh(&self.context) {
            self.ssh.push(SshSpec {
                id: "default".to_owned(),
                paths: Vec::new(),
            });
        }
    }

    /// `--push` and `--load` change outputs that are there, or add theirs.
    fn add_push_and_load(&mut self, push: bool, load: bool) {
        let mut pushed = false;
        for export in &mut self.exports {
            // `registry` is an image that is pushed.
            if export.kind == "registry" || (push && export.kind == "image") {
                pushed |= push;
                export.kind = "image".to_owned();
                let attributes = &mut export.attributes;
                attributes.insert("push".to_owned(), "true".to_owned());
                // What only goes to a registry need not be unpacked.
                attributes
                    .entry("unpack".to_owned())
                    .or_insert_with(|| "false".to_owned());
            }
        }
        if push && !pushed {
            let attributes = [("push", "true"), ("unpack", "false")];
            self.exports.push(ExportSpec {
                kind: "image".to_owned(),
                attributes: attributes.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                destination: String::new(),
            });
        }
        let loads = |export: &ExportSpec| export.kind == "docker" && export.destination.is_empty();
        if load && !self.exports.iter().any(loads) {
            self.exports.push(ExportSpec {
                kind: "docker".to_owned(),
                ..ExportSpec::default()
            });
        }
        for export in &mut self.exports {
            for (annotation, value) in &self.annotations {
                export
                    .attributes
                    .insert(annotation.attribute(), value.clone());
            }
        }
    }

    /// `--build-arg BUILDKIT_INLINE_CACHE=1` is a way to ask for `--cache-to type=inline`.
    fn add_inline_cache(&mut self) {
        if crate::spec::is_true(&self.build_args, "BUILDKIT_INLINE_CACHE") {
            self.cache_to.push(CacheEntry {
                kind: "inline".to_owned(),
                attributes: Attributes::new(),
            });
        }
    }
}

fn attest_values(flags: &BuildFlags) -> Vec<String> {
    let mut values = flags.attests.clone();
    for (kind, value) in [("provenance", &flags.provenance), ("sbom", &flags.sbom)] {
        if !value.is_empty() {
            values.push(attest_shorthand(kind, value));
        }
    }
    values
}

/// Every value of `--add-host` may hold several entries, separated by commas.
fn add_hosts(values: &[String]) -> Result<Vec<String>, Error> {
    let mut hosts = Vec::new();
    for value in values.iter().filter(|value| !value.is_empty()) {
        hosts.extend(csv::fields(value)?);
    }
    Ok(hosts)
}

fn parse_network(text: &str) -> Result<Network, Error> {
    match text {
        "" | "default" => Ok(Network::Default),
        "host" => Ok(Network::Host),
        "none" => Ok(Network::None),
        other => Err(Error::invalid(format!(
            "network mode {other:?} not supported by buildkit - you can define a custom network for your builder using the network driver-opt in buildx create"
        ))),
    }
}

fn shm_size(text: &str) -> Result<i64, Error> {
    if text.is_empty() {
        return Ok(0);
    }
    parse_size(text).map_err(|message| {
        Error::invalid(format!(
            "invalid argument {text:?} for \"--shm-size\" flag: {message}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> BuildFlags {
        BuildFlags {
            context: ".".into(),
            ..BuildFlags::default()
        }
    }

    fn request(flags: BuildFlags) -> Result<BuildRequest, String> {
        let env = Environment::new([("SOURCE_DATE_EPOCH", "7"), ("A", "env")]);
        BuildRequest::from_flags(&flags, &env).map_err(|error| error.to_string())
    }

    #[test]
    fn the_environment_fills_arguments() {
        let built = request(BuildFlags {
            build_args: vec!["A".into(), "MISSING".into()],
            ..flags()
        })
        .unwrap();
        let expected = [("A", "env"), ("SOURCE_DATE_EPOCH", "7")];
        assert_eq!(
            built.build_args,
            expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
        );
    }

    #[test]
    fn push_and_load_join_the_outputs() {
        let kinds = |flags: BuildFlags| -> Vec<(String, bool)> {
            let exports = request(flags).unwrap().exports;
            exports
                .into_iter()
                .map(|e| {
                    (
                        e.kind,
                        e.attributes.get("push").is_some_and(|p| p == "true"),
                    )
                })
                .collect()
        };
        let image = |push| ("image".to_owned(), push);
        assert_eq!(
            kinds(BuildFlags {
                push: true,
                ..flags()
            }),
            [image(true)]
        );
        let outputs = vec!["type=image".to_owned()];
        assert_eq!(
            kinds(BuildFlags {
                push: true,
                outputs: outputs.clone(),
                ..flags()
            }),
            [image(true)]
        );
        assert_eq!(
            kinds(BuildFlags {
                load: true,
                outputs,
                ..flags()
            }),
            [image(false), ("docker".to_owned(), false)]
        );
        let registry = vec!["type=registry,name=a".to_owned()];
        assert_eq!(
            kinds(BuildFlags {
                outputs: registry,
                ..flags()
            }),
            [image(true)]
        );
        let archive = vec!["type=docker,dest=x.tar".to_owned()];
        assert_eq!(
            kinds(BuildFlags {
                load: true,
                outputs: archive,
                ..flags()
            })
            .len(),
            2
        );
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let no_cache = BuildFlags {
            no_cache: true,
            no_cache_filter: vec!["a".into()],
            ..flags()
        };
        assert_eq!(
            request(no_cache).unwrap_err(),
            "failed to build: --no-cache and --no-cache-filter cannot currently be used together"
        );
        let iid = BuildFlags {
            outputs: vec!["out".into()],
            wants_image_id_file: true,
            ..flags()
        };
        assert_eq!(
            request(iid).unwrap_err(),
            "local and tar exporters are incompatible with image ID file"
        );
        let network = BuildFlags {
            network: "foonet".into(),
            ..flags()
        };
        assert!(
            request(network)
                .unwrap_err()
                .starts_with("failed to build: network mode \"foonet\" not supported")
        );
        let shm = BuildFlags {
            shm_size: "abc".into(),
            ..flags()
        };
        assert_eq!(
            request(shm).unwrap_err(),
            "invalid argument \"abc\" for \"--shm-size\" flag: invalid size: 'abc'"
        );
    }

    #[test]
    fn git_over_ssh_gets_the_default_agent() {
        let built = request(BuildFlags {
            context: "git@host:a/b.git".into(),
            ..flags()
        })
        .unwrap();
        assert_eq!(built.ssh.len(), 1);
        assert_eq!(request(flags()).unwrap().ssh.len(), 0);
    }
}
