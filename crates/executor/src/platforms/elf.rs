//! The smallest programs: executables that do nothing but exit, for any architecture.

/// An architecture, and what its smallest program is made of.
#[derive(Debug)]
pub(super) struct Machine {
    /// GOARCH name.
    pub(super) architecture: &'static str,
    /// The number in an ELF header.
    pub(super) number: u16,
    pub(super) bits: Bits,
    pub(super) order: Order,
    /// Flags in the ELF header: which ABI.
    flags: u32,
    /// Instructions that call `exit(0)`.
    code: &'static [u8],
}

/// Size of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bits {
    B32 = 1,
    B64 = 2,
}

/// Byte order of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Little = 1,
    Big = 2,
}

/// All of them, in the order in which stock lists their platforms.
pub(super) const MACHINES: &[Machine] = &[
    Machine {
        architecture: "amd64",
        number: 62,
        bits: Bits::B64,
        order: Order::Little,
        flags: 0,
        // Not 0 but 65 for the plain architecture and 66 for its variant v2 (SSE4.2, POPCNT,
        // CMPXCHG16B, LAHF), as cpuid tells.
        code: &[
            0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
            0x0f, 0xa2, // cpuid
            0xbf, 0x41, 0x00, 0x00, 0x00, // mov edi, 65
            0x81, 0xe1, 0x01, 0x22, 0x98, 0x00, // and ecx, 0x982201
            0x81, 0xf9, 0x01, 0x22, 0x98, 0x00, // cmp ecx, 0x982201
            0x75, 0x11, // jne exit
            0xb8, 0x01, 0x00, 0x00, 0x80, // mov eax, 0x80000001
            0x0f, 0xa2, // cpuid
            0xf6, 0xc1, 0x01, // test cl, 1
            0x74, 0x05, // je exit
            0xbf, 0x42, 0x00, 0x00, 0x00, // mov edi, 66
            0xb8, 0x3c, 0x00, 0x00, 0x00, // exit: mov eax, 60
            0x0f, 0x05, // syscall
        ],
    },
    Machine {
        architecture: "arm64",
        number: 183,
        bits: Bits::B64,
        order: Order::Little,
        flags: 0,
        code: &[
            0x00, 0x00, 0x80, 0xd2, // mov x0, 0
            0xa8, 0x0b, 0x80, 0xd2, // mov x8, 93
            0x01, 0x00, 0x00, 0xd4, // svc 0
        ],
    },
    Machine {
        architecture: "riscv64",
        number: 243,
        bits: Bits::B64,
        order: Order::Little,
        flags: 5,
        code: &[
            0x13, 0x05, 0x00, 0x00, // li a0, 0
            0x93, 0x08, 0xd0, 0x05, // li a7, 93
            0x73, 0x00, 0x00, 0x00, // ecall
        ],
    },
    Machine {
        architecture: "ppc64",
        number: 21,
        bits: Bits::B64,
        order: Order::Big,
        flags: 2,
        code: &[
            0x38, 0x60, 0x00, 0x00, // li 3, 0
            0x38, 0x00, 0x00, 0x01, // li 0, 1
            0x44, 0x00, 0x00, 0x02, // sc
        ],
    },
    Machine {
        architecture: "ppc64le",
        number: 21,
        bits: Bits::B64,
        order: Order::Little,
        flags: 2,
        code: &[
            0x00, 0x00, 0x60, 0x38, // li 3, 0
            0x01, 0x00, 0x00, 0x38, // li 0, 1
            0x02, 0x00, 0x00, 0x44, // sc
        ],
    },
    Machine {
        architecture: "s390x",
        number: 22,
        bits: Bits::B64,
        order: Order::Big,
        flags: 0,
        code: &[
            0xa7, 0x29, 0x00, 0x00, // lghi %r2, 0
            0x0a, 0x01, // svc 1
        ],
    },
    Machine {
        architecture: "386",
        number: 3,
        bits: Bits::B32,
        order: Order::Little,
        flags: 0,
        code: &[
            0x31, 0xdb, // xor ebx, ebx
            0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
            0xcd, 0x80, // int 0x80
        ],
    },
    Machine {
        architecture: "mips64le",
        number: 8,
        bits: Bits::B64,
        order: Order::Little,
        flags: 0x8000_0007,
        code: &[
            0x00, 0x00, 0x04, 0x24, // li $a0, 0
            0xc2, 0x13, 0x02, 0x24, // li $v0, 5058
            0x0c, 0x00, 0x00, 0x00, // syscall
        ],
    },
    Machine {
        architecture: "mips64",
        number: 8,
        bits: Bits::B64,
        order: Order::Big,
        flags: 0x8000_0007,
        code: &[
            0x24, 0x04, 0x00, 0x00, // li $a0, 0
            0x24, 0x02, 0x13, 0xc2, // li $v0, 5058
            0x00, 0x00, 0x00, 0x0c, // syscall
        ],
    },
    Machine {
        architecture: "loong64",
        number: 258,
        bits: Bits::B64,
        order: Order::Little,
        flags: 0x43,
        code: &[
            0x04, 0x00, 0x80, 0x03, // ori $a0, $zero, 0
            0x0b, 0x74, 0x81, 0x03, // ori $a7, $zero, 93
            0x00, 0x00, 0x2b, 0x00, // syscall 0
        ],
    },
    Machine {
        architecture: "arm",
        number: 40,
        bits: Bits::B32,
        order: Order::Little,
        flags: 0x0500_0000,
        code: &[
            0x00, 0x00, 0xa0, 0xe3, // mov r0, 0
            0x01, 0x70, 0xa0, 0xe3, // mov r7, 1
            0x00, 0x00, 0x00, 0xef, // svc 0
        ],
    },
];

