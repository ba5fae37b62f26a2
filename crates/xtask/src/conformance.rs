//! The conformance corpus by hand: recording it, and fuzzing against the Engine's BuildKit.

use std::process::Command;

use crate::peers::{self, run};

/// `cargo xtask record-conformance [FILTER…]`: what the Engine's BuildKit makes of our own cases
/// becomes their expectation.
pub fn record() -> Result<(), String> {
    let filters: Vec<String> = std::env::args().skip(2).collect();
    peers::unpack()?;
    program(&[&["record".to_owned()][..], &filters].concat())
}

/// `cargo xtask fuzz-dockerfile [--seeds N] [--from S]`: builds generated Dockerfiles with the
/// Engine's BuildKit and with ours, and shows those whose outcomes differ.
pub fn fuzz() -> Result<(), String> {
    let (mut seeds, mut from) = ("200".to_owned(), "0".to_owned());
    let mut args = std::env::args().skip(2);
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        value
            .parse::<u64>()
            .map_err(|error| format!("{arg} {value}: {error}"))?;
        match arg.as_str() {
            "--seeds" => seeds = value,
            "--from" => from = value,
            _ => return Err(format!("unknown option {arg}")),
        }
    }
    peers::unpack()?;
    let cargo = || {
        let mut command = Command::new("cargo");
        command.current_dir(super::workspace());
        command
    };
    run(cargo().args(["build", "--release", "--quiet", "-p", "cooperage"]))?;
    let executable = crate::run::executable()?.display().to_string();
    program(&["fuzz".to_owned(), executable, seeds, from])
}

fn program(args: &[String]) -> Result<(), String> {
    // The Engine finds its runtime wrapper beside the program.
    run(Command::new("cargo")
        .current_dir(super::workspace())
        .args(["build", "--quiet", "-p", "testkit"]))?;
    let mut command = Command::new("cargo");
    command
        .current_dir(super::workspace())
        .args([
            "run",
            "--quiet",
            "-p",
            "testkit",
            "--bin",
            "conformance",
            "--",
        ])
        .args(args);
    run(&mut command)
}
