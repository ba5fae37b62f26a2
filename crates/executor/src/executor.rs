//! The server's side: spawning supervisors and listening to them.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio as ChildStdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bridge::{Bridge, BridgeConfig, Lease, StepNetwork};
use crate::cgroup::{Cgroups, Layout, Placed, StepPlan};
use crate::container::Container;
use crate::control;
use crate::error::ExecError;
use crate::keyring;
use crate::launch::{
    Command, Exited, Failure, Launch, LaunchMount, LaunchSource, Limit, Prepare, Report,
    write_message,
};
use crate::network::{self, HOSTNAME_DEFAULT, NetworkConfig};
use crate::observer::{StartObserver, StartWatch};
use crate::platforms;
use crate::spec::{DeviceNode, ExitStatus, MountSource, ProcessIo, ProcessSpec, WindowSize};

/// Longest name of a step in bytes: it becomes the name of a directory.
const ID_LENGTH_MAX: usize = 128;

/// Most spares by default.
const SPARES_MAX: usize = 4;

/// How an [`Executor`] is set up.
#[derive(Clone, Debug)]
pub struct ExecutorConfig {
    /// The program that runs [`crate::init_main`], and its arguments.
    pub init: (PathBuf, Vec<OsString>),
    /// A directory of the executor's own; it is made. Nothing is kept in it.
    pub state_dir: PathBuf,
    /// What steps are told of the network.
    pub network: NetworkConfig,
    /// A network of the steps' own; `None`: they share the server's.
    pub bridge: Option<BridgeConfig>,
    /// The cgroup, from the root of the hierarchy, under which those of steps are made; `None`:
    /// the server's own.
    pub cgroup_parent: Option<String>,
    /// A file that tells the next executor with the same one which cgroups were made for parents that
    /// steps asked for, so that it removes what this one leaves when it is killed; `None`: nobody is
    /// told.
    pub cgroup_journal: Option<PathBuf>,
    /// What is added to the kernel's opinion of steps when memory is short, -1000 to 1000, unless
    /// a step asks for another; a server that should outlive its steps gives them more than it has.
    pub oom_score_adj: Option<i32>,
    /// How many supervisors are kept ready for the next steps while steps are being run; they end
    /// by themselves half a minute later. 0 keeps none.
    pub spares: usize,
    /// Told how long each process took to start.
    pub on_start: Option<StartObserver>,
}

impl ExecutorConfig {
    /// This executable as the init program, and defaults for the rest.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        ExecutorConfig {
            init: (
                PathBuf::from("/proc/self/exe"),
                vec![OsString::from(crate::INIT_ARGUMENT)],
            ),
            state_dir: state_dir.into(),
            network: NetworkConfig::default(),
            bridge: None,
            cgroup_parent: None,
            cgroup_journal: None,
            oom_score_adj: None,
            spares: std::thread::available_parallelism().map_or(1, |n| n.get().min(SPARES_MAX)),
            on_start: None,
        }
    }
}

/// Runs processes. Clones are the same executor.
#[derive(Clone, Debug)]
pub struct Executor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Before the cgroups, so that these are dropped when spares have been told to end.
    spares: Mutex<Vec<Supervisor>>,
    init: InitProgram,
    scratch: PathBuf,
    network: NetworkConfig,
    bridge: Option<Bridge>,
    /// Networks that no step has yet.
    networks: Mutex<Vec<StepNetwork>>,
    cgroups: Cgroups,
    oom_score_adj: Option<i32>,
    spares_max: usize,
    /// Whether somebody is making spares.
    making_spares: AtomicBool,
    step_number: AtomicU64,
    on_start: Option<StartObserver>,
}

/// A supervisor that has been told to prepare, and no step yet.
#[derive(Debug)]
struct Supervisor {
    control: OwnedFd,
    ended: Reaped,
    /// Its process id.
    id: u32,
    cgroup: StepPlan,
}