/// Where the program is loaded: a multiple of the largest page size that occurs.
const ADDRESS: u64 = 0x40_0000;
const PAGE_SIZE_MAX: u64 = 0x1_0000;

impl Machine {
    /// The machine of that GOARCH name.
    pub(super) fn of(architecture: &str) -> Option<&'static Machine> {
        MACHINES.iter().find(|m| m.architecture == architecture)
    }

    /// The executable: a header, one segment that is the whole file, and the instructions.
    pub(super) fn program(&self) -> Vec<u8> {
        let (header_size, segment_size) = match self.bits {
            Bits::B32 => (52, 32),
            Bits::B64 => (64, 56),
        };
        let code_at = header_size + segment_size;
        let size = code_at + self.code.len() as u64;
        let mut out = Vec::with_capacity(size as usize);
        out.extend_from_slice(b"\x7fELF");
        out.extend_from_slice(&[self.bits as u8, self.order as u8, 1]);
        out.resize(16, 0);
        self.half(&mut out, 2); // executable
        self.half(&mut out, self.number);
        self.word(&mut out, 1); // version
        self.address(&mut out, ADDRESS + code_at);
        self.address(&mut out, header_size); // segments
        self.address(&mut out, 0); // no sections
        self.word(&mut out, self.flags);
        self.half(&mut out, header_size as u16);
        self.half(&mut out, segment_size as u16);
        self.half(&mut out, 1);
        for _ in 0..3 {
            self.half(&mut out, 0);
        }
        const LOAD: u32 = 1;
        const READ_EXECUTE: u32 = 5;
        self.word(&mut out, LOAD);
        if self.bits == Bits::B64 {
            self.word(&mut out, READ_EXECUTE);
        }
        for value in [0, ADDRESS, ADDRESS, size, size] {
            self.address(&mut out, value);
        }
        if self.bits == Bits::B32 {
            self.word(&mut out, READ_EXECUTE);
        }
        self.address(&mut out, PAGE_SIZE_MAX);
        out.extend_from_slice(self.code);
        out
    }

    /// Whether that is the exit code of the program when it really ran.
    pub(super) fn ran(&self, exit_code: i32) -> bool {
        match self.architecture {
            "amd64" => exit_code == 65 || exit_code == 66,
            _ => exit_code == 0,
        }
    }

    fn half(&self, out: &mut Vec<u8>, value: u16) {
        match self.order {
            Order::Little => out.extend_from_slice(&value.to_le_bytes()),
            Order::Big => out.extend_from_slice(&value.to_be_bytes()),
        }
    }

    fn word(&self, out: &mut Vec<u8>, value: u32) {
        match self.order {
            Order::Little => out.extend_from_slice(&value.to_le_bytes()),
            Order::Big => out.extend_from_slice(&value.to_be_bytes()),
        }
    }

    fn address(&self, out: &mut Vec<u8>, value: u64) {
        match (self.bits, self.order) {
            (Bits::B32, _) => self.word(out, value as u32),
            (Bits::B64, Order::Little) => out.extend_from_slice(&value.to_le_bytes()),
            (Bits::B64, Order::Big) => out.extend_from_slice(&value.to_be_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_have_the_size_their_header_says() {
        for machine in MACHINES {
            let program = machine.program();
            let header = match machine.bits {
                Bits::B32 => 84,
                Bits::B64 => 120,
            };
            assert_eq!(program.len(), header + machine.code.len());
            assert_eq!(program[4], machine.bits as u8);
        }
    }
}
