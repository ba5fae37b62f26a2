//! Runs real processes in a real root file system: needs root and `busybox` (static).
//!
//! The test binary is its own init program, so it has its own `main`; names and `--list` are as
//! the usual harness has them.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod basics;
mod files;
mod harness;
mod isolation;
mod joining;
mod keys;
mod lifetime;
mod streams;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(executor::INIT_ARGUMENT) {
        executor::init_main();
    }
    if std::env::args().nth(1).as_deref() == Some(lifetime::SERVER_ARGUMENT) {
        lifetime::serve_one_step();
    }
    if std::env::args().nth(1).as_deref() == Some(keys::PROBE_ARGUMENT) {
        keys::probe();
    }
    // Session keyrings are inherited by threads, so before there are any.
    keys::hold_a_key();
    let mut tests = Vec::new();
    tests.extend(basics::TESTS);
    tests.extend(files::TESTS);
    tests.extend(isolation::TESTS);
    tests.extend(joining::TESTS);
    tests.extend(keys::TESTS);
    tests.extend(lifetime::TESTS);
    tests.extend(streams::TESTS);
    harness::main(&tests);
}