/// Waits for a supervisor to end, so that none is left as a zombie whoever forgets about it.
type Reaped = JoinHandle<io::Result<std::process::ExitStatus>>;

impl Executor {
    /// Makes the state directory, finds out about cgroups and sweeps those that dead servers left.
    pub fn new(config: ExecutorConfig) -> Result<Self, ExecError> {
        let setup = |what: String| {
            move |error: io::Error| ExecError::Setup {
                what,
                reason: crate::launch::reason(&error),
            }
        };
        let scratch = std::path::absolute(config.state_dir.join("scratch"))
            .map_err(setup("state directory".to_owned()))?;
        std::fs::create_dir_all(&scratch).map_err(setup(format!("{}", scratch.display())))?;
        let (program, args) = config.init;
        let init = InitProgram::open(&program, args)
            .map_err(setup(format!("opening {}", program.display())))?;
        let bridge = config.bridge.as_ref().map(Bridge::open).transpose();
        let bridge = bridge.map_err(setup("making a bridge for steps".to_owned()))?;
        Ok(Executor(Arc::new(Inner {
            bridge,
            networks: Mutex::default(),
            init,
            scratch,
            network: config.network,
            cgroups: Cgroups::open(config.cgroup_parent, config.cgroup_journal),
            oom_score_adj: config.oom_score_adj,
            spares: Mutex::default(),
            spares_max: config.spares,
            making_spares: AtomicBool::new(false),
            step_number: AtomicU64::new(0),
            on_start: config.on_start,
        })))
    }

    /// Which cgroups steps get.
    pub fn cgroup_layout(&self) -> Layout {
        self.0.cgroups.layout()
    }

    /// Runs a process to its end. `id` names it among those that run at the same time: letters,
    /// digits and `_.-`.
    ///
    /// Cancelled, the process and all it started are killed, and [`ExecError::Canceled`] is
    /// returned when nothing of them is left. Dropping the future kills them too, but then nobody
    /// waits for the clearing up.
    pub async fn run(
        &self,
        id: &str,
        spec: ProcessSpec,
        io: impl Into<ProcessIo>,
        cancel: CancellationToken,
    ) -> Result<ExitStatus, ExecError> {
        if cancel.is_cancelled() {
            return Err(ExecError::Canceled);
        }
        let mut process = self.start(id, spec, io).await?;
        tokio::select! {
            biased;
            ended = process.wait() => ended,
            () = cancel.cancelled() => {
                process.kill();
                // However it ends now, and it does, it was cancelled.
                let _ = process.wait().await;
                Err(ExecError::Canceled)
            }
        }
    }

    /// Starts a process. An error of its set-up comes from [`Process::wait`].
    pub async fn start(
        &self,
        id: &str,
        spec: ProcessSpec,
        io: impl Into<ProcessIo>,
    ) -> Result<Process, ExecError> {
        check_id(id)?;
        tracing::debug!(id, args = ?spec.args, "starting a process");
        let (inner, io) = (self.0.clone(), io.into());
        let watch = StartWatch::begin(&self.0.on_start);
        let mut process = tokio::task::spawn_blocking(move || inner.spawn(spec, io, None))
            .await
            .map_err(|error| ExecError::Spawn(io::Error::other(error)))??;
        process.watch = watch;
        let inner = self.0.clone();
        if !inner.making_spares.swap(true, Ordering::AcqRel) {
            // Beside the step; nobody waits for it.
            drop(tokio::task::spawn_blocking(move || inner.make_spares()));
        }
        Ok(process)
    }

    /// Takes everything away that it has made on this machine: what still runs, cgroups, its network.
    /// Nothing can be run afterwards. Dropping the last clone does the same; this is for a server that
    /// ends whatever still holds one. Blocks.
    pub fn close(&self) {
        self.0.close();
    }

    /// Starts a process in a container. Blocks.
    pub(crate) fn spawn_in(
        &self,
        container: &Container,
        spec: ProcessSpec,
        io: ProcessIo,
    ) -> Result<Process, ExecError> {
        self.0.spawn(spec, io, Some(container))
    }
}

