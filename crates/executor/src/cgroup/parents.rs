//! The cgroups under which steps are asked to be (`--cgroup-parent`).
//!
//! What is missing of them is made for the first step there, and taken away again after the last one,
//! if nothing else is in it by then. A journal tells the next server what a killed one made, and where
//! cgroups of its steps may be left.
//!
//! Invariant: only what this server or one before it with the same journal made is removed, and only
//! while it is empty. A directory is known by its inode number, which the kernel gives no second time
//! before it is booted again. One that was made in the instant before the server was killed is not in
//! the journal yet: it is taken for somebody else's, and stays.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{destroy, step, subdirectories};

/// How often a cgroup is tried to be made, which another server may remove as often.
const ATTEMPTS_MAX: u32 = 8;

/// The parents in use, and those that were made.
#[derive(Debug)]
pub(crate) struct Parents {
    journal: Option<PathBuf>,
    /// What the names of all cgroups of this server's steps begin with.
    prefix: String,
    table: Mutex<Table>,
}

/// The cgroups of one step under parents that were asked for; dropping it, when the step has ended,
/// removes what was made for it.
#[derive(Debug)]
pub(crate) struct Placed {
    parents: Arc<Parents>,
    steps: Vec<PathBuf>,
}

#[derive(Debug, Default)]
struct Table {
    /// How many steps are in each.
    used: BTreeMap<PathBuf, usize>,
    /// In the order in which they were made.
    made: Vec<Made>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    path: PathBuf,
    inode: u64,
}

/// The journal's file, in JSON.
#[derive(Serialize, Deserialize)]
struct Journal {
    /// When the machine is booted again, nothing of this is there any more.
    boot: String,
    prefix: String,
    used: Vec<PathBuf>,
    made: Vec<Made>,
}

impl Parents {
    /// Takes away what the server before left, as the journal has it. `prefix` begins the names of the
    /// steps' cgroups, and is no other server's.
    pub(super) fn open(journal: Option<PathBuf>, prefix: String) -> Arc<Self> {
        let mut table = Table::default();
        let before = journal.as_deref().and_then(read_journal);
        if let Some(before) = before {
            sweep_steps(before.used.iter(), &before.prefix);
            table.made = before.made;
            table.remove_unused();
        }
        let parents = Parents {
            journal,
            prefix,
            table: Mutex::new(table),
        };
        parents.save(&parents.table.lock());
        Arc::new(parents)
    }

    /// Makes cgroups of a step, each in its hierarchy, with all above them. Those that cannot be made
    /// are left out: what is not there, a step is not put in.
    pub(super) fn place(self: &Arc<Self>, steps: Vec<PathBuf>) -> Placed {
        let mut table = self.table.lock();
        for dir in steps.iter().filter_map(|step| step.parent()) {
            *table.used.entry(dir.to_owned()).or_default() += 1;
            if let Err(error) = table.make(dir) {
                tracing::debug!(dir = %dir.display(), %error, "a cgroup parent cannot be made");
            }
        }
        // Before the first cgroup that another server would have to sweep.
        self.save(&table);
        for step in &steps {
            let made = table.make_step(step);
            if let Err(error) = made {
                tracing::debug!(dir = %step.display(), %error, "a step has no cgroup there");
            }
        }
        drop(table);
        Placed {
            parents: self.clone(),
            steps,
        }
    }

    /// Ends what still runs in cgroups of steps, and removes everything of this server's. Blocks until
    /// the kernel has let go of them.
    pub(super) fn close(&self) {
        let mut table = self.table.lock();
        sweep_steps(table.used.keys(), &self.prefix);
        table.used.clear();
        table.remove_unused();
        self.save(&table);
    }

    fn release(&self, steps: &[PathBuf]) {
        for step in steps {
            // Gone, unless its supervisor was killed.
            if let Err(error) = step::remove_when_empty(step) {
                tracing::warn!(dir = %step.display(), %error, "cannot remove a cgroup");
            }
        }
        let mut table = self.table.lock();
        for dir in steps.iter().filter_map(|step| step.parent()) {
            if let Some(count) = table.used.get_mut(dir) {
                *count -= 1;
                if *count == 0 {
                    table.used.remove(dir);
                }
            }
        }
        table.remove_unused();
        self.save(&table);
    }

    /// Writes the journal, or removes it when there is nothing to tell. It is not synced: a machine
    /// that stops forgets its cgroups too.
    fn save(&self, table: &Table) {
        let Some(path) = &self.journal else { return };
        let saved = match table.used.is_empty() && table.made.is_empty() {
            true => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            false => write_journal(
                path,
                &Journal {
                    boot: boot_id().unwrap_or_default(),
                    prefix: self.prefix.clone(),
                    used: table.used.keys().cloned().collect(),
                    made: table.made.clone(),
                },
            ),
        };
        if let Err(error) = saved {
            tracing::warn!(path = %path.display(), %error, "noting the cgroups that were made");
        }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        self.parents.release(&self.steps);
    }
}

