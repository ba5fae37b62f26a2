//! The server's process: started apart from us, found by its socket, ended by its descriptor.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::RecvFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::spec::SPEC_VARIABLE;
use crate::DriverError;

/// How long a server may take to end in good order.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A server that runs, by a descriptor: its number may become another's.
pub(super) struct ServerProcess {
    pid: Pid,
    descriptor: OwnedFd,
}

impl ServerProcess {
    /// The process that listens at the other end.
    pub(super) fn behind(stream: &UnixStream) -> Result<Self, DriverError> {
        let unknown = |source| DriverError::Io {
            context: "finding the build server's process".to_owned(),
            source,
        };
        let peer = stream.peer_cred().map_err(unknown)?;
        let pid = peer.pid().and_then(Pid::from_raw).ok_or_else(|| {
            DriverError::Unsupported(
                "the build server runs in another process namespace and cannot be managed from here"
                    .to_owned(),
            )
        })?;
        let gone = DriverError::NotRunning;
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(rustix::io::Errno::SRCH) => return Err(gone),
            Err(errno) => return Err(unknown(errno.into())),
        };
        // While it keeps its end of the connection, the number is still its own.
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        if let Ok((0, _)) = rustix::net::recv(stream, &mut [0_u8; 1][..], flags) {
            return Err(gone);
        }
        Ok(ServerProcess { pid, descriptor })
    }

    /// What it was started from; nothing when it has ended or somebody else started it.
    pub(super) fn spec(&self) -> Option<String> {
        let path = format!("/proc/{}/environ", self.pid.as_raw_pid());
        let environment = std::fs::read(path).ok()?;
        let prefix = format!("{SPEC_VARIABLE}=");
        let mut variables = environment.split(|&byte| byte == 0);
        let found = variables.find_map(|variable| variable.strip_prefix(prefix.as_bytes()))?;
        String::from_utf8(found.to_vec()).ok()
    }

    /// Asks it to end, waits, and kills it when it does not.
    pub(super) async fn end(self) -> Result<(), DriverError> {
        let failed = |source: std::io::Error| DriverError::Io {
            context: format!(
                "ending the build server (process {})",
                self.pid.as_raw_pid()
            ),
            source,
        };
        // SAFETY: the descriptor belongs to what it is registered with, which closes it last.
        let ended = unsafe { AsyncFd::register_with_interest(self.descriptor, Interest::READABLE) };
        let ended = ended.map_err(|error| failed(error.into()))?;
        for signal in [Signal::TERM, Signal::KILL] {
            match pidfd_send_signal(ended.get_ref(), signal) {
                Err(errno) if errno != rustix::io::Errno::SRCH => return Err(failed(errno.into())),
                _ => {}
            }
            if let Ok(readable) = tokio::time::timeout(STOP_TIMEOUT, ended.readable()).await {
                readable.map_err(failed)?.retain_ready();
                return Ok(());
            }
        }
        Err(failed(std::io::ErrorKind::TimedOut.into()))
    }
}

/// Starts the executable as a server in a session of its own: no terminal, none of our descriptors,
/// none of our environment but what is given.
pub(super) fn spawn(
    executable: &Path,
    arguments: &[OsString],
    environment: impl IntoIterator<Item = (String, String)>,
    log: &File,
) -> std::io::Result<Child> {
    let mut command = Command::new(executable);
    command
        .arg0("buildkitd")
        .args(arguments)
        .current_dir("/")
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?);
    // SAFETY: between fork and exec only system calls are made, that neither allocate nor take
    // locks.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            // What our parent left open for us, such as a pipe somebody waits on, is not the
            // server's. Where the kernel lacks the call (before 5.9), the server keeps it open.
            libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            Ok(())
        });
    }
    command.spawn()
}
