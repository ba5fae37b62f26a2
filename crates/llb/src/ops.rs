//! The operations. An `Option<usize>` that names an input counts the vertex's inputs from 0.

use std::collections::BTreeMap;

/// What a vertex does.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Brings files from outside.
    Source(SourceOp),
    /// Runs a process.
    Exec(Box<ExecOp>),
    /// Changes files without a process.
    File(FileOp),
    /// Stacks its inputs on each other, in order.
    Merge(MergeOp),
    /// What the second has over the first.
    Diff(DiffOp),
    /// Solves a graph found in an input.
    Build(BuildOp),
}

/// Files from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceOp {
    /// `docker-image://…`, `local://…`, `git://…`, `https://…`, `oci-layout://…`.
    pub identifier: String,
    /// The source's options under their wire names, such as `local.includepattern`.
    pub attrs: BTreeMap<String, String>,
}

/// Network of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetMode {
    /// The worker's default.
    #[default]
    Unset,
    /// The network of the server.
    Host,
    /// Only a loopback.
    None,
}

/// Sandboxing of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SecurityMode {
    /// The default.
    #[default]
    Sandbox,
    /// All capabilities and devices.
    Insecure,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExecOp {
    /// What is executed.
    pub args: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// `user[:group]`, by name or number; empty for root.
    pub user: String,
    /// Proxies set in the environment without being part of the key.
    pub proxy_env: Option<ProxyEnv>,
    /// Names and addresses added to `/etc/hosts`.
    pub extra_hosts: Vec<(String, String)>,
    /// Host name; empty for the default.
    pub hostname: String,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// cgroup under which the step's own is made.
    pub cgroup_parent: String,
    /// Whether directories made for mounts are removed afterwards, parents included.
    pub remove_mount_stubs_recursive: bool,
    /// Exit codes that count as success; empty for 0.
    pub valid_exit_codes: Vec<i32>,
    /// The root file system and everything mounted over it.
    pub mounts: Vec<Mount>,
    /// Network.
    pub network: NetMode,
    /// Sandbox.
    pub security: SecurityMode,
    /// Secrets given as environment variables.
    pub secret_env: Vec<SecretEnv>,
    /// Names of CDI devices with their `optional` flag.
    pub cdi_devices: Vec<(String, bool)>,
}

/// Proxy variables of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyEnv {
    /// `http_proxy`.
    pub http_proxy: String,
    /// `https_proxy`.
    pub https_proxy: String,
    /// `ftp_proxy`.
    pub ftp_proxy: String,
    /// `no_proxy`.
    pub no_proxy: String,
    /// `all_proxy`.
    pub all_proxy: String,
}

/// Names that a [`Ulimit`] can have.
pub const ULIMIT_NAMES: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A resource limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ulimit {
    /// The name without `RLIMIT_`, lower case, such as `nofile`.
    pub name: String,
    /// The soft limit.
    pub soft: i64,
    /// The hard limit.
    pub hard: i64,
}

/// The host of `http` sources whose bytes the client of the build sends itself.
pub const SESSION_HOST: &str = "buildkit-session";

/// A secret as an environment variable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretEnv {
    /// The secret.
    pub id: String,
    /// The variable.
    pub name: String,
    /// Whether the step runs without it.
    pub optional: bool,
}

/// Something mounted into a process's file system.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mount {
    /// The vertex input it starts from; `None` starts empty.
    pub input: Option<usize>,
    /// Path within the input.
    pub selector: String,
    /// Where it is seen; `/` is the root file system.
    pub dest: String,
    /// Which output of the vertex it becomes.
    pub output: Option<usize>,
    /// Whether the process can write to it.
    pub readonly: bool,
    /// What it is.
    pub kind: MountKind,
    /// A result it shows (container API of the gateway).
    pub result_id: String,
    /// Whether its content is part of the key.
    pub content_cache: ContentCache,
}

/// What a mount is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MountKind {
    /// Files of an input.
    #[default]
    Bind,
    /// A persistent cache mount.
    Cache {
        /// Its name.
        id: String,
        /// Who may use it at the same time.
        sharing: CacheSharing,
    },
    /// A file in memory holding a secret.
    Secret(ClientFile),
    /// A socket to the client's ssh agent.
    Ssh(ClientFile),
    /// An empty file system in memory.
    Tmpfs {
        /// Its size limit in bytes; 0 for the kernel's.
        size: u64,
    },
}

/// A file, or a socket, that stands for something a client has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientFile {
    /// Which secret or agent.
    pub id: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Whether the step runs without it.
    pub optional: bool,
}

/// Who may use a cache mount at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheSharing {
    /// Everybody.
    #[default]
    Shared,
    /// Nobody else sees it: a second user gets another one.
    Private,
    /// One after the other.
    Locked,
}

/// Whether the content of a mount is part of the step's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ContentCache {
    /// As the worker thinks best: read-only mounts are.
    #[default]
    Default,
    /// Yes.
    On,
    /// No.
    Off,
}

/// Changes to files, in order; action `i` is referred to as input `inputs + i` by later ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FileOp {
    /// The changes.
    pub actions: Vec<FileAction>,
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub struct FileAction {
    /// What is changed: an input of the vertex, or `inputs + i` for the outcome of action `i`;
    /// `None` starts empty.
    pub input: Option<usize>,
    /// What is copied from, counted likewise.
    pub secondary_input: Option<usize>,
    /// Which output of the vertex the outcome becomes.
    pub output: Option<usize>,
    /// The change.
    pub kind: FileActionKind,
}

