//! From words to instructions: every keyword with its flags and arguments, in stock's words where
//! something is wrong.

use crate::flags::{FlagKind, Flags};
use crate::instruction::{
    ArgDeclaration, CommandLine, Dockerfile, GlobalArgs, InlineFile, Instruction, KeyValue, Kind,
    RunInstruction, RunNetwork, Stage,
};
use crate::lint::{Linter, Rule};
use crate::mount::{MountSpec, parse_device};
use crate::parser::{Ast, EMPTY_CONTINUATION, Node};
use crate::quote::{is_space, quoted};
use crate::source::{Diagnostic, Severity, SyntaxError};
use crate::suggest;

mod copies;
mod healthcheck;
#[cfg(test)]
mod tests;

use copies::{add, copy};
use healthcheck::healthcheck;

/// The keywords, in the order suggestions prefer them.
pub(crate) const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

impl Dockerfile {
    /// Reads a whole Dockerfile; the error is the first one that stock would show.
    pub fn read(data: &[u8], lint: &Linter) -> Result<Dockerfile, SyntaxError> {
        let (ast, findings) = crate::parser::parse(data);
        Dockerfile::from_ast(&ast, &findings, lint)
    }

    /// Understands what was parsed.
    pub fn from_ast(
        ast: &Ast,
        findings: &[Diagnostic],
        lint: &Linter,
    ) -> Result<Dockerfile, SyntaxError> {
        let is_error = |finding: &&Diagnostic| finding.severity == Severity::Error;
        // A file that cannot be parsed gives its error and no warning.
        if let Some(error) = findings.iter().find(is_error) {
            return Err(SyntaxError {
                message: error.message.clone(),
                lines: error.lines,
            });
        }
        for finding in findings {
            lint.report(Rule::NoEmptyContinuation, finding.lines, EMPTY_CONTINUATION);
        }
        let mut file = Dockerfile {
            escape: ast.escape,
            ..Dockerfile::default()
        };
        for node in &ast.instructions {
            file.push(node, lint)?;
        }
        Ok(file)
    }

    fn push(&mut self, node: &Node, lint: &Linter) -> Result<(), SyntaxError> {
        let wrong = |message: String| SyntaxError {
            message: format!(
                "dockerfile parse error on line {}: {message}",
                node.lines.first
            ),
            lines: node.lines,
        };
        let lint = lint.with_comments(&node.comments);
        if node.keyword.eq_ignore_ascii_case("from") {
            self.stages.push(stage(node, &lint).map_err(wrong)?);
            return Ok(());
        }
        let instruction = instruction(node, &lint).map_err(wrong)?;
        match (self.stages.last_mut(), instruction.kind) {
            (Some(stage), kind) => stage.instructions.push(Instruction {
                kind,
                ..instruction_like(node)
            }),
            (None, Kind::Arg(args)) => self.global_args.push(GlobalArgs {
                args,
                lines: node.lines,
            }),
            (None, _) => {
                return Err(SyntaxError {
                    message: "no build stage in current context".to_owned(),
                    lines: node.lines,
                });
            }
        }
        Ok(())
    }
}

/// Reads the single instruction of an `ONBUILD` trigger; gives stock's message if it is none.
pub fn read_trigger(text: &str) -> Result<Instruction, String> {
    let (ast, findings) = crate::parser::parse(text.as_bytes());
    if let Some(finding) = findings.iter().find(|f| f.severity == Severity::Error) {
        return Err(finding.message.clone());
    }
    let [node] = ast.instructions.as_slice() else {
        return Err("onbuild trigger should be a single expression".to_owned());
    };
    if node.keyword.eq_ignore_ascii_case("from") {
        return Err("*instructions.Stage is not a command type".to_owned());
    }
    instruction(node, &Linter::off())
}

fn instruction_like(node: &Node) -> Instruction {
    Instruction {
        keyword: node.keyword.clone(),
        code: node.original.trim_matches(is_space).to_owned(),
        lines: node.lines,
        comments: node.comments.clone(),
        kind: Kind::Arg(Vec::new()),
    }
}

