//! The mounts that a step sees, made in its own mount namespace.
//!
//! Everything goes through the new mount API on descriptors: a target is first resolved inside the
//! root (see [`crate::rootpath`]), then the mount is moved onto that very place, so nothing in the
//! image can redirect it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::devices;
use crate::cgroup::{StepCgroup, StepPlan};
use crate::launch::{Doing, Failure, Launch, LaunchMount, LaunchSource};
use crate::rootpath::{self, Creation, Kind};
use crate::spec::DeviceNode;
use crate::sys::{attr, mount_setattr};

/// What a step in the sandbox cannot see.
const MASKED: &[&str] = &[
    "proc/acpi",
    "proc/asound",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sched_debug",
    "proc/scsi",
    "sys/firmware",
    "sys/devices/virtual/powercap",
];
/// What it cannot write.
const READONLY: &[&str] = &[
    "proc/bus",
    "proc/fs",
    "proc/irq",
    "proc/sys",
    "proc/sysrq-trigger",
];
/// Size of `/dev` and `/dev/shm`.
const DEV_SIZE: &str = "65536k";
const NO_EXEC_DEV_SUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// The root being furnished.
pub(super) struct Root<'a> {
    launch: &'a Launch,
    files: &'a [u8],
    plan: &'a StepPlan,
    cgroup: &'a StepCgroup,
    /// The root mount.
    pub(super) fd: OwnedFd,
    /// A file system in memory for files of ours, out of the step's reach.
    scratch: OwnedFd,
}

/// What is mounted where, in order.
#[derive(Clone, Copy, Debug)]
enum Planned<'a> {
    Proc,
    Dev,
    Devpts,
    Shm,
    Mqueue,
    Sysfs,
    ResolvConf,
    Hosts,
    Cgroup,
    User(&'a LaunchMount),
}

impl<'a> Root<'a> {
    /// Takes the root file system into this mount namespace, which must be a new one.
    pub(super) fn open(
        launch: &'a Launch,
        files: &'a [u8],
        plan: &'a StepPlan,
        cgroup: &'a StepCgroup,
    ) -> Result<Self, Failure> {
        rustix::mount::mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .doing(|| "making mounts private")?;
        let scratch = filesystem("tmpfs", &[("mode", "700")], NO_EXEC_DEV_SUID)
            .and_then(|scratch| {
                move_to(&scratch, CWD, &launch.scratch)?;
                Ok(scratch)
            })
            .doing(|| format!("mounting {}", launch.scratch.display()))?;
        let fd = clone_tree(CWD, &launch.rootfs)
            .doing(|| format!("opening root file system {}", launch.rootfs.display()))?;
        move_to(&fd, CWD, &launch.rootfs).doing(|| "mounting the root file system")?;
        let root = Root {
            launch,
            files,
            plan,
            cgroup,
            fd,
            scratch,
        };
        if root.nodev() {
            restrict(&root.fd, attr::NODEV, true).doing(|| "restricting the root file system")?;
        }
        Ok(root)
    }

    /// Without a cgroup that guards devices no mount of a sandbox has any but the usual ones.
    fn nodev(&self) -> bool {
        !self.launch.insecure && !self.cgroup.devices_guarded()
    }

    /// Makes all mounts.
    pub(super) fn furnish(&self) -> Result<(), Failure> {
        for (dest, planned) in plan(&self.launch.mounts)? {
            self.mount(&dest, planned)
                .doing(|| format!("mounting {}", dest.display()))?;
        }
        if !self.launch.insecure {
            self.mask().doing(|| "masking paths of the system")?;
        }
        if self.launch.readonly_rootfs {
            restrict(&self.fd, attr::RDONLY, false)
                .doing(|| "making the root file system read-only")?;
        }
        Ok(())
    }

    /// Makes this the root of the process, and the old one unreachable.
    pub(super) fn enter(self) -> Result<(), Failure> {
        self.pivot().doing(|| "changing the root")?;
        rustix::process::chdir("/").doing(|| "changing to /")
    }

