//! Which devices the processes of a cgroup can open: those that every container has, while nodes of
//! any device can be made, as packages unpack them.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::step::{open_dir, raw, write_control};
use crate::spec::{DeviceKind, DeviceNode};

/// Read, write, make a node: the kernel's bits.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = 7;
/// Kinds, as the kernel's version 2 program sees them.
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// Something that is allowed: kind, major, minor (`None`: any), access.
type Rule = (u32, Option<u32>, Option<u32>, u32);

/// What every container may do.
const ALLOWED: &[Rule] = &[
    (CHAR, None, None, MKNOD),
    (BLOCK, None, None, MKNOD),
    (CHAR, Some(1), Some(3), ALL), // null
    (CHAR, Some(1), Some(5), ALL), // zero
    (CHAR, Some(1), Some(7), ALL), // full
    (CHAR, Some(1), Some(8), ALL), // random
    (CHAR, Some(1), Some(9), ALL), // urandom
    (CHAR, Some(5), Some(0), ALL), // tty
    (CHAR, Some(5), Some(1), ALL), // console
    (CHAR, Some(5), Some(2), ALL), // ptmx
    (CHAR, Some(136), None, ALL),  // pts
];

/// Through the control files of version 1.
pub(super) fn guard_v1(dir: &Path, devices: &[DeviceNode]) -> io::Result<()> {
    write_control(&dir.join("devices.deny"), "a")?;
    let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
    for (kind, major, minor, access) in rules(devices) {
        let kind = if kind == CHAR { 'c' } else { 'b' };
        let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        let letters = letters.into_iter().filter(|(bit, _)| access & bit != 0);
        let access: String = letters.map(|(_, letter)| letter).collect();
        let rule = format!("{kind} {}:{} {access}", number(major), number(minor));
        write_control(&dir.join("devices.allow"), &rule)?;
    }
    Ok(())
}

/// Through a program attached to a cgroup of version 2.
pub(super) fn guard_v2(dir: &Path, devices: &[DeviceNode]) -> io::Result<()> {
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;

    #[repr(C)]
    struct Attach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }
    let program = load(&program(devices))?;
    let cgroup = open_dir(dir)?;
    let attach = Attach {
        target_fd: raw(&cgroup),
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the structure lives through the call and its size is given.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &attach, size_of::<Attach>()) };
    crate::sys::check(rc).map(drop)
}

/// What every container may do, and the use of some devices.
fn rules(devices: &[DeviceNode]) -> impl Iterator<Item = Rule> {
    let more = devices.iter().filter_map(|node| {
        let kind = match node.kind {
            DeviceKind::Char => CHAR,
            DeviceKind::Block => BLOCK,
            // Anybody can open these.
            DeviceKind::Fifo => return None,
        };
        let read = if node.read { READ } else { 0 };
        let write = if node.write { WRITE } else { 0 };
        let access = MKNOD | read | write;
        Some((kind, Some(node.major), Some(node.minor), access))
    });
    ALLOWED.iter().copied().chain(more)
}

/// An instruction of the kernel's virtual machine (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Target register in the low four bits, source in the high.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

