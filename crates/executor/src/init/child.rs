//! The child: from a fork of the supervisor to the step's program.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

use super::command::{Program, environment};
use super::mounts::Root;
use super::supervisor::{GO, LAUNCH};
use super::terminal::winsize;
use super::{Streams, credentials, devices, open_launch};
use crate::cgroup::{StepCgroup, StepPlan};
use crate::control;
use crate::keyring;
use crate::launch::{Doing, Failure, Launch};
use crate::rootpath::{self, Creation, Kind};
use crate::spec::WindowSize;

/// The descriptor that the status socket has while the program is being executed.
const STATUS_FD: i32 = 3;

/// Waits to be told what to become and becomes it, or tells the supervisor why not and ends.
pub(super) fn become_step(
    plan: &StepPlan,
    cgroup: &StepCgroup,
    container: Option<&OwnedFd>,
    status: OwnedFd,
) -> ! {
    let mut status = Some(status);
    let failure = match prepare(plan, cgroup, container, &mut status) {
        Ok(program) => program.execute(),
        Err(failure) => failure,
    };
    if let (Some(status), Ok(json)) = (&status, serde_json::to_vec(&failure)) {
        let _ = control::send_all(status, &json);
    }
    // SAFETY: ends the process without running what the supervisor may have registered.
    unsafe { libc::_exit(1) }
}

/// Everything up to the exec.
fn prepare(
    plan: &StepPlan,
    cgroup: &StepCgroup,
    container: Option<&OwnedFd>,
    status: &mut Option<OwnedFd>,
) -> Result<Program, Failure> {
    die_with_supervisor(status).doing(|| "setting PDEATHSIG")?;
    let _ = rustix::process::setsid();
    let (launch, files, streams) = hear(status, LAUNCH)
        .and_then(open_launch)
        .doing(|| "waiting for the launch")?;
    if let Some(adjustment) = launch.oom_score_adj {
        adjust_oom_score(adjustment).doing(|| "setting oom_score_adj")?;
    }
    let own_cgroup = cgroup.is_v2();
    if own_cgroup {
        // The new cgroup namespace starts where the process is.
        hear(status, GO).doing(|| "waiting for the cgroup")?;
    }
    let streams = match container {
        Some(container) => enter_container(container, &launch, streams, status)?,
        None => {
            make_namespaces(&launch, own_cgroup, &streams).doing(|| "making namespaces")?;
            let name = launch.hostname.as_bytes();
            rustix::system::sethostname(name).doing(|| "setting the host name")?;
            if launch.private_network {
                loopback_up().doing(|| "setting up the loopback")?;
            }
            let root = Root::open(&launch, &files, plan, cgroup)?;
            make_working_directory(&root, &launch)?;
            root.furnish()?;
            let streams = terminal_or(streams, &root.fd, &launch, status)?;
            root.enter()?;
            streams
        }
    };
    take_streams(streams, &launch).doing(|| "setting standard streams")?;
    let env = environment(&launch);
    if !own_cgroup {
        // Only now: the move, which takes a while, went on beside all the above.
        hear(status, GO).doing(|| "waiting for the cgroup")?;
    }
    only_status_stays(status).doing(|| "closing descriptors")?;
    change_directory(&launch.cwd)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Before the user changes: it is the server's user who may find it again.
    keyring::join(&launch.keyring).doing(|| "joining the session keyring")?;
    credentials::assume(&launch)?;
    Program::find(&launch.args, &env)
}

/// Waits for that byte from the supervisor; the descriptors that came with it.
fn hear(status: &Option<OwnedFd>, expected: u8) -> io::Result<Vec<OwnedFd>> {
    let gone = || io::Error::other("the supervisor is gone");
    let mut byte = [0; 1];
    let (count, fds) = control::recv_fds(status.as_ref().ok_or_else(gone)?, &mut byte)?;
    if count == 0 || byte[0] != expected {
        return Err(gone());
    }
    Ok(fds)
}

fn die_with_supervisor(status: &Option<OwnedFd>) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let Some(status) = status else { return Ok(()) };
    // It may have died before; then its end of the socket is closed.
    let mut polled = [PollFd::new(status, PollFlags::empty())];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut polled, Some(&now))?;
    if polled[0].revents().contains(PollFlags::HUP) {
        return Err(io::Error::other("the supervisor is gone"));
    }
    Ok(())
}