/// What a change does.
#[derive(Clone, Debug, PartialEq)]
pub enum FileActionKind {
    /// Copies from the secondary input.
    Copy(Box<CopyAction>),
    /// Writes a file.
    MkFile(MkFileAction),
    /// Makes a directory.
    MkDir(MkDirAction),
    /// Removes.
    Rm(RmAction),
    /// Makes a symbolic link.
    Symlink(SymlinkAction),
}

/// Copies files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CopyAction {
    /// Path or pattern in the source.
    pub src: String,
    /// Path in the destination.
    pub dest: String,
    /// New owner.
    pub owner: Option<ChownOpt>,
    /// New permission bits; `None` keeps them.
    pub mode: Option<u32>,
    /// Whether a link named by `src` is followed.
    pub follow_symlink: bool,
    /// Whether a directory's content, and not itself, is copied.
    pub dir_copy_contents: bool,
    /// Whether archives are unpacked, as `ADD` does.
    pub attempt_unpack: bool,
    /// Whether missing parents of `dest` are made.
    pub create_dest_path: bool,
    /// Whether `src` is a pattern.
    pub allow_wildcard: bool,
    /// Whether a pattern may match nothing.
    pub allow_empty_wildcard: bool,
    /// Modification time given to everything, in nanoseconds since 1970; `None` keeps it.
    pub timestamp: Option<i64>,
    /// Only these below `src`.
    pub include_patterns: Vec<String>,
    /// Not these below `src`.
    pub exclude_patterns: Vec<String>,
    /// Whether a directory may replace a file and the reverse.
    pub always_replace_existing_dest_paths: bool,
    /// Symbolic mode such as `u+x`; empty for none.
    pub mode_str: String,
    /// Paths that must exist below `src`.
    pub required_paths: Vec<String>,
}

/// Writes a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MkFileAction {
    /// Its path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Its content.
    pub data: Vec<u8>,
    /// Owner.
    pub owner: Option<ChownOpt>,
    /// Modification time in nanoseconds since 1970.
    pub timestamp: Option<i64>,
}

/// Makes a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MkDirAction {
    /// Its path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Whether missing parents are made.
    pub make_parents: bool,
    /// Owner.
    pub owner: Option<ChownOpt>,
    /// Modification time in nanoseconds since 1970.
    pub timestamp: Option<i64>,
}

/// Removes a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RmAction {
    /// Path or pattern.
    pub path: String,
    /// Whether it may be absent.
    pub allow_not_found: bool,
    /// Whether `path` is a pattern.
    pub allow_wildcard: bool,
}

/// Makes a symbolic link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SymlinkAction {
    /// What it points to.
    pub oldpath: String,
    /// Its path.
    pub newpath: String,
    /// Owner.
    pub owner: Option<ChownOpt>,
    /// Modification time in nanoseconds since 1970.
    pub timestamp: Option<i64>,
}

/// A new owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChownOpt {
    /// User; `None` is root.
    pub user: Option<UserOpt>,
    /// Group; `None` is the user's own, or root.
    pub group: Option<UserOpt>,
}

/// A user or group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserOpt {
    /// By number.
    ById(u32),
    /// By name, looked up in `/etc/passwd` or `/etc/group` of an input (`None`: of none).
    ByName {
        /// The name.
        name: String,
        /// The input whose files are read.
        input: Option<usize>,
    },
}

/// Stacks inputs on each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MergeOp {
    /// Lowest first.
    pub inputs: Vec<Option<usize>>,
}

/// What `upper` has over `lower`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiffOp {
    /// The lower; `None` is empty.
    pub lower: Option<usize>,
    /// The upper; `None` is empty.
    pub upper: Option<usize>,
}

/// Solves a graph found in an input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOp {
    /// Always the LLB builder (-1 on the wire) today.
    pub builder: i64,
    /// Inputs by name; `buildkit.llb.definition` holds the graph.
    pub inputs: BTreeMap<String, usize>,
    /// Options.
    pub attrs: BTreeMap<String, String>,
}

impl Op {
    /// What is shown for an op that was given no name.
    pub fn name(&self) -> String {
        match self {
            Op::Source(source) => source.identifier.clone(),
            Op::Exec(exec) => exec.args.join(" "),
            Op::File(file) => {
                let names: Vec<String> = file.actions.iter().map(FileAction::name).collect();
                names.join(", ")
            }
            Op::Merge(_) => "merge".to_owned(),
            Op::Diff(_) => "diff".to_owned(),
            Op::Build(_) => "build".to_owned(),
        }
    }
}

impl FileAction {
    fn name(&self) -> String {
        match &self.kind {
            FileActionKind::Copy(copy) => {
                let what = if copy.include_patterns.is_empty() {
                    copy.src.clone()
                } else {
                    copy.include_patterns.join(", ")
                };
                format!("copy {what} {}", copy.dest)
            }
            FileActionKind::MkFile(file) => format!("mkfile {}", file.path),
            FileActionKind::MkDir(dir) => format!("mkdir {}", dir.path),
            FileActionKind::Rm(rm) => format!("rm {}", rm.path),
            FileActionKind::Symlink(link) => format!("symlink {} {}", link.oldpath, link.newpath),
        }
    }
}
