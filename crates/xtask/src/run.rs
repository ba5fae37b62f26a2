//! The whole test run: formatting, lints, layers, the executable, and every test.

use std::path::PathBuf;
use std::process::Command;

use crate::peers::{self, run};
use crate::suites;

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
    let mut tally = suites::run(cargo, &executable()?)?;
    suites::run_examples(cargo(), &mut tally)?;
    for test in &tally.second {
        println!("passed only when it ran again, a fault to be found: {test}");
    }
    for test in &tally.failed {
        println!("failed: {test}");
    }
    let failed = tally.failed.len();
    println!("{} passed, {failed} failed", tally.passed);
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