    fn pivot(&self) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let old = rustix::fs::open("/", flags, Mode::empty())?;
        rustix::process::fchdir(&self.fd)?;
        match rustix::process::pivot_root(".", ".") {
            Ok(()) => {
                rustix::process::fchdir(&old)?;
                rustix::mount::unmount(".", UnmountFlags::DETACH)?;
            }
            // The root of an initial ram disk cannot be pivoted away: it is covered.
            Err(rustix::io::Errno::INVAL) => {
                move_to(&self.fd, CWD, Path::new("/"))?;
                rustix::process::chroot(".")?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn mount(&self, dest: &Path, planned: Planned<'_>) -> io::Result<()> {
        match planned {
            Planned::Proc => {
                self.plain_directory(dest)?;
                let proc = filesystem("proc", &[], NO_EXEC_DEV_SUID)?;
                self.attach(&proc, dest, Kind::Directory)
            }
            Planned::Dev => {
                let options = [("mode", "755"), ("size", DEV_SIZE)];
                let dev = filesystem("tmpfs", &options, MountAttrFlags::MOUNT_ATTR_NOSUID)?;
                self.attach(&dev, dest, Kind::Directory)?;
                devices::populate(&dev, self.launch.insecure, self.nodev())?;
                if self.nodev() {
                    restrict(&dev, attr::NODEV, false)?;
                }
                Ok(())
            }
            Planned::Devpts => {
                let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
                let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
                let devpts = filesystem("devpts", &options, flags)?;
                self.attach(&devpts, dest, Kind::Directory)
            }
            Planned::Shm => {
                let options = [("mode", "1777"), ("size", DEV_SIZE)];
                let shm = filesystem("tmpfs", &options, NO_EXEC_DEV_SUID)?;
                self.attach(&shm, dest, Kind::Directory)
            }
            Planned::Mqueue => {
                let mqueue = filesystem("mqueue", &[], NO_EXEC_DEV_SUID)?;
                self.attach(&mqueue, dest, Kind::Directory)
            }
            Planned::Sysfs => {
                self.plain_directory(dest)?;
                self.sysfs(dest)
            }
            Planned::ResolvConf => self.own_file(dest, &self.launch.resolv_conf),
            Planned::Hosts => self.own_file(dest, &self.launch.hosts),
            Planned::Cgroup => self.cgroups(dest),
            Planned::User(mount) => self.user(dest, mount),
        }
    }

    /// Refuses images whose `/proc` or `/sys` is a link that leads elsewhere: what is masked and
    /// made read-only there would be somewhere else.
    fn plain_directory(&self, dest: &Path) -> io::Result<()> {
        let (resolved, _) = rootpath::survey(&self.fd, dest)?;
        if resolved != dest {
            return Err(io::Error::other("it must be an ordinary directory"));
        }
        Ok(())
    }

    fn attach(&self, mount: &OwnedFd, dest: &Path, kind: Kind) -> io::Result<()> {
        let creation = Creation {
            kind,
            owner: None,
            keep_parent_times: true,
        };
        let target = rootpath::open_or_create(&self.fd, dest, creation)?;
        let both_are_empty =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(rustix::mount::move_mount(
            mount,
            "",
            &target,
            "",
            both_are_empty,
        )?)
    }

    fn sysfs(&self, dest: &Path) -> io::Result<()> {
        let mut flags = NO_EXEC_DEV_SUID;
        if !self.launch.insecure {
            flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        match filesystem("sysfs", &[], flags) {
            Ok(sysfs) => self.attach(&sysfs, dest, Kind::Directory),
            // A network namespace that belongs to others: show theirs.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                let sysfs = clone_tree(CWD, Path::new("/sys"))?;
                self.attach(&sysfs, dest, Kind::Directory)?;
                restrict(&sysfs, attr::RDONLY, true)
            }
            Err(error) => Err(error),
        }
    }

    /// A file that only this step sees, read-only.
    fn own_file(&self, dest: &Path, content: &str) -> io::Result<()> {
        let name = dest.file_name().unwrap_or_default();
        self.memory_file(Path::new(name), content.as_bytes(), 0o644, None)?;
        let mount = clone_tree(&self.scratch, Path::new(name))?;
        self.attach(&mount, dest, Kind::File)?;
        let all = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
        restrict(&mount, all, false)
    }

    fn memory_file(
        &self,
        name: &Path,
        content: &[u8],
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> io::Result<()> {
        use std::io::Write;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.scratch, name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(fd);
        file.write_all(content)?;
        if let Some((uid, gid)) = owner {
            rustix::fs::fchown(
                &file,
                Some(rustix::fs::Uid::from_raw(uid)),
                Some(rustix::fs::Gid::from_raw(gid)),
            )?;
        }
        Ok(rustix::fs::fchmod(
            &file,
            Mode::from_raw_mode(mode & 0o7777),
        )?)
    }

    /// Shows the step its own cgroup, read-only. A machine that does not let us is no error.
    fn cgroups(&self, dest: &Path) -> io::Result<()> {
        if dest.parent().and_then(Path::file_name) != Some("fs".as_ref()) {
            return Ok(());
        }
        if self.cgroup.is_v2() {
            let mut flags = NO_EXEC_DEV_SUID;
            if !self.launch.insecure {
                flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
            }
            if let Ok(cgroup) = filesystem("cgroup2", &[], flags) {
                let _ = self.attach(&cgroup, dest, Kind::Directory);
            }
            return Ok(());
        }
        let shown = &self.plan.shown;
        if shown.is_empty() || rootpath::open_in_root(&self.fd, dest, OFlags::PATH).is_err() {
            return Ok(());
        }
        let top = filesystem("tmpfs", &[("mode", "755")], NO_EXEC_DEV_SUID)?;
        self.attach(&top, dest, Kind::Directory)?;
        for (name, dir) in shown {
            let Ok(mount) = clone_tree(CWD, dir) else {
                continue;
            };
            self.attach(&mount, &dest.join(name), Kind::Directory)?;
        }
        let mut attributes = attr::NOSUID | attr::NODEV | attr::NOEXEC;
        if !self.launch.insecure {
            attributes |= attr::RDONLY;
        }
        restrict(&top, attributes, true)
    }

    fn user(&self, dest: &Path, mount: &LaunchMount) -> io::Result<()> {
        // Links may lead where names do not.
        let (resolved, _) = rootpath::survey(&self.fd, dest)?;
        if is_inside_proc(&resolved) {
            return Err(io::Error::other("it is inside /proc"));
        }
        let fd = match &mount.source {
            LaunchSource::Bind(source) => open_source(source, &mount.selector)?,
            LaunchSource::Tmpfs { size } => self.user_tmpfs(dest, *size)?,
            LaunchSource::Device(node) => self.device(node)?,
            LaunchSource::File {
                offset,
                length,
                uid,
                gid,
                mode,
            } => {
                let content = self.files.get(*offset..offset + length);
                let content = content.ok_or(io::ErrorKind::UnexpectedEof)?;
                let name = PathBuf::from(format!("file-{offset}-{}", dest.as_os_str().len()));
                let name = self.unused_name(name)?;
                self.memory_file(&name, content, *mode, Some((*uid, *gid)))?;
                clone_tree(&self.scratch, &name)?
            }
        };
        let stat = rustix::fs::fstat(&fd)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            _ => Kind::File,
        };
        self.attach(&fd, dest, kind)?;
        if dest == Path::new("/dev") && matches!(mount.source, LaunchSource::Tmpfs { .. }) {
            // As runc has it: only a bound one is taken as it is.
            devices::populate(&fd, self.launch.insecure, self.nodev())?;
        }
        let is_device = matches!(mount.source, LaunchSource::Device(_));
        let mut attributes = 0;
        for (wanted, attribute) in [
            (mount.readonly, attr::RDONLY),
            (mount.flags.nosuid, attr::NOSUID),
            (
                mount.flags.nodev || (self.nodev() && !is_device),
                attr::NODEV,
            ),
            (mount.flags.noexec, attr::NOEXEC),
        ] {
            if wanted {
                attributes |= attribute;
            }
        }
        if attributes == 0 {
            return Ok(());
        }
        restrict(&fd, attributes, true)
    }

    /// A new device node in a file system of its own, or this machine's where none can be made.
    fn device(&self, node: &DeviceNode) -> io::Result<OwnedFd> {
        let made = || {
            let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            let holder = filesystem("tmpfs", &[("mode", "700")], flags)?;
            // Only what is mounted somewhere can be cloned.
            let place = self.unused_name(PathBuf::from("device"))?;
            rustix::fs::mkdirat(&self.scratch, &place, Mode::from_raw_mode(0o700))?;
            move_to(&holder, &self.scratch, &place)?;
            devices::make(&holder, "node", node)?;
            clone_tree(&holder, Path::new("node"))
        };
        made().or_else(|error: io::Error| {
            clone_tree(CWD, &node.host_path)
                .map_err(|_| named(error, &node.host_path.display().to_string()))
        })
    }

    /// Two empty secrets have the same place in the content.
    fn unused_name(&self, mut name: PathBuf) -> io::Result<PathBuf> {
        while rustix::fs::statat(&self.scratch, &name, rustix::fs::AtFlags::empty()).is_ok() {
            let mut longer = name.into_os_string();
            longer.push("-");
            name = longer.into();
        }
        Ok(name)
    }

    /// A file system in memory with the mode of the directory it covers, as runc has it.
    fn user_tmpfs(&self, dest: &Path, size: u64) -> io::Result<OwnedFd> {
        let covered = rootpath::open_in_root(&self.fd, dest, OFlags::PATH).ok();
        let mode = match covered.map(rustix::fs::fstat).transpose()? {
            Some(stat) => stat.st_mode & 0o7777,
            None => 0o1777,
        };
        let mode = format!("{mode:o}");
        let size = size.to_string();
        let mut options = vec![("mode", mode.as_str())];
        if size != "0" {
            options.push(("size", size.as_str()));
        }
        filesystem("tmpfs", &options, MountAttrFlags::MOUNT_ATTR_NOSUID)
    }

    fn mask(&self) -> io::Result<()> {
        let empty = Path::new("empty");
        rustix::fs::mkdirat(&self.scratch, empty, Mode::from_raw_mode(0o555))?;
        for path in MASKED {
            let Some(target) = self.system_path(path)? else {
                continue;
            };
            let stat = rustix::fs::fstat(&target)?;
            let cover = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let cover = clone_tree(&self.scratch, empty)?;
                    restrict(&cover, attr::RDONLY, false)?;
                    cover
                }
                _ => clone_tree(CWD, Path::new("/dev/null"))?,
            };
            move_onto(&cover, &target)?;
        }
        for path in READONLY {
            if let Some(target) = self.system_path(path)? {
                let same = clone_tree_of(&target)?;
                restrict(&same, attr::RDONLY, true)?;
                move_onto(&same, &target)?;
            }
        }
        Ok(())
    }

