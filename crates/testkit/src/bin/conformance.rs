//! The conformance corpus by hand.
//!
//! usage: `conformance check EXECUTABLE [--stock] [FILTER…]`
//!        `conformance check-buildkit BUILDKITD [FILTER…]`
//!        `conformance record [FILTER…]`
//!        `conformance record-buildkit BUILDKITD [FILTER…]`
//!        `conformance show EXECUTABLE FILTER…`
//!        `conformance show-buildkit BUILDKITD FILTER…`
//!        `conformance fuzz EXECUTABLE COUNT [FROM]`
//!        `conformance fuzz-buildkit BUILDKITD EXECUTABLE COUNT [FROM]`
//!
//! `check` builds cases on our server and names those that differ from their recording; `record`
//! builds those of `own` with the Engine's BuildKit and writes their `expect.json`; `show` prints what our
//! server makes of them. `fuzz` builds the Dockerfiles of COUNT seeds with both and shows those whose
//! outcomes differ. The same ending in `-buildkit` does it with the stock client and the `buildkitd`
//! named: one newer than the Engine's records also the cases that say `newer`. A filter is a part of a
//! case's name.
#![expect(clippy::print_stdout, reason = "a program that shows something")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use testkit::conformance::{
    Builder, Case, Unit, Yard, cases_below, compare, generate, record, run_all, write_recording,
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let failed = match words.as_slice() {
        ["check", executable, "--stock", filters @ ..] => {
            let yard = Yard::with_server(&program(executable));
            check(&yard, &yard.stock(), filters)
        }
        ["check", executable, filters @ ..] => {
            let executable = program(executable);
            let yard = Yard::with_server(&executable);
            check(&yard, &yard.ours(&executable), filters)
        }
        ["check-buildkit", server, filters @ ..] => {
            let yard = Yard::with_buildkit(&program(server), None);
            check(&yard, &yard.buildkit(), filters)
        }
        ["record", filters @ ..] => {
            let yard = Yard::with_engine();
            let mut cases = chosen(&["own"], filters);
            cases.retain(|case| case.spec.expect.newer.is_none());
            record_cases(&yard, &yard.engine(), &cases)
        }
        ["record-buildkit", server, filters @ ..] => {
            let yard = Yard::with_buildkit(&program(server), None);
            record_cases(&yard, &yard.buildkit(), &chosen(&["own"], filters))
        }
        ["fuzz", executable, count, from @ ..] if from.len() < 2 => {
            let executable = program(executable);
            let yard = Yard::with_both(&executable);
            fuzz(&yard, &yard.engine(), &executable, &seeds(count, from))
        }
        ["fuzz-buildkit", server, executable, count, from @ ..] if from.len() < 2 => {
            let executable = program(executable);
            let yard = Yard::with_buildkit(&program(server), Some(&executable));
            fuzz(&yard, &yard.buildkit(), &executable, &seeds(count, from))
        }
        ["show", executable, filters @ ..] => {
            let executable = program(executable);
            let yard = Yard::with_server(&executable);
            show(&yard, &yard.ours(&executable), filters)
        }
        ["show-buildkit", server, filters @ ..] => {
            let yard = Yard::with_buildkit(&program(server), None);
            show(&yard, &yard.buildkit(), filters)
        }
        _ => {
            println!(
                "usage: conformance check EXECUTABLE [--stock] [FILTER…] | record [FILTER…] \
                 | show EXECUTABLE FILTER… | fuzz EXECUTABLE COUNT [FROM] \
                 | check-buildkit, record-buildkit, show-buildkit, fuzz-buildkit BUILDKITD …"
            );
            1
        }
    };
    ExitCode::from(u8::from(failed > 0))
}

/// `cases` were recorded from a newer BuildKit than the Engine's, `own` from the Engine's.
fn corpus(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../cooperage/tests/conformance")
        .join(folder)
}