/// Making oneself less likely to be killed needs a right we may not have; then it stays as it is.
fn adjust_oom_score(adjustment: i32) -> io::Result<()> {
    match std::fs::write("/proc/self/oom_score_adj", adjustment.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

fn make_namespaces(launch: &Launch, own_cgroup: bool, streams: &Streams) -> io::Result<()> {
    if let Some(network) = &streams.network {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(network.as_fd(), kind)?;
    }
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if launch.private_network {
        flags |= UnshareFlags::NEWNET;
    }
    // A cgroup namespace over version 1 hierarchies that others set up can fail: not there.
    if own_cgroup {
        flags |= UnshareFlags::NEWCGROUP;
    }
    // SAFETY: this process has one thread and no descriptor of it depends on these namespaces.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is the structure that this ioctl reads.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) };
    crate::sys::check(rc.into()).map(drop)
}

/// As stock: made in the root file system itself, for the user who is going to work there.
fn make_working_directory(root: &Root<'_>, launch: &Launch) -> Result<(), Failure> {
    let creation = Creation {
        kind: Kind::Directory,
        owner: Some((launch.user.uid, launch.user.gid)),
        keep_parent_times: false,
    };
    let path = rootpath::clean(&launch.cwd);
    match rootpath::open_or_create(&root.fd, &path, creation) {
        // Whether it is a directory is found out when it is entered.
        Ok(_) => Ok(()),
        Err(error) => {
            Err(error).doing(|| format!("failed to create working directory {}", launch.cwd))
        }
    }
}

/// Enters the working directory, which may be on a mount and then is made there. The path is taken
/// as it is written: as for stock, `/x/y/../z` needs a `y`, which is made too, for root.
fn change_directory(cwd: &str) -> Result<(), Failure> {
    let what = || format!("chdir to cwd ({cwd:?}) set in config.json failed");
    if let Err(rustix::io::Errno::NOENT) = rustix::process::chdir(cwd) {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(cwd)
            .doing(what)?;
    }
    rustix::process::chdir(cwd).doing(what)?;
    // A link such as /proc/self/fd/N may have led out.
    let here = rustix::process::getcwd(Vec::new()).doing(what)?;
    if here.as_bytes().first() != Some(&b'/') {
        return Err(Failure::Invalid(
            "current working directory is outside of container mount namespace root".to_owned(),
        ));
    }
    Ok(())
}

/// Goes where the container's first process is.
fn enter_container(
    container: &OwnedFd,
    launch: &Launch,
    streams: Streams,
    status: &Option<OwnedFd>,
) -> Result<Streams, Failure> {
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::CONTROL_GROUP;
    move_into_thread_name_spaces(container.as_fd(), all).doing(|| "entering the container")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).doing(|| "opening the root")?;
    terminal_or(streams, &root, launch, status)
}

/// The streams as they are, or a terminal instead when one is asked for.
fn terminal_or(
    streams: Streams,
    root: &OwnedFd,
    launch: &Launch,
    status: &Option<OwnedFd>,
) -> Result<Streams, Failure> {
    let (Some(size), Some(status)) = (launch.terminal, status) else {
        return Ok(streams);
    };
    drop(streams);
    make_terminal(root, size, !launch.joins, status).doing(|| "making a terminal")
}

/// Opens a terminal in the step's own devpts; its master goes to the supervisor. The terminal of the
/// first process of a container is its console.
fn make_terminal(
    root: &OwnedFd,
    size: WindowSize,
    console: bool,
    status: &OwnedFd,
) -> io::Result<Streams> {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = rootpath::open_in_root(root, "/dev/pts/ptmx", flags)?;
    let unlock: libc::c_int = 0;
    // SAFETY: the ioctl reads a number through the pointer.
    let rc = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &unlock) };
    crate::sys::check(rc.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: numbers only; the answer is a new descriptor.
    let rc = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags) };
    let terminal = crate::sys::check(rc.into())?;
    // SAFETY: the ioctl has just made this descriptor for us.
    let terminal = unsafe { OwnedFd::from_raw_fd(terminal as i32) };
    rustix::termios::tcsetwinsize(&master, winsize(size))?;
    if console {
        devices::console(root, &terminal)?;
    }
    // SAFETY: numbers only. This process leads a session without terminal.
    let rc = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 0) };
    crate::sys::check(rc.into())?;
    control::send_fds(status, b't', &[master.as_fd()])?;
    Ok(Streams {
        stdin: Some(terminal.try_clone()?),
        stdout: terminal.try_clone()?,
        stderr: Some(terminal),
        network: None,
    })
}

/// Puts the streams where programs expect them, owned by the user so that `/dev/stdout` can be
/// opened.
fn take_streams(streams: Streams, launch: &Launch) -> io::Result<()> {
    let stdin = match streams.stdin {
        Some(stdin) => stdin,
        // The null device since this mode began; the step's `/dev` may have none, or another.
        None => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?,
    };
    let stderr = match streams.stderr {
        Some(stderr) => stderr,
        None => streams.stdout.try_clone()?,
    };
    let owner = Some(rustix::fs::Uid::from_raw(launch.user.uid));
    for stream in [&stdin, &streams.stdout, &stderr] {
        let stat = rustix::fs::fstat(stream)?;
        let null = rustix::fs::makedev(1, 3);
        if stat.st_uid != launch.user.uid && stat.st_rdev != null {
            // Where it cannot be changed the program can still use what it has open.
            let _ = rustix::fs::fchown(stream, owner, None);
        }
    }
    rustix::stdio::dup2_stdin(&stdin)?;
    rustix::stdio::dup2_stdout(&streams.stdout)?;
    rustix::stdio::dup2_stderr(&stderr)?;
    Ok(())
}

/// Closes everything but the standard streams and the status socket, so that no descriptor of the
/// outside is there to be found in `/proc/self/fd`.
fn only_status_stays(status: &mut Option<OwnedFd>) -> io::Result<()> {
    let Some(old) = status.take() else {
        return Ok(());
    };
    if old.as_raw_fd() != STATUS_FD {
        // SAFETY: numbers only. What had that number before is not used any more.
        let rc = unsafe { libc::dup3(old.as_raw_fd(), STATUS_FD, libc::O_CLOEXEC) };
        crate::sys::check(rc.into())?;
        // Its owner would close the number later, when it may be another descriptor's.
        std::mem::forget(old);
        // SAFETY: the call above has made this descriptor.
        *status = Some(unsafe { OwnedFd::from_raw_fd(STATUS_FD) });
    } else {
        *status = Some(old);
    }
    crate::sys::close_from(STATUS_FD as u32 + 1)
}