    /// A path of `/proc` or `/sys`, if this kernel has it.
    fn system_path(&self, path: &str) -> io::Result<Option<OwnedFd>> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The default mounts and the step's own. One of the same place takes the place of the earlier.
fn plan(mounts: &[LaunchMount]) -> Result<Vec<(PathBuf, Planned<'_>)>, Failure> {
    let mut planned: Vec<(PathBuf, Planned<'_>)> = [
        ("/proc", Planned::Proc),
        ("/dev", Planned::Dev),
        ("/dev/pts", Planned::Devpts),
        ("/dev/shm", Planned::Shm),
        ("/dev/mqueue", Planned::Mqueue),
        ("/sys", Planned::Sysfs),
        ("/etc/resolv.conf", Planned::ResolvConf),
        ("/etc/hosts", Planned::Hosts),
        ("/sys/fs/cgroup", Planned::Cgroup),
    ]
    .map(|(dest, planned)| (PathBuf::from(dest), planned))
    .into();
    for mount in mounts {
        let dest = rootpath::clean(&mount.dest);
        if dest == Path::new("/") {
            return Err(Failure::Invalid(
                "invalid mount target: it must not be the root".to_owned(),
            ));
        }
        if is_inside_proc(&dest) {
            return Err(Failure::Invalid(format!(
                "{:?} cannot be mounted because it is inside /proc",
                mount.dest
            )));
        }
        match planned.iter_mut().find(|(known, _)| *known == dest) {
            Some((_, known)) => *known = Planned::User(mount),
            None => planned.push((dest, Planned::User(mount))),
        }
    }
    Ok(planned)
}

fn is_inside_proc(path: &Path) -> bool {
    path.starts_with("/proc") && path != Path::new("/proc")
}

fn open_source(source: &Path, selector: &str) -> io::Result<OwnedFd> {
    if selector.is_empty() {
        return clone_tree(CWD, source)
            .map_err(|error| named(error, &source.display().to_string()));
    }
    let top = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let selected = rootpath::open_in_root(&top, selector, OFlags::PATH)
        .map_err(|error| named(error, selector))?;
    clone_tree_of(&selected)
}

fn named(error: io::Error, path: &str) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("{path}: {}", crate::launch::reason(&error)),
    )
}

