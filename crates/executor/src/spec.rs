//! What a process is given, and how it ended.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A process and everything it sees.
///
/// Paths of mounts and the working directory are paths in the root file system; symbolic links in
/// them are followed inside of it and cannot lead out.
#[derive(Clone, Debug, Default)]
pub struct ProcessSpec {
    /// Directory that becomes `/`. It may be a mount; it is never changed except for mount points.
    pub rootfs: PathBuf,
    /// Whether `/` itself cannot be written; mounts keep their own flag.
    pub readonly_rootfs: bool,
    /// The program and its arguments; the program is looked up in the `PATH` of [`Self::env`].
    pub args: Vec<String>,
    /// `NAME=value` pairs; of a name given twice the last holds. `HOME` is added from the root
    /// file system's own `/etc/passwd` when it is missing.
    pub env: Vec<String>,
    /// Working directory, made when it does not exist; empty for `/`.
    pub cwd: String,
    /// Who it runs as, see [`crate::resolve_user`].
    pub user: UserIds,
    /// Host name; empty for `buildkitsandbox`, the name stock gives.
    pub hostname: String,
    /// Mounts over the root file system in this order. One whose `dest` is that of a default mount
    /// (such as `/dev/shm`) takes its place.
    pub mounts: Vec<ProcessMount>,
    /// Network.
    pub network: llb::NetMode,
    /// All capabilities that this machine has, all devices, no seccomp, nothing masked.
    pub insecure: bool,
    /// Names and addresses for `/etc/hosts`; the address `host-gateway` means the default gateway.
    pub extra_hosts: Vec<(String, String)>,
    /// Resource limits; none: those of the server.
    pub ulimits: Vec<llb::Ulimit>,
    /// cgroup, from the root of the hierarchy, under which the step's is made; empty: the
    /// executor's own.
    pub cgroup_parent: String,
    /// Added to what the kernel thinks of it when memory is short, -1000 to 1000; `None` keeps the
    /// executor's default.
    pub oom_score_adj: Option<i32>,
    /// Whether directories made for mount points are removed afterwards with the parents that were
    /// made for them; otherwise only the mount points themselves are.
    pub remove_mount_stubs_recursive: bool,
}

/// Something mounted over the root file system.
#[derive(Clone, Debug)]
pub struct ProcessMount {
    /// What is mounted.
    pub source: MountSource,
    /// Path within the source, resolved inside of it; empty for the source itself.
    pub selector: String,
    /// Absolute path in the root file system; made when it is missing, and removed afterwards if
    /// it is empty then.
    pub dest: String,
    /// Whether it cannot be written.
    pub readonly: bool,
    /// Further restrictions.
    pub flags: MountFlags,
}

impl ProcessMount {
    /// A directory or file of this machine, writable.
    pub fn bind(source: impl Into<PathBuf>, dest: impl Into<String>) -> Self {
        Self::new(MountSource::Bind(source.into()), dest)
    }

    /// A writable mount of `source` at `dest`.
    pub fn new(source: MountSource, dest: impl Into<String>) -> Self {
        ProcessMount {
            source,
            selector: String::new(),
            dest: dest.into(),
            readonly: false,
            flags: MountFlags::default(),
        }
    }

    /// The same, not writable.
    #[must_use]
    pub fn readonly(mut self) -> Self {
        self.readonly = true;
        self
    }
}

/// Where the content of a mount comes from.
#[derive(Clone)]
pub enum MountSource {
    /// A directory or file of this machine, with all that is mounted below it.
    Bind(PathBuf),
    /// A new file system in memory.
    Tmpfs {
        /// Its size limit in bytes; 0 for the kernel's.
        size: u64,
    },
    /// A socket of this machine, such as one that leads to an ssh agent.
    Socket(PathBuf),
    /// A file that exists in memory only and only for this process: secrets.
    File {
        /// Its content; never written to a disk and never in an error or log.
        data: diag::Secret<Vec<u8>>,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Permission bits.
        mode: u32,
    },
    /// A device node made for this process, which it can open as the node says.
    Device(DeviceNode),
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Its kind.
    pub kind: DeviceKind,
    /// The kernel's number of the driver; 0 for a named pipe.
    pub major: u32,
    /// The driver's number of the device.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Whether it can be opened for reading.
    pub read: bool,
    /// Whether it can be opened for writing.
    pub write: bool,
    /// This machine's node of it, used where none can be made.
    pub host_path: PathBuf,
}

/// Kinds of device nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

impl std::fmt::Debug for MountSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MountSource::Bind(path) => f.debug_tuple("Bind").field(path).finish(),
            MountSource::Tmpfs { size } => f.debug_struct("Tmpfs").field("size", size).finish(),
            MountSource::Socket(path) => f.debug_tuple("Socket").field(path).finish(),
            MountSource::File { uid, gid, mode, .. } => f
                .debug_struct("File")
                .field("uid", uid)
                .field("gid", gid)
                .field("mode", mode)
                .finish_non_exhaustive(),
            MountSource::Device(node) => node.fmt(f),
        }
    }
}

/// What cannot be done with the files of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFlags {
    /// Set-user-id bits have no effect.
    pub nosuid: bool,
    /// Device nodes cannot be opened.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
}

impl MountFlags {
    /// All restrictions, as for secrets and sockets.
    pub const RESTRICTED: MountFlags = MountFlags {
        nosuid: true,
        nodev: true,
        noexec: true,
    };
}

/// Who a process runs as, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserIds {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups; the group itself is added when it is not among them.
    pub additional_gids: Vec<u32>,
}

/// The standard streams of a process, used by it directly: nothing is copied in between.
#[derive(Debug)]
pub struct Stdio {
    /// Input; `None` is `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// Output.
    pub stdout: OwnedFd,
    /// Errors.
    pub stderr: OwnedFd,
}

/// A terminal for a process. The supervisor copies between it and the descriptors given here.
#[derive(Debug)]
pub struct Terminal {
    /// What is typed; `None` types nothing.
    pub stdin: Option<OwnedFd>,
    /// Where what the terminal shows is written.
    pub output: OwnedFd,
    /// Size at the start; `None` leaves it 0 by 0.
    pub size: Option<WindowSize>,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// Streams or a terminal.
#[derive(Debug)]
pub enum ProcessIo {
    /// Three streams.
    Stdio(Stdio),
    /// A terminal.
    Terminal(Terminal),
}

impl From<Stdio> for ProcessIo {
    fn from(stdio: Stdio) -> Self {
        ProcessIo::Stdio(stdio)
    }
}

impl From<Terminal> for ProcessIo {
    fn from(terminal: Terminal) -> Self {
        ProcessIo::Terminal(terminal)
    }
}

/// How a process ended, and what it used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitStatus {
    /// Its exit code; 128 + n when signal n ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Most memory used at a time in bytes, by its cgroup; `None` where cgroups do not tell.
    pub memory_peak: Option<u64>,
    /// Processor time of it and of the children it waited for.
    pub cpu_time: Duration,
}

impl ExitStatus {
    /// Whether the exit code is 0.
    pub fn success(&self) -> bool {
        self.code == 0
    }
}
