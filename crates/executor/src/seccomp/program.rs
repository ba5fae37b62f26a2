//! Classic BPF for system call filters: ranges of numbers with outcomes, searched in halves.

/// An instruction (`struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    value: u32,
}

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is made.
    Allow,
    /// It gives this error.
    Errno(u16),
    /// It is made when one of these holds, else it gives `EPERM`.
    If(Vec<Condition>),
}

/// A test of the lower half of an argument; no argument tested here has more than 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Less { argument: u8, value: u32 },
    Greater { argument: u8, value: u32 },
    Equal { argument: u8, value: u32 },
    NoBits { argument: u8, bits: u32 },
}

/// Outcomes for all numbers: each holds from its number to the next one's.
#[derive(Clone, Debug)]
pub(super) struct Ranges(Vec<(u32, Outcome)>);

impl Ranges {
    /// From single calls: those between give `EPERM`, those after all of them `ENOSYS`.
    pub(super) fn new(mut calls: Vec<(u32, Outcome)>) -> Self {
        // Of two names for one number the one that allows holds.
        calls.sort_by_key(|(number, outcome)| (*number, *outcome != Outcome::Allow));
        calls.dedup_by_key(|(number, _)| *number);
        let newest = calls.iter().map(|(number, _)| *number);
        let newest = newest.filter(|n| *n < ARM_PRIVATE).max().unwrap_or(0);
        let errno = |number: i32| Outcome::Errno(number as u16);
        let mut starts = vec![(0, errno(libc::EPERM))];
        for (number, outcome) in calls {
            put(&mut starts, number, outcome);
            let unknown = if number < newest {
                libc::EPERM
            } else {
                libc::ENOSYS
            };
            put(&mut starts, number + 1, errno(unknown));
        }
        let mut ranges: Vec<(u32, Outcome)> = Vec::new();
        for (start, outcome) in starts {
            if ranges.last().is_none_or(|(_, last)| *last != outcome) {
                ranges.push((start, outcome));
            }
        }
        Ranges(ranges)
    }
}

/// Sets the outcome from `start` on.
fn put(starts: &mut Vec<(u32, Outcome)>, start: u32, outcome: Outcome) {
    match starts.last_mut() {
        Some(last) if last.0 == start => last.1 = outcome,
        _ => starts.push((start, outcome)),
    }
}

/// From here on 32-bit arm has calls of its own, which are no newer than others.
const ARM_PRIVATE: u32 = 0xf_0000;
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
/// Offsets in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
/// What a filter answers.
const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_ERRNO: u32 = 0x0005_0000;

fn statement(code: u16, value: u32) -> Instruction {
    branch(code, value, 0, 0)
}

fn branch(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction {
        code,
        if_true,
        if_false,
        value,
    }
}

/// The filter: the architecture's table is searched; other architectures are refused.
pub(super) fn assemble(tables: &[(u32, Ranges)]) -> Vec<Instruction> {
    let mut out = vec![statement(LOAD, ARCHITECTURE_AT)];
    for (audit, ranges) in tables {
        let mut body = vec![statement(LOAD, NUMBER_AT)];
        search(&ranges.0, &mut body);
        out.push(branch(JUMP_EQUAL, *audit, 1, 0));
        out.push(statement(JUMP, body.len() as u32));
        out.extend(body);
    }
    out.push(errno(libc::EPERM as u16));
    out
}

fn errno(number: u16) -> Instruction {
    statement(RETURN, RETURN_ERRNO | u32::from(number))
}

/// Code for a slice of the ranges; every path through it ends with an answer.
fn search(ranges: &[(u32, Outcome)], out: &mut Vec<Instruction>) {
    let [(_, outcome)] = ranges else {
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let mut below = Vec::new();
        search(low, &mut below);
        match u8::try_from(below.len()) {
            Ok(distance) => out.push(branch(JUMP_AT_LEAST, high[0].0, distance, 0)),
            // Conditional jumps go 255 far only.
            Err(_) => {
                out.push(branch(JUMP_AT_LEAST, high[0].0, 0, 1));
                out.push(statement(JUMP, below.len() as u32));
            }
        }
        out.extend(below);
        search(high, out);
        return;
    };
    match outcome {
        Outcome::Allow => out.push(statement(RETURN, RETURN_ALLOW)),
        Outcome::Errno(number) => out.push(errno(*number)),
        Outcome::If(conditions) => {
            for condition in conditions {
                test(*condition, out);
            }
            out.push(errno(libc::EPERM as u16));
        }
    }
}

/// Allows the call when the condition holds, else goes on.
fn test(condition: Condition, out: &mut Vec<Instruction>) {
    let (argument, jump) = match condition {
        Condition::Less { argument, value } => (argument, branch(JUMP_AT_LEAST, value, 1, 0)),
        Condition::Greater { argument, value } => (argument, branch(JUMP_GREATER, value, 0, 1)),
        Condition::Equal { argument, value } => (argument, branch(JUMP_EQUAL, value, 0, 1)),
        Condition::NoBits { argument, bits } => (argument, branch(JUMP_ANY_BIT, bits, 1, 0)),
    };
    // Little-endian machines only: the lower half comes first.
    out.push(statement(LOAD, ARGUMENTS_AT + 8 * u32::from(argument)));
    out.push(jump);
    out.push(statement(RETURN, RETURN_ALLOW));
}

/// A call as the kernel shows it to a filter.
#[cfg(test)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) architecture: u32,
    pub(super) arguments: [u64; 6],
}

/// Runs a filter as the kernel does.
#[cfg(test)]
pub(super) fn evaluate(filter: &[Instruction], call: &Call) -> u32 {
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let i = filter[at];
        at += 1;
        let holds = match i.code {
            LOAD => {
                accumulator = match i.value {
                    NUMBER_AT => call.number,
                    ARCHITECTURE_AT => call.architecture,
                    offset => call.arguments[(offset as usize - 16) / 8] as u32,
                };
                continue;
            }
            JUMP => {
                at += i.value as usize;
                continue;
            }
            RETURN => return i.value,
            JUMP_EQUAL => accumulator == i.value,
            JUMP_GREATER => accumulator > i.value,
            JUMP_AT_LEAST => accumulator >= i.value,
            JUMP_ANY_BIT => accumulator & i.value != 0,
            code => panic!("unknown instruction {code:#x}"),
        };
        at += usize::from(if holds { i.if_true } else { i.if_false });
    }
}