/// A process that has been started. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    control: UnixStream,
    /// `None` when it has been waited for.
    supervisor: Option<Reaped>,
    supervisor_id: u32,
    cgroup: StepPlan,
    insecure: bool,
    keyring: String,
    /// No other step has its address.
    _address: Option<Lease>,
    /// The unfinished line from the supervisor.
    line: Vec<u8>,
    pid: Option<i32>,
    ended: Option<Report>,
    watch: Option<StartWatch>,
}

impl Process {
    /// Waits until the program runs; answers its process id as this machine sees it.
    ///
    /// For a process that never ran, or has ended, the error or end is left for [`Process::wait`]
    /// and the answer is `None`.
    pub async fn started(&mut self) -> Result<Option<i32>, ExecError> {
        while self.pid.is_none() && self.ended.is_none() {
            self.listen().await?;
        }
        Ok(self.pid)
    }

    /// Waits until the process has ended and everything of it is cleared up. Dropping the future
    /// loses nothing: wait again.
    pub async fn wait(&mut self) -> Result<ExitStatus, ExecError> {
        while self.ended.is_none() {
            self.listen().await?;
        }
        self.reap().await?;
        match &self.ended {
            Some(Report::Exited(exited)) => exit_status(exited),
            Some(Report::Failed(failure)) => Err(exec_error(failure.clone())),
            _ => Err(ExecError::SupervisorLost("no report".to_owned())),
        }
    }

    /// Kills it and all that it started, now.
    pub fn kill(&self) {
        self.tell(Command::Kill);
    }

    /// Sends it a signal. As pid 1 of its namespace it gets only those it has handlers for.
    pub fn signal(&self, number: i32) {
        self.tell(Command::Signal(number));
    }

    /// Changes the size of its terminal.
    pub fn resize(&self, size: WindowSize) {
        self.tell(Command::Resize(size));
    }

    pub(crate) fn supervisor_id(&self) -> u32 {
        self.supervisor_id
    }

    pub(crate) fn cgroup_plan(&self) -> &StepPlan {
        &self.cgroup
    }

    pub(crate) fn is_insecure(&self) -> bool {
        self.insecure
    }

    /// The name of its session keyring.
    pub(crate) fn keyring(&self) -> &str {
        &self.keyring
    }

    /// A supervisor that does not listen any more has no process any more.
    fn tell(&self, command: Command) {
        let _ = control::send_all(self.control.as_fd(), command.line().as_bytes());
    }

    /// Waits for the end of the supervisor, which has nothing more to say.
    async fn reap(&mut self) -> Result<Option<std::process::ExitStatus>, ExecError> {
        let Some(supervisor) = &mut self.supervisor else {
            return Ok(None);
        };
        let status = supervisor.await;
        self.supervisor = None;
        let status = status.map_err(io::Error::other).and_then(|status| status);
        status.map(Some).map_err(ExecError::Spawn)
    }

    /// Takes in what the supervisor says.
    async fn listen(&mut self) -> Result<(), ExecError> {
        self.control.readable().await.map_err(ExecError::Spawn)?;
        let mut buffer = [0; 4096];
        match self.control.try_read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Ok(count) if count > 0 => self.line.extend_from_slice(&buffer[..count]),
            _ => {
                let status = self.reap().await?;
                let status = status.map_or_else(|| "ended".to_owned(), |s| s.to_string());
                return Err(ExecError::SupervisorLost(status));
            }
        }
        while let Some(end) = self.line.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            let report = serde_json::from_slice(&line[..end])
                .map_err(|error| ExecError::SupervisorLost(error.to_string()))?;
            match report {
                Report::Started { pid } => {
                    self.pid = Some(pid);
                    if let Some(watch) = self.watch.take() {
                        watch.end();
                    }
                }
                other => self.ended = Some(other),
            }
        }
        Ok(())
    }
}

