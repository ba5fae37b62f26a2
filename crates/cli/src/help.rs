//! Help pages in the form of Docker's own.

use clap::{Arg, ArgAction, Command};

/// Docker's own names for `docker buildx build`.
const DOCKER_BUILD: &str = "docker build, docker builder build, docker image build";

/// How a command is called: `docker buildx create [OPTIONS] [CONTEXT|ENDPOINT]`.
pub(crate) fn usage_line(program: &str, path: &[&Command]) -> String {
    let Some(command) = path.last() else {
        return program.to_owned();
    };
    if command.has_subcommands() {
        return format!("{} [OPTIONS] COMMAND", command_path(program, path));
    }
    // The command's own words stand after the last part of its path.
    let usage = Command::clone(command).render_usage().to_string();
    let own = usage.trim_start_matches("Usage: ").trim();
    let parent = &path[..path.len() - 1];
    format!("{} {own}", command_path(program, parent))
}

/// `docker buildx create`.
pub(crate) fn command_path(program: &str, path: &[&Command]) -> String {
    let mut text = program.to_owned();
    for command in path.iter().skip(1) {
        text.push(' ');
        text.push_str(command.get_name());
    }
    text
}

/// The page of a command.
pub(crate) fn page(program: &str, path: &[&Command], width: usize) -> String {
    let (Some(command), Some(root)) = (path.last(), path.first()) else {
        return String::new();
    };
    let mut text = format!("Usage:  {}\n\n", usage_line(program, path));
    let about = command.get_long_about().or_else(|| command.get_about());
    text.push_str(&about.map(ToString::to_string).unwrap_or_default());
    text.push('\n');
    let aliases: Vec<String> = command
        .get_visible_aliases()
        .map(|alias| {
            let parent = command_path(program, &path[..path.len() - 1]);
            format!("{parent} {alias}")
        })
        .collect();
    if !aliases.is_empty() {
        let own = match (program, command.get_name()) {
            ("docker buildx", "build") => DOCKER_BUILD.to_owned(),
            _ => command_path(program, path),
        };
        text.push_str(&format!("\nAliases:\n  {own}, {}\n", aliases.join(", ")));
    }
    let mut flags: Vec<&Arg> = command
        .get_arguments()
        .chain(root.get_arguments().filter(|_| path.len() > 1))
        .filter(|arg| arg.get_long().is_some() && !arg.is_hide_set())
        .collect();
    flags.sort_by_key(|arg| arg.get_long());
    flags.dedup_by_key(|arg| arg.get_long());
    if !flags.is_empty() {
        text.push_str("\nOptions:\n");
        text.push_str(&flag_lines(&flags, width));
    }
    text.push_str(&command_lists(command));
    if command.has_subcommands() {
        text.push_str(&format!(
            "\nRun '{} COMMAND --help' for more information on a command.\n",
            command_path(program, path)
        ));
    }
    text
}

fn command_lists(command: &Command) -> String {
    let shown = || command.get_subcommands().filter(|sub| !sub.is_hide_set());
    let width = shown()
        .map(|sub| sub.get_name().len())
        .max()
        .unwrap_or(0)
        .max(11);
    let mut text = String::new();
    for (title, groups) in [("Management Commands", true), ("Commands", false)] {
        let mut subs: Vec<&Command> = shown()
            .filter(|sub| sub.has_subcommands() == groups)
            .collect();
        subs.sort_by_key(|sub| sub.get_name());
        if subs.is_empty() {
            continue;
        }
        text.push_str(&format!("\n{title}:\n"));
        for sub in subs {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            text.push_str(&format!("  {:width$} {about}\n", sub.get_name()));
        }
    }
    text
}

fn flag_lines(flags: &[&Arg], width: usize) -> String {
    let lines: Vec<(String, String)> = flags.iter().map(|arg| (left(arg), right(arg))).collect();
    let column = lines.iter().map(|(left, _)| left.len()).max().unwrap_or(0) + 3;
    let mut text = String::new();
    for (left, right) in lines {
        let wrapped = wrap(&right, width.saturating_sub(column));
        for (index, line) in wrapped.iter().enumerate() {
            let head = if index == 0 { left.as_str() } else { "" };
            text.push_str(format!("{head:column$}{line}").trim_end());
            text.push('\n');
        }
    }
    text
}

fn left(arg: &Arg) -> String {
    let long = arg.get_long().unwrap_or_default();
    let mut text = match arg.get_short() {
        Some(letter) => format!("  -{letter}, --{long}"),
        None => format!("      --{long}"),
    };
    if !matches!(arg.get_action(), ArgAction::SetTrue)
        && let Some(name) = arg.get_value_names().and_then(|names| names.first())
    {
        text.push(' ');
        text.push_str(name);
    }
    text
}

fn right(arg: &Arg) -> String {
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let default: Vec<String> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    if !default.is_empty() && arg.get_action().takes_values() && !arg.is_hide_default_value_set() {
        let name = arg.get_value_names().and_then(|names| names.first());
        let value = default.join(",");
        if name.is_some_and(|name| name.as_str() == "string") {
            text.push_str(&format!(" (default {value:?})"));
        } else {
            text.push_str(&format!(" (default {value})"));
        }
    }
    text
}

/// Columns that stay free at the right unless the last words of a text need them.
const SLOP: usize = 5;

/// Breaks a help text into lines as the flags library of stock does.
fn wrap(text: &str, width: usize) -> Vec<String> {
    if width < 24 {
        return vec![text.to_owned()];
    }
    let mut lines = Vec::new();
    let mut rest = text;
    while rest.len() > width {
        let end = rest.floor_char_boundary(width - SLOP);
        let Some(space) = rest[..end].rfind(' ').filter(|space| *space > 0) else {
            break;
        };
        lines.push(rest[..space].to_owned());
        rest = &rest[space + 1..];
    }
    lines.push(rest.to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_broken_before_the_right_edge_but_for_their_last_words() {
        let text = "Append a node to builder instead of changing it";
        assert_eq!(
            wrap(text, 44),
            ["Append a node to builder instead of", "changing it"]
        );
        assert_eq!(wrap(text, text.len()), [text]);
        let word = "x".repeat(60);
        assert_eq!(wrap(&word, 30), [word]);
    }

    #[test]
    fn build_names_the_commands_docker_has_for_it() {
        let root = Command::new("buildx").subcommand(Command::new("build").visible_alias("b"));
        let build = root.find_subcommand("build").unwrap();
        let page = |program| page(program, &[&root, build], 80);
        assert!(page("docker buildx").contains(
            "\nAliases:\n  docker build, docker builder build, docker image build, docker buildx b\n"
        ));
        assert!(page("cooperage").contains("\nAliases:\n  cooperage build, cooperage b\n"));
    }
}
