//! The lint rules that need to know what a build means by its words.

use std::collections::{BTreeSet, HashSet};

use dockerfile::lint::{Linter, Rule};
use dockerfile::quote::quoted;
use dockerfile::shell::{Expansion, Variables};
use dockerfile::suggest::nearest;
use dockerfile::{Dockerfile, Lines, Stage};
use oci::{Platform, Reference};
use pathmatch::clean_path;

use crate::convert::{Converter, NOT_VARIABLES};
use crate::platform::parse_platform;

/// Names of stages are unique and not reserved.
pub(super) fn stage_names(stages: &[Stage], lint: &Linter) {
    let mut seen = HashSet::new();
    for stage in stages.iter().filter(|stage| !stage.name.is_empty()) {
        if matches!(stage.name.as_str(), "context" | "scratch") {
            let message = format!(
                "Stage name should not use the same name as reserved stage {}",
                quoted(&stage.name)
            );
            lint.report(Rule::ReservedStageName, stage.lines, message);
        }
        if !seen.insert(&stage.name) {
            let message = format!(
                "Duplicate stage name {}, stage names should be unique",
                quoted(&stage.name)
            );
            lint.report(Rule::DuplicateStageName, stage.lines, message);
        }
    }
}

/// Keywords are written as most keywords of the file are.
pub(super) fn keyword_casing(stages: &[Stage], lint: &Linter) {
    let keywords = || {
        stages.iter().flat_map(|stage| {
            let own = [(stage.keyword.as_str(), stage.lines)];
            let others = stage
                .instructions
                .iter()
                .map(|i| (i.keyword.as_str(), i.lines));
            own.into_iter().chain(others)
        })
    };
    let lower = keywords()
        .filter(|(word, _)| *word == word.to_lowercase())
        .count();
    let upper = keywords()
        .filter(|(word, _)| *word == word.to_uppercase() && *word != word.to_lowercase())
        .count();
    let mostly_lower = lower > upper;
    for (word, lines) in keywords() {
        let (wanted, name) = if mostly_lower {
            (word.to_lowercase(), "lowercase")
        } else {
            (word.to_uppercase(), "uppercase")
        };
        if word != wanted {
            let message =
                format!("Command '{word}' should match the case of the command majority ({name})");
            lint.report(Rule::ConsistentInstructionCasing, lines, message);
        }
    }
}

/// Base images are still names when no build argument is given.
pub(super) fn default_base_images(converter: &Converter<'_>, read: &Dockerfile) {
    let lexer = &converter.lexer;
    let mut args = converter.global_args.clone();
    for arg in read
        .global_args
        .iter()
        .flat_map(|instruction| &instruction.args)
    {
        if let Some(default) = &arg.value {
            let Ok(outcome) = lexer.expand(default, &args) else {
                return;
            };
            args.set(&arg.key, &outcome.text);
        }
    }
    for stage in &read.stages {
        let Ok(outcome) = lexer.expand(&stage.base_name, &args) else {
            return;
        };
        if outcome.text.parse::<Reference>().is_err() {
            let message = format!(
                "Default value for ARG {} results in empty or invalid base image name",
                stage.base_name
            );
            converter
                .lint
                .report(Rule::InvalidDefaultArgInFrom, stage.lines, message);
        }
    }
}

/// `FROM` uses declared arguments only.
pub(super) fn undefined_from_args(
    converter: &Converter<'_>,
    unmatched: &BTreeSet<String>,
    lines: Lines,
    lint: &Linter,
) {
    if unmatched.is_empty() || !lint.wants(Rule::UndefinedArgInFrom) {
        return;
    }
    let mut known: BTreeSet<&str> = converter.declared_args.iter().map(String::as_str).collect();
    known.extend(converter.global_args.names());
    for name in unmatched
        .iter()
        .filter(|name| !known.contains(name.as_str()))
    {
        let mut message = format!("FROM argument '{name}' is not declared");
        if let Some(found) = nearest(name, known.iter().copied(), true) {
            message.push_str(&format!(" (did you mean {found}?)"));
        }
        lint.report(Rule::UndefinedArgInFrom, lines, message);
    }
}

