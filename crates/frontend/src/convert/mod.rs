//! A Dockerfile → the build graph and image configuration of one platform.
//!
//! In this order: stages are read with the global arguments ([`stages`]), the target and what it
//! needs are found and base images resolved ([`resolve`]), the instructions of what is needed are
//! lowered ([`dispatch`], [`copy`], [`run`]), and the outcome is given its platform.
//!
//! Invariant: the outcome depends on the file, the options and what the host answered, and on
//! nothing else: no clock, no random numbers, no order of a hash table.

mod checks;
mod chmod;
mod copy;
mod dispatch;
mod epoch;
mod expose;
mod metadata;
mod names;
mod outline;
mod resolve;
mod run;
mod signal;
mod stages;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diag::Result;
use dockerfile::lint::{LintConfig, Linter};
use dockerfile::shell::{Lexer, Variables};
use dockerfile::{Dockerfile, Lines, Stage};
use llb::{Graph, ProxyEnv};
use oci::{ImageConfig, Platform};
use pathmatch::PatternMatcher;

pub(crate) use outline::Outline;

use crate::client::Client;
use crate::failure::fail;
use crate::options::BuildOptions;
use crate::plan::{Output, Plan, SourceFile, Sources};
use crate::state::EnvList;
use stages::StageState;

/// What a Dockerfile became.
#[derive(Debug)]
pub(crate) struct Converted {
    pub(crate) graph: Graph,
    pub(crate) image: ImageConfig,
    /// The configuration of the base image, as it was.
    pub(crate) base_image: Option<ImageConfig>,
    /// The time everything is dated with, in seconds since 1970.
    pub(crate) epoch: Option<i64>,
    /// The parameters of the target.
    pub(crate) outline: Outline,
    /// Why it cannot be built, where that does not keep it from being looked at.
    pub(crate) refused: Option<diag::Error>,
}

/// Lowers a Dockerfile for a platform, or for the worker's own if none is asked for. Violations of
/// lint rules are reported to `lint`, also when it fails.
pub(crate) async fn convert(
    client: &Client<'_>,
    file: &SourceFile,
    platform: Option<&Platform>,
    lint: &Linter,
    all_stages: bool,
) -> Result<Converted> {
    let mut converter = Converter::new(client, file, platform, lint, all_stages).await?;
    let target = converter.find_target()?;
    converter.link_stages()?;
    let reachable = converter.resolve_stages(target).await?;
    converter.load_context().await?;
    converter.dispatch_stages(&reachable)?;
    converter.finish(target)
}

/// The lint configuration: the build's, or else the file's own.
pub(crate) fn lint_config(options: &BuildOptions, data: &[u8]) -> Result<LintConfig> {
    if let Some(config) = &options.lint {
        return Ok(config.clone());
    }
    let directive = dockerfile::check_directive(data).map(|found| found.value);
    // What follows a blank does not count.
    let text = directive.as_deref().and_then(|text| text.split(' ').next());
    LintConfig::parse(text.unwrap_or_default())
        .map_err(|e| fail(e).context("failed to parse check options"))
}

struct Converter<'a> {
    client: &'a Client<'a>,
    options: &'a BuildOptions,
    file: &'a SourceFile,
    lint: Linter,
    /// What the build is for.
    target: Platform,
    /// Whether nobody asked for a platform.
    implicit_target: bool,
    /// What steps run on; never empty.
    build_platforms: Vec<Platform>,
    /// Whether stages that the target does not need are lowered too.
    all_stages: bool,
    build_args: BTreeMap<String, String>,
    global_args: EnvList,
    /// The names that `ARG` instructions above the first `FROM` declare.
    declared_args: BTreeSet<String>,
    outline_args: outline::Args,
    epoch: Option<i64>,
    lexer: Lexer,
    stages: Vec<StageState>,
    by_name: HashMap<String, usize>,
    plan: Plan,
    /// Which paths are used of which files; stages that continue each other share a set.
    path_sets: Vec<BTreeSet<String>>,
    context: Output,
    context_paths: usize,
    ignored: Option<PatternMatcher>,
    proxy: Option<ProxyEnv>,
    /// See [`Converted::refused`]: the first reason.
    refused: Option<diag::Error>,
}

