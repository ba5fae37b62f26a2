//! From a repository that has the commit to a directory with its files.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use diag::{Context, Error, Result};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::command::{Git, Place};
use super::{GitPin, GitRequest};
use crate::flatten::names;
use crate::resolve::blocking;

/// One checkout. The repository must have what was pinned, and nobody else may use it meanwhile.
pub(super) struct Checkout<'a> {
    pub(super) git: &'a Git<'a>,
    pub(super) request: &'a GitRequest,
    pub(super) pin: &'a GitPin,
    /// What was fetched from the remote.
    pub(super) repository: &'a Path,
    /// An empty directory.
    pub(super) target: &'a Path,
}

impl Checkout<'_> {
    /// Puts the files into the target.
    pub(super) async fn run(&self) -> Result<()> {
        let whole = self.request.subdir.is_empty();
        if self.request.keep_git_dir && whole {
            self.with_git_dir().await?;
        } else if whole {
            self.files_only(self.target).await?;
        } else {
            let all = self.target.join(format!(".cooperage-{}", self.pin.object));
            std::fs::create_dir(&all)?;
            self.files_only(&all).await?;
            let (target, subdir) = (self.target.to_owned(), self.request.subdir.clone());
            blocking(move || take_subdirectory(&all, &subdir, &target)).await?;
        }
        if self.request.commit_times {
            let place = self.shared();
            let commit = format!("{}^{{commit}}", self.pin.object);
            let args = ["log", "-1", "--format=%ct", &commit];
            let said = self.git.run(&place, &args).await?;
            let seconds = said.trim().parse().map_err(|_| {
                Error::internal(format!("failed to parse commit timestamp {said:?}"))
            })?;
            let target = self.target.to_owned();
            blocking(move || set_times(&target, seconds)).await?;
        }
        Ok(())
    }

    /// Files without a `.git`.
    async fn files_only(&self, tree: &Path) -> Result<()> {
        for left in ["index", "index.lock"] {
            let _ = std::fs::remove_file(self.repository.join(left));
        }
        let place = Place {
            git_dir: Some(self.repository),
            work_tree: Some(tree),
        };
        let args = ["read-tree", "--reset", "-u", &self.pin.object];
        self.git
            .run(&place, &args)
            .await
            .map_err(|e| self.failed(e))?;
        if self.wants_submodules(tree) {
            // In a repository of its own: what git notes down of the submodules of one commit must
            // not count for another.
            let own = tempfile::Builder::new()
                .suffix(".tmp")
                .tempdir_in(self.repository.parent().unwrap_or(Path::new("/")))?;
            self.own_repository(own.path(), tree, &self.request.remote)
                .await?;
            self.submodules(own.path(), tree).await?;
            let tree = tree.to_owned();
            blocking(move || remove_git_links(&tree)).await?;
        }
        Ok(())
    }

    /// Files with a `.git` that has this commit alone.
    async fn with_git_dir(&self) -> Result<()> {
        let dir = self.target.join(".git");
        let remote = diag::redact_url(&self.request.remote);
        self.own_repository(&dir, self.target, &remote).await?;
        if self.wants_submodules(self.target) {
            self.submodules(&dir, self.target).await?;
        }
        let _ = std::fs::remove_file(dir.join("FETCH_HEAD"));
        Ok(())
    }

    /// A repository with the pinned commit checked out, which knows the remote by that address.
    async fn own_repository(&self, dir: &Path, tree: &Path, remote: &str) -> Result<()> {
        let place = Place {
            git_dir: Some(dir),
            work_tree: Some(tree),
        };
        let mut init = vec!["init", "--quiet"];
        init.extend(self.pin.format_argument());
        self.git.run(&place, &init).await?;
        self.git
            .run(&place, &["remote", "add", "origin", remote])
            .await?;
        // By the file protocol: a clone by path may copy whatever links in it lead to.
        let path = self.repository.to_string_lossy().replace('%', "%25");
        let from = format!("file://{path}");
        let spec = if self.pin.reference == self.pin.object {
            self.pin.object.clone()
        } else {
            format!("+{}:{}", self.pin.object, self.pin.reference)
        };
        let fetch = ["fetch", "-q", "-u", "--no-tags", "--depth=1", &from, &spec];
        self.git.run(&place, &fetch).await?;
        self.git
            .run(&place, &["checkout", "-q", "--force", "FETCH_HEAD"])
            .await
            .map_err(|error| self.failed(error))?;
        let expire = ["reflog", "expire", "--all", "--expire=now"];
        self.git.run(&place, &expire).await.map(drop)
    }

    async fn submodules(&self, dir: &Path, tree: &Path) -> Result<()> {
        let place = Place {
            git_dir: Some(dir),
            work_tree: Some(tree),
        };
        let args = ["submodule", "update", "--init", "--recursive", "--depth=1"];
        self.git
            .run(&place, &args)
            .await
            .map(drop)
            .with_context(|| {
                let shown = diag::redact_url(&self.request.remote);
                format!("failed to update submodules for {shown}")
            })
    }

    fn wants_submodules(&self, tree: &Path) -> bool {
        !self.request.skip_submodules && tree.join(".gitmodules").symlink_metadata().is_ok()
    }

    fn shared(&self) -> Place<'_> {
        Place {
            git_dir: Some(self.repository),
            work_tree: None,
        }
    }

    fn failed(&self, error: Error) -> Error {
        let shown = diag::redact_url(&self.request.remote);
        error.context(format!("failed to checkout remote {shown}"))
    }
}

/// Moves what a directory of the tree holds into the target, and removes the tree.
pub(super) fn take_subdirectory(tree: &Path, subdir: &str, target: &Path) -> Result<()> {
    let invalid = || format!("invalid subdir {subdir}");
    let mut from = tree.to_owned();
    for part in subdir.split('/').filter(|part| !matches!(*part, "" | ".")) {
        if part == ".." {
            return Err(Error::invalid(
                "a subdirectory must be inside of its repository",
            ))
            .with_context(invalid);
        }
        from.push(part);
        let meta = from
            .symlink_metadata()
            .with_context(|| format!("failed to lstat {part:?}"))
            .with_context(invalid)?;
        if !meta.is_dir() {
            let text = format!("git subpath {subdir:?} contains non-directory {part:?}");
            return Err(Error::invalid(text)).with_context(invalid);
        }
    }
    for name in names(&from)? {
        let name = std::ffi::OsStr::from_bytes(&name);
        std::fs::rename(from.join(name), target.join(name))?;
    }
    Ok(std::fs::remove_dir_all(tree)?)
}

/// Removes the files by which submodules name a repository that will not be there.
fn remove_git_links(dir: &Path) -> Result<()> {
    for name in names(dir)? {
        let path = dir.join(std::ffi::OsStr::from_bytes(&name));
        let meta = path.symlink_metadata()?;
        if meta.is_dir() {
            remove_git_links(&path)?;
        } else if name == b".git" {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Gives everything that time (seconds since 1970), directories after what is in them.
pub(super) fn set_times(path: &Path, seconds: i64) -> Result<()> {
    if path.symlink_metadata()?.is_dir() {
        let children: Vec<PathBuf> = names(path)?
            .iter()
            .map(|name| path.join(std::ffi::OsStr::from_bytes(name)))
            .collect();
        for child in children {
            set_times(&child, seconds)?;
        }
    }
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(std::io::Error::from)?;
    Ok(())
}
