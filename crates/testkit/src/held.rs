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
    /// Files and directories below the root that are there only while something goes on.
    pub leftovers: usize,
}

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
        let own = open
            .iter()
            .filter(|path| path.starts_with("/sys/fs/cgroup") && path.is_dir());
        Held {
            files: open.len(),
            threads: entries(&proc.join("task")).len(),
            processes: children_of(process),
            mounts: mounts.lines().count(),
            cgroups: own.map(|dir| below(dir)).sum(),
            leftovers: PASSING.iter().map(|name| inside(&root.join(name))).sum(),
        }
    }

    /// Whether there is no more of anything than in `other`.
    pub fn is_within(&self, other: &Held) -> bool {
        self.files <= other.files
            && self.threads <= other.threads
            && self.processes <= other.processes
            && self.mounts <= other.mounts
            && self.cgroups <= other.cgroups
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
