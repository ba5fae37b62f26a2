use clap::{CommandFactory, FromArgMatches, Parser};

use super::*;
use crate::arguments::{plain_booleans, prepare};

#[derive(Parser)]
struct Root {
    #[command(subcommand)]
    command: Build,
}

#[derive(clap::Subcommand)]
enum Build {
    Build(BuildArgs),
}

fn parse(words: &[&str]) -> BuildArgs {
    let root = prepare(Root::command());
    let words: Vec<String> = ["build"]
        .iter()
        .chain(words)
        .map(|w| (*w).to_owned())
        .collect();
    let words = plain_booleans(&root, &words).unwrap();
    let words = std::iter::once("buildx".to_owned()).chain(words);
    let matches = root.clone().try_get_matches_from(words).unwrap();
    let Build::Build(args) = Root::from_arg_matches(&matches).unwrap().command;
    args
}

#[test]
fn flags_are_written_as_for_stock() {
    let args = parse(&[
        "--pull",
        "--no-cache=false",
        "-t",
        "a",
        "-t=b",
        "--tag=c",
        "-o",
        "-",
        "-qf",
        "-",
        "--push=1",
        ".",
        "--target",
        "x",
        "--target",
        "y",
        "--build-arg",
        "A=-O2",
        "--memory-swap",
        "-1",
        "-c",
        "5",
    ]);
    assert!(args.pull && !args.no_cache && args.push && args.quiet && !args.load);
    assert_eq!(args.tags, ["a", "b", "c"]);
    assert_eq!(args.outputs, ["-"]);
    let flags = args.to_flags(&Environment::default()).unwrap();
    assert_eq!(
        (&*flags.context, &*flags.file, &*flags.target),
        (".", "-", "y")
    );
    assert_eq!(flags.resources, ["memory-swap=-1", "cpu-shares=5"]);
    assert_eq!(flags.call, "build");
}

#[test]
fn one_context_is_needed() {
    for words in [&[][..], &["a", "b"]] {
        let error = parse(words).to_flags(&Environment::default()).unwrap_err();
        assert!(error.to_string().contains("requires 1 argument"), "{error}");
    }
}

#[test]
fn check_and_print_are_calls() {
    let call = |words: &[&str]| parse(words).to_flags(&Environment::default()).unwrap().call;
    assert_eq!(call(&[".", "--check"]), "check");
    assert_eq!(call(&[".", "--check=false"]), "build");
    assert_eq!(call(&[".", "--print", "outline"]), "outline");
    assert_eq!(
        call(&[".", "--call=targets,format=json"]),
        "targets,format=json"
    );
}

#[test]
fn quiet_and_progress_must_agree() {
    let display = |words: &[&str]| parse(words).display().map(|d| (d.mode, d.quiet));
    assert_eq!(display(&["."]).unwrap(), (Mode::Auto, false));
    assert_eq!(display(&[".", "-q"]).unwrap(), (Mode::Quiet, true));
    assert_eq!(
        display(&[".", "--progress=quiet"]).unwrap(),
        (Mode::Quiet, true)
    );
    assert_eq!(
        display(&[".", "--progress=none"]).unwrap(),
        (Mode::Quiet, false)
    );
    let error = display(&[".", "-q", "--progress=plain"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "progress=plain and quiet cannot be used together"
    );
    let error = display(&[".", "--progress=bogus"]).unwrap_err();
    assert_eq!(error.to_string(), "invalid progress mode bogus");
}

#[test]
fn flags_of_old_are_accepted_with_their_warnings() {
    let args = parse(&[
        ".",
        "--squash",
        "--isolation",
        "process",
        "--security-opt",
        "x",
        "--rm=false",
        "--force-rm",
        "--compress",
    ]);
    assert_eq!(args.warnings().len(), 3);
    assert!(parse(&["."]).warnings().is_empty());
}
