//! What the step's process may do: limits, system calls, capabilities, user and groups.

use std::io;

use rustix::process::Signal;

use crate::launch::{Doing, Failure, Launch};
use crate::seccomp;
use crate::sys::check;

/// Docker's default: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
/// net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
/// Capabilities are numbered below this.
const CAPABILITY_MAX: u32 = 64;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Gives the calling process the rights of the step, for good. Afterwards only what the filter
/// allows can be called.
pub(super) fn assume(launch: &Launch) -> Result<(), Failure> {
    let bounding = bounding_set();
    let capabilities = match launch.insecure {
        true => bounding,
        false => bounding & DEFAULT_CAPABILITIES,
    };
    for limit in &launch.ulimits {
        let value = libc::rlimit64 {
            rlim_cur: limit.soft,
            rlim_max: limit.hard,
        };
        // SAFETY: the structure lives through the call.
        check(unsafe { libc::setrlimit64(limit.resource as _, &value) }.into())
            .doing(|| format!("error setting rlimit type {}", limit.resource))?;
    }
    reset_signals().doing(|| "resetting signals")?;
    if !launch.insecure && seccomp::supported() {
        // Before capabilities go: so no-new-privileges need not be set, and `sudo` works.
        install(&seccomp::default_filter(capabilities))
            .doing(|| "installing the seccomp filter")?;
    }
    drop_bounding(bounding & !capabilities).doing(|| "dropping capabilities")?;
    become_user(launch, capabilities).doing(|| "setting user, groups and capabilities")?;
    // Changing the user has cleared it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .doing(|| "setting PDEATHSIG")
}

fn install(filter: &[seccomp::Instruction]) -> io::Result<()> {
    if filter.is_empty() {
        return Ok(());
    }
    match seccomp::install(filter) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            rustix::thread::set_no_new_privs(true)?;
            seccomp::install(filter)
        }
        other => other,
    }
}

/// What this process could ever have: an outer container may have been given less than all.
fn bounding_set() -> u64 {
    // SAFETY: numbers only.
    let read = |c: u32| unsafe { libc::prctl(libc::PR_CAPBSET_READ, c, 0, 0, 0) };
    (0..CAPABILITY_MAX)
        .map(|capability| (capability, read(capability)))
        // The kernel answers -1 from the first one on that it does not know.
        .take_while(|(_, held)| *held >= 0)
        .filter(|(_, held)| *held == 1)
        .fold(0, |set, (capability, _)| set | 1 << capability)
}

fn drop_bounding(set: u64) -> io::Result<()> {
    for capability in (0..CAPABILITY_MAX).filter(|c| set & 1 << c != 0) {
        // SAFETY: numbers only.
        check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into())?;
    }
    Ok(())
}

fn become_user(launch: &Launch, capabilities: u64) -> io::Result<()> {
    let user = &launch.user;
    // An insecure step keeps its capabilities whoever it runs as.
    if launch.insecure {
        rustix::thread::set_keep_capabilities(true)?;
    }
    let mut groups = user.additional_gids.clone();
    if !groups.contains(&user.gid) {
        groups.insert(0, user.gid);
    }
    // SAFETY: the list lives through the call; this process has one thread.
    check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) }.into())?;
    // SAFETY: numbers only.
    check(unsafe { libc::setresgid(user.gid, user.gid, user.gid) }.into())?;
    // SAFETY: numbers only.
    check(unsafe { libc::setresuid(user.uid, user.uid, user.uid) }.into())?;
    if launch.insecure {
        set_capabilities(capabilities, capabilities)?;
        for capability in (0..CAPABILITY_MAX).filter(|c| capabilities & 1 << c != 0) {
            // SAFETY: numbers only.
            let raised = unsafe {
                libc::prctl(
                    libc::PR_CAP_AMBIENT,
                    libc::PR_CAP_AMBIENT_RAISE,
                    capability,
                    0,
                    0,
                )
            };
            check(raised.into())?;
        }
        return Ok(());
    }
    let held = if user.uid == 0 { capabilities } else { 0 };
    set_capabilities(held, 0)
}

/// Sets the permitted and effective set, and the inheritable one.
fn set_capabilities(permitted: u64, inheritable: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Half {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| Half {
        effective: (permitted >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let halves = [half(0), half(32)];
    // SAFETY: the structures are the kernel's and live through the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, halves.as_ptr()) }).map(drop)
}

/// What Rust's runtime or whoever started the server ignores or blocks is not for the step.
fn reset_signals() -> io::Result<()> {
    for number in 1..=64 {
        if number == libc::SIGKILL || number == libc::SIGSTOP {
            continue;
        }
        // The C library's own function refuses the two signals it keeps for itself, which
        // `posix_spawn` leaves ignored.
        // SAFETY: all zeroes is the kernel's structure for the default action.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                &[0u64; 4],
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
        check(rc)?;
    }
    // SAFETY: an empty set is made and given to the kernel.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()).into())?;
    }
    Ok(())
}
