//! The instructions that change the image's configuration and no files.

use diag::Result;
use dockerfile::quote::{duration, plain_list, quoted_list};
use dockerfile::shell::Variables;
use dockerfile::{ArgDeclaration, CommandLine, Healthcheck, KeyValue};
use oci::{Empty, HealthConfig};

use crate::convert::dispatch::Place;
use crate::convert::{Converter, NOT_VARIABLES, checks, expose, signal};
use crate::failure::fail;
use crate::image::{set_env, with_shell};

impl Converter<'_> {
    pub(super) fn arg(&mut self, place: Place<'_>, args: &[ArgDeclaration]) -> Result<()> {
        let mut shown = Vec::with_capacity(args.len());
        for arg in args {
            checks::secret_name("ARG", &arg.key, place.lines, place.lint);
            let given = self.build_args.get(&arg.key).cloned();
            let inherited = given.is_none() && arg.value.is_none();
            let value = match (&given, &arg.value) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.expand(place, default)?),
                (None, None) => self.global_args.get(&arg.key).map(str::to_owned),
            };
            let stage = &mut self.stages[place.id];
            if let Some(value) = &value
                && !NOT_VARIABLES.contains(&arg.key.as_str())
            {
                stage.fs.env.set(&arg.key, value);
            }
            let from_global = inherited && value.is_some();
            stage
                .outline
                .declare(arg, value.as_deref(), place.lines, from_global);
            shown.push(match &value {
                Some(value) => format!("{}={value}", arg.key),
                None => arg.key.clone(),
            });
            stage.args.push((arg.key.clone(), value));
        }
        self.add_history(place.id, format!("ARG {}", shown.join(" ")), false);
        Ok(())
    }

    pub(super) fn env(&mut self, place: Place<'_>, pairs: &[KeyValue]) -> Result<()> {
        let pairs = self.expand_pairs(place, pairs)?;
        let mut shown = "ENV".to_owned();
        for pair in &pairs {
            if pair.legacy {
                checks::legacy_pair(place.keyword, place.lines, place.lint);
            }
            checks::secret_name("ENV", &pair.key, place.lines, place.lint);
            shown.push_str(&format!(" {}={}", pair.key, pair.value));
            let stage = &mut self.stages[place.id];
            stage.fs.env.set(&pair.key, &pair.value);
            set_env(&mut stage.image.config.env, &pair.key, &pair.value);
        }
        self.add_history(place.id, shown, false);
        Ok(())
    }

    pub(super) fn label(&mut self, place: Place<'_>, pairs: &[KeyValue]) -> Result<()> {
        let pairs = self.expand_pairs(place, pairs)?;
        let mut shown = "LABEL".to_owned();
        for pair in pairs {
            if pair.legacy {
                checks::legacy_pair(place.keyword, place.lines, place.lint);
            }
            shown.push_str(&format!(" {}={}", pair.key, pair.value));
            let labels = &mut self.stages[place.id].image.config.labels;
            labels.insert(pair.key, pair.value);
        }
        self.add_history(place.id, shown, false);
        Ok(())
    }

    pub(super) fn cmd(&mut self, place: Place<'_>, line: &CommandLine) {
        checks::used_once(
            &mut self.stages[place.id].cmd,
            place.keyword,
            place.lines,
            place.lint,
        );
        let words = self.command_words(place, line);
        let shown = format!("CMD {}", quoted_list(&words));
        let config = &mut self.stages[place.id].image.config;
        config.cmd = (!words.is_empty()).then_some(words);
        config.args_escaped = true;
        self.add_history(place.id, shown, false);
    }

    pub(super) fn entrypoint(&mut self, place: Place<'_>, line: &CommandLine) {
        checks::used_once(
            &mut self.stages[place.id].entrypoint,
            place.keyword,
            place.lines,
            place.lint,
        );
        let words = self.command_words(place, line);
        let shown = format!("ENTRYPOINT {}", quoted_list(&words));
        let stage = &mut self.stages[place.id];
        stage.image.config.entrypoint = (!words.is_empty()).then_some(words);
        // A base's arguments mean nothing to another program.
        if stage.cmd.is_none() {
            stage.image.config.cmd = None;
        }
        self.add_history(place.id, shown, false);
    }

    fn command_words(&self, place: Place<'_>, line: &CommandLine) -> Vec<String> {
        if !line.shell_form {
            return line.words.clone();
        }
        let image = &self.stages[place.id].image;
        if image.config.shell.is_empty() {
            checks::exec_form(place.keyword, place.lines, place.lint);
        }
        with_shell(image, &line.words)
    }

    pub(super) fn healthcheck(&mut self, place: Place<'_>, check: &Healthcheck) {
        checks::used_once(
            &mut self.stages[place.id].healthcheck,
            place.keyword,
            place.lines,
            place.lint,
        );
        let shown = format!(
            "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            plain_list(&check.test),
            duration(check.interval),
            duration(check.timeout),
            duration(check.start_period),
            duration(check.start_interval),
            check.retries
        );
        self.stages[place.id].image.config.healthcheck = Some(HealthConfig {
            test: check.test.clone(),
            interval: check.interval,
            timeout: check.timeout,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: check.retries,
        });
        self.add_history(place.id, shown, false);
    }

    pub(super) fn maintainer(&mut self, place: Place<'_>, name: &str) {
        name.clone_into(&mut self.stages[place.id].image.author);
        self.add_history(place.id, format!("MAINTAINER {name}"), false);
    }

    pub(super) fn shell(&mut self, place: Place<'_>, words: &[String]) {
        self.stages[place.id].image.config.shell = words.to_vec();
        self.add_history(place.id, format!("SHELL {}", plain_list(words)), false);
    }

    pub(super) fn expose(&mut self, place: Place<'_>, words: &[String]) -> Result<()> {
        let mut exposed = Vec::new();
        for word in words {
            let outcome = self
                .lexer
                .expand(word, &self.stages[place.id].fs.env)
                .map_err(|e| fail(e.to_string()))?;
            for word in &outcome.words {
                exposed.extend(expose::ports(word, place.lines, place.lint)?);
            }
        }
        let shown = format!("EXPOSE {}", plain_list(&exposed));
        let ports = &mut self.stages[place.id].image.config.exposed_ports;
        ports.extend(exposed.into_iter().map(|port| (port, Empty {})));
        self.add_history(place.id, shown, false);
        Ok(())
    }

    pub(super) fn stop_signal(&mut self, place: Place<'_>, signal: &str) -> Result<()> {
        let signal = self.expand(place, signal)?;
        if !signal::is_signal(&signal) {
            return Err(fail(format!("invalid signal: {signal}")));
        }
        let shown = format!("STOPSIGNAL {signal}");
        self.stages[place.id].image.config.stop_signal = signal;
        self.add_history(place.id, shown, false);
        Ok(())
    }

    pub(super) fn user(&mut self, place: Place<'_>, user: &str) -> Result<()> {
        let user = self.expand(place, user)?;
        let stage = &mut self.stages[place.id];
        stage.fs.user.clone_from(&user);
        stage.image.config.user.clone_from(&user);
        self.add_history(place.id, format!("USER {user}"), false);
        Ok(())
    }

    pub(super) fn volume(&mut self, place: Place<'_>, paths: &[String]) -> Result<()> {
        let mut expanded = Vec::with_capacity(paths.len());
        for path in paths {
            let path = self.expand(place, path)?;
            if path.is_empty() {
                return Err(fail("VOLUME specified can not be an empty string"));
            }
            expanded.push(path);
        }
        let shown = format!("VOLUME {}", plain_list(&expanded));
        let volumes = &mut self.stages[place.id].image.config.volumes;
        volumes.extend(expanded.into_iter().map(|path| (path, Empty {})));
        self.add_history(place.id, shown, false);
        Ok(())
    }
}
