//! Each step in a cgroup of its own, where this machine lets us make one.
//!
//! The cgroup tells how much memory the step used and whether the kernel killed it for want of
//! memory, and keeps it from opening devices it has no business with. Where memory is limited, all
//! steps together get a little less than the server's container has (see `memory`). Nothing here
//! makes a step fail: on a machine without usable cgroups it simply has none.
//!
//! Where: `<own cgroup>/cooperage/<instance>/<step>` in each hierarchy used, so that limits of the
//! server's container hold for its steps; or `<parent>/cooperage-<instance>-<step>` from the root
//! of the hierarchy when a parent is asked for (see `parents`). A running server holds a lock on its `<instance>`
//! directory; one that nobody holds belongs to a server that died, and is swept with what still
//! runs in it.
//!
//! Hierarchies used: version 2, unless memory is a matter of version 1 here; then those of version 1
//! that carry memory, devices and pids, and all of them for a parent that was asked for.

mod detect;
mod device;
mod memory;
mod parents;
mod step;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use detect::Hierarchy;
use parents::Parents;
pub(crate) use parents::Placed;
pub(crate) use step::StepCgroup;

/// How often and at what distance it is tried to remove a server's directory.
const REMOVAL_ATTEMPTS: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(2);

/// Which versions of cgroups this machine has for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Version 2 only.
    V2,
    /// Version 1 only.
    V1,
    /// Controllers in version 1, and version 2 mounted beside without them.
    Hybrid,
    /// None that can be written.
    None,
}

/// The cgroups of a server.
#[derive(Debug)]
pub(crate) struct Cgroups {
    layout: Layout,
    hierarchies: Vec<Opened>,
    /// Hierarchies of version 1 in which steps stay where the server is; only shown to them.
    others: Vec<Hierarchy>,
    instance: String,
    parent: Option<String>,
    parents: Arc<Parents>,
}

#[derive(Debug)]
struct Opened {
    hierarchy: Hierarchy,
    /// `<own cgroup>/cooperage/<instance>`.
    dir: PathBuf,
    /// The locked directory.
    _lock: OwnedFd,
}

/// What the supervisor of a step needs to know of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct StepPlan {
    /// The directories to make, one a hierarchy.
    pub(crate) dirs: Vec<StepDir>,
    /// Version 1 directories to show read-only below `/sys/fs/cgroup`, by name.
    pub(crate) shown: Vec<(String, PathBuf)>,
}

/// One of the directories.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StepDir {
    pub(crate) v2: bool,
    pub(crate) controllers: Vec<String>,
    /// Where the hierarchy is mounted: limits are looked for from the step up to here.
    pub(crate) mount: PathBuf,
    /// The server's own cgroup, when the step's is below it and shares its limits.
    pub(crate) server: Option<PathBuf>,
    pub(crate) dir: PathBuf,
}

