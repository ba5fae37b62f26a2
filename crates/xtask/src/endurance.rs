//! The tests that CI runs at a small count, at a large one.

use std::process::Command;

use crate::peers::run;
use crate::run::executable;

/// How many seeds the simulator runs unless told otherwise.
const SEEDS: &str = "5000";

/// `cargo xtask simulate [N]`: the solver's simulator over that many seeds. A seed that fails is written to
/// `crates/solver/tests/simulation.seeds`, from where every later run replays it.
pub fn simulate(args: &[String]) -> Result<(), String> {
    let seeds = args.first().map_or(SEEDS, String::as_str);
    run(cargo()
        .args([
            "test",
            "--release",
            "--package",
            "solver",
            "--test",
            "simulation",
        ])
        .env("COOPERAGE_SIM_SEEDS", seeds))
}

/// `cargo xtask crash [--rounds N] [--seed S]`: kills a build server at random instants.
pub fn crash(args: &[String]) -> Result<(), String> {
    run(cargo().args(["build", "--release", "--quiet", "--package", "cooperage"]))?;
    run(cargo()
        .args([
            "run",
            "--quiet",
            "--package",
            "testkit",
            "--bin",
            "crash",
            "--",
        ])
        .arg(executable()?)
        .args(args))
}

fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(super::workspace());
    command
}
