//! The command line: `docker-buildx` (also as `cooperage`) and `buildctl`. One file a command.
//!
//! Only this crate knows flags, output formats and exit codes. Invariant: all output goes through
//! `printer`, data to stdout and everything else to stderr.

mod app;
mod arguments;
mod buildctl;
mod commands;
mod display;
mod format;
mod help;
mod plugin;
mod printer;
mod runtime;

use std::ffi::OsString;

/// The version of Buildx whose commands these are, with our own behind it: tools compare it to
/// know which flags there are.
pub const VERSION: &str = concat!("v0.36.0+cooperage.", env!("CARGO_PKG_VERSION"));

/// Runs `docker-buildx`, as a plugin of Docker or standing alone. `arguments` starts with the
/// program's name; the result is the exit code.
pub fn docker_buildx(arguments: Vec<OsString>) -> i32 {
    app::run(&arguments)
}

/// Runs `buildctl`. `arguments` starts with the program's name; the result is the exit code.
pub fn buildctl(arguments: Vec<OsString>) -> i32 {
    buildctl::run(arguments)
}
