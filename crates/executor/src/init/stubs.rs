//! The empty files and directories that mount points leave behind in a root file system.
//!
//! As stock has it: of everything mounted, and of `/etc/resolv.conf` and `/etc/hosts`, what did not
//! exist before is removed afterwards if it is empty then; so a file that a step put there itself
//! stays. Directories above it stay too, unless they are asked to be removed as well.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

use crate::launch::{Doing, Failure, Launch};
use crate::rootpath;

/// What did not exist before, deepest first for each mount.
#[derive(Debug)]
pub(super) struct Stubs {
    root: OwnedFd,
    missing: Vec<PathBuf>,
}

impl Stubs {
    /// Looks which mount points are missing, before anything is made.
    pub(super) fn survey(launch: &Launch) -> Result<Stubs, Failure> {
        let root = rootpath::open_root(&launch.rootfs)
            .doing(|| format!("opening root file system {}", launch.rootfs.display()))?;
        let mut missing: Vec<PathBuf> = Vec::new();
        let fixed = ["/etc/resolv.conf", "/etc/hosts"].into_iter();
        for dest in fixed.chain(launch.mounts.iter().map(|m| m.dest.as_str())) {
            let dest = rootpath::clean(dest);
            // One that cannot be resolved fails where it is mounted, with the better error.
            let Ok((resolved, count)) = rootpath::survey(&root, &dest) else {
                continue;
            };
            let levels = if launch.stubs_recursive {
                count
            } else {
                count.min(1)
            };
            for path in resolved.ancestors().take(levels) {
                if !missing.iter().any(|known| known == path) {
                    missing.push(path.to_owned());
                }
            }
        }
        // A directory is empty only after what is in it has gone.
        missing.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        Ok(Stubs { root, missing })
    }

    /// Removes what is still empty; nothing here is worth failing a step for.
    pub(super) fn clean(&self) {
        for path in &self.missing {
            let _ = self.remove(path);
        }
    }

    fn remove(&self, path: &Path) -> rustix::io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(());
        };
        let relative = parent.strip_prefix("/").unwrap_or(parent);
        let relative = match relative.as_os_str().is_empty() {
            true => Path::new("."),
            false => relative,
        };
        // A step may have put links in the way: then it is not the directory we made.
        let parent = rustix::fs::openat2(
            &self.root,
            relative,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
        )?;
        let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let times = rustix::fs::fstat(&parent)?;
        match FileType::from_raw_mode(stat.st_mode) {
            // Fails for a directory that is not empty, as it should.
            FileType::Directory => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?,
            FileType::RegularFile if stat.st_size == 0 => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
            }
            _ => return Ok(()),
        }
        let _ = rootpath::set_times(&parent, &times);
        Ok(())
    }
}
