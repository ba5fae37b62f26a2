//! Copies between a terminal and the descriptors the server gave.
//!
//! The terminal itself is made inside the step's own devpts and its master comes to the supervisor.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::termios::Winsize;

use super::Streams;
use crate::spec::WindowSize;

/// How much is held in each direction, in bytes. A pipe that is ready takes `PIPE_BUF` bytes, which
/// is this much, without waiting.
const CHUNK: usize = 4096;
/// What ends the input of a program that reads lines.
const END_OF_TRANSMISSION: u8 = 4;

/// The two copies.
#[derive(Debug)]
pub(super) struct Pump {
    master: Option<OwnedFd>,
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    to_master: VecDeque<u8>,
    to_output: VecDeque<u8>,
}

impl Pump {
    pub(super) fn new(streams: Streams) -> Self {
        Pump {
            master: None,
            input: streams.stdin,
            output: Some(streams.stdout),
            to_master: VecDeque::new(),
            to_output: VecDeque::new(),
        }
    }

    pub(super) fn set_master(&mut self, master: OwnedFd) {
        self.master = Some(master);
    }

    pub(super) fn resize(&self, size: WindowSize) {
        if let Some(master) = &self.master {
            let _ = rustix::termios::tcsetwinsize(master, winsize(size));
        }
    }

    /// Adds what is waited for, always three entries in the same order.
    pub(super) fn poll_fds<'a>(&'a self, polled: &mut Vec<PollFd<'a>>) {
        let Some(master) = &self.master else { return };
        let wanted = |condition: bool, flags| match condition {
            true => flags,
            false => PollFlags::empty(),
        };
        let events = wanted(self.to_output.is_empty(), PollFlags::IN)
            | wanted(!self.to_master.is_empty(), PollFlags::OUT);
        polled.push(PollFd::new(master, events));
        // An end that is not waited for would still wake us by hanging up: the master stands in.
        let nothing = || PollFd::new(master, PollFlags::empty());
        polled.push(match (&self.input, self.to_master.is_empty()) {
            (Some(input), true) => PollFd::new(input, PollFlags::IN),
            _ => nothing(),
        });
        polled.push(match (&self.output, self.to_output.is_empty()) {
            (Some(output), false) => PollFd::new(output, PollFlags::OUT),
            _ => nothing(),
        });
    }

    /// Copies what [`Pump::poll_fds`] found ready.
    pub(super) fn turn(&mut self, ready: &[PollFlags]) {
        let [master, input, output] = ready else {
            return;
        };
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        if self.to_output.is_empty() && master.intersects(readable) {
            self.read_master();
        }
        if !self.to_master.is_empty() && master.contains(PollFlags::OUT) {
            self.write_master();
        }
        if self.to_master.is_empty() && self.input.is_some() && input.intersects(readable) {
            self.read_input();
        }
        if !self.to_output.is_empty() && !output.is_empty() {
            self.write_output();
        }
    }

    /// After the process ended: writes out what the terminal still holds, waiting as needed.
    pub(super) fn drain(&mut self) {
        while self.master.is_some() || !self.to_output.is_empty() {
            while !self.to_output.is_empty() {
                self.write_output();
            }
            // All other ends are closed, so this finds either data or the end.
            self.read_master();
        }
    }

    fn read_master(&mut self) {
        let Some(master) = &self.master else { return };
        match read(master) {
            // EIO is what the master says when nobody has the terminal open.
            None => self.master = None,
            Some(bytes) => self.to_output.extend(bytes),
        }
    }

    fn write_master(&mut self) {
        let Some(master) = &self.master else { return };
        if !write(master, &mut self.to_master) {
            self.to_master.clear();
        }
    }

    fn read_input(&mut self) {
        let Some(input) = &self.input else { return };
        match read(input) {
            None => {
                self.input = None;
                self.to_master.push_back(END_OF_TRANSMISSION);
            }
            Some(bytes) => self.to_master.extend(bytes),
        }
    }

    fn write_output(&mut self) {
        let written = match &self.output {
            Some(output) => write(output, &mut self.to_output),
            None => false,
        };
        if !written {
            // Nobody reads any more: the program goes on, its output is dropped.
            self.output = None;
            self.to_output.clear();
        }
    }
}

/// The size in the system's form.
pub(super) fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// What is there to read; `None` at the end or on an error.
fn read(fd: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = vec![0; CHUNK];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(fd.as_fd(), &mut buffer)).ok()?;
    buffer.truncate(count);
    (count > 0).then_some(buffer)
}

/// Writes from the front of the queue; false on an error.
fn write(fd: &OwnedFd, queue: &mut VecDeque<u8>) -> bool {
    let bytes = queue.make_contiguous();
    match rustix::io::retry_on_intr(|| rustix::io::write(fd.as_fd(), bytes)) {
        Ok(count) => {
            queue.drain(..count);
            true
        }
        Err(_) => false,
    }
}