impl Table {
    /// Makes what is missing of a directory.
    fn make(&mut self, dir: &Path) -> io::Result<()> {
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let above = dir.parent().ok_or(error)?;
                self.make(above)?;
                match fs::create_dir(dir) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    Err(error) => Err(error),
                    Ok(()) => self.note(dir),
                }
            }
            Err(error) => Err(error),
            Ok(()) => self.note(dir),
        }
    }

    fn note(&mut self, dir: &Path) -> io::Result<()> {
        self.made.push(Made {
            path: dir.to_owned(),
            inode: fs::metadata(dir)?.ino(),
        });
        Ok(())
    }

    /// Makes the cgroup of a step; another server may find its parent empty just now and remove it.
    fn make_step(&mut self, step: &Path) -> io::Result<()> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match fs::create_dir(step) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS_MAX => {
                    let Some(parent) = step.parent() else {
                        return Err(error);
                    };
                    self.make(parent)?;
                }
                other => return other,
            }
        }
    }

    /// Removes what was made, is empty, and has no step in it; the rest is tried again later.
    fn remove_unused(&mut self) {
        let used = &self.used;
        let mut kept = Vec::new();
        while let Some(made) = self.made.pop() {
            let needed = used.keys().any(|dir| dir.starts_with(&made.path));
            if needed || !made.is_gone_or_removed() {
                kept.push(made);
            }
        }
        kept.reverse();
        self.made = kept;
    }
}

impl Made {
    /// Removes it if it is still what was made, and empty; whether it is nothing of ours any more.
    fn is_gone_or_removed(&self) -> bool {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if found.ino() == self.inode => fs::remove_dir(&self.path).is_ok(),
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// Ends and removes cgroups of a server's steps in these directories.
fn sweep_steps<'a>(dirs: impl Iterator<Item = &'a PathBuf>, prefix: &str) {
    for dir in dirs.flat_map(|dir| subdirectories(dir)) {
        let name = dir.file_name().unwrap_or_default();
        if name.as_encoded_bytes().starts_with(prefix.as_bytes())
            && let Err(error) = destroy(&dir)
        {
            tracing::warn!(dir = %dir.display(), %error, "cannot sweep a cgroup");
        }
    }
}

fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// What it says of this machine since it was booted.
fn read_journal(path: &Path) -> Option<Journal> {
    let journal: Journal = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (!journal.prefix.is_empty() && Some(&journal.boot) == boot_id().as_ref()).then_some(journal)
}

fn write_journal(path: &Path, journal: &Journal) -> io::Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, serde_json::to_vec(journal)?)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain directories stand for cgroups: they too go when they are empty.
    struct Yard(tempfile::TempDir);

    impl Yard {
        fn new() -> Self {
            let yard = Yard(tempfile::tempdir().unwrap());
            fs::create_dir(yard.path("mount")).unwrap();
            yard
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn open(&self, prefix: &str) -> Arc<Parents> {
            Parents::open(Some(self.path("journal")), prefix.to_owned())
        }

        fn has(&self, name: &str) -> bool {
            self.path(name).exists()
        }
    }

    #[test]
    fn what_was_made_for_a_step_goes_with_the_last_that_needs_it() {
        let yard = Yard::new();
        let parents = yard.open("one-");
        let first = parents.place(vec![yard.path("mount/a/b/one-1")]);
        let second = parents.place(vec![yard.path("mount/a/one-2")]);
        assert!(yard.has("mount/a/b/one-1") && yard.has("mount/a/one-2"));
        drop(first);
        assert!(!yard.has("mount/a/b") && yard.has("mount/a/one-2"));
        drop(second);
        assert!(yard.has("mount") && !yard.has("mount/a") && !yard.has("journal"));
    }

    #[test]
    fn what_somebody_else_made_or_uses_stays() {
        let yard = Yard::new();
        fs::create_dir(yard.path("mount/theirs")).unwrap();
        let parents = yard.open("one-");
        drop(parents.place(vec![yard.path("mount/theirs/ours/one-1")]));
        assert!(yard.has("mount/theirs") && !yard.has("mount/theirs/ours"));
        let step = parents.place(vec![yard.path("mount/ours/one-2")]);
        fs::create_dir(yard.path("mount/ours/guest")).unwrap();
        drop(step);
        assert!(yard.has("mount/ours/guest"));
        // It is tried again at the end.
        fs::remove_dir(yard.path("mount/ours/guest")).unwrap();
        parents.close();
        assert!(!yard.has("mount/ours") && !yard.has("journal"));
    }

    #[test]
    fn what_a_killed_server_left_is_swept_by_the_next_and_no_more() {
        let yard = Yard::new();
        let killed = yard.open("one-");
        std::mem::forget(
            killed.place(vec![yard.path("mount/a/one-1"), yard.path("mount/b/one-1")]),
        );
        // Removed and made again by somebody else: two that are there at once have two numbers.
        fs::create_dir(yard.path("mount/again")).unwrap();
        fs::remove_dir_all(yard.path("mount/b")).unwrap();
        fs::rename(yard.path("mount/again"), yard.path("mount/b")).unwrap();
        let next = yard.open("two-");
        assert!(!yard.has("mount/a") && yard.has("mount/b") && !yard.has("journal"));
        drop(next);
    }

    #[test]
    fn a_journal_of_another_boot_or_a_damaged_one_says_nothing() {
        let yard = Yard::new();
        std::mem::forget(yard.open("one-").place(vec![yard.path("mount/a/one-1")]));
        let text = fs::read_to_string(yard.path("journal")).unwrap();
        for other in [text.replace(&boot_id().unwrap(), "other"), "{".to_owned()] {
            fs::write(yard.path("journal"), other).unwrap();
            drop(yard.open("two-"));
            assert!(yard.has("mount/a/one-1"));
        }
    }
}
