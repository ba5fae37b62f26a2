//! What cgroups this process can see, and where it is in them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) v2: bool,
    /// Controllers; for a named hierarchy of version 1 its name.
    pub(super) controllers: Vec<String>,
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// The cgroup under which ours are made: of version 1 the one this process is in; of version 2
    /// the root that is seen here, as only that may have both processes and children.
    pub(super) base: PathBuf,
}

impl Hierarchy {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }

    /// The name of its directory in `/sys/fs/cgroup`.
    pub(super) fn name(&self) -> String {
        match self.mount.file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None => self.controllers.join(","),
        }
    }
}

/// All hierarchies mounted writable.
pub(super) fn hierarchies() -> Vec<Hierarchy> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = parse(&mountinfo, &own);
    for hierarchy in found.iter_mut().filter(|h| h.v2) {
        let text = fs::read_to_string(hierarchy.base.join("cgroup.controllers"));
        hierarchy.controllers = text
            .unwrap_or_default()
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect();
    }
    found
}

/// Lets children of `dir`, a version 2 cgroup, have the controllers we use. When the processes in
/// it are in the way, as in a container's own root, they are moved to a child first.
pub(super) fn enable_controllers(dir: &Path) -> io::Result<()> {
    let available = fs::read_to_string(dir.join("cgroup.controllers"))?;
    let control = dir.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control)?;
    for controller in ["memory", "pids", "cpu", "io"] {
        let listed = |text: &str| text.split_ascii_whitespace().any(|c| c == controller);
        if !listed(&available) || listed(&enabled) {
            continue;
        }
        let enable = || fs::write(&control, format!("+{controller}"));
        if let Err(error) = enable() {
            if error.raw_os_error() != Some(libc::EBUSY) {
                tracing::debug!(%error, controller, "cannot enable a cgroup controller");
                continue;
            }
            move_processes(dir, &dir.join("cooperage-init"))?;
            enable()?;
        }
    }
    Ok(())
}

/// Moves all processes of one cgroup to another, which is made.
fn move_processes(from: &Path, to: &Path) -> io::Result<()> {
    match fs::create_dir(to) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Processes start while we look: a few rounds until nobody is left.
    for _ in 0..16 {
        let processes = fs::read_to_string(from.join("cgroup.procs"))?;
        if processes.trim().is_empty() {
            return Ok(());
        }
        for pid in processes.lines() {
            // One that has just ended, or is not visible here, is passed over.
            let _ = fs::write(to.join("cgroup.procs"), pid);
        }
    }
    Ok(())
}

/// Reads `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn parse(mountinfo: &str, own: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(root), Some(point), Some(options)) = (left.get(3), left.get(4), left.get(5))
        else {
            continue;
        };
        let (Some(kind), Some(super_options)) = (right.first(), right.get(2)) else {
            continue;
        };
        let v2 = match *kind {
            "cgroup2" => true,
            "cgroup" => false,
            _ => continue,
        };
        if options.split(',').any(|o| o == "ro") || super_options.split(',').any(|o| o == "ro") {
            continue;
        }
        let Some((controllers, own)) = membership(own, v2, super_options) else {
            continue;
        };
        let mount = unescape(point);
        let base = match v2 {
            true => mount.clone(),
            false => mount.join(relative(&own, root)),
        };
        let known = |h: &Hierarchy| h.v2 == v2 && h.controllers == controllers;
        if !found.iter().any(known) {
            found.push(Hierarchy {
                v2,
                controllers,
                mount,
                base,
            });
        }
    }
    found
}

/// The line `id:controllers:path` of that hierarchy: its controllers and path.
fn membership(own: &str, v2: bool, super_options: &str) -> Option<(Vec<String>, String)> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
        if v2 {
            return names.is_empty().then(|| (Vec::new(), path.to_owned()));
        }
        let of_mount = |name: &str| super_options.split(',').any(|option| option == name);
        let same = !names.is_empty() && names.split(',').all(of_mount);
        same.then(|| {
            (
                names.split(',').map(str::to_owned).collect(),
                path.to_owned(),
            )
        })
    })
}

/// The cgroup `own` seen from a mount whose root is `root`, as a relative path; one that cannot be
/// seen from there is taken for the root itself.
fn relative(own: &str, root: &str) -> PathBuf {
    let own = Path::new(own);
    let inside = own.strip_prefix(root).unwrap_or(Path::new(""));
    if own.components().any(|c| c.as_os_str() == "..") {
        return PathBuf::new();
    }
    inside.strip_prefix("/").unwrap_or(inside).to_owned()
}

/// Undoes the kernel's octal escapes of blanks in paths.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|_| bytes[at] == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(octal.unwrap_or(bytes[at]));
        at += if octal.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(found: &[Hierarchy]) -> Vec<(bool, &str, &str)> {
        found
            .iter()
            .map(|h| (h.v2, h.mount.to_str().unwrap(), h.base.to_str().unwrap()))
            .collect()
    }

    #[test]
    fn version_2_in_a_container_of_its_own() {
        let mounts = "30 24 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n";
        assert_eq!(
            paths(&parse(mounts, "0::/\n")),
            [(true, "/sys/fs/cgroup", "/sys/fs/cgroup")]
        );
    }

    #[test]
    fn version_1_in_a_container_that_sees_only_its_own_part() {
        let mounts = "\
            40 30 0:31 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 30 0:32 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let own = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n";
        let found = parse(mounts, own);
        assert_eq!(
            paths(&found),
            [
                (false, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/"),
                (
                    false,
                    "/sys/fs/cgroup/cpu,cpuacct",
                    "/sys/fs/cgroup/cpu,cpuacct/"
                ),
            ]
        );
        assert_eq!(found[1].name(), "cpu,cpuacct");
    }

    #[test]
    fn a_hybrid_machine_seen_from_inside_a_slice() {
        let mounts = "\
            35 30 0:31 / /sys/fs/cgroup/memory rw - cgroup memory rw,memory\n\
            36 30 0:32 / /sys/fs/cgroup/systemd rw - cgroup none rw,name=systemd\n\
            37 30 0:33 / /sys/fs/cgroup/unified rw - cgroup2 unified rw\n";
        let own = "2:memory:/user/x\n1:name=systemd:/\n0::/user/x\n";
        assert_eq!(
            paths(&parse(mounts, own)),
            [
                (
                    false,
                    "/sys/fs/cgroup/memory",
                    "/sys/fs/cgroup/memory/user/x"
                ),
                (false, "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd/"),
                (true, "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified"),
            ]
        );
    }

    #[test]
    fn hierarchies_mounted_read_only_do_not_count() {
        let mounts = "30 24 0:27 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n";
        assert_eq!(parse(mounts, "0::/\n"), []);
    }

    #[test]
    fn blanks_in_mount_points_are_read() {
        assert_eq!(unescape("/a\\040b\\x"), PathBuf::from("/a b\\x"));
    }
}