/// Arguments that never become variables of steps.
const NOT_VARIABLES: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

impl<'a> Converter<'a> {
    async fn new(
        client: &'a Client<'a>,
        file: &'a SourceFile,
        platform: Option<&Platform>,
        lint: &Linter,
        all_stages: bool,
    ) -> Result<Converter<'a>> {
        if file.data.is_empty() {
            return Err(fail("the Dockerfile cannot be empty"));
        }
        let options = client.options;
        let read =
            Dockerfile::read(&file.data, lint).map_err(|e| fail(e.message).at(file.at(e.lines)))?;
        let Some(last) = read.stages.last() else {
            return Err(fail("dockerfile contains no stages to build"));
        };
        checks::stage_names(&read.stages, lint);
        checks::keyword_casing(&read.stages, lint);
        let native = client.host.worker_platforms().into_iter().next();
        let native = native.unwrap_or_else(Platform::host);
        let target_name = match options.target.as_str() {
            "" => last.name.clone(),
            name => name.to_owned(),
        };
        let mut converter = Converter {
            client,
            options,
            file,
            lint: lint.clone(),
            target: platform.unwrap_or(&native).clone(),
            implicit_target: platform.is_none(),
            build_platforms: vec![native],
            all_stages,
            build_args: options.build_args.clone(),
            global_args: EnvList::default(),
            declared_args: BTreeSet::new(),
            outline_args: outline::Args::default(),
            epoch: None,
            lexer: Lexer::new(read.escape),
            stages: Vec::new(),
            by_name: HashMap::new(),
            plan: Plan::default(),
            path_sets: vec![BTreeSet::new()],
            context: Output::Scratch,
            context_paths: 0,
            ignored: None,
            proxy: proxy_env(&options.build_args),
            refused: None,
        };
        converter.global_args = converter.platform_args(&target_name);
        checks::default_base_images(&converter, &read);
        converter.read_global_args(&read)?;
        converter.resolve_epoch(&read.stages).await?;
        converter.read_stages(read.stages)?;
        Ok(converter)
    }

    /// An error pointing at lines of the file.
    fn at(&self, error: diag::Error, lines: Lines) -> diag::Error {
        error.at(self.file.at(lines))
    }

    /// The predefined arguments, unless the build gives others.
    fn platform_args(&self, target_name: &str) -> EnvList {
        let (build, target) = (&self.build_platforms[0], &self.target);
        let stage = if target_name.is_empty() {
            "default"
        } else {
            target_name
        };
        let mut args = EnvList::default();
        for (name, value) in [
            ("BUILDPLATFORM", build.to_string()),
            ("BUILDOS", build.os.clone()),
            ("BUILDOSVERSION", build.os_version.clone()),
            ("BUILDARCH", build.architecture.clone()),
            ("BUILDVARIANT", build.variant.clone()),
            ("TARGETPLATFORM", target.to_string()),
            ("TARGETOS", target.os.clone()),
            ("TARGETOSVERSION", target.os_version.clone()),
            ("TARGETARCH", target.architecture.clone()),
            ("TARGETVARIANT", target.variant.clone()),
            ("TARGETSTAGE", stage.to_owned()),
        ] {
            args.set(name, self.build_args.get(name).unwrap_or(&value));
        }
        args
    }

    fn read_global_args(&mut self, read: &Dockerfile) -> Result<()> {
        for instruction in &read.global_args {
            for arg in &instruction.args {
                let mut used = BTreeSet::new();
                let value = match (self.build_args.get(&arg.key), &arg.value) {
                    (Some(given), _) => Some(given.clone()),
                    (None, Some(default)) => {
                        let outcome = self
                            .lexer
                            .expand(default, &self.global_args)
                            .map_err(|e| self.at(fail(e.to_string()), instruction.lines))?;
                        used = outcome.matched;
                        Some(outcome.text)
                    }
                    (None, None) => None,
                };
                if let Some(value) = &value {
                    self.global_args.set(&arg.key, value);
                }
                self.declared_args.insert(arg.key.clone());
                self.outline_args
                    .declare(arg, value, used, instruction.lines);
            }
        }
        Ok(())
    }

    /// The value of an argument that the build or the global scope gives.
    fn build_or_global_arg(&self, name: &str) -> Option<String> {
        if let Some(value) = self.build_args.get(name) {
            return Some(value.clone());
        }
        let value = self.global_args.get(name)?;
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// Prepares the build context, now that something may use it.
    async fn load_context(&mut self) -> Result<()> {
        let patterns = self.client.ignore_patterns().await?;
        if !patterns.is_empty() {
            let matcher = PatternMatcher::new(&patterns).map_err(|e| fail(e.to_string()))?;
            self.ignored = Some(matcher);
        }
        self.context = self
            .client
            .main_context(&mut self.plan, &patterns, self.context_paths);
        Ok(())
    }

    fn finish(mut self, target: usize) -> Result<Converted> {
        // The outcome is used as a whole.
        let paths = self.stages[target].paths;
        self.path_sets[paths].insert("/".to_owned());
        let labels = &mut self.stages[target].image.config.labels;
        labels.extend(self.options.labels.clone());
        if let Some(message) = self.lint.error() {
            return Err(fail(message));
        }
        let outline = outline::collect(&self, target);
        let sources = Sources {
            paths: &self.path_sets,
            file: self.file,
            platform: &self.target,
        };
        let graph = self.plan.finish(self.stages[target].fs.output, &sources);
        let stage = &mut self.stages[target];
        let mut image = std::mem::take(&mut stage.image);
        if !self.implicit_target || image.os.is_empty() {
            set_platform(&mut image, &self.target);
        }
        normalize_platform(&mut image);
        Ok(Converted {
            graph,
            image,
            base_image: stage.base_image.take(),
            epoch: self.epoch,
            outline,
            refused: self.refused,
        })
    }

    fn new_path_set(&mut self) -> usize {
        self.path_sets.push(BTreeSet::new());
        self.path_sets.len() - 1
    }

    /// The stage's name as messages have it.
    fn stage_names(&self) -> Vec<&str> {
        self.stages
            .iter()
            .map(|stage| stage.name.as_str())
            .filter(|name| !name.is_empty())
            .collect()
    }
}

