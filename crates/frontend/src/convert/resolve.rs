//! What stages start from: images, named contexts, nothing; and the triggers that base images bring.

use std::collections::{BTreeMap, BTreeSet};

use diag::Result;
use dockerfile::quote::quoted;
use dockerfile::suggest::with_suggestion;
use dockerfile::{Kind, Stage, read_trigger};
use llb::SourceOp;
use oci::{ImageConfig, Platform, Reference};

use crate::convert::stages::Command;
use crate::convert::{Converter, checks};
use crate::failure::{fail, reworded};
use crate::image::{empty_image, read_config};
use crate::named::{LoadedContext, NamedContext, image_platform};
use crate::plan::{Output, named};
use crate::state::FsState;

/// What was found out about a stage's start.
enum Start {
    /// It is not needed, so nothing was asked.
    Unneeded { reference: Reference },
    /// The whole stage is what the client gave.
    Replaced(LoadedContext),
    /// The client gave something in the image's place.
    Context(LoadedContext),
    /// An image.
    Image {
        reference: Reference,
        image: ImageConfig,
    },
}

/// Image names that suggestions know.
const COMMON_IMAGES: [&str; 7] = [
    "alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora",
];

impl Converter<'_> {
    /// Resolves what the target needs; gives the stages it needs.
    pub(super) async fn resolve_stages(&mut self, target: usize) -> Result<BTreeSet<usize>> {
        loop {
            let reachable = self.reachable(target);
            self.resolve_starts(&reachable).await?;
            let mut new_needs = false;
            for id in &reachable {
                self.inherit_for_triggers(*id);
                new_needs |= self.read_triggers(*id)?;
            }
            if !new_needs {
                return Ok(reachable);
            }
        }
    }

    async fn resolve_starts(&mut self, reachable: &BTreeSet<usize>) -> Result<()> {
        let mut asked = Vec::new();
        for id in 0..self.stages.len() {
            let needed = self.all_stages || reachable.contains(&id);
            let stage = &mut self.stages[id];
            if stage.base.is_some() || stage.dispatched || stage.resolved {
                continue;
            }
            stage.resolved = needed;
            if stage.stage.base_name == "scratch" && stage.replaced_by.is_none() {
                stage.fs = FsState::new(Output::Scratch, None);
                stage.image = empty_image(&self.target);
                stage.platform = Some(self.target.clone());
                stage.dispatched = stage.unregistered;
            } else {
                asked.push((id, needed));
            }
        }
        let answers = {
            let this = &*self;
            futures::future::join_all(
                asked
                    .iter()
                    .map(|(id, needed)| this.find_start(*id, *needed)),
            )
            .await
        };
        for ((id, _), answer) in asked.into_iter().zip(answers) {
            let lines = self.stages[id].stage.lines;
            let started = answer.and_then(|start| self.start_stage(id, start));
            started.map_err(|error| self.at_start(error, lines))?;
            let stage = &mut self.stages[id];
            stage.dispatched |= stage.unregistered;
        }
        Ok(())
    }

    fn at_start(&self, error: diag::Error, lines: dockerfile::Lines) -> diag::Error {
        if lines.first == 0 {
            return error;
        }
        self.at(error, lines)
    }

    async fn find_start(&self, id: usize, needed: bool) -> Result<Start> {
        let stage = &self.stages[id];
        let name = &stage.stage.base_name;
        let reference: Reference = name.parse().map_err(|e: oci::ReferenceError| {
            fail(e.to_string()).context(format!("failed to parse stage name {}", quoted(name)))
        })?;
        let reference = reference.with_default_tag();
        if !needed {
            return Ok(Start::Unneeded { reference });
        }
        if let Some(context) = &stage.replaced_by {
            return context.load(self.client).await.map(Start::Replaced);
        }
        let platform = stage.platform.as_ref().unwrap_or(&self.target);
        let full = reference.to_string();
        if let Some(context) = NamedContext::find(self.client, &full, Some(platform))? {
            return context.load(self.client).await.map(Start::Context);
        }
        let shown = if self.options.multi_platform {
            format!("{platform} ")
        } else {
            String::new()
        };
        let log_name = format!("[{shown}internal] load metadata for {reference}");
        let found = self
            .client
            .resolve_image(&reference, Some(platform), &log_name)
            .await
            .map_err(|error| self.not_resolved(&error, name))?;
        let mut reference = found.reference.clone();
        if let Some(digest) = found.digest {
            reference = reference.with_digest(digest);
        }
        Ok(Start::Image {
            reference,
            image: read_config(&found.config)?,
        })
    }

    fn not_resolved(&self, error: &diag::Error, name: &str) -> diag::Error {
        let mut options: Vec<String> = self.stage_names().into_iter().map(str::to_owned).collect();
        for image in COMMON_IMAGES {
            // The forms with the registry lack a slash in stock too.
            options.extend([
                image.to_owned(),
                format!("docker.io/library{image}"),
                format!("{image}:latest"),
                format!("docker.io/library{image}:latest"),
            ]);
        }
        reworded(error, |text| {
            let options = options.iter().map(String::as_str);
            with_suggestion(format!("{name}: {text}"), name, options, true)
        })
    }

    fn start_stage(&mut self, id: usize, start: Start) -> Result<()> {
        let platform = self.stages[id].platform.clone();
        let mut platform = platform.unwrap_or_else(|| self.target.clone());
        match start {
            Start::Replaced(context) => return self.replace_stage(id, &context),
            Start::Context(context) => {
                let paths = self.stages[id].paths;
                let mut fs = context.add_to(&mut self.plan, paths);
                fs.platform = Some(platform.clone());
                let stage = &mut self.stages[id];
                stage.fs = fs;
                stage.image = context
                    .image
                    .clone()
                    .unwrap_or_else(|| empty_image(&platform));
                stage.base_image = Some(stage.image.clone());
            }
            Start::Unneeded { reference } => {
                self.stages[id].stage.base_name = reference.to_string();
                self.add_image(id, &platform);
            }
            Start::Image { reference, image } => {
                let asked_for = self.stages[id].stage.base_name.clone();
                if self.stages[id].platform.is_none() && self.implicit_target {
                    platform = detected_platform(&image, &platform, &self.build_platforms);
                }
                let stage = &mut self.stages[id];
                stage.stage.base_name = reference.to_string();
                stage.base_image = Some(image.clone());
                let is_empty = image.rootfs.diff_ids.is_empty()
                    && image.history.iter().all(|entry| entry.empty_layer);
                stage.image = image;
                if is_empty {
                    stage.fs = FsState::new(Output::Scratch, None);
                } else {
                    self.add_image(id, &platform);
                    let stage = &self.stages[id];
                    checks::base_image_platform(
                        &asked_for,
                        &platform,
                        &image_platform(&stage.image),
                        stage.stage.lines,
                        &self.lint,
                    );
                }
            }
        }
        self.stages[id].platform = Some(platform);
        Ok(())
    }

    fn replace_stage(&mut self, id: usize, context: &LoadedContext) -> Result<()> {
        let paths = self.stages[id].paths;
        let fs = context.add_to(&mut self.plan, paths);
        let stage = &mut self.stages[id];
        stage.fs = fs;
        stage.dispatched = true;
        if let Some(image) = &context.image {
            stage.image = image.clone();
            if !image.architecture.is_empty() && !image.os.is_empty() {
                stage.platform = Some(image_platform(image));
            }
        }
        Ok(())
    }

    /// Adds the source of the stage's image.
    fn add_image(&mut self, id: usize, platform: &Platform) {
        let Stage {
            base_name,
            code,
            lines,
            ..
        } = self.header(id);
        let mut attrs = BTreeMap::new();
        let mode = self.options.resolve_mode;
        if mode != crate::options::ResolveMode::Default {
            attrs.insert("image.resolvemode".to_owned(), mode.as_str().to_owned());
        }
        let source = SourceOp {
            identifier: format!("docker-image://{base_name}"),
            attrs,
        };
        let name = self.step_name(id, &format!("FROM {base_name}"), Some(platform), false);
        let mut meta = named(name);
        meta.description
            .insert("com.docker.dockerfile.v1.command".to_owned(), code);
        let lines = (lines.first > 0).then_some(lines);
        let output = self
            .plan
            .add_source(source, Some(platform.clone()), meta, lines);
        self.stages[id].fs = FsState::new(output, Some(platform.clone()));
    }

    /// So that triggers in the base's image are seen; the rest is taken over again when the base
    /// has been lowered.
    fn inherit_for_triggers(&mut self, id: usize) {
        if self.stages[id].base.is_some() {
            self.stages[id].image.config.on_build.clear();
        }
    }

    /// Puts the triggers of the base in front of the stage's instructions; true if they read
    /// other stages.
    fn read_triggers(&mut self, id: usize) -> Result<bool> {
        let mut triggers = std::mem::take(&mut self.stages[id].image.config.on_build);
        if self.stages[id].unregistered {
            // Only files are taken from it. Following its triggers would not end for an image
            // whose triggers copy from the image itself.
            return Ok(false);
        }
        if let Some(base) = self.stages[id].base
            && !self.stages[id].triggers_read
        {
            let own = self.stages[base].commands.iter();
            triggers.extend(own.filter_map(|command| match &command.instruction.kind {
                Kind::Onbuild(text) => Some(text.clone()),
                _ => None,
            }));
        }
        self.stages[id].triggers_read = true;
        if triggers.is_empty() {
            return Ok(false);
        }
        let lines = self.stages[id].stage.lines;
        let mut new_needs = false;
        let mut commands = Vec::with_capacity(triggers.len());
        for text in triggers {
            let mut instruction = read_trigger(&text).map_err(|e| self.at_start(fail(e), lines))?;
            instruction.lines = lines;
            let mut command = Command {
                instruction,
                sources: Vec::new(),
                is_trigger: true,
            };
            new_needs |= self
                .link_command(id, &mut command)
                .map_err(|e| self.at_start(e, lines))?;
            commands.push(command);
        }
        let stage = &mut self.stages[id];
        stage.steps += commands.len();
        commands.append(&mut stage.commands);
        stage.commands = commands;
        Ok(new_needs)
    }
}

/// The platform that an image turned out to be for, if the build can run it.
fn detected_platform(image: &ImageConfig, wanted: &Platform, supported: &[Platform]) -> Platform {
    let is_it = |p: &Platform| p.os == image.os && p.architecture == image.architecture;
    if is_it(wanted) {
        return wanted.clone();
    }
    supported
        .iter()
        .find(|p| is_it(p))
        .unwrap_or(wanted)
        .clone()
}