/// The executable that supervisors run, held open: replacing the file on disk does not matter, and
/// where the kernel can do it, it is reached through a read-only mount so that no step can write
/// to it by way of `/proc/PID/exe`.
#[derive(Debug)]
struct InitProgram {
    path: PathBuf,
    fd: OwnedFd,
    args: Vec<OsString>,
}

impl InitProgram {
    fn open(path: &Path, args: Vec<OsString>) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let readonly = rustix::mount::open_tree(CWD, path, flags)
            .map_err(io::Error::from)
            .and_then(|fd| {
                crate::sys::mount_setattr(&fd, crate::sys::attr::RDONLY, false)?;
                Ok(fd)
            });
        let fd = match readonly {
            Ok(fd) => fd,
            Err(_) => rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
        };
        Ok(InitProgram {
            path: path.to_owned(),
            fd,
            args,
        })
    }

    /// A supervisor whose standard input is `control`, and its process id. With its end `placed` is
    /// dropped.
    fn spawn(&self, control: OwnedFd, placed: Option<Placed>) -> io::Result<(Reaped, u32)> {
        // Nothing is set here that would make the standard library fork instead of `posix_spawn`.
        let mut command =
            std::process::Command::new(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        command
            .arg0(&self.path)
            .args(&self.args)
            .env_clear()
            .stdin(ChildStdio::from(control))
            .stdout(ChildStdio::null())
            .stderr(ChildStdio::inherit());
        let mut process = tokio::process::Command::from(command).spawn()?;
        let id = process.id().unwrap_or_default();
        // It ends when its socket does; so the task is not left behind for long.
        let ended = tokio::spawn(async move {
            let status = process.wait().await;
            if let Some(placed) = placed {
                // A crash in it was reported where it happened.
                let _ = tokio::task::spawn_blocking(move || drop(placed)).await;
            }
            status
        });
        Ok((ended, id))
    }
}

impl Inner {
    fn close(&self) {
        // They end when they are told that nobody is there any more.
        self.spares.lock().clear();
        self.networks.lock().clear();
        self.cgroups.close();
        if let Some(bridge) = &self.bridge {
            bridge.close();
        }
    }

    fn spawn(
        &self,
        spec: ProcessSpec,
        io: ProcessIo,
        container: Option<&Container>,
    ) -> Result<Process, ExecError> {
        let terminal = match &io {
            ProcessIo::Terminal(terminal) => Some(terminal.size.unwrap_or_default()),
            ProcessIo::Stdio(_) => None,
        };
        let (stdin, others) = match io {
            ProcessIo::Terminal(terminal) => (terminal.stdin, vec![terminal.output]),
            ProcessIo::Stdio(stdio) => (stdio.stdin, vec![stdio.stdout, stdio.stderr]),
        };
        let mut files: Vec<&[u8]> = Vec::new();
        // A process in a container has the network of the container.
        let network = match container {
            None => self.network_of(&spec)?,
            Some(_) => None,
        };
        let mut launch = self.launch(&spec, network.is_some(), &mut files)?;
        launch.terminal = terminal;
        launch.has_stdin = stdin.is_some();
        launch.joins = container.is_some();
        launch.keyring = match container {
            Some(container) => container.keyring.clone(),
            None => keyring::new_name().map_err(ExecError::Spawn)?,
        };
        let specification = write_message(&launch, &files).map_err(ExecError::Spawn)?;
        let streams = stdin.iter().chain(&others).map(AsFd::as_fd);
        let namespace = network.iter().map(|network| network.namespace.as_fd());
        let fds: Vec<BorrowedFd<'_>> = std::iter::once(specification.as_fd())
            .chain(namespace)
            .chain(streams)
            .collect();
        let supervisor = match container {
            None => self.hand_over(&spec, &fds),
            Some(container) => self.hand_over_in(container, &fds),
        };
        let supervisor = supervisor.map_err(ExecError::Spawn)?;
        let control = std::os::unix::net::UnixStream::from(supervisor.control);
        control.set_nonblocking(true).map_err(ExecError::Spawn)?;
        Ok(Process {
            control: UnixStream::from_std(control).map_err(ExecError::Spawn)?,
            supervisor: Some(supervisor.ended),
            supervisor_id: supervisor.id,
            cgroup: supervisor.cgroup,
            insecure: spec.insecure,
            keyring: launch.keyring,
            _address: network.map(|network| network.lease),
            line: Vec::new(),
            pid: None,
            ended: None,
            watch: None,
        })
    }

