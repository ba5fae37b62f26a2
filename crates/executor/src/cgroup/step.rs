//! The cgroup of one step, from the supervisor's side.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{StepDir, StepPlan, device, memory};
use crate::spec::DeviceNode;

/// How long a cgroup is waited for whose processes are gone already.
const REMOVAL_MAX: Duration = Duration::from_secs(5);

/// The directories of one step that could be made; removed when dropped, unless they are borrowed.
#[derive(Debug, Default)]
pub(crate) struct StepCgroup {
    dirs: Vec<StepDir>,
    devices_guarded: bool,
    /// Whether it is another's, who removes it.
    borrowed: bool,
    /// Processes that had been killed for want of memory before.
    oom_kills_before: u64,
}

/// What a step used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Processes killed for want of memory.
    pub(crate) oom_kills: u64,
    /// Most memory at a time in bytes.
    pub(crate) memory_peak: Option<u64>,
    /// The limit in bytes that held for it and the server together.
    pub(crate) memory_limit: Option<u64>,
    /// What of that is kept for the server, in bytes.
    pub(crate) memory_reserved: u64,
}

impl StepCgroup {
    /// Makes the directories; those that cannot be made are left out.
    ///
    /// With `devices` all are denied but those and the usual ones.
    pub(crate) fn create(plan: &StepPlan, devices: Option<&[DeviceNode]>) -> StepCgroup {
        let mut step = StepCgroup::default();
        for dir in &plan.dirs {
            if super::make_dir(&dir.dir).is_err() {
                continue;
            }
            if dir.has("cpuset") && !dir.v2 && inherit_cpuset(&dir.dir).is_err() {
                let _ = fs::remove_dir(&dir.dir);
                continue;
            }
            if let Some(devices) = devices.filter(|_| !step.devices_guarded) {
                step.devices_guarded = match dir {
                    dir if dir.v2 => device::guard_v2(&dir.dir, devices).is_ok(),
                    dir if dir.has("devices") => device::guard_v1(&dir.dir, devices).is_ok(),
                    _ => false,
                };
            }
            step.dirs.push(dir.clone());
        }
        step
    }

    /// The cgroup of a container that is there; it stays when this is dropped.
    pub(crate) fn of_container(plan: &StepPlan) -> StepCgroup {
        let dirs = plan.dirs.iter().filter(|dir| dir.dir.is_dir()).cloned();
        let mut step = StepCgroup {
            dirs: dirs.collect(),
            borrowed: true,
            ..StepCgroup::default()
        };
        step.oom_kills_before = step.usage().oom_kills;
        step
    }

    /// Whether the kernel keeps processes of this cgroup from opening other devices.
    pub(crate) fn devices_guarded(&self) -> bool {
        self.devices_guarded
    }

    /// Whether the step's directory is in version 2.
    pub(crate) fn is_v2(&self) -> bool {
        self.dirs.iter().any(|dir| dir.v2)
    }

    /// The version 2 directory, into which a process can be cloned without being moved there.
    pub(crate) fn v2_directory(&self) -> Option<OwnedFd> {
        let dir = self.dirs.iter().find(|dir| dir.v2)?;
        open_dir(&dir.dir).ok()
    }

    /// Moves a process into it. The kernel may take some milliseconds for that, asleep.
    pub(crate) fn add(&self, pid: i32, already_in_v2: bool) {
        for dir in self.dirs.iter().filter(|dir| !(dir.v2 && already_in_v2)) {
            let _ = fs::write(dir.dir.join("cgroup.procs"), pid.to_string());
        }
    }

    /// What the step used until now.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for dir in self.dirs.iter().filter(|dir| dir.has("memory")) {
            let one = if dir.v2 { usage_v2(dir) } else { usage_v1(dir) };
            usage.oom_kills += one.oom_kills;
            usage.memory_peak = usage.memory_peak.or(one.memory_peak);
            if usage.memory_limit.is_none() {
                usage.memory_limit = one.memory_limit;
                usage.memory_reserved = one.memory_reserved;
            }
        }
        usage.oom_kills = usage.oom_kills.saturating_sub(self.oom_kills_before);
        usage
    }
}

impl Drop for StepCgroup {
    fn drop(&mut self) {
        if self.borrowed {
            return;
        }
        for dir in &self.dirs {
            kill_all(&dir.dir);
            let _ = remove_when_empty(&dir.dir);
        }
    }
}

/// Kills every process in the cgroup itself.
pub(crate) fn kill_all(dir: &Path) {
    if write_control(&dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let processes = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Removes the directory once its processes, which have been killed, have left it.
pub(crate) fn remove_when_empty(dir: &Path) -> io::Result<()> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                if start.elapsed() > REMOVAL_MAX {
                    return Err(error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
        kill_all(dir);
        // Version 1 has no event for a cgroup becoming empty.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// A cpuset of version 1 holds no process before it has processors and memory nodes.
fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    let missing: Vec<PathBuf> = dir
        .ancestors()
        .take_while(|dir| {
            fs::read_to_string(dir.join("cpuset.cpus")).is_ok_and(|text| text.trim().is_empty())
        })
        .map(Path::to_owned)
        .collect();
    for dir in missing.iter().rev() {
        let Some(parent) = dir.parent() else { continue };
        for file in ["cpuset.cpus", "cpuset.mems"] {
            fs::write(dir.join(file), fs::read_to_string(parent.join(file))?)?;
        }
    }
    Ok(())
}

fn usage_v1(dir: &StepDir) -> Usage {
    // What holds above all that can be seen from here is in this number too.
    let tightest = field(&dir.dir.join("memory.stat"), "hierarchical_memory_limit")
        .filter(|limit| memory::is_limit(*limit));
    let (memory_limit, memory_reserved) = memory_limit(dir, tightest);
    Usage {
        oom_kills: field(&dir.dir.join("memory.oom_control"), "oom_kill").unwrap_or(0),
        memory_peak: number(&dir.dir.join("memory.max_usage_in_bytes")),
        memory_limit,
        memory_reserved,
    }
}

fn usage_v2(dir: &StepDir) -> Usage {
    let tightest = memory::limit(&dir.dir, &dir.mount, true);
    let (memory_limit, memory_reserved) = memory_limit(dir, tightest);
    Usage {
        oom_kills: field(&dir.dir.join("memory.events"), "oom_kill").unwrap_or(0),
        memory_peak: number(&dir.dir.join("memory.peak")),
        memory_limit,
        memory_reserved,
    }
}

/// The limit that users know, which is the one around the server, and what of it is the server's.
fn memory_limit(dir: &StepDir, tightest: Option<u64>) -> (Option<u64>, u64) {
    let Some(tightest) = tightest else {
        return (None, 0);
    };
    let around = dir
        .server
        .as_deref()
        .and_then(|server| memory::limit(server, &dir.mount, dir.v2))
        .filter(|around| memory::for_steps(*around) == tightest);
    match around {
        Some(around) => (Some(around), around - tightest),
        None => (Some(tightest), 0),
    }
}

pub(super) fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number after `name ` in a file of such lines.
fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

/// Opens a cgroup directory for the calls that take it as a descriptor.
pub(super) fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    Ok(fs::File::open(dir)?.into())
}

/// Writes one value to a control file; each write is one command there.
pub(super) fn write_control(file: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(file)?
        .write_all(value.as_bytes())
}

/// The descriptor itself, for calls that want a number.
pub(super) fn raw(fd: &OwnedFd) -> u32 {
    use std::os::fd::AsRawFd;
    fd.as_fd().as_raw_fd() as u32
}
