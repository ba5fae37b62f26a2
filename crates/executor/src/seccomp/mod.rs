//! Docker's default system call filter, as a program for the kernel.
//!
//! What the profile allows is taken from its public definition
//! (<https://github.com/moby/profiles>); calls it does not name give `EPERM`, calls newer than all
//! it names give `ENOSYS` so that programs fall back, and so does `clone3`, whose flags a filter
//! cannot see.
//!
//! The filter is for this machine's own architecture and its 32-bit sibling (a `linux/386` step on
//! an amd64 machine makes such calls). Emulated programs make native calls. On architectures whose
//! numbers we do not have there is no filter.
//!
//! The program is a binary search over ranges of numbers and not a chain of comparisons: some 400
//! instructions instead of 4000, which the kernel checks and translates anew for every step.

mod program;
mod syscalls;

use std::io;

use program::{Condition, Outcome, Ranges};
use syscalls::Abi;

pub(crate) use program::Instruction;

/// Numbers of capabilities that widen the filter.
mod capability {
    pub(super) const DAC_READ_SEARCH: u32 = 2;
    pub(super) const SYS_MODULE: u32 = 16;
    pub(super) const SYS_RAWIO: u32 = 17;
    pub(super) const SYS_CHROOT: u32 = 18;
    pub(super) const SYS_PTRACE: u32 = 19;
    pub(super) const SYS_PACCT: u32 = 20;
    pub(super) const SYS_ADMIN: u32 = 21;
    pub(super) const SYS_BOOT: u32 = 22;
    pub(super) const SYS_NICE: u32 = 23;
    pub(super) const SYS_TIME: u32 = 25;
    pub(super) const SYS_TTY_CONFIG: u32 = 26;
    pub(super) const SYSLOG: u32 = 34;
    pub(super) const PERFMON: u32 = 38;
    pub(super) const BPF: u32 = 39;
}

/// Calls allowed only to who has that capability. A call in several rows needs one of them.
const BY_CAPABILITY: &[(u32, &[&str])] = &[
    (capability::DAC_READ_SEARCH, &["open_by_handle_at"]),
    (
        capability::SYS_ADMIN,
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (capability::SYS_BOOT, &["reboot"]),
    (capability::SYS_CHROOT, &["chroot"]),
    (
        capability::SYS_MODULE,
        &["delete_module", "init_module", "finit_module"],
    ),
    (capability::SYS_PACCT, &["acct"]),
    (
        capability::SYS_PTRACE,
        &["kcmp", "pidfd_getfd", "process_madvise"],
    ),
    (capability::SYS_RAWIO, &["iopl", "ioperm"]),
    (
        capability::SYS_TIME,
        &["settimeofday", "stime", "clock_settime", "clock_settime64"],
    ),
    (capability::SYS_TTY_CONFIG, &["vhangup"]),
    (
        capability::SYS_NICE,
        &[
            "get_mempolicy",
            "mbind",
            "set_mempolicy",
            "set_mempolicy_home_node",
        ],
    ),
    (capability::SYSLOG, &["syslog"]),
    (capability::BPF, &["bpf"]),
    (capability::PERFMON, &["perf_event_open"]),
];

/// Flags of `clone` that make namespaces.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;
/// Address families that `socket` refuses.
const AF_ALG: u32 = 38;
const AF_VSOCK: u32 = 40;
/// What `personality` may be asked for.
const PERSONALITIES: [u32; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The architectures whose programs a 64-bit x86 runs: the kernel's audit number and ours.
const ON_X86_64: &[(u32, Abi)] = &[(0xc000_003e, Abi::X86_64), (0x4000_0003, Abi::X86)];
/// The same for a 64-bit arm; not all have the 32-bit mode.
const ON_AARCH64: &[(u32, Abi)] = &[(0xc000_00b7, Abi::Aarch64), (0x4000_0028, Abi::Arm)];

/// The filter for a process with these capabilities (a bit each), empty where there is none.
pub(crate) fn default_filter(capabilities: u64) -> Vec<Instruction> {
    match std::env::consts::ARCH {
        "x86_64" => filter_on(ON_X86_64, capabilities),
        "aarch64" => filter_on(ON_AARCH64, capabilities),
        _ => Vec::new(),
    }
}

/// Filters the calling thread from now on, and all that it starts.
///
/// Needs `CAP_SYS_ADMIN` or no-new-privileges; without either, `EACCES`.
pub(crate) fn install(filter: &[Instruction]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const Instruction,
    }
    let length = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = Program {
        length,
        filter: filter.as_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives through the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &program,
        )
    };
    crate::sys::check(rc).map(drop)
}