    /// Gives the step to a spare, or to a new supervisor when there is none or it needs one of its
    /// own kind.
    fn hand_over(&self, spec: &ProcessSpec, fds: &[BorrowedFd<'_>]) -> io::Result<Supervisor> {
        let devices = devices_of(spec);
        if !spec.insecure && spec.cgroup_parent.is_empty() && devices.is_empty() {
            // The last one is the most likely to be still there.
            loop {
                let Some(spare) = self.spares.lock().pop() else {
                    break;
                };
                if control::send_fds(&spare.control, b'l', fds).is_ok() {
                    return Ok(spare);
                }
            }
        }
        let supervisor = self.supervisor(&spec.cgroup_parent, !spec.insecure, devices)?;
        control::send_fds(&supervisor.control, b'l', fds)?;
        Ok(supervisor)
    }

    /// Gives the process to a new supervisor that has entered the container.
    fn hand_over_in(
        &self,
        container: &Container,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<Supervisor> {
        let prepare = Prepare {
            cgroup: container.cgroup.clone(),
            guard_devices: false,
            devices: Vec::new(),
            joins: true,
        };
        let supervisor = self.prepared(prepare, None, Some(container.pidfd.as_fd()))?;
        // One that could not enter has ended, and its report says why.
        let _ = control::send_fds(&supervisor.control, b'l', fds);
        Ok(supervisor)
    }

    /// Starts a supervisor that prepares for a step with some devices besides the usual ones.
    fn supervisor(
        &self,
        cgroup_parent: &str,
        guard_devices: bool,
        devices: Vec<DeviceNode>,
    ) -> io::Result<Supervisor> {
        let number = self.step_number.fetch_add(1, Ordering::Relaxed);
        let (cgroup, placed) = self.cgroups.plan(&format!("step-{number}"), cgroup_parent);
        let prepare = Prepare {
            cgroup,
            guard_devices,
            devices,
            joins: false,
        };
        self.prepared(prepare, placed, None)
    }

    fn prepared(
        &self,
        prepare: Prepare,
        placed: Option<Placed>,
        pidfd: Option<BorrowedFd<'_>>,
    ) -> io::Result<Supervisor> {
        let message = write_message(&prepare, &[])?;
        let (control, theirs) = control::pair()?;
        let (ended, id) = self.init.spawn(theirs, placed)?;
        let fds: Vec<BorrowedFd<'_>> = std::iter::once(message.as_fd()).chain(pidfd).collect();
        control::send_fds(&control, b'p', &fds)?;
        Ok(Supervisor {
            control,
            ended,
            id,
            cgroup: prepare.cgroup,
        })
    }

    /// A network of the step's own, if it is to have one.
    fn network_of(&self, spec: &ProcessSpec) -> Result<Option<StepNetwork>, ExecError> {
        let Some(bridge) = self
            .bridge
            .as_ref()
            .filter(|_| spec.network == llb::NetMode::Unset)
        else {
            return Ok(None);
        };
        if let Some(ready) = self.networks.lock().pop() {
            return Ok(Some(ready));
        }
        let made = bridge.connect().map_err(|error| ExecError::Setup {
            what: "connecting the step to its network".to_owned(),
            reason: crate::launch::reason(&error),
        });
        made.map(Some)
    }

    fn make_spares(&self) {
        if let Some(bridge) = &self.bridge {
            while self.networks.lock().len() < self.spares_max {
                let Ok(network) = bridge.connect() else { break };
                self.networks.lock().push(network);
            }
        }
        while self.spares.lock().len() < self.spares_max {
            match self.supervisor("", true, Vec::new()) {
                Ok(supervisor) => self.spares.lock().push(supervisor),
                Err(error) => {
                    tracing::debug!(%error, "cannot make a spare supervisor");
                    break;
                }
            }
        }
        self.making_spares.store(false, Ordering::Release);
    }

    /// The specification as the supervisor wants it; contents of files are collected in `files`.
    fn launch<'a>(
        &self,
        spec: &'a ProcessSpec,
        own_network: bool,
        files: &mut Vec<&'a [u8]>,
    ) -> Result<Launch, ExecError> {
        let bridge = self.bridge.as_ref().filter(|_| own_network);
        let hostname = match spec.hostname.as_str() {
            "" => HOSTNAME_DEFAULT,
            name => name,
        };
        let own_resolver = std::fs::read("/etc/resolv.conf").unwrap_or_default();
        let own_resolver = String::from_utf8_lossy(&own_resolver).into_owned();
        let own_resolver = match bridge {
            Some(bridge) => bridge.resolv_conf(&own_resolver),
            None => own_resolver,
        };
        let gateway = || match bridge {
            Some(bridge) => Some(bridge.gateway().into()),
            None => network::default_gateway(),
        };
        let rootfs = std::path::absolute(&spec.rootfs).map_err(|error| {
            ExecError::InvalidSpec(format!("root file system {:?}: {error}", spec.rootfs))
        })?;
        Ok(Launch {
            rootfs,
            readonly_rootfs: spec.readonly_rootfs,
            args: spec.args.clone(),
            env: spec.env.clone(),
            cwd: format!("/{}", spec.cwd.trim_start_matches('/')),
            user: spec.user.clone(),
            hostname: hostname.to_owned(),
            mounts: launch_mounts(spec, files)?,
            private_network: spec.network == llb::NetMode::None,
            own_network,
            insecure: spec.insecure,
            ulimits: spec.ulimits.iter().map(limit).collect::<Result<_, _>>()?,
            oom_score_adj: spec.oom_score_adj.or(self.oom_score_adj),
            stubs_recursive: spec.remove_mount_stubs_recursive,
            resolv_conf: network::resolv_conf(&self.network, &own_resolver),
            hosts: network::hosts(hostname, &spec.extra_hosts, gateway)?,
            scratch: self.scratch.clone(),
            terminal: None,
            has_stdin: false,
            joins: false,
            keyring: String::new(),
        })
    }
}

fn devices_of(spec: &ProcessSpec) -> Vec<DeviceNode> {
    let devices = spec.mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Device(node) => Some(node.clone()),
        _ => None,
    });
    devices.collect()
}

