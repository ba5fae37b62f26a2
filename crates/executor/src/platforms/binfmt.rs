//! What the kernel's `binfmt_misc` has registered.
//!
//! Whether a platform works is found out by running a program of it; this is for saying why it
//! does not.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::elf::Machine;

/// A registered format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Registration {
    pub(super) name: String,
    pub(super) enabled: bool,
    /// What runs programs of the format.
    pub(super) interpreter: String,
    /// Whether the interpreter was opened at registration, so that it works in any root.
    pub(super) fixed: bool,
    magic: Vec<u8>,
    offset: usize,
}

impl Registration {
    /// Whether programs of that machine are of this format.
    pub(super) fn is_for(&self, machine: &Machine) -> bool {
        // A mask may hide other bytes; these are never hidden.
        let at = |index: usize| self.magic.get(index).copied();
        let program = machine.program();
        self.offset == 0
            && self.magic.starts_with(b"\x7fELF")
            && [4, 5, 18, 19]
                .iter()
                .all(|index| at(*index) == program.get(*index).copied())
    }
}

/// Everything registered; empty when that cannot be seen.
///
/// Where nobody has mounted the file system, as in most containers, it is mounted for us alone.
pub(super) fn registrations() -> Vec<Registration> {
    let usual = Path::new("/proc/sys/fs/binfmt_misc");
    if usual.join("status").exists() {
        return read_all(usual);
    }
    match private_mount() {
        Ok(mount) => read_all(&PathBuf::from(format!(
            "/proc/self/fd/{}",
            mount.as_raw_fd()
        ))),
        Err(_) => Vec::new(),
    }
}

/// A mount that is nowhere in the tree and goes away with its descriptor.
fn private_mount() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("binfmt_misc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID,
    )?)
}

fn read_all(dir: &Path) -> Vec<Registration> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            if name == "register" || name == "status" {
                return None;
            }
            Some(parse(&name, &std::fs::read_to_string(entry.path()).ok()?))
        })
        .collect()
}

/// Reads the text the kernel shows for one: `enabled`, `interpreter …`, `flags: …`, `offset …`,
/// `magic …`.
fn parse(name: &str, text: &str) -> Registration {
    let mut found = Registration {
        name: name.to_owned(),
        ..Registration::default()
    };
    for line in text.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "enabled" => found.enabled = true,
            "interpreter" => found.interpreter = value.to_owned(),
            "flags:" => found.fixed = value.contains('F'),
            "offset" => found.offset = value.parse().unwrap_or(0),
            "magic" => {
                found.magic = value
                    .as_bytes()
                    .chunks_exact(2)
                    .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                    .collect();
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_is_read() {
        let text = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\n\
            magic 7f454c460201010000000000000000000200b700\n\
            mask ffffffffffffff00fffffffffffffffffeffffff\n";
        let found = parse("qemu-aarch64", text);
        assert!(found.enabled && found.fixed);
        assert_eq!(found.interpreter, "/usr/bin/qemu-aarch64-static");
        assert!(found.is_for(Machine::of("arm64").unwrap()));
        assert!(!found.is_for(Machine::of("arm").unwrap()));
    }
}
