//! Running test programs one after another, and what their output says of their tests.
//!
//! A test that fails runs a second time, with nothing beside it: what passes then is counted as
//! passed and named at the end, as a fault of the test (or of what it tests) that hides from time
//! to time. A test that is broken fails twice.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// What became of tests.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    /// `program: test`, or the program alone when it does not say.
    pub(crate) failed: Vec<String>,
    /// Those that passed only when they ran again.
    pub(crate) second: Vec<String>,
}

/// A program with tests in it, as cargo has built it.
struct Suite {
    name: String,
    program: PathBuf,
    /// The folder of its package, in which cargo runs it.
    folder: PathBuf,
}

/// Builds the test programs of the workspace and runs them.
pub(crate) fn run(cargo: impl Fn() -> Command, executable: &Path) -> Result<Tally, String> {
    let mut tally = Tally::default();
    for suite in build(cargo())? {
        let start = |names: &[&String]| {
            let mut command = Command::new(&suite.program);
            command
                .current_dir(&suite.folder)
                .env("CARGO_MANIFEST_DIR", &suite.folder)
                .env("COOPERAGE_BIN", executable);
            if !names.is_empty() {
                command.args(["--exact", "--test-threads=1"]).args(names);
            }
            command
        };
        println!("\n{}", suite.name);
        let first = Outcome::of(&mut start(&[]))?;
        tally.passed += first.passed;
        if first.failed.is_empty() {
            if !first.success {
                tally.failed.push(suite.name.clone());
            }
            continue;
        }
        println!("\n{}: what failed, once more", suite.name);
        let names: Vec<&String> = first.failed.iter().collect();
        let again = Outcome::of(&mut start(&names))?;
        for test in &first.failed {
            let name = format!("{}: {test}", suite.name);
            if again.success || again.verdicts.get(test) == Some(&true) {
                tally.passed += 1;
                tally.second.push(name);
            } else {
                tally.failed.push(name);
            }
        }
    }
    Ok(tally)
}

/// Runs the examples of the documentation.
pub(crate) fn run_examples(mut cargo: Command, tally: &mut Tally) -> Result<(), String> {
    println!("\nexamples of the documentation");
    let outcome = Outcome::of(cargo.args(["test", "--workspace", "--doc", "--no-fail-fast"]))?;
    tally.passed += outcome.passed;
    let broken = !outcome.success && outcome.failed.is_empty();
    tally.failed.extend(outcome.failed);
    if broken {
        tally.failed.push("cargo test --doc".to_owned());
    }
    Ok(())
}

fn build(mut cargo: Command) -> Result<Vec<Suite>, String> {
    let output = cargo
        .args(["test", "--workspace", "--no-run", "--quiet"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo test --no-run: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo test --no-run: {}", output.status));
    }
    let lines = String::from_utf8_lossy(&output.stdout);
    let mut suites: Vec<Suite> = lines.lines().filter_map(suite).collect();
    suites.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(suites)
}

/// The test program that a message of cargo's is about.
fn suite(message: &str) -> Option<Suite> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message["profile"]["test"] != Value::Bool(true) {
        return None;
    }
    let program = PathBuf::from(message["executable"].as_str()?);
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    let package = folder.file_name()?.to_string_lossy();
    let target = message["target"]["name"].as_str()?;
    let kind = message["target"]["kind"][0].as_str()?;
    Some(Suite {
        name: format!("{package} {kind} {target}"),
        program,
        folder: folder.to_owned(),
    })
}

/// What one run of a program said.
struct Outcome {
    success: bool,
    passed: usize,
    failed: Vec<String>,
    /// By name, whether the test passed.
    verdicts: BTreeMap<String, bool>,
}

impl Outcome {
    /// Runs a program and passes on what it says, without the lines of tests that passed.
    fn of(command: &mut Command) -> Result<Outcome, String> {
        let name = format!("{command:?}");
        let failed = |error: std::io::Error| format!("{name}: {error}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut verdicts = BTreeMap::new();
        if let Some(output) = child.stdout.take() {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                match verdict(&line) {
                    Some((test, passed)) => {
                        if !passed {
                            println!("{line}");
                        }
                        verdicts.insert(test.to_owned(), passed);
                    }
                    None if line.is_empty() || line.starts_with("running ") => {}
                    None => println!("{line}"),
                }
            }
        }
        let status = child.wait().map_err(failed)?;
        let failed: Vec<String> = verdicts
            .iter()
            .filter(|(_, passed)| !**passed)
            .map(|(name, _)| name.clone())
            .collect();
        Ok(Outcome {
            success: status.success(),
            passed: verdicts.len() - failed.len(),
            failed,
            verdicts,
        })
    }
}

/// The test and whether it passed, of a line `test NAME ... ok`.
fn verdict(line: &str) -> Option<(&str, bool)> {
    let (test, said) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let test = test.strip_suffix(" - should panic").unwrap_or(test);
    match said.trim_end() {
        "ok" => Some((test, true)),
        "FAILED" => Some((test, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_from_the_harness_s_lines() {
        assert_eq!(verdict("test a::b ... ok"), Some(("a::b", true)));
        assert_eq!(verdict("test a ... FAILED"), Some(("a", false)));
        assert_eq!(verdict("test a - should panic ... ok"), Some(("a", true)));
        assert_eq!(
            verdict("test src/lib.rs - a (line 3) ... ok"),
            Some(("src/lib.rs - a (line 3)", true))
        );
        for other in ["test result: ok. 3 passed", "test a has been running", "ok"] {
            assert_eq!(verdict(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_program_says_is_counted() {
        let said = "echo; echo 'running 3 tests'; echo 'test a ... ok'; echo 'test b ... FAILED'; \
                    echo 'test c ... ok'; exit 101";
        let outcome = Outcome::of(Command::new("sh").args(["-c", said])).expect("it ran");
        assert!(!outcome.success);
        assert_eq!(outcome.passed, 2);
        assert_eq!(outcome.failed, ["b"]);
    }
}