fn launch_mounts<'a>(
    spec: &'a ProcessSpec,
    files: &mut Vec<&'a [u8]>,
) -> Result<Vec<LaunchMount>, ExecError> {
    let mut end = 0;
    let mut mounts = Vec::with_capacity(spec.mounts.len());
    for mount in &spec.mounts {
        let source = match &mount.source {
            MountSource::Bind(path) | MountSource::Socket(path) => {
                LaunchSource::Bind(std::path::absolute(path).map_err(|error| {
                    ExecError::InvalidSpec(format!("mount {}: {error}", mount.dest))
                })?)
            }
            MountSource::Tmpfs { size } => LaunchSource::Tmpfs { size: *size },
            MountSource::Device(node) => LaunchSource::Device(node.clone()),
            MountSource::File {
                data,
                uid,
                gid,
                mode,
            } => {
                let data = data.expose();
                files.push(data);
                end += data.len();
                LaunchSource::File {
                    offset: end - data.len(),
                    length: data.len(),
                    uid: *uid,
                    gid: *gid,
                    mode: *mode,
                }
            }
        };
        mounts.push(LaunchMount {
            source,
            selector: mount.selector.trim_matches('/').to_owned(),
            dest: mount.dest.clone(),
            readonly: mount.readonly,
            flags: mount.flags,
        });
    }
    Ok(mounts)
}

