//! Finding the directory that an entry goes into, never leaving the tree.
//!
//! A layer's archive names places as they look with the layers below it: a directory may be missing
//! here because it is below, and a symbolic link below may lead elsewhere. Given the layers below,
//! names are resolved in the merged view; what is missing here is made like it is there.

use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::header::clean;
use crate::whiteout::{is_opaque, is_whiteout, make_opaque};
use crate::xattr::by_descriptor;
use crate::{ArchiveError, Result, copy_metadata};

/// As many links as the kernel follows in one name.
const LINKS_MAX: usize = 40;

pub(crate) const OPEN_DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
/// Links lead to where they would lead in a chroot.
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// No link is followed at all.
const STRAIGHT: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// The tree that is unpacked into, with what lies below it.
pub(crate) struct Root {
    fd: OwnedFd,
    lowers: Option<OwnedFd>,
    /// Whether devices 0/0 here mean that a name is gone.
    layer: bool,
    /// The directory asked for last; entries of one directory come together.
    cached: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Directories made without an entry of their own: owner and mode are unknown.
    implied: HashSet<Vec<u8>>,
    /// Whether something of the layers below was used.
    pub used_lowers: bool,
}

/// A place in the tree while a name is resolved: real directories, no links.
#[derive(Default)]
struct Place {
    parts: Vec<Vec<u8>>,
    /// For each part whether the layers below show through it.
    covered: Vec<bool>,
}

impl Place {
    fn path(&self) -> Vec<u8> {
        match self.parts.is_empty() {
            true => b".".to_vec(),
            false => self.parts.join(&b'/'),
        }
    }

    fn is_covered(&self) -> bool {
        self.covered.last().copied().unwrap_or(false)
    }

    fn push(&mut self, part: Vec<u8>, covers: bool) {
        let covered = self.is_covered() || covers;
        self.parts.push(part);
        self.covered.push(covered);
    }

    fn pop(&mut self) {
        self.parts.pop();
        self.covered.pop();
    }
}

impl Root {
    pub(crate) fn open(dest: &Path, lowers: Option<&Path>, layer: bool) -> Result<Self> {
        let open = |path: &Path| {
            rustix::fs::openat(CWD, path, OPEN_DIR, Mode::empty())
                .map_err(ArchiveError::io("open", path))
        };
        Ok(Root {
            fd: open(dest)?,
            lowers: lowers.map(open).transpose()?,
            layer,
            cached: None,
            implied: HashSet::new(),
            used_lowers: false,
        })
    }

    pub(crate) fn lowers(&self) -> Option<&OwnedFd> {
        self.lowers.as_ref()
    }

    pub(crate) fn implied_count(&self) -> u64 {
        self.implied.len() as u64
    }

    /// An implied directory turned out to have an entry of its own.
    pub(crate) fn explain(&mut self, parts: &[&[u8]]) {
        if !self.implied.is_empty() {
            self.implied.remove(&parts.join(&b'/'));
        }
    }

    /// Must be called when anything but a plain file is removed or replaced: names may lead elsewhere
    /// afterwards.
    pub(crate) fn forget(&mut self) {
        self.cached = None;
    }

