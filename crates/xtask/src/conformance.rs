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
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let (seeds, from) = seeds(&arguments, "200")?;
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

/// How many seeds from which one on, of `[--seeds N] [--from S]`.
pub(crate) fn seeds(arguments: &[String], default: &str) -> Result<(String, String), String> {
    let (mut seeds, mut from) = (default.to_owned(), "0".to_owned());
    for option in arguments.chunks(2) {
        let [name, value] = option else {
            return Err(format!("{} needs a value", option[0]));
        };
        value
            .parse::<u64>()
            .map_err(|error| format!("{name} {value}: {error}"))?;
        match name.as_str() {
            "--seeds" => seeds.clone_from(value),
            "--from" => from.clone_from(value),
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok((seeds, from))
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
