//! The supervisor's life: prepare, fork, watch, clear up.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::stubs::Stubs;
use super::terminal::Pump;
use super::{Streams, child, send_report};
use crate::cgroup::StepCgroup;
use crate::control;
use crate::launch::{Command, Doing, Exited, Failure, Launch, Report};

/// Runs the step to its end. When this returns, nothing of it is left.
pub(super) fn supervise(
    launch: &Launch,
    files: &[u8],
    streams: Streams,
    control: &OwnedFd,
) -> Result<Exited, Failure> {
    let stubs = Stubs::survey(launch)?;
    let cgroup = StepCgroup::create(&launch.cgroup, !launch.insecure);
    let (status, child_status) = control::pair().doing(|| "making a socket")?;
    rustix::process::set_parent_process_death_signal(None).doing(|| "clearing PDEATHSIG")?;
    // SAFETY: this process has one thread; the namespace is for its children only.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWPID) }
        .doing(|| "making a pid namespace")?;
    // SAFETY: this process has one thread, so the child may allocate and lock as it likes.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        child::become_step(launch, files, streams, &cgroup, child_status);
    }
    let pid = match Pid::from_raw(pid) {
        Some(pid) if pid.as_raw_nonzero().get() > 0 => pid,
        _ => return Err(io::Error::last_os_error()).doing(|| "fork"),
    };
    drop(child_status);
    let pump = launch.terminal.map(|_| Pump::new(streams));
    let watched = Watch::new(pid, control, status, pump).and_then(Watch::to_the_end);
    let outcome = watched.doing(|| "watching the process").and_then(|o| o);
    let usage = cgroup.usage();
    drop(cgroup);
    stubs.clean();
    outcome.map(|mut exited| {
        exited.oom_kills = usage.oom_kills;
        exited.memory_peak = usage.memory_peak;
        exited.memory_limit = usage.memory_limit;
        exited
    })
}

/// A running step and what is heard of it.
struct Watch<'a> {
    pid: Pid,
    pidfd: OwnedFd,
    control: &'a OwnedFd,
    /// Whether the server may still say something.
    control_open: bool,
    /// The unfinished line from the server.
    line: Vec<u8>,
    /// The child's end closes when the program runs or the child is gone.
    status: Option<OwnedFd>,
    /// What the child wrote: why it failed.
    failure: Vec<u8>,
    pump: Option<Pump>,
}

impl<'a> Watch<'a> {
    fn new(
        pid: Pid,
        control: &'a OwnedFd,
        status: OwnedFd,
        pump: Option<Pump>,
    ) -> io::Result<Self> {
        Ok(Watch {
            pid,
            pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty())?,
            control,
            control_open: true,
            line: Vec::new(),
            status: Some(status),
            failure: Vec::new(),
            pump,
        })
    }

    fn to_the_end(mut self) -> io::Result<Result<Exited, Failure>> {
        let exited = loop {
            if self.turn()? {
                break wait(self.pid)?;
            }
        };
        while self.status.is_some() {
            self.hear_child()?;
        }
        if let Some(pump) = &mut self.pump {
            pump.drain();
        }
        if self.failure.is_empty() {
            return Ok(Ok(exited));
        }
        Ok(Err(serde_json::from_slice(&self.failure)?))
    }

    /// Waits until something happens and sees to it; true when the process has ended.
    fn turn(&mut self) -> io::Result<bool> {
        let mut polled = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        let status_at = self.status.as_ref().map(|status| {
            polled.push(PollFd::new(status, PollFlags::IN));
            polled.len() - 1
        });
        let control_at = self.control_open.then(|| {
            polled.push(PollFd::new(self.control, PollFlags::IN));
            polled.len() - 1
        });
        let pump_from = polled.len();
        if let Some(pump) = &self.pump {
            pump.poll_fds(&mut polled);
        }
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None))?;
        let ready: Vec<PollFlags> = polled.iter().map(PollFd::revents).collect();
        let is_ready = |at: Option<usize>| at.is_some_and(|at| !ready[at].is_empty());
        if is_ready(status_at) {
            self.hear_child()?;
        }
        if is_ready(control_at) {
            self.hear_server();
        }
        if let Some(pump) = &mut self.pump {
            pump.turn(&ready[pump_from..]);
        }
        Ok(!ready[0].is_empty())
    }

    fn hear_child(&mut self) -> io::Result<()> {
        let Some(status) = &self.status else {
            return Ok(());
        };
        let mut buffer = [0; 4096];
        let (count, mut fds) = control::recv_fds(status, &mut buffer)?;
        if let (Some(master), Some(pump)) = (fds.pop(), &mut self.pump) {
            // The byte that carries the descriptor says nothing itself.
            pump.set_master(master);
            self.failure.extend_from_slice(&buffer[1..count]);
            return Ok(());
        }
        self.failure.extend_from_slice(&buffer[..count]);
        if count == 0 {
            self.status = None;
            if self.failure.is_empty() {
                let pid = self.pid.as_raw_nonzero().get();
                // When the server is gone the socket's end is seen in the next turn.
                let _ = send_report(self.control, &Report::Started { pid });
            }
        }
        Ok(())
    }

    fn hear_server(&mut self) {
        let mut buffer = [0; 512];
        let received = rustix::io::read(self.control.as_fd(), &mut buffer);
        let count = received.unwrap_or(0);
        if count == 0 {
            self.control_open = false;
            self.obey(Command::Kill);
            return;
        }
        self.line.extend_from_slice(&buffer[..count]);
        while let Some(end) = self.line.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line[..end]);
            if let Some(command) = Command::parse(&text) {
                self.obey(command);
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Kill => self.signal(Signal::KILL),
            Command::Signal(number) => {
                if let Some(signal) = Signal::from_named_raw(number) {
                    self.signal(signal);
                }
            }
            Command::Resize(size) => {
                if let Some(pump) = &self.pump {
                    pump.resize(size);
                }
            }
        }
    }

    /// The end of pid 1 is the end of its whole namespace.
    fn signal(&self, signal: Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }
}

/// Takes the exit status of a process that has ended.
fn wait(pid: Pid) -> io::Result<Exited> {
    let mut status = 0;
    // SAFETY: all zeroes is a valid `rusage`.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are valid for the call.
        let rc = unsafe { libc::wait4(pid.as_raw_nonzero().get(), &mut status, 0, &mut used) };
        if rc >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    Ok(Exited {
        code: signal.map_or_else(|| libc::WEXITSTATUS(status), |signal| 128 + signal),
        signal,
        cpu_time_us: micros(used.ru_utime) + micros(used.ru_stime),
        ..Exited::default()
    })
}
