//! The instructions of a stage, one after the other.

use std::collections::{BTreeSet, HashMap};

use diag::Result;
use dockerfile::lint::{Linter, Rule};
use dockerfile::quote::quoted;
use dockerfile::shell::{Lexer, Variables};
use dockerfile::{Instruction, KeyValue, Kind, Lines, SourcesAndDest};
use llb::{FileActionKind, MkDirAction};
use oci::Platform;

use crate::convert::stages::{Command, StageState};
use crate::convert::{Converter, checks};
use crate::failure::fail;
use crate::image::{DEFAULT_PATH, add_history};
use crate::plan::{Change, Node, NodeOp, named};

/// Where in which stage an instruction stands.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) id: usize,
    pub(super) keyword: &'a str,
    pub(super) code: &'a str,
    pub(super) lines: Lines,
    pub(super) lint: &'a Linter,
    pub(super) sources: &'a [usize],
}

impl Converter<'_> {
    /// Lowers the stages that are needed, in the order of the file.
    pub(super) fn dispatch_stages(&mut self, reachable: &BTreeSet<usize>) -> Result<()> {
        for id in 0..self.stages.len() {
            let wanted =
                self.all_stages || (reachable.contains(&id) && !self.stages[id].dispatched);
            if wanted {
                self.dispatch_stage(id)?;
            }
        }
        Ok(())
    }

    fn dispatch_stage(&mut self, id: usize) -> Result<()> {
        self.inherit(id);
        self.start_from_image(id);
        let commands = std::mem::take(&mut self.stages[id].commands);
        for command in &commands {
            self.dispatch(id, command)
                .map_err(|error| self.at(error, command.instruction.lines))?;
        }
        // Stages that continue this one look here for triggers.
        self.stages[id].commands = commands;
        Ok(())
    }

    /// What a stage's steps start with: the variables, directory and user of its image.
    fn start_from_image(&mut self, id: usize) {
        let (hostname, network) = (self.options.hostname.clone(), self.options.network);
        let target = self.target.clone();
        let stage = &mut self.stages[id];
        stage.dispatched = true;
        stage.platform.get_or_insert(target);
        let has_path = stage
            .image
            .config
            .env
            .iter()
            .any(|pair| pair.split('=').next() == Some("PATH"));
        if !has_path && !is_windows(stage) {
            stage.image.config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        for pair in &stage.image.config.env {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            stage.fs.env.set(name, value);
        }
        if !hostname.is_empty() {
            stage.fs.hostname = hostname;
        }
        if !stage.image.config.working_dir.is_empty() {
            let dir = absolute(&with_slashes(stage, &stage.image.config.working_dir), "/");
            stage.image.config.working_dir = as_configured(stage, &dir);
            stage.fs.dir = dir;
        }
        if !stage.image.config.user.is_empty() {
            stage.fs.user.clone_from(&stage.image.config.user);
        }
        stage.fs.network = network;
    }

    fn dispatch(&mut self, id: usize, command: &Command) -> Result<()> {
        let lint = self.lint.with_comments(&command.instruction.comments);
        self.stages[id].in_trigger = command.is_trigger;
        let Instruction {
            keyword,
            code,
            lines,
            kind,
            ..
        } = &command.instruction;
        let place = Place {
            id,
            keyword,
            code,
            lines: *lines,
            lint: &lint,
            sources: &command.sources,
        };
        match kind {
            Kind::Add(add) => self.add(place, add),
            Kind::Arg(args) => self.arg(place, args),
            Kind::Cmd(line) => {
                self.cmd(place, line);
                Ok(())
            }
            Kind::Copy(copy) => self.copy(place, copy),
            Kind::Entrypoint(line) => {
                self.entrypoint(place, line);
                Ok(())
            }
            Kind::Env(pairs) => self.env(place, pairs),
            Kind::Expose(words) => self.expose(place, words),
            Kind::Healthcheck(check) => {
                self.healthcheck(place, check);
                Ok(())
            }
            Kind::Label(pairs) => self.label(place, pairs),
            Kind::Maintainer(name) => {
                self.maintainer(place, name);
                Ok(())
            }
            Kind::Onbuild(text) => {
                self.stages[id].image.config.on_build.push(text.clone());
                Ok(())
            }
            Kind::Run(run) => self.run(place, run),
            Kind::Shell(words) => {
                self.shell(place, words);
                Ok(())
            }
            Kind::StopSignal(signal) => self.stop_signal(place, signal),
            Kind::User(user) => self.user(place, user),
            Kind::Volume(paths) => self.volume(place, paths),
            Kind::Workdir(path) => self.workdir(place, path),
        }
    }

    /// A text with the stage's variables.
    pub(super) fn expand(&self, place: Place<'_>, text: &str) -> Result<String> {
        self.expand_with(&self.lexer, place, text)
    }

    fn expand_with(&self, lexer: &Lexer, place: Place<'_>, text: &str) -> Result<String> {
        let outcome = lexer.expand(text, &self.stages[place.id].fs.env);
        let unmatched = match &outcome {
            Ok(outcome) => &outcome.unmatched,
            Err(error) => &error.unmatched,
        };
        checks::undefined_variables(self, place.id, unmatched, place.lines, place.lint);
        match outcome {
            Ok(outcome) => Ok(outcome.text),
            Err(error) => Err(fail(error.to_string())),
        }
    }

    pub(super) fn expand_pairs(
        &self,
        place: Place<'_>,
        pairs: &[KeyValue],
    ) -> Result<Vec<KeyValue>> {
        let expand = |pair: &KeyValue| {
            Ok(KeyValue {
                key: self.expand(place, &pair.key)?,
                value: self.expand(place, &pair.value)?,
                legacy: pair.legacy,
            })
        };
        pairs.iter().map(expand).collect()
    }

    /// Sources and destination with variables, here-documents included.
    pub(super) fn expand_files(
        &self,
        place: Place<'_>,
        files: &SourcesAndDest,
    ) -> Result<SourcesAndDest> {
        let mut out = files.clone();
        for path in &mut out.paths {
            *path = self.expand(place, path)?;
        }
        out.dest = self.expand(place, &out.dest)?;
        // Inside of a here-document quotes are text.
        let mut lexer = Lexer::new('\\');
        lexer.skip_quotes = true;
        for content in out.contents.iter_mut().filter(|content| content.expand) {
            let text = String::from_utf8_lossy(&content.data).into_owned();
            content.data = self.expand_with(&lexer, place, &text)?.into_bytes();
        }
        Ok(out)
    }

    pub(super) fn add_history(&mut self, id: usize, created_by: String, makes_layer: bool) {
        let epoch = self.epoch;
        add_history(&mut self.stages[id].image, created_by, makes_layer, epoch);
    }

    /// The platform of a stage that is being lowered.
    pub(super) fn platform_of(&self, id: usize) -> &Platform {
        self.stages[id].platform.as_ref().unwrap_or(&self.target)
    }

    fn workdir(&mut self, place: Place<'_>, path: &str) -> Result<()> {
        let id = place.id;
        let path = self.expand(place, path)?;
        if !self.stages[id].workdir_set && !path.starts_with('/') {
            let message = format!(
                "Relative workdir {} can have unexpected results if the base image changes",
                quoted(&path)
            );
            place
                .lint
                .report(Rule::WorkdirRelativePath, place.lines, message);
        }
        let epoch = self
            .epoch
            .map(|seconds| seconds.saturating_mul(1_000_000_000));
        let stage = &mut self.stages[id];
        stage.workdir_set = true;
        let parent = with_slashes(stage, &stage.image.config.working_dir);
        let dir = absolute(&with_slashes(stage, &path), &parent);
        stage.image.config.working_dir = as_configured(stage, &dir);
        stage.fs.dir.clone_from(&dir);
        let makes_layer = dir != "/";
        if makes_layer {
            let user = stage.image.config.user.clone();
            let mkdir = FileActionKind::MkDir(MkDirAction {
                path: pathmatch::clean_path(&dir),
                mode: 0o755,
                make_parents: true,
                owner: (!user.is_empty()).then(|| super::copy::owner(&user)),
                timestamp: epoch,
            });
            let platform = self.platform_of(id).clone();
            let shown = self.shown_text(&self.lexer, place.code, &self.stages[id].fs.env);
            let name = self.step_name(id, &shown, Some(&platform), true);
            let node = Node {
                op: NodeOp::File(
                    self.stages[id].fs.output,
                    vec![Change {
                        kind: mkdir,
                        source: None,
                    }],
                ),
                platform: Some(platform),
                meta: named(name),
                lines: Some(place.lines),
            };
            self.stages[id].fs.output = self.plan.add(node);
        }
        self.add_history(id, format!("WORKDIR {dir}"), makes_layer);
        Ok(())
    }

    /// A path for a copy: relative ones are below the stage's directory, a slash at the end stays.
    pub(super) fn destination(&self, id: usize, path: &str) -> String {
        let dir = &self.stages[id].fs.dir;
        let path = match path {
            "." | "" => "./",
            path => path,
        };
        let mut clean = if path.starts_with('/') {
            pathmatch::clean_path(path)
        } else {
            pathmatch::clean_path(&format!("/{dir}/{path}"))
        };
        if path.ends_with('/') && !clean.ends_with('/') {
            clean.push('/');
        } else if path.ends_with("/.") {
            if clean != "/" {
                clean.push('/');
            }
            clean.push('.');
        }
        clean
    }

    /// The names and values of the variables that `ARG` declared, for a step's history.
    pub(super) fn arg_values(&self, id: usize) -> Vec<String> {
        let stage = &self.stages[id];
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut pairs: Vec<String> = Vec::new();
        for (name, value) in &stage.args {
            let value = match stage.fs.env.get(name) {
                Some(value) => value,
                None => value.as_deref().unwrap_or_default(),
            };
            let pair = format!("{name}={value}");
            match places.get(name.as_str()) {
                Some(place) => pairs[*place] = pair,
                None => {
                    places.insert(name, pairs.len());
                    pairs.push(pair);
                }
            }
        }
        pairs
    }
}

fn is_windows(stage: &StageState) -> bool {
    stage.platform.as_ref().is_some_and(|p| p.os == "windows")
}

/// A directory as steps name it; images for Windows name theirs with backslashes.
fn with_slashes(stage: &StageState, dir: &str) -> String {
    match is_windows(stage) {
        true => dir.replace('\\', "/"),
        false => dir.to_owned(),
    }
}

/// A directory as the configuration of the stage's image names it.
fn as_configured(stage: &StageState, dir: &str) -> String {
    match is_windows(stage) {
        true => dir.replace('/', "\\"),
        false => dir.to_owned(),
    }
}

/// A directory below `parent` unless it is absolute; absolute ones stay as they are written.
fn absolute(path: &str, parent: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    if path.is_empty() {
        return match parent {
            "" => "/".to_owned(),
            parent if parent.starts_with('/') => parent.to_owned(),
            parent => pathmatch::clean_path(&format!("/{parent}")),
        };
    }
    pathmatch::clean_path(&format!("/{parent}/{path}"))
}