/// A new file system that is nowhere yet.
fn filesystem(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    // What /proc/self/mounts shows as the source.
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", kind)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    Ok(rustix::mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        flags,
    )?)
}

/// A copy, that is nowhere yet, of what is mounted at `path` and below.
pub(super) fn clone_tree(dir: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(dir, path, flags)?)
}

/// The same of what a descriptor refers to.
pub(super) fn clone_tree_of(place: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(place, "", flags)?)
}

/// Puts a mount over a place.
pub(super) fn move_onto(mount: &OwnedFd, place: &OwnedFd) -> io::Result<()> {
    let both_are_empty =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(
        mount,
        "",
        place,
        "",
        both_are_empty,
    )?)
}

fn move_to(mount: &OwnedFd, dir: impl AsFd, path: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(
        mount,
        "",
        dir,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// Restricts a mount, that is somewhere already or not, and with `recursive` those below it.
fn restrict(mount: &OwnedFd, attributes: u64, recursive: bool) -> io::Result<()> {
    match mount_setattr(mount, attributes, recursive) {
        // Before Linux 5.12 only the mount itself can be changed, by its path.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {}
        other => return other,
    }
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let stat = rustix::fs::fstatvfs(mount)?;
    let mut flags = rustix::mount::MountFlags::BIND;
    for (attribute, kept, flag) in [
        (
            attr::RDONLY,
            rustix::fs::StatVfsMountFlags::RDONLY,
            rustix::mount::MountFlags::RDONLY,
        ),
        (
            attr::NOSUID,
            rustix::fs::StatVfsMountFlags::NOSUID,
            rustix::mount::MountFlags::NOSUID,
        ),
        (
            attr::NODEV,
            rustix::fs::StatVfsMountFlags::NODEV,
            rustix::mount::MountFlags::NODEV,
        ),
        (
            attr::NOEXEC,
            rustix::fs::StatVfsMountFlags::NOEXEC,
            rustix::mount::MountFlags::NOEXEC,
        ),
    ] {
        if attributes & attribute != 0 || stat.f_flag.contains(kept) {
            flags |= flag;
        }
    }
    Ok(rustix::mount::mount_remount(path, flags, "")?)
}
