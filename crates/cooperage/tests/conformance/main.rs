//! The conformance corpus: what our server makes of Dockerfiles is what stock BuildKit makes of them.
//!
//! `README.md` beside this file tells what a case is and how the recordings were made.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use testkit::conformance::{Builder, Unit, Yard, cases_below, compare, generate, run_all};

/// The executable under test: `$COOPERAGE_BIN`, else the one Cargo built for the tests.
fn executable() -> PathBuf {
    match std::env::var_os("COOPERAGE_BIN") {
        Some(path) => std::fs::canonicalize(path).unwrap(),
        None => PathBuf::from(env!("CARGO_BIN_EXE_cooperage")),
    }
}

fn units() -> Vec<Unit> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    ["cases", "own"]
        .iter()
        .flat_map(|folder| cases_below(&corpus.join(folder)))
        .flat_map(|case| case.units())
        .collect()
}

fn every_case_passes(yard: &Yard, builder: &Builder) {
    let units = units();
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    let differences = run_all(&units, jobs.clamp(2, 8), |unit| {
        let wanted = match unit.recorded() {
            Ok(wanted) => wanted,
            Err(error) => return Some(format!("{}: {error}", unit.name())),
        };
        let difference = match yard.bench.run(unit, builder) {
            Ok(got) => compare(unit, &wanted, &got, &yard.bench.bases),
            Err(error) => Some(error),
        };
        difference.map(|difference| format!("{}: {difference}", unit.name()))
    });
    let failed: Vec<String> = differences.into_iter().flatten().collect();
    assert!(
        failed.is_empty(),
        "{} of {} differ:\n{}",
        failed.len(),
        units.len(),
        failed.join("\n")
    );
}

#[test]
fn our_client_and_server_make_what_was_recorded() {
    let yard = Yard::with_server(&executable());
    every_case_passes(&yard, &yard.ours(&executable()));
}

#[test]
fn the_stock_client_on_our_server_gets_what_was_recorded() {
    let yard = Yard::with_server(&executable());
    every_case_passes(&yard, &yard.stock());
}

/// How many seeds a run of the tests builds by both; more by hand with `cargo xtask fuzz-dockerfile`.
const SEEDS: u64 = 200;

#[test]
fn generated_dockerfiles_give_what_the_engine_makes_of_them() {
    let yard = Yard::with_both(&executable());
    let (stock, ours) = (yard.engine(), yard.ours(&executable()));
    let seeds: Vec<u64> = (0..SEEDS).collect();
    let verdicts = run_all(&seeds, 3, |seed| {
        let case = generate(*seed);
        let verdict = case.judge(&yard.bench, &stock, &ours);
        let verdict = verdict.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let difference = verdict
            .difference
            .map(|difference| format!("seed {seed}: {difference}\n{}", case.dockerfile));
        (verdict.built, difference)
    });
    let built = verdicts.iter().filter(|(built, _)| *built).count();
    assert!(
        built > verdicts.len() / 2,
        "only {built} of {} were built",
        verdicts.len()
    );
    let found: Vec<String> = verdicts
        .into_iter()
        .filter_map(|(_, difference)| difference)
        .collect();
    assert!(
        found.is_empty(),
        "{} differ:\n{}",
        found.len(),
        found.join("\n\n")
    );
}
