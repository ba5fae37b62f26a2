//! The supervisor's life: prepare, fork, watch, clear up.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::stubs::Stubs;
use super::terminal::Pump;
use super::{child, open_launch, send_report};
use crate::cgroup::StepCgroup;
use crate::control;
use crate::launch::{Command, Doing, Exited, Failure, Prepare, Report, read_message};

/// How long a spare waits for a step.
const IDLE_MAX: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};
/// The kernel's flag of `clone3`.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// What the child is told, a byte each.
pub(super) const LAUNCH: u8 = b'l';
/// It is in its cgroup and may go on.
pub(super) const GO: u8 = b'g';

/// A cgroup, and a child in new namespaces that waits to be told what to become.
pub(super) struct Prepared<'a> {
    control: &'a OwnedFd,
    cgroup: StepCgroup,
    child: Pid,
    status: OwnedFd,
    /// Whether the child is in all of its cgroup.
    moved: Cell<bool>,
    /// Whether it was born in the version 2 part.
    born_in_v2: bool,
    ended: bool,
}

impl<'a> Prepared<'a> {
    /// Prepares what the server asks for; `None` when it has gone.
    pub(super) fn receive(control: &'a OwnedFd) -> io::Result<Option<Self>> {
        let mut byte = [0; 1];
        let (count, fds) = control::recv_fds(control, &mut byte)?;
        let (1, Some(fd)) = (count, fds.first()) else {
            return Ok(None);
        };
        let (prepare, _): (Prepare, _) = read_message(fd)?;
        let container = fds.get(1).filter(|_| prepare.joins);
        let prepared = Self::fork_child(control, &prepare, container);
        match prepared {
            Err(error) if prepare.joins => {
                let failure: Result<(), Failure> = Err(error).doing(|| "entering the container");
                if let Err(failure) = failure {
                    send_report(control, &Report::Failed(failure))?;
                }
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Makes the cgroup and a child in it, the first process of a new namespace, or one more in
    /// that of `container`.
    fn fork_child(
        control: &'a OwnedFd,
        prepare: &Prepare,
        container: Option<&OwnedFd>,
    ) -> io::Result<Self> {
        let cgroup = match container {
            Some(_) => StepCgroup::of_container(&prepare.cgroup),
            None => {
                let devices = prepare.guard_devices.then_some(prepare.devices.as_slice());
                StepCgroup::create(&prepare.cgroup, devices)
            }
        };
        let (status, child_status) = control::pair()?;
        match container {
            Some(container) => {
                move_into_thread_name_spaces(container.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
            }
            None => {
                let flags = rustix::thread::UnshareFlags::NEWPID;
                // SAFETY: this process has one thread; the namespace is for its children only.
                unsafe { rustix::thread::unshare_unsafe(flags) }?;
            }
        }
        let (pid, born_in_v2) = fork(&cgroup)?;
        let Some(child) = pid else {
            drop(status);
            child::become_step(&prepare.cgroup, &cgroup, container, child_status);
        };
        Ok(Prepared {
            control,
            cgroup,
            child,
            status,
            moved: Cell::new(false),
            born_in_v2,
            ended: false,
        })
    }

    /// Waits for a step; the descriptors of its launch, or `None` when none came.
    pub(super) fn await_launch(&self) -> io::Result<Option<Vec<OwnedFd>>> {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // What is waited for already goes on beside the move; else there is time for it.
        if !readable(self.control, &now)? {
            self.move_child();
            if !readable(self.control, &IDLE_MAX)? {
                // From here on the server cannot send; what it just sent is still read.
                rustix::net::shutdown(self.control, rustix::net::Shutdown::Read)?;
            }
        }
        let mut byte = [0; 1];
        let (count, fds) = control::recv_fds(self.control, &mut byte)?;
        Ok((count > 0).then_some(fds))
    }

    /// Runs the step to its end. When this returns, nothing of it is left.
    pub(super) fn supervise(mut self, fds: Vec<OwnedFd>) -> Result<Exited, Failure> {
        let again: io::Result<Vec<OwnedFd>> = fds.iter().map(OwnedFd::try_clone).collect();
        let again = again.doing(|| "reading the launch")?;
        let (launch, _, streams) = open_launch(fds).doing(|| "reading the launch")?;
        // Before the child hears of it and makes what is missing.
        let stubs = match launch.joins {
            true => None,
            false => Some(Stubs::survey(&launch)?),
        };
        let borrowed: Vec<BorrowedFd<'_>> = again.iter().map(AsFd::as_fd).collect();
        control::send_fds(&self.status, LAUNCH, &borrowed).doing(|| "telling the child")?;
        drop(again);
        let pump = launch.terminal.map(|_| Pump::new(streams));
        self.move_child();
        // A child that has failed already does not wait for this; why it failed is heard next.
        let _ = control::send_all(&self.status, &[GO]);
        let status = self.status.try_clone().doing(|| "watching the process")?;
        let watched = Watch::new(self.child, self.control, status, pump)
            .and_then(|watch| watch.until_it_ends());
        self.ended = watched.is_ok();
        let outcome = watched.doing(|| "watching the process").and_then(|o| o);
        let usage = self.cgroup.usage();
        drop(self);
        if let Some(stubs) = stubs {
            stubs.clean();
        }
        outcome.map(|mut exited| {
            exited.oom_kills = usage.oom_kills;
            exited.memory_peak = usage.memory_peak;
            exited.memory_limit = usage.memory_limit;
            exited.memory_reserved = usage.memory_reserved;
            exited
        })
    }

    fn move_child(&self) {
        if !self.moved.replace(true) {
            let pid = self.child.as_raw_nonzero().get();
            self.cgroup.add(pid, self.born_in_v2);
        }
    }
}

impl Drop for Prepared<'_> {
    /// A child that was not watched to its end is ended; then the cgroup can go.
    fn drop(&mut self) {
        if !self.ended {
            let _ = rustix::process::kill_process(self.child, Signal::KILL);
            let _ = wait(self.child);
        }
    }
}

/// Forks, in version 2 of cgroups right into the step's; answers the child, in the child `None`,
/// and whether the child is there.
fn fork(cgroup: &StepCgroup) -> io::Result<(Option<Pid>, bool)> {
    if let Some(dir) = cgroup.v2_directory() {
        // SAFETY: all zeroes is valid; what is set are numbers.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = CLONE_INTO_CGROUP;
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.cgroup = dir.as_raw_fd() as u64;
        // SAFETY: like a fork, with one thread, so the child may allocate and lock as it likes.
        let pid =
            unsafe { libc::syscall(libc::SYS_clone3, &arguments, size_of::<libc::clone_args>()) };
        if pid >= 0 {
            return Ok((Pid::from_raw(pid as i32), true));
        }
    }
    // SAFETY: this process has one thread, so the child may allocate and lock as it likes.
    let pid = crate::sys::check(unsafe { libc::fork() }.into())?;
    Ok((Pid::from_raw(pid as i32), false))
}

/// Whether there is something to read within that time.
fn readable(fd: &OwnedFd, limit: &Timespec) -> io::Result<bool> {
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    let count = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(limit)))?;
    Ok(count > 0)
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

    fn until_it_ends(mut self) -> io::Result<Result<Exited, Failure>> {
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
        let (count, mut fds) = match control::recv_fds(status, &mut buffer) {
            // It ended without having read all that it was told.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (0, Vec::new()),
            other => other?,
        };
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
