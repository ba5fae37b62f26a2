//! The whole test run: formatting, lints, layers, the executable, and every test.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::peers::{self, run};

/// Runs everything; the last line printed is `N passed, N failed`.
pub fn all() -> Result<(), String> {
    peers::unpack()?;
    let cargo = || {
        let mut command = Command::new("cargo");
        command.current_dir(super::workspace());
        command
    };
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    run(cargo().args(["build", "--release", "--quiet", "-p", "cooperage"]))?;
    run(cargo().args(["build", "--quiet", "-p", "testkit"]))?;
    let mut tests = cargo()
        .args(["test", "--workspace", "--no-fail-fast", "--quiet"])
        .env("COOPERAGE_BIN", executable()?)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cargo test: {error}"))?;
    let (mut passed, mut failed) = (0, 0);
    if let Some(output) = tests.stdout.take() {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            println!("{line}");
            if let Some(result) = line.strip_prefix("test result: ") {
                passed += count(result, "passed");
                failed += count(result, "failed");
            }
        }
    }
    let status = tests
        .wait()
        .map_err(|error| format!("cargo test: {error}"))?;
    if !status.success() && failed == 0 {
        println!("cargo test: {status}");
        failed = 1;
    }
    println!("{passed} passed, {failed} failed");
    std::process::exit(i32::from(failed > 0));
}

/// The release build of the executable, which the end-to-end tests run.
pub(crate) fn executable() -> Result<PathBuf, String> {
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => super::workspace().join("target"),
    };
    let version = Command::new("rustc")
        .arg("-vV")
        .output()
        .map_err(|error| format!("rustc: {error}"))?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or("rustc -vV names no host")?;
    let path = target.join(host).join("release/cooperage");
    path.canonicalize()
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// The number before a word in `ok. 3 passed; 0 failed; …`.
fn count(result: &str, word: &str) -> u64 {
    result
        .split(';')
        .find_map(|part| part.trim().strip_suffix(word))
        .and_then(|part| part.split_whitespace().last())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}
