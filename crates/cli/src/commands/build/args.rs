//! The flags of `build`, with the names, defaults and help of stock's.

use clap::Args;
use client::{BuildFlags, Environment};
use diag::Error;
use progress_ui::Mode;

/// Flags of `build`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct BuildArgs {
    #[arg(hide = true)]
    pub(crate) contexts: Vec<String>,

    /// Add a custom host-to-IP mapping (format: "host:ip")
    #[arg(long = "add-host", value_name = "strings")]
    pub(crate) add_hosts: Vec<String>,

    /// Allow extra privileged entitlement (e.g., "network.host", "security.insecure", "device", "buildx.local.delete")
    #[arg(long, value_name = "stringArray")]
    pub(crate) allow: Vec<String>,

    /// Add annotation to the image
    #[arg(long = "annotation", value_name = "stringArray")]
    pub(crate) annotations: Vec<String>,

    /// Attestation parameters (format: "type=sbom,generator=image")
    #[arg(long = "attest", value_name = "stringArray")]
    pub(crate) attests: Vec<String>,

    /// Set build-time variables
    #[arg(long = "build-arg", value_name = "stringArray")]
    pub(crate) build_args: Vec<String>,

    /// Additional build contexts (e.g., name=path)
    #[arg(long = "build-context", value_name = "stringArray")]
    pub(crate) build_contexts: Vec<String>,

    /// External cache sources (e.g., "user/app:cache", "type=local,src=path/to/dir")
    #[arg(long, value_name = "stringArray")]
    pub(crate) cache_from: Vec<String>,

    /// Cache export destinations (e.g., "user/app:cache", "type=local,dest=path/to/dir")
    #[arg(long, value_name = "stringArray")]
    pub(crate) cache_to: Vec<String>,

    /// Set method for evaluating build ("check", "outline", "targets")
    #[arg(
        long,
        value_name = "string",
        default_value = "build",
        hide_default_value = true
    )]
    pub(crate) call: String,

    /// Set the parent cgroup for the "RUN" instructions during build
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) cgroup_parent: String,

    /// Shorthand for "--call=check"
    #[arg(long)]
    pub(crate) check: bool,

    /// Name of the Dockerfile (default: "PATH/Dockerfile")
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) file: String,

    /// Write the image ID to a file
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) iidfile: String,

    /// Set metadata for an image
    #[arg(long = "label", value_name = "stringArray")]
    pub(crate) labels: Vec<String>,

    /// Shorthand for "--output=type=docker"
    #[arg(long)]
    pub(crate) load: bool,

    /// Write build result metadata to a file
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) metadata_file: String,

    /// Set the networking mode for the "RUN" instructions during build
    #[arg(long, value_name = "string", default_value = "default")]
    pub(crate) network: String,

    /// Do not use cache when building the image
    #[arg(long)]
    pub(crate) no_cache: bool,

    /// Do not cache specified stages
    #[arg(long, value_name = "stringArray")]
    pub(crate) no_cache_filter: Vec<String>,

    /// Output destination (format: "type=local,dest=path")
    #[arg(short, long = "output", value_name = "stringArray")]
    pub(crate) outputs: Vec<String>,

    /// Set target platform for build
    #[arg(long = "platform", value_name = "stringArray")]
    pub(crate) platforms: Vec<String>,

    /// Policy configuration (format: "filename=path[,filename=path][,reset=true|false][,disabled=true|false][,strict=true|false][,log-level=level]")
    #[arg(long, value_name = "stringArray")]
    pub(crate) policy: Vec<String>,

    /// Set type of progress output ("auto", "none", "plain", "quiet", "rawjson", "tty"). Use plain to show container output
    #[arg(long, value_name = "string", default_value = "auto")]
    pub(crate) progress: String,

    /// Shorthand for "--attest=type=provenance"
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) provenance: String,

    /// Always attempt to pull all referenced images
    #[arg(long)]
    pub(crate) pull: bool,

    /// Shorthand for "--output=type=registry,unpack=false"
    #[arg(long)]
    pub(crate) push: bool,

    /// Suppress the build output and print image ID on success
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Resource limits for build containers (format: "memory=2g", "cpu-quota=50000")
    #[arg(long = "resource", value_name = "stringArray")]
    pub(crate) resources: Vec<String>,

    /// Shorthand for "--attest=type=sbom"
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) sbom: String,

    /// Secret to expose to the build (format: "id=mysecret[,src=/local/secret]")
    #[arg(long = "secret", value_name = "stringArray")]
    pub(crate) secrets: Vec<String>,

    /// Shared memory size for build containers
    #[arg(
        long,
        value_name = "bytes",
        default_value = "",
        hide_default_value = true,
        value_parser = size
    )]
    pub(crate) shm_size: String,

    /// SSH agent socket or keys to expose to the build (format: "default|<id>[=<socket>|<key>[,<key>]]")
    #[arg(long, value_name = "stringArray")]
    pub(crate) ssh: Vec<String>,

    /// Image identifier (format: "[registry/]repository[:tag]")
    #[arg(short, long = "tag", value_name = "stringArray")]
    pub(crate) tags: Vec<String>,

    /// Set the target build stage to build
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) target: String,

    /// Ulimit options (default [])
    #[arg(long = "ulimit", value_name = "ulimit", value_parser = ulimit)]
    pub(crate) ulimits: Vec<String>,

    #[command(flatten)]
    legacy: LegacyArgs,
}