/// Answers 1 for what is allowed, else 0. Given: `{ u32 access << 16 | kind; u32 major, minor }`.
fn program(devices: &[DeviceNode]) -> Vec<Instruction> {
    const LOAD: u8 = 0x61; // u32 from memory
    const MOVE: u8 = 0xbc; // 32-bit register
    const AND: u8 = 0x54;
    const SHIFT_RIGHT: u8 = 0x74;
    const SET: u8 = 0xb7;
    const JUMP_NOT_EQUAL: u8 = 0x56; // 32-bit, immediate
    const EXIT: u8 = 0x95;

    let mut out = vec![
        instruction(LOAD, 2, 1, 0, 0),
        instruction(MOVE, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),     // r2: kind
        instruction(SHIFT_RIGHT, 3, 0, 0, 16), // r3: access
        instruction(LOAD, 4, 1, 4, 0),         // r4: major
        instruction(LOAD, 5, 1, 8, 0),         // r5: minor
    ];
    for (kind, major, minor, access) in rules(devices) {
        // Each test jumps over what is left of its rule, which ends with "return 1".
        let mut tests = vec![(2u8, kind)];
        tests.extend(major.map(|n| (4, n)));
        tests.extend(minor.map(|n| (5, n)));
        let denied = !access & ALL;
        let access_length: i16 = if denied == 0 { 0 } else { 3 };
        let mut left = tests.len() as i16 + access_length + 2;
        for (register, value) in tests {
            left -= 1;
            out.push(instruction(JUMP_NOT_EQUAL, register, 0, left, value as i32));
        }
        if denied != 0 {
            out.push(instruction(MOVE, 6, 3, 0, 0));
            out.push(instruction(AND, 6, 0, 0, denied as i32));
            out.push(instruction(JUMP_NOT_EQUAL, 6, 0, 2, 0));
        }
        out.push(instruction(SET, 0, 0, 0, 1));
        out.push(instruction(EXIT, 0, 0, 0, 0));
    }
    out.push(instruction(SET, 0, 0, 0, 0));
    out.push(instruction(EXIT, 0, 0, 0, 0));
    out
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;

    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
    }
    let license = c"Apache-2.0";
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
    };
    // SAFETY: the program and the license live through the call, which copies them.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &load, size_of::<Load>()) };
    let fd = crate::sys::check(rc)?;
    // SAFETY: the call has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little of the kernel's machine: enough for our own program.
    fn run(program: &[Instruction], context: [u32; 3]) -> i32 {
        let mut registers = [0i64; 11];
        let mut at = 0;
        loop {
            let i = program[at];
            let (to, from) = ((i.registers & 15) as usize, (i.registers >> 4) as usize);
            at += 1;
            match i.code {
                0x61 => registers[to] = i64::from(context[i.offset as usize / 4]),
                0xbc => registers[to] = registers[from],
                0x54 => registers[to] &= i64::from(i.immediate),
                0x74 => registers[to] >>= i.immediate,
                0xb7 => registers[to] = i64::from(i.immediate),
                0x56 if registers[to] != i64::from(i.immediate) => {
                    at = (at as i64 + i64::from(i.offset)) as usize;
                }
                0x56 => {}
                0x95 => return registers[0] as i32,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn usual_devices_open_and_disks_do_not_but_nodes_can_be_made() {
        let kvm = DeviceNode {
            kind: DeviceKind::Char,
            major: 10,
            minor: 232,
            mode: 0o600,
            uid: 0,
            gid: 0,
            read: true,
            write: false,
            host_path: "/dev/kvm".into(),
        };
        let with_kvm = program(&[kvm]);
        let ask = |access: u32| run(&with_kvm, [access << 16 | CHAR, 10, 232]);
        assert_eq!((ask(READ), ask(WRITE), ask(READ | WRITE)), (1, 0, 0));
        let program = program(&[]);
        let ask = |kind: u32, major: u32, minor: u32, access: u32| {
            run(&program, [access << 16 | kind, major, minor])
        };
        assert_eq!(ask(CHAR, 1, 3, 6), 1);
        assert_eq!(ask(CHAR, 136, 7, 6), 1);
        assert_eq!(ask(CHAR, 10, 232, 2), 0);
        assert_eq!(ask(BLOCK, 8, 0, 2), 0);
        assert_eq!(ask(BLOCK, 8, 0, 1), 1);
        assert_eq!(ask(BLOCK, 8, 0, 3), 0);
    }

    #[test]
    fn the_kernel_takes_the_program_and_obeys_it() {
        let Some(top) = super::super::detect::hierarchies()
            .into_iter()
            .find(|h| h.v2)
        else {
            return;
        };
        let dir = top
            .mount
            .join(format!("cooperage-device-test-{}", std::process::id()));
        // Where nothing can be made, as in an ordinary container, there is nothing to see.
        if std::fs::create_dir(&dir).is_err() {
            return;
        }
        let guarded = guard_v2(&dir, &[]);
        let script = format!(
            "echo 0 > {}/cgroup.procs && true < /dev/null && true < /dev/zero && ! true < /dev/kmsg",
            dir.display()
        );
        let status = std::process::Command::new("sh")
            .args(["-c", &script])
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        super::super::destroy(&dir).unwrap();
        guarded.unwrap();
        assert!(status.success());
    }
}