    /// The directory of that name, made where it is missing.
    pub(crate) fn directory(&mut self, parts: &[&[u8]]) -> Result<Rc<OwnedFd>> {
        let path = parts.join(&b'/');
        if let Some((cached, fd)) = &self.cached
            && *cached == path
        {
            return Ok(fd.clone());
        }
        let fd = match self.existing(&path) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make(parts)?,
            Err(error) => return Err(self.fail("open", &path)(error)),
        };
        let fd = Rc::new(fd);
        self.cached = Some((path, fd.clone()));
        Ok(fd)
    }

    /// The directory of that name if it is here.
    pub(crate) fn existing(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        openat2(&self.fd, path, OPEN_DIR, IN_ROOT)
    }

    /// The directory of the layers below that has the canonical name of the open directory `parts`.
    pub(crate) fn lower_of(&self, parts: &[&[u8]]) -> Result<Option<OwnedFd>> {
        let Some(lowers) = &self.lowers else {
            return Ok(None);
        };
        let place = self.walk(parts)?;
        if place.is_covered() {
            return Ok(None);
        }
        Ok(openat2(lowers, &place.path(), OPEN_DIR, STRAIGHT).ok())
    }

    /// Resolves a name whose directories are all here.
    fn walk(&self, parts: &[&[u8]]) -> Result<Place> {
        let mut todo = reversed(parts);
        let mut place = Place::default();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == b".." {
                place.pop();
                continue;
            }
            let here = self.open_place(&place)?;
            let stat = rustix::fs::statat(&here, part.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(self.fail("stat", &part))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                self.follow(&here, &part, &mut place, &mut todo, &mut links)?;
            } else {
                let covers = self.covers(&here, &part)?;
                place.push(part, covers);
            }
        }
        Ok(place)
    }

    /// Resolves a name in the merged view and makes the directories that are missing here.
    fn make(&mut self, parts: &[&[u8]]) -> Result<OwnedFd> {
        let mut todo = reversed(parts);
        let mut place = Place::default();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == b".." {
                place.pop();
                continue;
            }
            let here = self.open_place(&place)?;
            match rustix::fs::statat(&here, part.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {
                        let covers = self.covers(&here, &part)?;
                        place.push(part, covers);
                    }
                    FileType::Symlink => {
                        self.follow(&here, &part, &mut place, &mut todo, &mut links)?;
                    }
                    _ if self.layer && is_whiteout(&stat) => {
                        rustix::fs::unlinkat(&here, part.as_slice(), AtFlags::empty())
                            .map_err(self.fail("remove", &part))?;
                        self.make_implied(&here, &mut place, part, true)?;
                    }
                    _ => return Err(self.fail("open", &part)(Errno::NOTDIR)),
                },
                Err(Errno::NOENT) => {
                    self.make_missing(&here, &mut place, part, &mut todo, &mut links)?;
                }
                Err(error) => return Err(self.fail("stat", &part)(error)),
            }
        }
        self.open_place(&place)
    }

    /// One part that is not here: as it is below, if it is there.
    fn make_missing(
        &mut self,
        here: &OwnedFd,
        place: &mut Place,
        part: Vec<u8>,
        todo: &mut Vec<Vec<u8>>,
        links: &mut usize,
    ) -> Result<()> {
        let below = match &self.lowers {
            Some(lowers) if !place.is_covered() => {
                openat2(lowers, &place.path(), OPEN_DIR, STRAIGHT).ok()
            }
            _ => None,
        };
        let stat = below.as_ref().and_then(|below| {
            rustix::fs::statat(below, part.as_slice(), AtFlags::SYMLINK_NOFOLLOW).ok()
        });
        let (Some(below), Some(stat)) = (below, stat) else {
            return self.make_implied(here, place, part, false);
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                self.used_lowers = true;
                self.follow(&below, &part, place, todo, links)
            }
            FileType::Directory => {
                rustix::fs::mkdirat(here, part.as_slice(), Mode::RWXU)
                    .map_err(self.fail("mkdir", &part))?;
                let source = by_descriptor(&below, &part);
                copy_metadata(&source, &stat, &by_descriptor(here, &part))?;
                self.used_lowers = true;
                place.push(part, false);
                Ok(())
            }
            _ => Err(self.fail("open", &part)(Errno::NOTDIR)),
        }
    }

    fn make_implied(
        &mut self,
        here: &OwnedFd,
        place: &mut Place,
        part: Vec<u8>,
        opaque: bool,
    ) -> Result<()> {
        let fail = self.fail("mkdir", &part);
        rustix::fs::mkdirat(here, part.as_slice(), Mode::RWXU)
            .and_then(|()| {
                // The process' umask is not asked.
                let mode = Mode::from_raw_mode(0o755);
                rustix::fs::chmodat(here, part.as_slice(), mode, AtFlags::empty())?;
                match opaque {
                    true => make_opaque(&by_descriptor(here, &part)),
                    false => Ok(()),
                }
            })
            .map_err(fail)?;
        place.push(part, opaque);
        self.implied.insert(place.path());
        Ok(())
    }

    /// Puts what a link says in place of the link.
    fn follow(
        &self,
        dir: &OwnedFd,
        part: &[u8],
        place: &mut Place,
        todo: &mut Vec<Vec<u8>>,
        links: &mut usize,
    ) -> Result<()> {
        *links += 1;
        if *links > LINKS_MAX {
            return Err(self.fail("open", part)(Errno::LOOP));
        }
        let target =
            rustix::fs::readlinkat(dir, part, Vec::new()).map_err(self.fail("read link", part))?;
        let target = target.as_bytes();
        if target.starts_with(b"/") {
            *place = Place::default();
        }
        let parts = target.split(|&b| b == b'/').rev();
        todo.extend(
            parts
                .filter(|part| !part.is_empty() && *part != b".")
                .map(<[u8]>::to_vec),
        );
        Ok(())
    }

    fn covers(&self, here: &OwnedFd, part: &[u8]) -> Result<bool> {
        if !self.layer || self.lowers.is_none() {
            return Ok(false);
        }
        is_opaque(&by_descriptor(here, part)).map_err(self.fail("read attribute of", part))
    }

    fn open_place(&self, place: &Place) -> Result<OwnedFd> {
        let path = place.path();
        openat2(&self.fd, &path, OPEN_DIR, STRAIGHT).map_err(self.fail("open", &path))
    }

    pub(crate) fn fail(
        &self,
        action: &'static str,
        path: &[u8],
    ) -> impl FnOnce(Errno) -> ArchiveError + use<> {
        use std::os::unix::ffi::OsStrExt;
        ArchiveError::io(action, Path::new(std::ffi::OsStr::from_bytes(path)))
    }
}

fn reversed(parts: &[&[u8]]) -> Vec<Vec<u8>> {
    parts.iter().rev().map(|part| part.to_vec()).collect()
}

fn openat2(
    dir: impl AsFd,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    loop {
        // The kernel gives up on `..` when anything is renamed meanwhile anywhere.
        match rustix::fs::openat2(&dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Splits a cleaned name into its directory and last part; `None` for the root itself.
pub(crate) fn split(path: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let mut parts = clean(path);
    let base = parts.pop()?;
    Some((parts, base))
}