/// Whether this kernel has such filters at all.
pub(crate) fn supported() -> bool {
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads a number through the pointer.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &action,
        )
    };
    rc == 0
}

/// The filter on a machine with these architectures.
fn filter_on(architectures: &[(u32, Abi)], capabilities: u64) -> Vec<Instruction> {
    let tables: Vec<(u32, Ranges)> = architectures
        .iter()
        .map(|(audit, abi)| (*audit, ranges(*abi, capabilities)))
        .collect();
    program::assemble(&tables)
}

/// What happens to each call of that architecture.
fn ranges(abi: Abi, capabilities: u64) -> Ranges {
    let has = |capability: u32| capabilities & (1 << capability) != 0;
    let mut calls: Vec<(u32, Outcome)> = Vec::with_capacity(syscalls::TABLE.len());
    for (name, _) in syscalls::TABLE {
        let Some(number) = syscalls::number(abi, name) else {
            continue;
        };
        let mut rows = BY_CAPABILITY
            .iter()
            .filter(|(_, names)| names.contains(name))
            .peekable();
        let outcome = match *name {
            _ if rows.peek().is_none() => special(name).unwrap_or(Outcome::Allow),
            _ if rows.any(|(capability, _)| has(*capability)) => Outcome::Allow,
            "clone" => Outcome::If(vec![Condition::NoBits {
                argument: 0,
                bits: CLONE_NAMESPACES,
            }]),
            "clone3" => Outcome::Errno(libc::ENOSYS as u16),
            _ => Outcome::Errno(libc::EPERM as u16),
        };
        calls.push((number, outcome));
    }
    Ranges::new(calls)
}