/// What a stage says, apart from its instructions.
fn header_of(stage: &Stage) -> Stage {
    Stage {
        instructions: Vec::new(),
        ..stage.clone()
    }
}

fn set_platform(image: &mut ImageConfig, target: &Platform) {
    let same = image.os == target.os && image.architecture == target.architecture;
    image.os.clone_from(&target.os);
    image.architecture.clone_from(&target.architecture);
    if !target.variant.is_empty() || !same {
        image.variant.clone_from(&target.variant);
    }
    if !target.os_version.is_empty() || !same {
        image.os_version.clone_from(&target.os_version);
    }
    if !target.os_features.is_empty() {
        image.os_features.clone_from(&target.os_features);
    }
}

fn normalize_platform(image: &mut ImageConfig) {
    let platform = crate::named::image_platform(image).normalized();
    image.os = platform.os;
    image.architecture = platform.architecture;
    image.variant = platform.variant;
}

/// The proxies among the build arguments, in either letter case.
fn proxy_env(args: &BTreeMap<String, String>) -> Option<ProxyEnv> {
    let mut proxy = ProxyEnv::default();
    let mut given = false;
    for (name, value) in args {
        let place = match name.to_ascii_lowercase().as_str() {
            "http_proxy" => &mut proxy.http_proxy,
            "https_proxy" => &mut proxy.https_proxy,
            "ftp_proxy" => &mut proxy.ftp_proxy,
            "no_proxy" => &mut proxy.no_proxy,
            "all_proxy" => &mut proxy.all_proxy,
            _ => continue,
        };
        place.clone_from(value);
        given = true;
    }
    given.then_some(proxy)
}
