//! `SOURCE_DATE_EPOCH`: a number of seconds, or the name of something that has a time: `context`, a
//! named context, or a stage that is nothing but one remote `ADD`.

use diag::Result;
use dockerfile::quote::quoted;
use dockerfile::{AddInstruction, Kind, Stage};
use llb::SourceOp;

use crate::convert::Converter;
use crate::failure::fail;
use crate::git::{GitRef, http_file_name, http_source, is_http_source, parse_checksum};
use crate::named::NamedContext;
use crate::state::EnvList;

const NAME: &str = "SOURCE_DATE_EPOCH";

impl Converter<'_> {
    /// Finds the time that everything is to be dated with, and puts it into the arguments.
    pub(super) async fn resolve_epoch(&mut self, stages: &[Stage]) -> Result<()> {
        let Some(value) = self.build_or_global_arg(NAME) else {
            return Ok(());
        };
        self.epoch = match value.parse::<i64>() {
            _ if value.is_empty() => None,
            Ok(seconds) => Some(seconds),
            Err(_) => self.epoch_of_source(&value, stages).await?,
        };
        let text = self.epoch.map(|seconds| seconds.to_string());
        if self.build_args.contains_key(NAME) {
            match &text {
                Some(text) => self.build_args.insert(NAME.to_owned(), text.clone()),
                None => self.build_args.remove(NAME),
            };
        }
        if dockerfile::shell::Variables::get(&self.global_args, NAME).is_some() {
            match &text {
                Some(text) => self.global_args.set(NAME, text),
                None => self.global_args.remove(NAME),
            }
        }
        Ok(())
    }

    async fn epoch_of_source(&self, value: &str, stages: &[Stage]) -> Result<Option<i64>> {
        if value == "context" {
            let Some(source) = &self.client.remote_source else {
                return Ok(None);
            };
            return self.ask(source, "main build context metadata").await;
        }
        if let Some(context) = NamedContext::find(self.client, value, None)? {
            let loaded = context.load(self.client).await?;
            let Some(source) = loaded.remote_source() else {
                return Ok(None);
            };
            return self
                .ask(source, &format!("{NAME} named context {value}"))
                .await;
        }
        let wanted = value.to_lowercase();
        let Some(stage) = stages.iter().find(|stage| stage.name == wanted) else {
            return Err(fail(format!("invalid {NAME}: {value}")));
        };
        let source = self
            .source_of_stage(stage)
            .map_err(|error| self.at(error, stage.lines))?;
        self.ask(&source, &format!("{NAME} source stage {}", stage.name))
            .await
    }

    async fn ask(&self, source: &SourceOp, what: &str) -> Result<Option<i64>> {
        let log_name = format!("[internal] resolve {what}");
        let found = self.client.host.resolve_source(source, &log_name).await?;
        Ok(found.seconds)
    }

    fn source_of_stage(&self, stage: &Stage) -> Result<SourceOp> {
        let mut env = self.global_args.clone();
        env.remove(NAME);
        let base = self.lexer.expand(&stage.base_name, &env).map_err(|e| {
            fail(e.to_string()).context(format!(
                "failed to process source stage base name {}",
                quoted(&stage.base_name)
            ))
        })?;
        if base.text != "scratch" {
            return Err(fail(format!("{NAME} stage must use FROM scratch")));
        }
        let exactly_one = || fail(format!("{NAME} stage must contain exactly one remote ADD"));
        let mut source = None;
        for instruction in &stage.instructions {
            match &instruction.kind {
                Kind::Arg(args) => {
                    for arg in args {
                        let value = match (self.build_args.get(&arg.key), &arg.value) {
                            (Some(given), _) => given.clone(),
                            (None, Some(default)) => self.expand_in(default, &env)?,
                            (None, None) => continue,
                        };
                        env.set(&arg.key, &value);
                    }
                }
                Kind::Add(add) => {
                    if source.is_some() {
                        return Err(exactly_one());
                    }
                    source = Some(self.source_of_add(add, &env)?);
                }
                _ => {
                    return Err(fail(format!(
                        "{NAME} stage does not meet source-only requirements: unsupported {} instruction",
                        instruction.keyword
                    )));
                }
            }
        }
        source.ok_or_else(exactly_one)
    }

    fn source_of_add(&self, add: &AddInstruction, env: &EnvList) -> Result<SourceOp> {
        let ([path], []) = (add.files.paths.as_slice(), add.files.contents.as_slice()) else {
            return Err(fail(format!(
                "{NAME} stage must contain exactly one remote ADD source"
            )));
        };
        let path = self.expand_in(path, env)?;
        let checksum = self.expand_in(&add.checksum, env)?;
        if is_http_source(&path) {
            let checksum = match checksum.as_str() {
                "" => None,
                text => Some(parse_checksum(text)?),
            };
            return Ok(http_source(
                &path,
                &http_file_name(&path),
                checksum.as_deref(),
            ));
        }
        match GitRef::parse(&path)?.filter(|git| !git.may_be_local) {
            Some(mut git) => {
                if !checksum.is_empty() {
                    git.checksum = checksum;
                }
                let keep = add.keep_git_dir == Some(true) || git.keep_git_dir == Some(true);
                Ok(git.source(keep))
            }
            None => Err(fail(format!(
                "{NAME} stage source must be a single HTTP(S) or Git ADD"
            ))),
        }
    }

    fn expand_in(&self, text: &str, env: &EnvList) -> Result<String> {
        let outcome = self
            .lexer
            .expand(text, env)
            .map_err(|e| fail(e.to_string()))?;
        Ok(outcome.text)
    }
}
