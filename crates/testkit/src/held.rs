//! What a build server has of its machine at a moment: what must not grow from build to build.

use std::fmt;
use std::path::{Path, PathBuf};

/// Counts of what a server holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Open files, sockets and namespaces.
    pub files: usize,
    /// Threads.
    pub threads: usize,
    /// Processes it started that run or were not waited for.
    pub processes: usize,
    /// Mounts in its namespace.
    pub mounts: usize,
    /// Control groups below its own, of all hierarchies.
    pub cgroups: usize,
    /// Hierarchies of control groups in which it has one of its own.
    pub hierarchies: usize,
    /// Files and directories below the root that are there only while something goes on.
    pub leftovers: usize,
}

/// How many processes may wait for steps.
const SPARES_MAX: usize = 4;
/// Files that a server has open for each of them.
const SPARE_FILES: usize = 2;

/// Directories of a root in which nothing stays.
const PASSING: [&str; 5] = [
    "v1/tmp",
    "v1/content/ingest",
    "v1/layers/new",
    "v1/layers/mounts",
    "v1/layers/trash",
];

impl Held {
    pub(crate) fn of(process: u32, root: &Path) -> Held {
        let proc = PathBuf::from(format!("/proc/{process}"));
        let open: Vec<PathBuf> = entries(&proc.join("fd"))
            .iter()
            .filter_map(|file| std::fs::read_link(file).ok())
            .collect();
        let mounts = std::fs::read_to_string(proc.join("mountinfo")).unwrap_or_default();
        // A server keeps its own directory of each hierarchy open.
        let own: Vec<&PathBuf> = open
            .iter()
            .filter(|path| path.starts_with("/sys/fs/cgroup") && path.is_dir())
            .collect();
        Held {
            files: open.len(),
            threads: entries(&proc.join("task")).len(),
            processes: children_of(process),
            mounts: mounts.lines().count(),
            cgroups: own.iter().map(|dir| below(dir)).sum(),
            hierarchies: own.len(),
            leftovers: PASSING.iter().map(|name| inside(&root.join(name))).sum(),
        }
    }

    /// Whether it has no more than an idle server that held `other`. Processes that wait for the next
    /// step may come and go, each with its control groups and what the server knows it by.
    pub fn is_idle_like(&self, other: &Held) -> bool {
        self.processes <= SPARES_MAX
            && self.cgroups <= self.processes * self.hierarchies
            && self.files <= other.files + self.processes * SPARE_FILES
            && self.threads <= other.threads
            && self.mounts <= other.mounts
            && self.leftovers <= other.leftovers
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} files, {} threads, {} processes, {} mounts, {} cgroups, {} leftovers",
            self.files, self.threads, self.processes, self.mounts, self.cgroups, self.leftovers
        )
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Directories below one.
fn below(dir: &Path) -> usize {
    let inner = entries(dir).into_iter().filter(|path| path.is_dir());
    inner.map(|path| 1 + below(&path)).sum()
}

/// Everything below a directory; mounts are not entered.
fn inside(dir: &Path) -> usize {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| path.symlink_metadata().map(|meta| meta.dev()).ok();
    let here = device(dir);
    let one = |path: PathBuf| match path.is_dir() && !path.is_symlink() && device(&path) == here {
        true => 1 + inside(&path),
        false => 1,
    };
    entries(dir).into_iter().map(one).sum()
}

fn children_of(process: u32) -> usize {
    let threads = entries(&PathBuf::from(format!("/proc/{process}/task")));
    let children = |thread: &PathBuf| {
        let list = std::fs::read_to_string(thread.join("children")).unwrap_or_default();
        list.split_whitespace().count()
    };
    threads.iter().map(children).sum()
}
