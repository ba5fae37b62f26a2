//! Development chores: `cargo xtask peers | layers | test | simulate | crash | record-conformance |
//! fuzz-dockerfile | fuzz-llb`.
#![expect(clippy::print_stdout, reason = "a development tool prints")]

mod conformance;
mod endurance;
mod layers;
mod peers;
mod run;
mod suites;

use std::process::ExitCode;

fn main() -> ExitCode {
    let chore = std::env::args().nth(1).unwrap_or_default();
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let outcome = match chore.as_str() {
        "peers" => peers::unpack(),
        "layers" => layers::check(),
        "test" => run::all(),
        "simulate" => endurance::simulate(&arguments),
        "crash" => endurance::crash(&arguments),
        "record-conformance" => conformance::record(),
        "fuzz-dockerfile" => conformance::fuzz(),
        "fuzz-llb" => endurance::fuzz_llb(&arguments),
        _ => Err(
            "usage: cargo xtask peers | layers | test | simulate [N] | crash [--rounds N] [--seed S] | \
             record-conformance [FILTER…] | fuzz-dockerfile [--seeds N] [--from S] | \
             fuzz-llb [--seeds N] [--from S]"
                .to_owned(),
        ),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("xtask {chore}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's folder.
fn workspace() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