/// Flags of the builder before BuildKit: accepted, some with a warning.
#[derive(Args, Clone, Debug, Default)]
struct LegacyArgs {
    #[arg(long, hide = true)]
    print: Option<String>,
    #[arg(short, long, hide = true)]
    memory: Vec<String>,
    #[arg(long, hide = true)]
    memory_swap: Vec<String>,
    #[arg(short, long, hide = true)]
    cpu_shares: Vec<String>,
    #[arg(long, hide = true)]
    cpu_period: Vec<String>,
    #[arg(long, hide = true)]
    cpu_quota: Vec<String>,
    #[arg(long, hide = true)]
    cpuset_cpus: Vec<String>,
    #[arg(long, hide = true)]
    cpuset_mems: Vec<String>,
    #[arg(long, hide = true)]
    compress: bool,
    #[arg(long, hide = true)]
    isolation: Option<String>,
    #[arg(long, hide = true)]
    security_opt: Vec<String>,
    #[arg(long, hide = true)]
    squash: bool,
    #[arg(long, hide = true)]
    rm: bool,
    #[arg(long, hide = true)]
    force_rm: bool,
}

/// Checks a `--shm-size`; empty is none.
fn size(text: &str) -> Result<String, String> {
    match text.is_empty() {
        true => Ok(String::new()),
        false => driver::parse_size(text).map(|_| text.to_owned()),
    }
}

/// Checks an `--ulimit`.
fn ulimit(text: &str) -> Result<String, String> {
    client::spec::parse_ulimit(text).map(|_| text.to_owned())
}

/// How progress is shown, from `--progress` and `--quiet`.
pub(super) struct Display {
    pub(super) mode: Mode,
    /// Whether the image ID is printed at the end.
    pub(super) quiet: bool,
}

impl BuildArgs {
    /// What was typed, for the client.
    pub(super) fn to_flags(&self, env: &Environment) -> Result<BuildFlags, Error> {
        let [context] = &self.contexts[..] else {
            return Err(Error::invalid(
                "docker: 'docker buildx build' requires 1 argument\n\nUsage:  docker buildx build [OPTIONS] PATH | URL | -\n\nRun 'docker buildx build --help' for more information",
            ));
        };
        if self.policy.iter().any(|policy| policy != "disabled=true") {
            return Err(Error::unimplemented(
                "build policies (--policy) are not supported",
            ));
        }
        let mut platforms = self.platforms.clone();
        if platforms.is_empty()
            && let Some(default) = env.get("DOCKER_DEFAULT_PLATFORM").filter(|p| !p.is_empty())
        {
            platforms.push(default.to_owned());
        }
        let call = match (&self.legacy.print, self.check) {
            (_, true) => "check",
            (Some(print), false) => print,
            (None, false) => &self.call,
        };
        let mut resources = self.legacy.resources();
        resources.extend(self.resources.iter().cloned());
        Ok(BuildFlags {
            context: context.clone(),
            file: self.file.clone(),
            tags: self.tags.clone(),
            target: self.target.clone(),
            build_args: self.build_args.clone(),
            labels: self.labels.clone(),
            platforms,
            no_cache: self.no_cache,
            no_cache_filter: self.no_cache_filter.clone(),
            pull: self.pull,
            push: self.push,
            load: self.load,
            outputs: self.outputs.clone(),
            secrets: self.secrets.clone(),
            ssh: self.ssh.clone(),
            build_contexts: self.build_contexts.clone(),
            add_hosts: self.add_hosts.clone(),
            network: self.network.clone(),
            shm_size: self.shm_size.clone(),
            ulimits: self.ulimits.clone(),
            resources,
            allow: self.allow.clone(),
            cgroup_parent: self.cgroup_parent.clone(),
            cache_from: self.cache_from.clone(),
            cache_to: self.cache_to.clone(),
            attests: self.attests.clone(),
            provenance: self.provenance.clone(),
            sbom: self.sbom.clone(),
            annotations: self.annotations.clone(),
            call: call.to_owned(),
            wants_image_id_file: !self.iidfile.is_empty(),
        })
    }

    /// How progress is to be shown. `none` shows nothing; `quiet` shows nothing but the image ID.
    pub(super) fn display(&self) -> Result<Display, Error> {
        let quiet = self.quiet || self.progress == "quiet";
        let mode: Mode = match self.progress.as_str() {
            "none" => Mode::Quiet,
            word => word.parse()?,
        };
        match (quiet, mode) {
            (true, Mode::Auto | Mode::Quiet) => Ok(Display {
                mode: Mode::Quiet,
                quiet,
            }),
            (true, _) => Err(Error::invalid(format!(
                "progress={} and quiet cannot be used together",
                self.progress
            ))),
            (false, mode) => Ok(Display { mode, quiet }),
        }
    }

    /// What is to be said of flags that do nothing any more.
    pub(super) fn warnings(&self) -> Vec<&'static str> {
        let legacy = &self.legacy;
        let mut warnings = Vec::new();
        if legacy.isolation.is_some() {
            warnings.push("isolation flag is deprecated with BuildKit.");
        }
        if !legacy.security_opt.is_empty() {
            warnings.push(
                "security-opt flag is deprecated. \"RUN --security=insecure\" should be used with BuildKit.",
            );
        }
        if legacy.squash {
            warnings.push(
                "experimental flag squash is removed with BuildKit. You should squash inside build using a multi-stage Dockerfile for efficiency.",
            );
        }
        warnings
    }
}

impl LegacyArgs {
    /// The limits, as `--resource` takes them.
    fn resources(&self) -> Vec<String> {
        let limits = [
            ("memory", &self.memory),
            ("memory-swap", &self.memory_swap),
            ("cpu-shares", &self.cpu_shares),
            ("cpu-period", &self.cpu_period),
            ("cpu-quota", &self.cpu_quota),
            ("cpuset-cpus", &self.cpuset_cpus),
            ("cpuset-mems", &self.cpuset_mems),
        ];
        let pairs = limits
            .into_iter()
            .flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}")));
        pairs.collect()
    }
}

#[cfg(test)]
mod tests;