/// The kernel's number of a limit; -1 is "unlimited".
fn limit(ulimit: &llb::Ulimit) -> Result<Limit, ExecError> {
    let resource = match ulimit.name.to_ascii_lowercase().as_str() {
        "cpu" => libc::RLIMIT_CPU,
        "fsize" => libc::RLIMIT_FSIZE,
        "data" => libc::RLIMIT_DATA,
        "stack" => libc::RLIMIT_STACK,
        "core" => libc::RLIMIT_CORE,
        "rss" => libc::RLIMIT_RSS,
        "nproc" => libc::RLIMIT_NPROC,
        "nofile" => libc::RLIMIT_NOFILE,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "as" => libc::RLIMIT_AS,
        "locks" => libc::RLIMIT_LOCKS,
        "sigpending" => libc::RLIMIT_SIGPENDING,
        "msgqueue" => libc::RLIMIT_MSGQUEUE,
        "nice" => libc::RLIMIT_NICE,
        "rtprio" => libc::RLIMIT_RTPRIO,
        "rttime" => libc::RLIMIT_RTTIME,
        _ => {
            return Err(ExecError::InvalidSpec(format!(
                "invalid ulimit type: {}",
                ulimit.name
            )));
        }
    };
    let (soft, hard) = (ulimit.soft as u64, ulimit.hard as u64);
    if soft > hard {
        return Err(ExecError::InvalidSpec(format!(
            "ulimit soft limit must be less than or equal to hard limit: {} > {}",
            ulimit.soft, ulimit.hard
        )));
    }
    Ok(Limit {
        resource: resource as u32,
        soft,
        hard,
    })
}

fn check_id(id: &str) -> Result<(), ExecError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let starts_well = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if starts_well && id.len() <= ID_LENGTH_MAX && id.bytes().all(word) {
        return Ok(());
    }
    Err(ExecError::InvalidSpec(format!(
        "invalid container ID {id:?}"
    )))
}

fn exit_status(exited: &Exited) -> Result<ExitStatus, ExecError> {
    if exited.oom_kills > 0 && exited.code != 0 {
        return Err(ExecError::OutOfMemory {
            limit: exited.memory_limit,
            reserved: exited.memory_reserved,
            peak: exited.memory_peak,
            exit_code: exited.code,
        });
    }
    Ok(ExitStatus {
        code: exited.code,
        signal: exited.signal,
        memory_peak: exited.memory_peak,
        cpu_time: Duration::from_micros(exited.cpu_time_us),
    })
}

fn exec_error(failure: Failure) -> ExecError {
    match failure {
        Failure::NotFoundInPath(name) => ExecError::NotFoundInPath(name),
        Failure::NoSuchFile(path) => ExecError::NoSuchFile(path),
        Failure::NotExecutable { program, reason } => ExecError::NotExecutable { program, reason },
        Failure::ExecFormat { program, machine } => ExecError::ExecFormat {
            program,
            hint: platforms::exec_format_hint(machine),
        },
        Failure::Exec { program, reason } => ExecError::Exec { program, reason },
        Failure::Invalid(text) => ExecError::InvalidSpec(text),
        Failure::Setup { what, reason } => ExecError::Setup { what, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_known_by_name_and_checked() {
        let of = |name: &str, soft, hard| {
            limit(&llb::Ulimit {
                name: name.to_owned(),
                soft,
                hard,
            })
        };
        assert_eq!(of("nofile", 10, 20).unwrap().resource, libc::RLIMIT_NOFILE);
        assert_eq!(of("core", -1, -1).unwrap().hard, u64::MAX);
        assert!(of("nofile", 20, 10).is_err());
        assert!(of("bogus", 1, 1).is_err());
    }

    #[test]
    fn ids_that_would_be_paths_are_refused() {
        assert!(check_id("k3x9-a.b_c").is_ok());
        for id in ["", ".", "..", "a/b", "-x", &"x".repeat(200)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}
