//! Kills a build server many times: `crash EXECUTABLE [--rounds N] [--seed S]`.
#![expect(clippy::print_stdout, reason = "a program that reports")]

use std::path::PathBuf;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<u64>().ok()
    };
    let Some(executable) = arguments.first() else {
        println!("usage: crash EXECUTABLE [--rounds N] [--seed S]");
        std::process::exit(1);
    };
    let executable = std::fs::canonicalize(executable).expect("the executable");
    let rounds = option("--rounds").unwrap_or(100);
    let seed = option("--seed").unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}, {rounds} rounds");
    let directory: PathBuf = tempfile::tempdir().expect("a directory").keep();
    let report = testkit::crash(&executable, &directory, seed, rounds as usize);
    println!(
        "{} finished steps were cached, {} builds had ended, {} were cut off, {} blobs are whole",
        report.kept, report.ended, report.cut_off, report.blobs
    );
    let _ = std::fs::remove_dir_all(directory);
}