/// Calls that depend on an argument.
fn special(name: &str) -> Option<Outcome> {
    match name {
        "socket" => Some(Outcome::If(vec![
            Condition::Less {
                argument: 0,
                value: AF_ALG,
            },
            Condition::Equal {
                argument: 0,
                value: AF_ALG + 1,
            },
            Condition::Greater {
                argument: 0,
                value: AF_VSOCK,
            },
        ])),
        "personality" => Some(Outcome::If(
            PERSONALITIES
                .map(|value| Condition::Equal { argument: 0, value })
                .into(),
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::program::{Call, evaluate};
    use super::*;

    const DOCKER_DEFAULT: u64 = 0xa804_25fb;
    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;
    /// Calls with these numbers and later ones have them on all machines (Linux 5.1).
    const FIRST_SHARED: i32 = 403;
    const FIRST_FOR_ALL: i32 = 424;

    /// Every architecture on the machine it occurs on, whatever machine the tests run on.
    fn everywhere() -> impl Iterator<Item = Place> {
        [ON_X86_64, ON_AARCH64].into_iter().flat_map(|machine| {
            machine.iter().map(move |(audit, abi)| Place {
                machine,
                audit: *audit,
                abi: *abi,
            })
        })
    }

    struct Place {
        machine: &'static [(u32, Abi)],
        audit: u32,
        abi: Abi,
    }

    impl Place {
        fn answer(&self, capabilities: u64, name: &str, argument: u64) -> u32 {
            let call = Call {
                number: syscalls::number(self.abi, name).unwrap(),
                architecture: self.audit,
                arguments: [argument, 0, 0, 0, 0, 0],
            };
            evaluate(&filter_on(self.machine, capabilities), &call)
        }
    }

    #[test]
    fn the_table_is_sorted_and_without_doubles() {
        for abi in [Abi::X86_64, Abi::X86, Abi::Aarch64, Abi::Arm] {
            let mut numbers: Vec<u32> = syscalls::TABLE
                .iter()
                .filter_map(|(name, _)| syscalls::number(abi, name))
                .collect();
            assert!(numbers.len() > 300, "{abi:?}: {}", numbers.len());
            let all = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            // Some calls have two names in one architecture.
            assert!(all - numbers.len() <= 6, "{abi:?}");
        }
    }

    #[test]
    fn numbers_since_linux_5_1_are_the_same_everywhere() {
        for (name, numbers) in syscalls::TABLE {
            let [x86_64, x86, aarch64, arm] = *numbers;
            if x86 < FIRST_SHARED {
                continue;
            }
            // 32-bit arm was left without the call.
            if *name != "memfd_secret" {
                assert_eq!(arm, x86, "{name}");
            }
            // Below are 32-bit machines' calls with 64-bit times.
            let wide = if x86 < FIRST_FOR_ALL { -1 } else { x86 };
            assert_eq!([x86_64, aarch64], [wide; 2], "{name}");
        }
    }

    #[test]
    fn programs_with_64_bit_times_run_in_32_bit_modes() {
        for place in everywhere().filter(|place| matches!(place.abi, Abi::X86 | Abi::Arm)) {
            for name in ["clock_gettime64", "futex_time64", "ppoll_time64"] {
                let answer = place.answer(DOCKER_DEFAULT, name, 0);
                assert_eq!(answer, ALLOW, "{:?} {name}", place.abi);
            }
        }
    }

    #[test]
    fn the_profile_is_dockers() {
        for place in everywhere() {
            let ask = |name: &str, argument: u64| place.answer(DOCKER_DEFAULT, name, argument);
            for name in [
                "read", "execve", "ptrace", "chroot", "openat", "futex", "capset",
            ] {
                assert_eq!(ask(name, 0), ALLOW, "{name}");
            }
            for name in [
                "mount",
                "unshare",
                "setns",
                "bpf",
                "reboot",
                "open_tree",
                "umount2",
            ] {
                assert_eq!(ask(name, 0), EPERM, "{name}");
            }
            assert_eq!(ask("clone3", 0), ENOSYS);
            assert_eq!(ask("clone", 0x11), ALLOW);
            assert_eq!(ask("clone", 0x1000_0011), EPERM);
            assert_eq!(ask("socket", 2), ALLOW);
            assert_eq!(ask("socket", 38), EPERM);
            assert_eq!(ask("socket", 39), ALLOW);
            assert_eq!(ask("socket", 40), EPERM);
            assert_eq!(ask("socket", 41), ALLOW);
            assert_eq!(ask("personality", 0x2_0008), ALLOW);
            assert_eq!(ask("personality", 0x4_0000), EPERM);
            assert_eq!(ask("personality", 0xffff_ffff), ALLOW);
        }
    }

    #[test]
    fn capabilities_widen_the_profile() {
        for place in everywhere() {
            let admin = DOCKER_DEFAULT | 1 << capability::SYS_ADMIN;
            assert_eq!(place.answer(admin, "mount", 0), ALLOW);
            assert_eq!(place.answer(admin, "clone3", 0), ALLOW);
            let no_chroot = DOCKER_DEFAULT & !(1 << capability::SYS_CHROOT);
            assert_eq!(place.answer(no_chroot, "chroot", 0), EPERM);
        }
    }

    #[test]
    fn calls_from_the_future_and_other_architectures_are_refused() {
        let call = |number, architecture| Call {
            number,
            architecture,
            arguments: [0; 6],
        };
        for machine in [ON_X86_64, ON_AARCH64] {
            let filter = filter_on(machine, DOCKER_DEFAULT);
            for (audit, _) in machine {
                assert_eq!(evaluate(&filter, &call(600, *audit)), ENOSYS);
                // x32 calls carry this bit.
                assert_eq!(evaluate(&filter, &call(0x4000_0001, *audit)), ENOSYS);
            }
            assert_eq!(evaluate(&filter, &call(1, 0x1234)), EPERM);
            assert!(filter.len() < 1200, "{}", filter.len());
        }
    }

    #[test]
    fn there_is_a_filter_for_this_machine() {
        assert!(!default_filter(DOCKER_DEFAULT).is_empty());
    }
}
