//! Files of a tree, written into an empty directory.
//!
//! **Invariant**: nothing is written through what is there already: directories, files and links are
//! all made anew, so that no link of a tree leads a later file elsewhere.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use diag::{Context, Error, Result};

use super::attributes::{Attributes, Conversion};
use super::object::{Oid, TreeEntry, parse_tree};
use super::repository::{Bases, Found, Repository};

/// How many files a thread has to write at least.
const FILES_PER_THREAD: usize = 64;

/// More threads than that only wait for the disk.
const THREADS_MAX: usize = 8;

/// What was written, by its path in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) path: Vec<u8>,
    pub(super) oid: Oid,
    pub(super) mode: u32,
}

impl Written {
    pub(super) fn is_submodule(&self) -> bool {
        self.mode & 0o170_000 == 0o160_000
    }
}

/// A file to be written.
struct Job {
    found: Found,
    path: Vec<u8>,
    oid: Oid,
    mode: u32,
    conversion: Conversion,
}

/// A tree inside of a commit: what the directories above it say of its files.
#[derive(Clone, Debug)]
pub(super) struct Subtree {
    /// Its object; `None` for a submodule, of which the commit has no files.
    tree: Option<Oid>,
    /// Where it is in the commit, without slashes at the ends.
    path: Vec<u8>,
    attributes: Attributes,
}

impl Subtree {
    /// The whole tree of a commit.
    pub(super) fn whole(tree: Oid) -> Self {
        Subtree {
            tree: Some(tree),
            path: Vec::new(),
            attributes: Attributes::default(),
        }
    }

    /// What is in it under a name.
    ///
    /// # Errors
    /// Names that are not there, of files, and of anything below a submodule.
    pub(super) fn enter(self, repository: &Repository, name: &[u8]) -> Result<Self> {
        let shown = String::from_utf8_lossy(name);
        let missing = || {
            let text = format!("failed to lstat {shown:?}: no such file or directory");
            Error::not_found(text)
        };
        let (_, data) = repository.read(self.tree.ok_or_else(missing)?)?;
        let entries = parse_tree(&data, repository.format())?;
        let entry = entries.iter().find(|entry| entry.name == name);
        let entry = entry.ok_or_else(missing)?;
        if !entry.is_dir() && !entry.is_submodule() {
            let text = format!("git subpath contains non-directory {shown:?}");
            return Err(Error::invalid(text));
        }
        Ok(Subtree {
            tree: entry.is_dir().then_some(entry.oid),
            attributes: attributes_of(repository, &entries, &self.path, self.attributes)?,
            path: joined(&self.path, name),
        })
    }
}

/// Writes a tree; returns its files, links and submodules, sorted by path. Submodules become empty
/// directories.
///
/// # Errors
/// Objects that are missing, and trees with two things of one name.
pub(super) fn write_tree(
    repository: &Repository,
    subtree: Subtree,
    target: &Path,
) -> Result<Vec<Written>> {
    let (mut written, mut jobs) = (Vec::new(), Vec::new());
    let mut bases = Bases::default();
    let Subtree {
        tree,
        path: outer,
        attributes,
    } = subtree;
    let mut todo: Vec<_> = tree
        .into_iter()
        .map(|tree| (tree, Vec::new(), attributes.clone()))
        .collect();
    while let Some((tree, path, attributes)) = todo.pop() {
        let (_, data) = repository.read_at(repository.require(tree)?, &mut bases)?;
        let entries = parse_tree(&data, repository.format())?;
        let attributes = attributes_of(repository, &entries, &joined(&outer, &path), attributes)?;
        for entry in entries {
            let path = joined(&path, &entry.name);
            if entry.is_dir() {
                new_dir(&target.join(OsStr::from_bytes(&path)))?;
                todo.push((entry.oid, path, attributes.clone()));
                continue;
            }
            if entry.is_submodule() {
                new_dir(&target.join(OsStr::from_bytes(&path)))?;
            } else {
                jobs.push(Job {
                    found: repository.require(entry.oid)?,
                    conversion: attributes.conversion(&joined(&outer, &path)),
                    path: path.clone(),
                    oid: entry.oid,
                    mode: entry.mode,
                });
            }
            written.push(Written {
                path,
                oid: entry.oid,
                mode: entry.mode,
            });
        }
    }
    write_all(repository, jobs, target)?;
    written.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(written)
}

/// Adds what a directory says of its files.
fn attributes_of(
    repository: &Repository,
    entries: &[TreeEntry],
    path: &[u8],
    outer: Attributes,
) -> Result<Attributes> {
    let here = entries
        .iter()
        .find(|entry| entry.name == b".gitattributes" && entry.mode & 0o170_000 == 0o100_000);
    match here {
        None => Ok(outer),
        Some(entry) => {
            let (_, text) = repository.read(entry.oid)?;
            Ok(outer.with(path, &String::from_utf8_lossy(&text)))
        }
    }
}

/// Writes the files in the order of the pack, in which those told by each other are near.
fn write_all(repository: &Repository, mut jobs: Vec<Job>, target: &Path) -> Result<()> {
    jobs.sort_by_key(|job| job.found);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads
        .min(THREADS_MAX)
        .min(jobs.len() / FILES_PER_THREAD + 1);
    let piece = jobs.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let running: Vec<_> = jobs
            .chunks(piece)
            .map(|jobs| scope.spawn(move || write_some(repository, jobs, target)))
            .collect();
        for thread in running {
            thread
                .join()
                .map_err(|_| Error::internal("a thread that wrote files panicked"))??;
        }
        Ok(())
    })
}

fn write_some(repository: &Repository, jobs: &[Job], target: &Path) -> Result<()> {
    let mut bases = Bases::default();
    for job in jobs {
        let path = target.join(OsStr::from_bytes(&job.path));
        write_one(repository, job, &path, &mut bases)
            .with_context(|| format!("write {}", String::from_utf8_lossy(&job.path)))?;
    }
    Ok(())
}

fn write_one(repository: &Repository, job: &Job, path: &Path, bases: &mut Bases) -> Result<()> {
    if job.mode & 0o170_000 == 0o120_000 {
        let (_, text) = repository.read_at(job.found, bases)?;
        return Ok(std::os::unix::fs::symlink(OsStr::from_bytes(&text), path)?);
    }
    let mode = if job.mode & 0o100 != 0 { 0o755 } else { 0o644 };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // Whatever the server's umask is.
    file.set_permissions(Permissions::from_mode(mode))?;
    if job.conversion.is_none() && stream(repository, job.found, &mut file)? {
        return Ok(());
    }
    let (_, data) = repository.read_at(job.found, bases)?;
    Ok(file.write_all(&job.conversion.apply(job.oid, &data))?)
}

fn stream(repository: &Repository, found: Found, file: &mut File) -> Result<bool> {
    repository.stream(found, |piece| Ok(file.write_all(piece)?))
}

/// Makes a directory with the mode that git gives it.
pub(super) fn new_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .mode(0o755)
        .create(path)
        .with_context(|| format!("make directory {:?}", path.file_name().unwrap_or_default()))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o755))?;
    Ok(())
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() || name.is_empty() {
        return [path, name].concat();
    }
    [path, b"/", name].concat()
}
