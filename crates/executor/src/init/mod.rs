//! The hidden init mode: the supervisor of one step, and the process that becomes the step.
//!
//! ```text
//! server ──spawn──► supervisor ──fork──► child ──exec──► the step's program, pid 1 of its namespaces
//!        ◄─socket──►           ◄─status─►       (closes on exec)
//! ```
//!
//! The supervisor and its child can be there before it is known what they are for: a spare, which
//! has its cgroup already (moving a process into one takes Linux 10 ms when it has not been done
//! lately). A spare that nobody needs for a while ends by itself.
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
use crate::launch::{Launch, Report, read_message};

/// The standard streams that came with the specification.
#[derive(Debug)]
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    /// The same as `stdout` for a terminal.
    stderr: Option<OwnedFd>,
    /// The network namespace it joins.
    network: Option<OwnedFd>,
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
    // Secrets of the step pass through this memory: it is in no core dump. The step's own program
    // is as dumpable as any.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // Away from the terminal's process group: its interrupts are for the server to handle.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::empty());
    let control = take_control_socket()?;
    let Some(step) = supervisor::Prepared::receive(&control)? else {
        return Ok(());
    };
    let Some(fds) = step.await_launch()? else {
        return Ok(());
    };
    let report = match step.supervise(fds) {
        Ok(exited) => Report::Exited(exited),
        Err(failure) => Report::Failed(failure),
    };
    // A server that is gone does not want to know.
    let _ = send_report(&control, &report);
    Ok(())
}

/// Takes a launch apart: the specification, the content of its files, the streams.
fn open_launch(fds: Vec<OwnedFd>) -> io::Result<(Launch, Vec<u8>, Streams)> {
    let mut fds = fds.into_iter();
    let missing = || io::Error::other("a descriptor is missing");
    let (launch, files): (Launch, _) = read_message(&fds.next().ok_or_else(missing)?)?;
    let network = match launch.own_network {
        true => Some(fds.next().ok_or_else(missing)?),
        false => None,
    };
    let stdin = match launch.has_stdin {
        true => Some(fds.next().ok_or_else(missing)?),
        false => None,
    };
    let streams = Streams {
        stdin,
        stdout: fds.next().ok_or_else(missing)?,
        stderr: fds.next(),
        network,
    };
    Ok((launch, files, streams))
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
