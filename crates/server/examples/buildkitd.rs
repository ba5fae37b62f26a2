//! The server alone, without the command line that the executable has around it.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args
        .get(1)
        .is_some_and(|arg| arg == executor::INIT_ARGUMENT)
    {
        executor::init_main();
    }
    server::main(args)
}