impl StepDir {
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

impl Opened {
    /// Keeps some of the memory that this server's container may use for the server itself.
    fn keep_reserve(&self) {
        let Hierarchy {
            v2, mount, base, ..
        } = &self.hierarchy;
        if self.hierarchy.has("memory") {
            memory::keep_reserve(&self.dir, base, mount, *v2);
        }
    }
}

impl Cgroups {
    /// Looks at what this machine has, sweeps what dead servers left, and makes this server's
    /// directories. `parent` is the default parent of steps; `journal` is a file that tells the next
    /// server what was made for parents.
    pub(crate) fn open(parent: Option<String>, journal: Option<PathBuf>) -> Cgroups {
        let all = detect::hierarchies();
        let instance = format!("{:016x}", instance_number());
        let with_memory = |v2: bool| all.iter().any(|h| h.v2 == v2 && h.has("memory"));
        let use_v2 = with_memory(true) || !with_memory(false);
        let mut cgroups = Cgroups {
            layout: layout_of(&all),
            hierarchies: Vec::new(),
            others: Vec::new(),
            parents: Parents::open(journal, step_prefix(&instance)),
            instance,
            parent,
        };
        for hierarchy in all {
            let wanted = if use_v2 {
                hierarchy.v2
            } else {
                !hierarchy.v2
                    && ["memory", "devices", "pids"]
                        .iter()
                        .any(|c| hierarchy.has(c))
            };
            if !wanted {
                if !hierarchy.v2 {
                    cgroups.others.push(hierarchy);
                }
                continue;
            }
            match cgroups.open_hierarchy(hierarchy) {
                Ok(opened) => cgroups.hierarchies.push(opened),
                Err(error) => tracing::debug!(%error, "cgroup hierarchy cannot be used"),
            }
        }
        if cgroups.hierarchies.is_empty() {
            cgroups.layout = Layout::None;
        }
        cgroups
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Where the step's cgroups will be; `parent` is what the step itself asks for, or empty. What is
    /// made for it under a parent stays until the second of the answer is dropped.
    pub(crate) fn plan(&self, step: &str, parent: &str) -> (StepPlan, Option<Placed>) {
        let parent = match parent {
            "" => self.parent.as_deref(),
            parent => Some(parent),
        };
        let mut plan = StepPlan::default();
        let used = self.hierarchies.iter().map(|opened| {
            let dir = match parent {
                Some(parent) => self.under(&opened.hierarchy, parent, step),
                None => {
                    opened.keep_reserve();
                    opened.dir.join(step)
                }
            };
            (&opened.hierarchy, dir)
        });
        // A parent that was asked for may limit what we do not otherwise look at.
        let also = self.others.iter().filter_map(|hierarchy| {
            let dir = self.under(hierarchy, parent?, step);
            Some((hierarchy, dir))
        });
        for (hierarchy, dir) in used.chain(also) {
            plan.dirs.push(StepDir {
                v2: hierarchy.v2,
                controllers: hierarchy.controllers.clone(),
                mount: hierarchy.mount.clone(),
                server: parent.is_none().then(|| hierarchy.base.clone()),
                dir: dir.clone(),
            });
            if !hierarchy.v2 {
                plan.shown.push((hierarchy.name(), dir));
            }
        }
        if parent.is_none() && !plan.shown.is_empty() {
            let others = self.others.iter();
            plan.shown
                .extend(others.map(|h| (h.name(), h.base.clone())));
        }
        let placed = parent.map(|_| {
            let dirs = plan.dirs.iter().map(|dir| dir.dir.clone());
            self.parents.place(dirs.collect())
        });
        (plan, placed)
    }

    /// Removes the cgroups of this server, with what still runs in them. Blocks.
    pub(crate) fn close(&self) {
        for opened in &self.hierarchies {
            // Supervisors that hear now that the server is gone need a moment to clear up.
            let gone = (0..REMOVAL_ATTEMPTS).any(|attempt| {
                if attempt > 0 {
                    std::thread::sleep(REMOVAL_PAUSE);
                }
                is_removed(&opened.dir)
            });
            if !gone && let Err(error) = destroy(&opened.dir) {
                tracing::warn!(dir = %opened.dir.display(), %error, "cannot remove cgroups");
            }
            // Other servers may be in it.
            let _ = opened.dir.parent().map(fs::remove_dir);
        }
        self.parents.close();
    }

    fn under(&self, hierarchy: &Hierarchy, parent: &str, step: &str) -> PathBuf {
        let mut dir = hierarchy.mount.clone();
        dir.push(parent_path(parent));
        dir.push(step_prefix(&self.instance) + step);
        dir
    }

    fn open_hierarchy(&self, hierarchy: Hierarchy) -> io::Result<Opened> {
        let top = hierarchy.base.join("cooperage");
        if hierarchy.v2 {
            detect::enable_controllers(&hierarchy.base)?;
        }
        make_dir(&top)?;
        sweep(&top);
        if hierarchy.v2 {
            detect::enable_controllers(&top)?;
        }
        let dir = top.join(&self.instance);
        make_dir(&dir)?;
        let lock = lock(&dir)?;
        if hierarchy.v2 {
            detect::enable_controllers(&dir)?;
        }
        Ok(Opened {
            hierarchy,
            dir,
            _lock: lock,
        })
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.close();
    }
}

/// Ends what runs below `dir`, a cgroup that nobody owns, and removes it.
pub(crate) fn destroy(dir: &Path) -> io::Result<()> {
    for child in subdirectories(dir) {
        destroy(&child)?;
    }
    step::kill_all(dir);
    step::remove_when_empty(dir)
}

/// What the names of a server's cgroups under a parent begin with.
fn step_prefix(instance: &str) -> String {
    format!("cooperage-{instance}-")
}

fn is_removed(dir: &Path) -> bool {
    match fs::remove_dir(dir) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(()) => true,
    }
}

fn layout_of(all: &[Hierarchy]) -> Layout {
    let v2 = all.iter().any(|h| h.v2);
    let v1 = all.iter().any(|h| !h.v2);
    match (v1, v2) {
        (true, true) => Layout::Hybrid,
        (true, false) => Layout::V1,
        (false, true) => Layout::V2,
        (false, false) => Layout::None,
    }
}

/// `/a/b` as it is; systemd's `a-b.slice` (with or without a colon at its end) as the directory
/// systemd has for it.
fn parent_path(parent: &str) -> PathBuf {
    let slice = parent.trim_end_matches(':');
    if let Some(name) = slice.strip_suffix(".slice")
        && !slice.contains('/')
    {
        let mut path = PathBuf::new();
        let mut prefix = String::new();
        for part in name.split('-') {
            if !prefix.is_empty() {
                prefix.push('-');
            }
            prefix.push_str(part);
            path.push(format!("{prefix}.slice"));
        }
        return path;
    }
    let clean = crate::rootpath::clean(parent);
    clean.strip_prefix("/").unwrap_or(&clean).to_owned()
}

/// Removes the directories of servers that are dead: those whose lock is free.
fn sweep(top: &Path) {
    for dir in subdirectories(top) {
        // The lock is dropped with the directory gone, or right away when its owner lives.
        if let Ok(_lock) = lock(&dir) {
            tracing::debug!(dir = %dir.display(), "sweeping the cgroups of a dead server");
            if let Err(error) = destroy(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "cannot sweep cgroups");
            }
        }
    }
}

fn lock(dir: &Path) -> io::Result<OwnedFd> {
    let fd = OwnedFd::from(fs::File::open(dir)?);
    rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
    Ok(fd)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn instance_number() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_slices_are_directories_in_each_other() {
        assert_eq!(
            parent_path("a-b.slice:"),
            PathBuf::from("a.slice/a-b.slice")
        );
        assert_eq!(parent_path("/docker/../x"), PathBuf::from("x"));
    }

    #[test]
    fn a_lock_on_a_directory_shows_that_its_owner_lives() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(lock(dir.path()).is_err());
        drop(held);
        assert!(lock(dir.path()).is_ok());
    }
}
