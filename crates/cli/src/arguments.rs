//! From arguments to a command, with the rules and the words of the flags library stock uses:
//! `--flag=true` for booleans, the last of a repeated flag wins, a value may start with a dash.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command};

/// Why arguments cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UsageError {
    /// A flag is wrong; the text says how.
    Flag(String),
    /// There are too many arguments.
    TooMany,
    /// There is no such command.
    UnknownCommand(String),
}

/// Prepares a command built from types: every flag takes its last value, and values may start
/// with a dash.
pub(crate) fn prepare(command: Command) -> Command {
    let command = command
        .args_override_self(true)
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .disable_version_flag(true)
        .mut_args(|arg| {
            if arg.get_action().takes_values() && !arg.is_positional() {
                arg.allow_hyphen_values(true)
            } else {
                arg
            }
        });
    let names: Vec<String> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, prepare)
    })
}

/// The subcommand that arguments name, as a path from the root.
pub(crate) fn find<'a>(root: &'a Command, arguments: &[String]) -> Vec<&'a Command> {
    let mut path = vec![root];
    let mut index = 0;
    while index < arguments.len() {
        let argument = &arguments[index];
        index += 1;
        if argument == "--" {
            break;
        }
        let Some(current) = path.last().copied() else {
            break;
        };
        if argument.starts_with('-') && argument.len() > 1 {
            if takes_next(root, current, argument) {
                index += 1;
            }
            continue;
        }
        match current.find_subcommand(argument) {
            Some(sub) => path.push(sub),
            None => break,
        }
    }
    path
}

fn flag<'a>(root: &'a Command, current: &'a Command, argument: &str) -> Option<&'a clap::Arg> {
    let mut all = current.get_arguments().chain(root.get_arguments());
    if let Some(long) = argument.strip_prefix("--") {
        let name = long.split('=').next()?;
        return all.find(|arg| {
            arg.get_long() == Some(name)
                || arg
                    .get_all_aliases()
                    .is_some_and(|aliases| aliases.contains(&name))
        });
    }
    let letter = argument.chars().nth(1)?;
    all.find(|arg| arg.get_short() == Some(letter))
}

fn takes_next(root: &Command, current: &Command, argument: &str) -> bool {
    let long = argument.starts_with("--");
    let attached = if long {
        argument.contains('=')
    } else {
        argument.len() > 2
    };
    !attached && flag(root, current, argument).is_some_and(|arg| arg.get_action().takes_values())
}

/// Rewrites `--flag=true` to `--flag` and drops `--flag=false`.
pub(crate) fn plain_booleans(
    root: &Command,
    arguments: &[String],
) -> Result<Vec<String>, UsageError> {
    let mut out = Vec::with_capacity(arguments.len());
    let mut index = 0;
    while index < arguments.len() {
        let argument = &arguments[index];
        index += 1;
        if argument == "--" {
            out.extend_from_slice(&arguments[index - 1..]);
            return Ok(out);
        }
        let path = find(root, &arguments[..index]);
        let current = path.last().copied().unwrap_or(root);
        if argument.starts_with('-') && takes_next(root, current, argument) {
            out.push(argument.clone());
            out.extend(arguments.get(index).cloned());
            index += 1;
            continue;
        }
        let boolean = argument
            .split_once('=')
            .filter(|(name, _)| name.starts_with("--"))
            .filter(|(name, _)| {
                flag(root, current, name)
                    .is_some_and(|arg| matches!(arg.get_action(), ArgAction::SetTrue))
            });
        match boolean {
            None => out.push(argument.clone()),
            Some((name, value)) => match driver::parse_bool(value) {
                Ok(true) => out.push(name.to_owned()),
                Ok(false) => {}
                Err(error) => {
                    return Err(UsageError::Flag(format!(
                        "invalid argument {value:?} for \"{name}\" flag: {error}"
                    )));
                }
            },
        }
    }
    Ok(out)
}

/// Turns the parser's error into the known words.
pub(crate) fn explain(error: &clap::Error) -> UsageError {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let argument = context(ContextKind::InvalidArg);
    // The parser names a flag with its value: `--timeout <duration>`.
    let flag_name = argument.split([' ', '=']).next().unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => {
            if argument.starts_with("--") {
                UsageError::Flag(format!("unknown flag: {flag_name}"))
            } else if argument.starts_with('-') && argument.len() > 1 {
                let letter = argument.chars().nth(1).unwrap_or('-');
                UsageError::Flag(format!("unknown shorthand flag: '{letter}' in {argument}"))
            } else {
                UsageError::TooMany
            }
        }
        ErrorKind::InvalidSubcommand => {
            UsageError::UnknownCommand(context(ContextKind::InvalidSubcommand))
        }
        ErrorKind::InvalidValue if context(ContextKind::InvalidValue).is_empty() => {
            UsageError::Flag(format!("flag needs an argument: {flag_name}"))
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let value = context(ContextKind::InvalidValue);
            let reason = std::error::Error::source(error)
                .map(ToString::to_string)
                .unwrap_or_default();
            UsageError::Flag(format!(
                "invalid argument {value:?} for \"{flag_name}\" flag: {reason}"
            ))
        }
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            UsageError::Flag(first.trim_start_matches("error: ").to_owned())
        }
    }
}