fn instruction(node: &Node, lint: &Linter) -> Result<Instruction, String> {
    let words = &node.arguments.words;
    let kind = match node.keyword.to_ascii_lowercase().as_str() {
        "add" => Kind::Add(Box::new(add(node)?)),
        "arg" => {
            let args = arg(node)?;
            let keys: Vec<&str> = args.iter().map(|arg| arg.key.as_str()).collect();
            check_description("ARG", &keys, node, lint);
            Kind::Arg(args)
        }
        "cmd" => {
            no_flags(node)?;
            Kind::Cmd(command_line(node))
        }
        "copy" => Kind::Copy(Box::new(copy(node)?)),
        "entrypoint" => {
            no_flags(node)?;
            Kind::Entrypoint(command_line(node))
        }
        "env" => Kind::Env(key_values(node, "ENV")?),
        "expose" => {
            at_least_one(words, "EXPOSE")?;
            no_flags(node)?;
            let mut ports = words.clone();
            ports.sort();
            Kind::Expose(ports)
        }
        "healthcheck" => Kind::Healthcheck(healthcheck(node)?),
        "label" => Kind::Label(key_values(node, "LABEL")?),
        "maintainer" => {
            let message = "Maintainer instruction is deprecated in favor of using label";
            lint.report(Rule::MaintainerDeprecated, node.lines, message);
            let name = exactly_one(words, "MAINTAINER")?;
            no_flags(node)?;
            Kind::Maintainer(name)
        }
        "onbuild" => Kind::Onbuild(onbuild(node)?),
        "run" => Kind::Run(Box::new(run(node)?)),
        "shell" => Kind::Shell(shell(node)?),
        "stopsignal" => Kind::StopSignal(exactly_one(words, "STOPSIGNAL")?),
        "user" => {
            let user = exactly_one(words, "USER")?;
            no_flags(node)?;
            Kind::User(user)
        }
        "volume" => Kind::Volume(volume(node)?),
        "workdir" => {
            let path = exactly_one(words, "WORKDIR")?;
            no_flags(node)?;
            Kind::Workdir(path)
        }
        _ => {
            let message = format!("unknown instruction: {}", node.keyword);
            return Err(suggest::with_suggestion(
                message,
                &node.keyword,
                KEYWORDS,
                false,
            ));
        }
    };
    Ok(Instruction {
        kind,
        ..instruction_like(node)
    })
}

fn stage(node: &Node, lint: &Linter) -> Result<Stage, String> {
    let words = &node.arguments.words;
    if let [_, keyword, name, rest @ ..] = words.as_slice() {
        if rest.is_empty() && *name != name.to_lowercase() {
            let message = format!("Stage name '{name}' should be lowercase");
            lint.report(Rule::StageNameCasing, node.lines, message);
        }
        let from = &node.keyword;
        let differs = (*from == from.to_lowercase() && *keyword != keyword.to_lowercase())
            || (*from == from.to_uppercase() && *keyword != keyword.to_uppercase());
        if differs {
            let message = format!("'{keyword}' and '{from}' keywords' casing do not match");
            lint.report(Rule::FromAsCasing, node.lines, message);
        }
    }
    let (base_name, name) = match words.as_slice() {
        [base] => (base.clone(), String::new()),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            let lower = name.to_lowercase();
            if !is_stage_name(&lower) {
                return Err(format!(
                    "invalid name for build stage: {}, name can't start with a number or contain symbols",
                    quoted(name)
                ));
            }
            (base.clone(), lower)
        }
        _ => return Err("FROM requires either one or three arguments".to_owned()),
    };
    let mut flags = Flags::parse(&node.flags, &[("platform", FlagKind::Text)])?;
    if !name.is_empty() {
        check_description("FROM", &[&name], node, lint);
    }
    Ok(Stage {
        doc_comment: doc_comment(&node.comments, &name),
        name,
        base_name,
        platform: flags.text("platform"),
        keyword: node.keyword.clone(),
        code: node.original.trim_matches(is_space).to_owned(),
        lines: node.lines,
        comments: node.comments.clone(),
        instructions: Vec::new(),
    })
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
        })
}

fn no_flags(node: &Node) -> Result<(), String> {
    Flags::parse(&node.flags, &[]).map(|_| ())
}

fn at_least_one(words: &[String], keyword: &str) -> Result<(), String> {
    if words.is_empty() {
        return Err(format!("{keyword} requires at least one argument"));
    }
    Ok(())
}

fn exactly_one(words: &[String], keyword: &str) -> Result<String, String> {
    match words {
        [word] => Ok(word.clone()),
        _ => Err(format!("{keyword} requires exactly one argument")),
    }
}

fn key_values(node: &Node, keyword: &str) -> Result<Vec<KeyValue>, String> {
    no_flags(node)?;
    at_least_one(&node.arguments.words, keyword)?;
    let triples = node.arguments.words.chunks_exact(3);
    triples
        .map(|triple| match triple {
            [key, ..] if key.is_empty() => Err(format!("{keyword} names can not be blank")),
            [key, value, separator] => Ok(KeyValue {
                key: key.clone(),
                value: value.clone(),
                legacy: separator.is_empty(),
            }),
            _ => Err(format!("Bad input to {keyword}, too many arguments")),
        })
        .collect()
}