fn chosen(folders: &[&str], filters: &[&str]) -> Vec<Case> {
    let mut cases: Vec<Case> = folders
        .iter()
        .flat_map(|name| cases_below(&corpus(name)))
        .collect();
    cases.retain(|case| filters.is_empty() || filters.iter().any(|part| case.name.contains(part)));
    cases
}

fn units(cases: &[Case]) -> Vec<Unit> {
    cases.iter().flat_map(Case::units).collect()
}

fn program(path: &str) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn seeds(count: &str, from: &[&str]) -> Vec<u64> {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let from = from.first().map_or(0, |from| number(from));
    (from..from + number(count)).collect()
}

fn check(yard: &Yard, builder: &Builder, filters: &[&str]) -> usize {
    let units = units(&chosen(&["cases", "own"], filters));
    let outcomes = run_all(&units, 2, |unit| {
        let start = std::time::Instant::now();
        let difference = match (unit.recorded(), yard.bench.run(unit, builder)) {
            (Ok(wanted), Ok(got)) => compare(unit, &wanted, &got, &yard.bench.bases),
            (Err(error), _) | (_, Err(error)) => Some(error),
        };
        if let Some(difference) = &difference {
            println!("FAIL {}: {difference}", unit.name());
        }
        (difference.is_none(), start.elapsed())
    });
    let failed = outcomes.iter().filter(|(passed, _)| !passed).count();
    println!("{} passed, {failed} failed", outcomes.len() - failed);
    failed
}

fn show(yard: &Yard, builder: &Builder, filters: &[&str]) -> usize {
    for unit in units(&chosen(&["cases", "own"], filters)) {
        match yard.bench.run(&unit, builder) {
            Ok(outcome) => {
                let facts = serde_json::to_string_pretty(&outcome.facts).unwrap_or_default();
                println!("== {}\n{}\n{facts}", unit.name(), outcome.output);
            }
            Err(error) => println!("== {}: {error}", unit.name()),
        }
    }
    0
}

fn record_cases(yard: &Yard, builder: &Builder, cases: &[Case]) -> usize {
    let failures = run_all(cases, 2, |case| {
        let mut recorded = Vec::new();
        for unit in case.units() {
            let outcome = yard.bench.run(&unit, builder);
            match outcome.and_then(|outcome| record(case, &outcome)) {
                Ok(facts) => recorded.push((unit.variant.clone(), facts)),
                Err(error) => {
                    println!("NOT RECORDED {}: {error}", unit.name());
                    return true;
                }
            }
        }
        write_recording(case, &recorded).expect("write expect.json");
        false
    });
    let failed = failures.iter().filter(|failed| **failed).count();
    println!(
        "{} recorded, {failed} not recorded",
        failures.len() - failed
    );
    failed
}

fn fuzz(yard: &Yard, stock: &Builder, executable: &Path, seeds: &[u64]) -> usize {
    let ours = yard.ours(executable);
    let verdicts = run_all(seeds, 3, |seed| {
        let case = generate(*seed);
        let verdict = case.judge(&yard.bench, stock, &ours);
        let difference = match &verdict {
            Ok(verdict) => verdict.difference.clone(),
            Err(error) => Some(error.clone()),
        };
        if let Some(difference) = &difference {
            let ignore = case.ignore.unwrap_or_default();
            println!(
                "== seed {seed}: {difference}\n{}\n-- {ignore:?}",
                case.dockerfile
            );
        }
        let error = verdict.ok().and_then(|verdict| verdict.error);
        (difference.is_some(), error)
    });
    let mut errors: Vec<&String> = verdicts
        .iter()
        .filter_map(|(_, error)| error.as_ref())
        .collect();
    errors.sort();
    for error in &errors {
        println!("error: {error}");
    }
    let failed = verdicts.iter().filter(|(differs, _)| *differs).count();
    let (same, errors) = (verdicts.len() - failed, errors.len());
    println!("{same} the same, {failed} different; {errors} builds failed");
    failed
}
