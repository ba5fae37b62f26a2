//! The tests that CI runs at a small count, at a large one.

use std::process::Command;

use crate::conformance::seeds;
use crate::peers::{self, run};
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

/// `cargo xtask fuzz-llb [--seeds N] [--from S]`: builds generated graphs with our server and with the
/// Engine's BuildKit, or with the `buildkitd` that `$COOPERAGE_STOCK_BUILDKITD` names, and shows those whose
/// outcomes differ.
pub fn fuzz_llb(args: &[String]) -> Result<(), String> {
    let (seeds, from) = seeds(args, "500")?;
    peers::unpack()?;
    run(cargo().args(["build", "--release", "--quiet", "--package", "cooperage"]))?;
    // The Engine finds its runtime wrapper beside the program.
    run(cargo().args(["build", "--quiet", "--package", "testkit"]))?;
    run(cargo()
        .args(["test", "--quiet", "--package", "cooperage", "--test", "e2e"])
        .args(["--", "--exact", "--nocapture"])
        .arg("matrix::generated::matrix_generated_graphs_build_alike")
        .env("COOPERAGE_BIN", executable()?)
        .env("COOPERAGE_LLB_SEEDS", seeds)
        .env("COOPERAGE_LLB_FROM", from))
}

fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(super::workspace());
    command
}
