//! The stages of a file with what is known of each, and which needs which.

use std::collections::{BTreeSet, HashMap};

use diag::Result;
use dockerfile::lint::Linter;
use dockerfile::quote::quoted;
use dockerfile::shell::{ExpandError, Expansion, NoVariables};
use dockerfile::suggest::{nearest, with_suggestion};
use dockerfile::{Instruction, Kind, Lines, Stage};
use oci::{ImageConfig, Platform};

use crate::convert::{Converter, checks, header_of, outline};
use crate::failure::fail;
use crate::named::NamedContext;
use crate::plan::Output;
use crate::platform::parse_platform;
use crate::state::FsState;

/// A stage on its way through the build; also an image or context that a step names directly.
#[derive(Debug)]
pub(super) struct StageState {
    pub(super) stage: Stage,
    /// The name that is shown; empty if there is only one stage.
    pub(super) name: String,
    /// The stage it continues.
    pub(super) base: Option<usize>,
    /// The stages its steps read, with the lines that say so.
    pub(super) needs: Vec<(usize, Lines)>,
    pub(super) commands: Vec<Command>,
    pub(super) fs: FsState,
    pub(super) image: ImageConfig,
    pub(super) base_image: Option<ImageConfig>,
    pub(super) platform: Option<Platform>,
    /// What the client put in its place.
    pub(super) replaced_by: Option<NamedContext>,
    pub(super) resolved: bool,
    pub(super) dispatched: bool,
    pub(super) triggers_read: bool,
    /// Not in the file: named by a step.
    pub(super) unregistered: bool,
    pub(super) ignore_cache: bool,
    /// The arguments declared so far, those of the stages it continues after its own.
    pub(super) args: Vec<(String, Option<String>)>,
    /// Its set of used paths.
    pub(super) paths: usize,
    pub(super) step: usize,
    pub(super) steps: usize,
    pub(super) in_trigger: bool,
    pub(super) workdir_set: bool,
    pub(super) cmd: Option<Lines>,
    pub(super) entrypoint: Option<Lines>,
    pub(super) healthcheck: Option<Lines>,
    pub(super) outline: outline::StageOutline,
}

/// An instruction with the stages it reads.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) instruction: Instruction,
    /// For `COPY --from` one; for `RUN` one for each mount.
    pub(super) sources: Vec<usize>,
    pub(super) is_trigger: bool,
}

impl StageState {
    fn new(stage: Stage, paths: usize) -> StageState {
        StageState {
            name: stage.name.clone(),
            stage,
            base: None,
            needs: Vec::new(),
            commands: Vec::new(),
            fs: FsState::new(Output::Scratch, None),
            image: ImageConfig::default(),
            base_image: None,
            platform: None,
            replaced_by: None,
            resolved: false,
            dispatched: false,
            triggers_read: false,
            unregistered: false,
            ignore_cache: false,
            args: Vec::new(),
            paths,
            step: 0,
            steps: 0,
            in_trigger: false,
            workdir_set: false,
            cmd: None,
            entrypoint: None,
            healthcheck: None,
            outline: outline::StageOutline::default(),
        }
    }
}

