//! What is in a step's `/dev`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, makedev};

use super::mounts::{clone_tree, move_onto};
use crate::spec::{DeviceKind, DeviceNode};

/// Devices that every step has: name, major, minor.
const NODES: &[(&str, u32, u32)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// Links that every step has.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// What stock gives to steps that may have all devices, whether this machine has them or not.
const INSECURE_NODES: &[(&str, u32, u32)] = &[
    ("kmsg", 1, 11),
    ("cuse", 10, 203),
    ("fuse", 10, 229),
    ("kvm", 10, 232),
    ("net/tun", 10, 200),
    ("loop-control", 10, 237),
];
/// Loop devices they get that are not in use, besides those that are.
const FREE_LOOPS: u32 = 8;
/// Names of this machine's `/dev` that are not devices of it.
const NOT_COPIED: &[&str] = &[
    "pts",
    "shm",
    "mqueue",
    "fd",
    "stdin",
    "stdout",
    "stderr",
    "core",
    "ptmx",
    "console",
    "tty",
    "log",
    "hugepages",
];
/// How deep `/dev` is looked through for `insecure` steps.
const DEPTH_MAX: u32 = 4;

/// Fills a new `/dev`, which is mounted already.
///
/// With `bind` the nodes are this machine's own, bound; else they are made, and bound only when
/// they cannot be made.
pub(super) fn populate(dev: &OwnedFd, insecure: bool, bind: bool) -> io::Result<()> {
    for (name, major, minor) in NODES {
        if bind || node(dev, name, FileType::CharacterDevice, 0o666, *major, *minor).is_err() {
            bind_node(dev, name)?;
        }
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(*target, dev, *name)?;
    }
    if Path::new("/proc/kcore").exists() {
        rustix::fs::symlinkat("/proc/kcore", dev, "core")?;
    }
    if !insecure {
        return Ok(());
    }
    // What of these cannot be made here is not to be had. They come before this machine's own, whose
    // modes are stricter.
    let _ = rustix::fs::mkdirat(dev, "net", Mode::from_raw_mode(0o755));
    for (name, major, minor) in INSECURE_NODES {
        let _ = node(dev, name, FileType::CharacterDevice, 0o666, *major, *minor);
    }
    for number in 0..first_free_loop() + FREE_LOOPS {
        let name = format!("loop{number}");
        let _ = node(dev, &name, FileType::BlockDevice, 0o666, 7, number);
    }
    copy_all(dev, Path::new("/dev"), Path::new(""), DEPTH_MAX);
    Ok(())
}

/// The first loop device that nobody uses; 0 where that is not known.
fn first_free_loop() -> u32 {
    const GET_FREE: libc::c_ulong = 0x4c82;
    let Ok(control) = std::fs::File::open("/dev/loop-control") else {
        return 0;
    };
    // SAFETY: the request takes no argument.
    let free = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE as _) };
    u32::try_from(free).unwrap_or(0)
}

/// Makes one node.
pub(super) fn make(dir: &OwnedFd, name: &str, wanted: &DeviceNode) -> io::Result<()> {
    let kind = match wanted.kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    node(dir, name, kind, wanted.mode, wanted.major, wanted.minor)?;
    let owner = rustix::fs::Uid::from_raw(wanted.uid);
    let group = rustix::fs::Gid::from_raw(wanted.gid);
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(dir, name, Some(owner), Some(group), flags)?;
    // Whatever the mask of modes was.
    let mode = Mode::from_raw_mode(wanted.mode);
    Ok(rustix::fs::chmodat(dir, name, mode, AtFlags::empty())?)
}

/// Shows the step's terminal as `/dev/console`.
pub(super) fn console(root: &OwnedFd, terminal: &OwnedFd) -> io::Result<()> {
    let dev = crate::rootpath::open_in_root(root, "/dev", OFlags::PATH)?;
    let flags = OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    drop(rustix::fs::openat(
        &dev,
        "console",
        flags,
        Mode::from_raw_mode(0o600),
    )?);
    let target = rustix::fs::openat(
        &dev,
        "console",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    move_onto(&super::mounts::clone_tree_of(terminal)?, &target)
}

fn node(
    dev: &OwnedFd,
    name: &str,
    kind: FileType,
    mode: u32,
    major: u32,
    minor: u32,
) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    Ok(rustix::fs::mknodat(
        dev,
        name,
        kind,
        mode,
        makedev(major, minor),
    )?)
}

fn bind_node(dev: &OwnedFd, name: &str) -> io::Result<()> {
    let source = clone_tree(CWD, &Path::new("/dev").join(name))?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(rustix::fs::openat(
        dev,
        name,
        flags,
        Mode::from_raw_mode(0o666),
    )?);
    let target = rustix::fs::openat(
        dev.as_fd(),
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    move_onto(&source, &target)
}

/// Makes a node for every device below `from`.
fn copy_all(dev: &OwnedFd, from: &Path, below: &Path, depth: u32) {
    let Ok(entries) = std::fs::read_dir(from) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let at_top = below.as_os_str().is_empty();
        if at_top && NOT_COPIED.iter().any(|not| name == *not) {
            continue;
        }
        let Ok(meta) = entry.path().symlink_metadata() else {
            continue;
        };
        let path = below.join(&name);
        let kind = meta.file_type();
        let node_kind = if kind.is_char_device() {
            FileType::CharacterDevice
        } else if kind.is_block_device() {
            FileType::BlockDevice
        } else {
            if kind.is_dir() && depth > 0 {
                let _ = rustix::fs::mkdirat(dev, &path, Mode::from_raw_mode(0o755));
                copy_all(dev, &entry.path(), &path, depth - 1);
            }
            continue;
        };
        let mode = Mode::from_raw_mode(meta.mode() & 0o7777);
        let _ = rustix::fs::mknodat(dev, &path, node_kind, mode, meta.rdev());
    }
}