/// `FROM --platform` is neither the default nor a constant.
pub(super) fn stage_platform(
    converter: &Converter<'_>,
    stage: &Stage,
    outcome: &Expansion,
    lint: &Linter,
) {
    const TARGET: &str = "TARGETPLATFORM";
    let only_target = outcome.unmatched.is_empty()
        && outcome.matched.len() == 1
        && outcome.matched.contains(TARGET);
    if only_target && converter.global_args.get(TARGET) == Some(&outcome.text) {
        let message = format!(
            "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
            stage.platform
        );
        lint.report(Rule::RedundantTargetPlatform, stage.lines, message);
    }
    if !outcome.matched.is_empty() || !outcome.unmatched.is_empty() {
        return;
    }
    let Ok(platform) = parse_platform(&outcome.text) else {
        return;
    };
    if stage.name.contains(&platform.os) || stage.name.contains(&platform.architecture) {
        return;
    }
    let message = format!(
        "FROM --platform flag should not use constant value {}",
        quoted(&outcome.text)
    );
    lint.report(Rule::FromPlatformFlagConstDisallowed, stage.lines, message);
}

/// An image is for the platform it was asked for.
pub(super) fn base_image_platform(
    name: &str,
    expected: &Platform,
    actual: &Platform,
    lines: Lines,
    lint: &Linter,
) {
    if expected.os != actual.os || expected.architecture != actual.architecture {
        let message = format!(
            "Base image {name} was pulled with platform {}, expected {} for current build",
            quoted(&actual.clone().normalized().to_string()),
            quoted(&expected.clone().normalized().to_string()),
        );
        lint.report(Rule::InvalidBaseImagePlatform, lines, message);
    }
}

/// Variables are set before they are used.
pub(super) fn undefined_variables(
    converter: &Converter<'_>,
    id: usize,
    unmatched: &BTreeSet<String>,
    lines: Lines,
    lint: &Linter,
) {
    if !lint.wants(Rule::UndefinedVar) {
        return;
    }
    let stage = &converter.stages[id];
    for name in unmatched {
        let declared = stage.args.iter().any(|(known, _)| known == name);
        if declared || NOT_VARIABLES.contains(&name.as_str()) {
            continue;
        }
        let mut message = format!("Usage of undefined variable '${name}'");
        if let Some(found) = nearest(name, stage.fs.env.names(), true) {
            message.push_str(&format!(" (did you mean ${found}?)"));
        }
        lint.report(Rule::UndefinedVar, lines, message);
    }
}

/// Names of variables do not look like names of secrets.
pub(super) fn secret_name(keyword: &str, name: &str, lines: Lines, lint: &Linter) {
    const SECRET: [&str; 10] = [
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "token",
    ];
    const HARMLESS: [&str; 3] = ["public", "file", "version"];
    let lower = name.to_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|word| words.contains(&word));
    if has(&SECRET) && !has(&HARMLESS) {
        let message = format!(
            "Do not use ARG or ENV instructions for sensitive data ({keyword} {})",
            quoted(name)
        );
        lint.report(Rule::SecretsUsedInArgOrEnv, lines, message);
    }
}

/// What is copied is not left out of the context.
pub(super) fn copied_path(
    converter: &Converter<'_>,
    is_add: bool,
    source: &str,
    lines: Lines,
    lint: &Linter,
) {
    let Some(ignored) = converter.ignored.as_ref().filter(|m| !m.has_exceptions()) else {
        return;
    };
    let source = clean_path(source);
    let everything = matches!(source.as_str(), "." | "/");
    let all_ignored = || {
        let mut patterns = ignored.patterns().iter();
        patterns.any(|pattern| matches!(pattern.as_str(), "*" | "**" | "**/*"))
    };
    if everything && !all_ignored() {
        return;
    }
    if ignored.matches(source.as_bytes()) {
        let verb = if is_add { "Add" } else { "Copy" };
        let message = format!(
            "Attempting to {verb} file {} that is excluded by .dockerignore",
            quoted(&source)
        );
        lint.report(Rule::CopyIgnoredFile, lines, message);
    }
}

/// An instruction of which only the last one counts stands once; gives where it stood before.
pub(super) fn used_once(before: &mut Option<Lines>, keyword: &str, lines: Lines, lint: &Linter) {
    if let Some(before) = *before {
        let message = format!(
            "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
        );
        lint.report(Rule::MultipleInstructionsDisallowed, before, message);
    }
    *before = Some(lines);
}

/// Names and values are joined by `=`.
pub(super) fn legacy_pair(keyword: &str, lines: Lines, lint: &Linter) {
    let message = format!(
        "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
    );
    lint.report(Rule::LegacyKeyValueFormat, lines, message);
}

/// Commands are in exec form unless the file sets a shell.
pub(super) fn exec_form(keyword: &str, lines: Lines, lint: &Linter) {
    let message = format!(
        "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
    );
    lint.report(Rule::JSONArgsRecommended, lines, message);
}
