//! The conformance corpus by hand.
//!
//! usage: `conformance check EXECUTABLE [--stock] [FILTER…]`
//!        `conformance record [FILTER…]`
//!        `conformance show EXECUTABLE FILTER…`
//!        `conformance draft EXECUTABLE FILTER…`
//!        `conformance fuzz EXECUTABLE COUNT [FROM]`
//!
//! `check` builds cases on our server and names those that differ from their recording; `record`
//! builds those of `own` with the Engine's BuildKit and writes their `expect.json`; `show` prints what our
//! server makes of them. `draft` writes what our server makes of cases whose expectation is written and
//! not recorded, for somebody to judge by the documentation. `fuzz` builds the Dockerfiles of COUNT
//! seeds with both and shows those whose outcomes differ. A filter is a part of a case's name.
#![expect(clippy::print_stdout, reason = "a program that shows something")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use testkit::conformance::{
    Case, Unit, Yard, cases_below, compare, generate, record, run_all, write_recording,
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let failed = match words.as_slice() {
        ["check", executable, "--stock", filters @ ..] => check(executable, true, filters),
        ["check", executable, filters @ ..] => check(executable, false, filters),
        ["record", filters @ ..] => record_cases(filters),
        ["draft", executable, filters @ ..] => draft(executable, filters),
        ["fuzz", executable, count] => fuzz(executable, count, "0"),
        ["fuzz", executable, count, from] => fuzz(executable, count, from),
        ["show", executable, filters @ ..] => show(executable, filters),
        _ => {
            println!(
                "usage: conformance check EXECUTABLE [--stock] [FILTER…] | record [FILTER…] \
                 | show EXECUTABLE FILTER… | draft EXECUTABLE FILTER… | fuzz EXECUTABLE COUNT [FROM]"
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

fn check(executable: &str, stock: bool, filters: &[&str]) -> usize {
    let executable = std::fs::canonicalize(executable).expect("the executable");
    let yard = Yard::with_server(&executable);
    let builder = if stock {
        yard.stock()
    } else {
        yard.ours(&executable)
    };
    let units = units(&chosen(&["cases", "own"], filters));
    let outcomes = run_all(&units, 2, |unit| {
        let start = std::time::Instant::now();
        let difference = match (unit.recorded(), yard.bench.run(unit, &builder)) {
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

fn show(executable: &str, filters: &[&str]) -> usize {
    let executable = std::fs::canonicalize(executable).expect("the executable");
    let yard = Yard::with_server(&executable);
    let builder = yard.ours(&executable);
    for unit in units(&chosen(&["cases", "own"], filters)) {
        match yard.bench.run(&unit, &builder) {
            Ok(outcome) => {
                let facts = serde_json::to_string_pretty(&outcome.facts).unwrap_or_default();
                println!("== {}\n{}\n{facts}", unit.name(), outcome.output);
            }
            Err(error) => println!("== {}: {error}", unit.name()),
        }
    }
    0
}

fn record_cases(filters: &[&str]) -> usize {
    let mut cases = chosen(&["own"], filters);
    cases.retain(|case| case.spec.expect.written.is_none());
    let yard = Yard::with_engine();
    let builder = yard.engine();
    let failures = run_all(&cases, 2, |case| {
        let mut recorded = Vec::new();
        for unit in case.units() {
            let outcome = yard.bench.run(&unit, &builder);
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

fn draft(executable: &str, filters: &[&str]) -> usize {
    let executable = std::fs::canonicalize(executable).expect("the executable");
    let yard = Yard::with_server(&executable);
    let builder = yard.ours(&executable);
    let mut cases = chosen(&["own"], filters);
    cases.retain(|case| case.spec.expect.written.is_some());
    for case in &cases {
        let mut drafted = Vec::new();
        for unit in case.units() {
            let outcome = yard.bench.run(&unit, &builder).expect("an outcome");
            drafted.push((unit.variant, outcome.facts.into()));
        }
        write_recording(case, &drafted).expect("write expect.json");
        println!("drafted {}", case.name);
    }
    0
}

fn fuzz(executable: &str, count: &str, from: &str) -> usize {
    let executable = std::fs::canonicalize(executable).expect("the executable");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let seeds: Vec<u64> = (number(from)..number(from) + number(count)).collect();
    let yard = Yard::with_both(&executable);
    let (stock, ours) = (yard.engine(), yard.ours(&executable));
    let verdicts = run_all(&seeds, 3, |seed| {
        let case = generate(*seed);
        let verdict = case.judge(&yard.bench, &stock, &ours);
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