fn arg(node: &Node) -> Result<Vec<ArgDeclaration>, String> {
    at_least_one(&node.arguments.words, "ARG")?;
    let declaration = |word: &String| {
        let (key, value) = match word.split_once('=') {
            Some(("", _)) => return Err("ARG names can not be blank".to_owned()),
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (word.clone(), None),
        };
        Ok(ArgDeclaration {
            doc_comment: doc_comment(&node.comments, &key),
            key,
            value,
        })
    };
    node.arguments.words.iter().map(declaration).collect()
}

fn command_line(node: &Node) -> CommandLine {
    let files = node.heredocs.iter().map(|heredoc| InlineFile {
        name: heredoc.name.clone(),
        data: String::from_utf8_lossy(&heredoc.content).into_owned(),
        chomp: heredoc.chomp,
    });
    CommandLine {
        words: node.arguments.words.clone(),
        shell_form: !node.arguments.json,
        files: files.collect(),
    }
}

fn run(node: &Node) -> Result<RunInstruction, String> {
    let known = [
        ("device", FlagKind::List),
        ("mount", FlagKind::List),
        ("network", FlagKind::Text),
        ("security", FlagKind::Text),
    ];
    let mut flags = Flags::parse(&node.flags, &known)?;
    let devices = flags
        .list("device")
        .iter()
        .map(|d| parse_device(d))
        .collect::<Result<_, _>>()?;
    let mounts = flags
        .list("mount")
        .iter()
        .map(|m| MountSpec::parse(m))
        .collect::<Result<_, _>>()?;
    let network = match flags.list("network").pop().as_deref() {
        None | Some("default") => RunNetwork::Default,
        Some("none") => RunNetwork::None,
        Some("host") => RunNetwork::Host,
        Some(other) => return Err(format!("invalid network mode {}", quoted(other))),
    };
    let insecure = match flags.list("security").pop().as_deref() {
        None | Some("sandbox") => false,
        Some("insecure") => true,
        Some(other) => return Err(format!("security {} is not valid", quoted(other))),
    };
    Ok(RunInstruction {
        command: command_line(node),
        mounts,
        network,
        insecure,
        devices,
    })
}

fn shell(node: &Node) -> Result<Vec<String>, String> {
    no_flags(node)?;
    at_least_one(&node.arguments.words, "SHELL")?;
    if !node.arguments.json {
        return Err("SHELL requires the arguments to be in JSON form".to_owned());
    }
    Ok(node.arguments.words.clone())
}

fn volume(node: &Node) -> Result<Vec<String>, String> {
    at_least_one(&node.arguments.words, "VOLUME")?;
    no_flags(node)?;
    let trimmed = node
        .arguments
        .words
        .iter()
        .map(|word| word.trim_matches(is_space));
    trimmed
        .map(|word| {
            if word.is_empty() {
                Err("VOLUME specified can not be an empty string".to_owned())
            } else {
                Ok(word.to_owned())
            }
        })
        .collect()
}

fn onbuild(node: &Node) -> Result<String, String> {
    at_least_one(&node.arguments.words, "ONBUILD")?;
    no_flags(node)?;
    let trigger = node.arguments.words[0]
        .trim_matches(is_space)
        .to_uppercase();
    match trigger.as_str() {
        "ONBUILD" => {
            return Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned());
        }
        "MAINTAINER" | "FROM" => {
            return Err(format!("{trigger} isn't allowed as an ONBUILD trigger"));
        }
        _ => {}
    }
    let ascii_space = |c: char| matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ');
    let text = node.original.trim_start_matches(ascii_space);
    let text = text.get("onbuild".len()..).unwrap_or_default();
    let mut trigger = text.trim_start_matches(ascii_space).to_owned();
    for heredoc in &node.heredocs {
        trigger.push('\n');
        trigger.push_str(&String::from_utf8_lossy(&heredoc.content));
        trigger.push_str(&heredoc.name);
    }
    Ok(trigger)
}

/// The text of the comment that starts with the name.
fn doc_comment(comments: &[String], name: &str) -> String {
    if name.is_empty() {
        return String::new();
    }
    let text = comments
        .iter()
        .find_map(|comment| comment.strip_prefix(name)?.strip_prefix(' '));
    text.unwrap_or_default().to_owned()
}

fn check_description(keyword: &str, keys: &[&str], node: &Node, lint: &Linter) {
    let (Some(comment), Some(first)) = (node.comments.last(), keys.first()) else {
        return;
    };
    let word = comment.split(' ').next().unwrap_or_default();
    if keys.contains(&word) {
        return;
    }
    let example = if keys.len() > 1 { "<arg_key>" } else { first };
    let message =
        format!("Comment for {keyword} should follow the format: `# {example} <description>`");
    lint.report(Rule::InvalidDefinitionDescription, node.lines, message);
}
