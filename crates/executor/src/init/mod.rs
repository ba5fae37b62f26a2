//! The hidden init mode: the supervisor of one step, and the process that becomes the step.
//!
//! ```text
//! server ──spawn──► supervisor ──fork──► child ──exec──► the step's program, pid 1 of its namespaces
//!        ◄─socket──►           ◄─status──       (closes on exec)
//! ```
//!
//! The supervisor stays outside of all the step's namespaces and of its cgroup, so it sees how the
//! step ended whatever happened inside. The step dies with its supervisor (`PDEATHSIG`), and the
//! supervisor ends the step when the server's end of the socket closes.

mod child;
mod command;
mod credentials;
mod devices;
mod mounts;
mod stubs;
mod supervisor;
mod terminal;

use std::io;
use std::os::fd::OwnedFd;

use crate::control;
use crate::launch::{Report, read_launch};

/// The standard streams that came with the specification.
#[derive(Debug)]
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    /// The same as `stdout` for a terminal.
    stderr: Option<OwnedFd>,
}

/// Runs the init mode; the executable's `main` calls it, before anything else, when its first
/// argument is [`crate::INIT_ARGUMENT`]. Standard input is the socket to the server.
pub fn init_main() -> ! {
    let code = match run() {
        Ok(()) => 0,
        Err(error) => {
            // The server is gone or spoke another language: its log is all there is left.
            let text = format!("cooperage-init: {error}\n");
            let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
            125
        }
    };
    std::process::exit(code)
}

fn run() -> io::Result<()> {
    // Away from the terminal's process group: its interrupts are for the server to handle.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::empty());
    let control = take_control_socket()?;
    let mut byte = [0; 1];
    let (count, fds) = control::recv_fds(&control, &mut byte)?;
    if count == 0 {
        return Ok(());
    }
    let mut fds = fds.into_iter();
    let missing = || io::Error::other("a descriptor is missing");
    let (launch, files) = read_launch(fds.next().ok_or_else(missing)?)?;
    let stdin = match launch.has_stdin {
        true => Some(fds.next().ok_or_else(missing)?),
        false => None,
    };
    let streams = Streams {
        stdin,
        stdout: fds.next().ok_or_else(missing)?,
        stderr: fds.next(),
    };
    let report = match supervisor::supervise(&launch, &files, streams, &control) {
        Ok(exited) => Report::Exited(exited),
        Err(failure) => Report::Failed(failure),
    };
    // A server that is gone does not want to know.
    let _ = send_report(&control, &report);
    Ok(())
}

fn send_report(control: &OwnedFd, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    control::send_all(control, &line)
}

/// The socket is moved from standard input so that nothing started from here inherits it.
fn take_control_socket() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(socket)
}
