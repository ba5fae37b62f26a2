//! The words between the server and the supervisor it spawned.
//!
//! One socket carries, first, a byte with a memory file that holds a [`Prepare`] (and a pidfd, for a
//! process that joins a container); then, when there is a step to run, a byte with descriptors: the [`Launch`] in a memory file, then the process's
//! streams. After that lines: [`Command`]s to the supervisor, JSON [`Report`]s from it. Both ends
//! are always the same executable, so the format has no versions.
//!
//! A memory file: the length of the JSON (8 bytes, little endian), the JSON, then the content of
//! files in memory, which [`LaunchSource::File`] refers to by place. So a secret is never escaped,
//! logged or formatted.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cgroup::StepPlan;
use crate::spec::{DeviceNode, MountFlags, UserIds, WindowSize};

/// What can be done before it is known which step it is for.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Prepare {
    pub(crate) cgroup: StepPlan,
    /// Whether only the usual devices can be opened.
    pub(crate) guard_devices: bool,
    /// What can be opened besides.
    pub(crate) devices: Vec<DeviceNode>,
    /// Whether it is for a process in a container that is there: a pidfd of the container's first
    /// process came along, and the cgroup is that container's.
    pub(crate) joins: bool,
}

/// Everything there is to know of a step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) rootfs: PathBuf,
    pub(crate) readonly_rootfs: bool,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) user: UserIds,
    pub(crate) hostname: String,
    pub(crate) mounts: Vec<LaunchMount>,
    /// A network namespace of its own with only a loopback, instead of the server's.
    pub(crate) private_network: bool,
    /// Whether a descriptor of a network namespace came along, which it has instead.
    pub(crate) own_network: bool,
    pub(crate) insecure: bool,
    pub(crate) ulimits: Vec<Limit>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) stubs_recursive: bool,
    pub(crate) resolv_conf: String,
    pub(crate) hosts: String,
    /// An empty directory that the step may mount over in its own namespace.
    pub(crate) scratch: PathBuf,
    /// A terminal of that size instead of streams.
    pub(crate) terminal: Option<WindowSize>,
    /// Whether a descriptor for the input came along.
    pub(crate) has_stdin: bool,
    /// Whether it runs in a container that is there, so that nothing is made or mounted for it.
    pub(crate) joins: bool,
    /// The name of its session keyring, which nothing outside of its container has.
    pub(crate) keyring: String,
}

/// A mount in that form.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LaunchMount {
    pub(crate) source: LaunchSource,
    pub(crate) selector: String,
    pub(crate) dest: String,
    pub(crate) readonly: bool,
    pub(crate) flags: MountFlags,
}

/// Where it comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum LaunchSource {
    Bind(PathBuf),
    Tmpfs {
        size: u64,
    },
    File {
        /// Place in the part after the JSON.
        offset: usize,
        /// Length in bytes.
        length: usize,
        uid: u32,
        gid: u32,
        mode: u32,
    },
    Device(DeviceNode),
}

/// A resource limit with the system's number.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Limit {
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// What the supervisor tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The program is running; `pid` is its number as the server sees it.
    Started { pid: i32 },
    /// It never ran.
    Failed(Failure),
    /// It ended, and everything is cleared up.
    Exited(Exited),
}

/// How it ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Exited {
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) cpu_time_us: u64,
    pub(crate) oom_kills: u64,
    pub(crate) memory_peak: Option<u64>,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) memory_reserved: u64,
}

/// Why it never ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    NotFoundInPath(String),
    NoSuchFile(String),
    NotExecutable {
        program: String,
        reason: String,
    },
    ExecFormat {
        program: String,
        machine: Option<u16>,
    },
    Exec {
        program: String,
        reason: String,
    },
    Invalid(String),
    Setup {
        what: String,
        reason: String,
    },
}

/// What the server asks of the supervisor, a line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Kill everything in the step.
    Kill,
    /// Send a signal to the process.
    Signal(i32),
    /// Change the size of the terminal.
    Resize(WindowSize),
}

impl Command {
    /// The line with its end.
    pub(crate) fn line(self) -> String {
        match self {
            Command::Kill => "kill\n".to_owned(),
            Command::Signal(number) => format!("signal {number}\n"),
            Command::Resize(size) => format!("resize {} {}\n", size.rows, size.columns),
        }
    }

    /// Reads a line without its end; `None` for one that is not understood.
    pub(crate) fn parse(line: &str) -> Option<Command> {
        let mut words = line.split(' ');
        let command = match words.next()? {
            "kill" => Command::Kill,
            "signal" => Command::Signal(words.next()?.parse().ok()?),
            "resize" => Command::Resize(WindowSize {
                rows: words.next()?.parse().ok()?,
                columns: words.next()?.parse().ok()?,
            }),
            _ => return None,
        };
        words.next().is_none().then_some(command)
    }
}

/// Says what was being done when an error came up.
pub(crate) trait Doing<T> {
    /// Makes a [`Failure::Setup`] of it.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|error| Failure::Setup {
            what: what().into(),
            reason: reason(&error.into()),
        })
    }
}

/// The system's text as other programs print it: lower case, without Rust's number.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = match text.find(" (os error ") {
        Some(at) => &text[..at],
        None => &text,
    };
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// Puts a message and the content of files into a memory file.
pub(crate) fn write_message(message: &impl Serialize, files: &[&[u8]]) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let json = serde_json::to_vec(message)?;
    let fd = memfd_create("cooperage-launch", MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    let mut all = Vec::with_capacity(8 + json.len());
    all.extend_from_slice(&(json.len() as u64).to_le_bytes());
    all.extend_from_slice(&json);
    file.write_all(&all)?;
    for content in files {
        file.write_all(content)?;
    }
    Ok(file.into())
}

/// The reverse: the message and the bytes that file sources refer to. The supervisor and its child
/// read the same open file at the same time, so its position is not used.
pub(crate) fn read_message<T: DeserializeOwned>(fd: &OwnedFd) -> io::Result<(T, Vec<u8>)> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::from(fd.try_clone()?);
    let mut all = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut all, 0)?;
    let truncated = || io::Error::new(io::ErrorKind::UnexpectedEof, "message is cut short");
    let (length, rest) = all.split_first_chunk::<8>().ok_or_else(truncated)?;
    let length = u64::from_le_bytes(*length) as usize;
    let json = rest.get(..length).ok_or_else(truncated)?;
    let message = serde_json::from_slice(json)?;
    let files = rest[length..].to_vec();
    Ok((message, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_wire() {
        let size = WindowSize {
            rows: 24,
            columns: 80,
        };
        for command in [Command::Kill, Command::Signal(15), Command::Resize(size)] {
            assert_eq!(Command::parse(command.line().trim_end()), Some(command));
        }
        assert_eq!(Command::parse("kill now"), None);
        assert_eq!(Command::parse("signal x"), None);
    }

    #[test]
    fn reasons_read_as_other_programs_print_them() {
        let error = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(reason(&error), "permission denied");
    }
}