impl Converter<'_> {
    /// Reads the stages of the file.
    pub(super) fn read_stages(&mut self, stages: Vec<Stage>) -> Result<()> {
        for (index, stage) in stages.into_iter().enumerate() {
            self.read_stage(index, stage)?;
        }
        Ok(())
    }

    fn read_stage(&mut self, index: usize, mut stage: Stage) -> Result<()> {
        let lint = self.lint.with_comments(&stage.comments);
        let lines = stage.lines;
        let name = self.expand_for_from(&stage.base_name, lines, &lint);
        let name = name.map_err(|e| self.at(fail(e.to_string()), lines))?;
        if name.text.is_empty() {
            let message = format!("base name ({}) should not be blank", stage.base_name);
            return Err(self.at(fail(message), lines));
        }
        stage.base_name = name.text;
        let mut used = name.matched;
        let platform = self.stage_platform(&stage, &mut used, &lint)?;
        let paths = self.new_path_set();
        let instructions = std::mem::take(&mut stage.instructions);
        let mut state = StageState::new(stage, paths);
        state.platform = platform;
        if !state.stage.name.is_empty() {
            let found = NamedContext::find(
                self.client,
                &state.stage.name,
                state.platform.as_ref().or(self.asked_platform()),
            )?;
            if let Some(found) = found {
                state.replaced_by = Some(found);
                state.base = None;
                self.register(state, false);
                return Ok(());
            }
        } else {
            state.name = format!("stage-{index}");
        }
        state.ignore_cache = self.options.ignores_cache(&state.stage.name);
        let id = self.register(state, true);
        let steps = instructions.iter().filter(|i| is_step(&i.kind)).count();
        let stage = &mut self.stages[id];
        let pulls = stage.stage.base_name != "scratch" && stage.base.is_none();
        stage.steps = steps + usize::from(pulls);
        stage.outline.start(used);
        stage.commands = instructions
            .into_iter()
            .map(|instruction| Command {
                instruction,
                sources: Vec::new(),
                is_trigger: false,
            })
            .collect();
        Ok(())
    }

    /// The platform that was asked for; none if nobody did.
    pub(super) fn asked_platform(&self) -> Option<&Platform> {
        (!self.implicit_target).then_some(&self.target)
    }

    /// Expands a word of a `FROM`; reports what it uses without a declaration, also where it is wrong.
    fn expand_for_from(
        &self,
        text: &str,
        lines: Lines,
        lint: &Linter,
    ) -> std::result::Result<Expansion, ExpandError> {
        let outcome = self.lexer.expand(text, &self.global_args);
        let unmatched = match &outcome {
            Ok(expansion) => &expansion.unmatched,
            Err(error) => &error.unmatched,
        };
        checks::undefined_from_args(self, unmatched, lines, lint);
        outcome
    }

    fn stage_platform(
        &self,
        stage: &Stage,
        used: &mut BTreeSet<String>,
        lint: &Linter,
    ) -> Result<Option<Platform>> {
        let text = &stage.platform;
        if text.is_empty() {
            return Ok(None);
        }
        let outcome = self.expand_for_from(text, stage.lines, lint).map_err(|e| {
            let error = fail(e.to_string()).context("failed to process arguments for platform ");
            self.at(error, stage.lines)
        })?;
        checks::stage_platform(self, stage, &outcome, lint);
        let suggest = |message: String| {
            let known = || self.global_args.names();
            let found = outcome
                .unmatched
                .iter()
                .find_map(|name| nearest(name, known(), true));
            match found {
                Some(found) => format!("{message} (did you mean {found}?)"),
                None => message,
            }
        };
        if outcome.text.is_empty() {
            let message = format!("empty platform value from expression {text}");
            return Err(self.at(fail(suggest(message)), stage.lines));
        }
        let platform = parse_platform(&outcome.text).map_err(|message| {
            let error = fail(suggest(message)).context(format!("failed to parse platform {text}"));
            // Stock says twice where it is.
            self.at(self.at(error, stage.lines), stage.lines)
        })?;
        used.extend(outcome.matched);
        Ok(Some(platform))
    }

    /// Adds a stage; one that starts from a stage known by then continues it.
    fn register(&mut self, mut stage: StageState, may_continue: bool) -> usize {
        let id = self.stages.len();
        if may_continue && let Some(base) = self.by_name.get(&stage.stage.base_name) {
            stage.base = Some(*base);
            stage.outline = self.stages[*base].outline.clone();
        } else {
            stage.outline.args = self.outline_args.clone();
        }
        if !stage.stage.name.is_empty() {
            self.by_name.insert(stage.stage.name.to_lowercase(), id);
        }
        self.stages.push(stage);
        id
    }

    /// The stage that is to be built.
    pub(super) fn find_target(&self) -> Result<usize> {
        let wanted = &self.options.target;
        if wanted.is_empty() {
            return Ok(self.stages.len() - 1);
        }
        self.stage_by_name(wanted).ok_or_else(|| {
            let message = format!("target stage {} could not be found", quoted(wanted));
            fail(with_suggestion(message, wanted, self.stage_names(), true))
        })
    }

    fn stage_by_name(&self, name: &str) -> Option<usize> {
        self.by_name.get(&name.to_lowercase()).copied()
    }

    /// Finds out which stages the steps of each stage read.
    pub(super) fn link_stages(&mut self) -> Result<()> {
        let in_file = self.stages.len();
        for id in 0..in_file {
            let mut commands = std::mem::take(&mut self.stages[id].commands);
            for command in &mut commands {
                self.link_command(id, command)?;
            }
            self.stages[id].commands = commands;
        }
        self.refuse_circles()?;
        if let [only] = self.stages.as_mut_slice() {
            only.name.clear();
        }
        Ok(())
    }

    /// Finds the stages that an instruction reads; true if there are any.
    pub(super) fn link_command(&mut self, id: usize, command: &mut Command) -> Result<bool> {
        let lines = command.instruction.lines;
        let names: Vec<String> = match &command.instruction.kind {
            Kind::Copy(copy) if !copy.from.is_empty() => {
                self.check_copy_from(&copy.from)?;
                vec![copy.from.clone()]
            }
            Kind::Run(run) => run
                .mounts
                .iter()
                .map(|mount| match mount.from.as_str() {
                    "" => "scratch".to_owned(),
                    from => from.to_owned(),
                })
                .collect(),
            _ => Vec::new(),
        };
        let is_copy = matches!(command.instruction.kind, Kind::Copy(_));
        for name in names {
            let source = match name.parse::<usize>() {
                Ok(index) if is_copy => index,
                _ => match self.stage_by_name(&name) {
                    Some(source) => source,
                    None => {
                        self.add_unregistered(name, if is_copy { lines } else { Lines::default() })
                    }
                },
            };
            command.sources.push(source);
            let needs = &mut self.stages[id].needs;
            match needs.iter_mut().find(|(known, _)| *known == source) {
                Some((_, said)) => *said = lines,
                None => needs.push((source, lines)),
            }
        }
        Ok(!command.sources.is_empty())
    }

    fn check_copy_from(&self, from: &str) -> Result<()> {
        let outcome = self
            .lexer
            .expand(from, &NoVariables)
            .map_err(|e| fail(e.to_string()))?;
        if outcome.text != from {
            return Err(fail(
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
            ));
        }
        let number: Option<i64> = from.parse().ok();
        match number {
            Some(index) if usize::try_from(index).map_or(true, |i| i >= self.stages.len()) => {
                Err(fail(format!("invalid stage index {index}")))
            }
            _ => Ok(()),
        }
    }

    fn add_unregistered(&mut self, name: String, lines: Lines) -> usize {
        let paths = self.new_path_set();
        let mut state = StageState::new(
            Stage {
                base_name: name,
                lines,
                ..Stage::default()
            },
            paths,
        );
        state.unregistered = true;
        self.register(state, true)
    }

    /// Stages whose steps need each other cannot be built.
    fn refuse_circles(&self) -> Result<()> {
        let mut finished = vec![false; self.stages.len()];
        for start in 0..self.stages.len() {
            if let Some(path) = self.circle_from(start, &mut finished) {
                let name = &self.stages[start].name;
                let mut error = fail(format!("circular dependency detected on stage: {name}"));
                for lines in path {
                    error = self.at(error, lines);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The lines along a way that comes back to itself, walking from `start`.
    fn circle_from(&self, start: usize, finished: &mut [bool]) -> Option<Vec<Lines>> {
        if finished[start] {
            return None;
        }
        // Each place of the way: the stage, the next need to look at.
        let mut way: Vec<(usize, usize)> = vec![(start, 0)];
        let mut lines: Vec<Lines> = Vec::new();
        let mut on_way: HashMap<usize, ()> = HashMap::from([(start, ())]);
        while let Some((stage, next)) = way.last_mut() {
            let stage = *stage;
            let Some((need, said)) = self.stages[stage].needs.get(*next).copied() else {
                finished[stage] = true;
                on_way.remove(&stage);
                way.pop();
                lines.pop();
                continue;
            };
            *next += 1;
            if on_way.contains_key(&need) {
                lines.push(said);
                return Some(lines);
            }
            if !finished[need] {
                on_way.insert(need, ());
                lines.push(said);
                way.push((need, 0));
            }
        }
        None
    }

    /// The stages that `target` needs, itself included.
    pub(super) fn reachable(&self, target: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut wanted = vec![target];
        while let Some(id) = wanted.pop() {
            if found.insert(id) {
                let stage = &self.stages[id];
                wanted.extend(stage.base);
                wanted.extend(stage.needs.iter().map(|(need, _)| *need));
            }
        }
        found
    }

    /// Takes over what the stage it continues has by now.
    pub(super) fn inherit(&mut self, id: usize) {
        let Some(base) = self.stages[id].base else {
            return;
        };
        let base = &self.stages[base];
        let (fs, platform, mut image, base_image) = (
            base.fs.clone(),
            base.platform.clone(),
            base.image.clone(),
            base.base_image.clone(),
        );
        let (paths, workdir_set, args) = (base.paths, base.workdir_set, base.args.clone());
        // Triggers are for the next stage only.
        image.config.on_build.clear();
        let stage = &mut self.stages[id];
        stage.fs = fs;
        stage.platform = platform;
        stage.image = image;
        stage.base_image = base_image;
        stage.paths = paths;
        stage.workdir_set = workdir_set;
        stage.args.extend(args);
    }

    /// The stage's own description, for those who need it without its instructions.
    pub(super) fn header(&self, id: usize) -> Stage {
        header_of(&self.stages[id].stage)
    }
}

fn is_step(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_)
    )
}
