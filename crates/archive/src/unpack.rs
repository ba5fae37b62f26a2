//! Unpacking archives onto disk.
//!
//! [`unpack_layer`] makes a layer directory (see the crate's page): entries that delete become
//! whiteouts, nothing is deleted for real. [`unpack_tree`] just extracts, as `ADD archive.tar /dir`
//! does. Owners, modes (setuid too), times, extended attributes, devices, fifos, hard links and
//! holes come out as they went in; sockets do not exist in archives.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::header::clean;
use crate::resolve::{OPEN_DIR, Root, split};
use crate::whiteout::{OPAQUE_ENTRY, PREFIX, is_whiteout, make_opaque, make_whiteout};
use crate::xattr::{self, by_descriptor};
use crate::{
    ArchiveError, Entry, EntryKind, Header, Mtime, Reader, Result, copy_entry, remove_tree,
};

const BUFFER_SIZE: usize = 256 << 10;

/// What an unpacked archive had in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnpackStats {
    /// Entries, the root's own not counted.
    pub entries: u64,
    /// Bytes of content, holes included.
    pub content_bytes: u64,
    /// Whether anything says that something of the layers below is gone.
    pub whiteouts: bool,
    /// Directories made because an entry is in them though they have none of their own; their owner
    /// and mode are those of the layers below if these were given, otherwise 0:0 and 0755.
    pub implied_directories: u64,
    /// Whether the result depends on the layers below that were given.
    pub used_lowers: bool,
}

impl UnpackStats {
    /// True when the layer was unpacked without the layers below it, but needs them: unpacked alone
    /// it would change what it only passes through.
    pub fn needs_lowers(&self) -> bool {
        self.implied_directories > 0 && !self.used_lowers
    }
}

/// How [`unpack_tree`] changes what it unpacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnpackOptions {
    /// Owner and group of everything, instead of what the archive says.
    pub owner: Option<(u32, u32)>,
}

/// Unpacks the tar stream of an OCI layer into the empty directory `dest`, making it a layer
/// directory. The stream is read to its very end, padding after the archive included.
///
/// `lowers` is the merged view of the layers below, needed by few archives: those with hard links
/// to files below, or without entries for directories that are below. Without it the first fails with
/// [`ArchiveError::NeedsLowers`], and [`UnpackStats::needs_lowers`] tells about the second.
pub fn unpack_layer(reader: impl Read, dest: &Path, lowers: Option<&Path>) -> Result<UnpackStats> {
    let root = Root::open(dest, lowers, true)?;
    Unpacker::new(root, UnpackOptions::default(), true).run(reader)
}

/// Extracts a plain tar stream into `dest`, over what is there: directories are merged, anything
/// else is replaced.
pub fn unpack_tree(reader: impl Read, dest: &Path, options: &UnpackOptions) -> Result<UnpackStats> {
    let root = Root::open(dest, None, false)?;
    Unpacker::new(root, *options, false).run(reader)
}

struct Unpacker {
    root: Root,
    options: UnpackOptions,
    layer: bool,
    stats: UnpackStats,
    /// Times of directories are set last: filling a directory changes its time.
    times: Vec<(Vec<u8>, Mtime)>,
    /// The archive hides everything below the root.
    opaque_root: bool,
    buffer: Vec<u8>,
}

impl Unpacker {
    fn new(root: Root, options: UnpackOptions, layer: bool) -> Self {
        Unpacker {
            root,
            options,
            layer,
            stats: UnpackStats::default(),
            times: Vec::new(),
            opaque_root: false,
            buffer: vec![0; BUFFER_SIZE],
        }
    }

    fn run(mut self, reader: impl Read) -> Result<UnpackStats> {
        let mut archive = Reader::new(reader);
        while let Some(mut entry) = archive.next_entry()? {
            self.entry(&mut entry)?;
        }
        archive.drain()?;
        if self.opaque_root {
            self.hide_lower_root()?;
        }
        for (path, time) in std::mem::take(&mut self.times) {
            // It may have been replaced by a later entry.
            if let Ok(fd) = self.root.existing(&path) {
                rustix::fs::futimens(&fd, &timestamps(time))
                    .map_err(self.root.fail("set times of", &path))?;
            }
        }
        self.stats.implied_directories = self.root.implied_count();
        self.stats.used_lowers |= self.root.used_lowers;
        Ok(self.stats)
    }

    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<()> {
        let header = entry.header().clone();
        // The root's own entry says nothing that a stack could use.
        let Some((parents, base)) = split(&header.path) else {
            return Ok(());
        };
        self.stats.entries += 1;
        if self.layer && base.starts_with(PREFIX) {
            return self.whiteout(&header, &parents, base);
        }
        let parent = self.root.directory(&parents)?;
        match header.kind {
            EntryKind::Regular => self.file(entry, &header, &parent, base),
            EntryKind::Directory => self.directory(&header, &parents, &parent, base),
            EntryKind::HardLink => self.hard_link(&header, &parent, base),
            EntryKind::Symlink => {
                let link = header.link.as_slice();
                self.place(&parent, base, || rustix::fs::symlinkat(link, &parent, base))?;
                self.node_metadata(&header, &parent, base)
            }
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                self.device(&header, &parent, base)
            }
            EntryKind::Other(kind) => Err(ArchiveError::Kind {
                kind,
                path: String::from_utf8_lossy(&header.path).into_owned(),
            }),
        }
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        header: &Header,
        parent: &OwnedFd,
        base: &[u8],
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = self.place(parent, base, || {
            rustix::fs::openat(parent, base, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let file = std::fs::File::from(fd);
        let mut end = 0;
        entry.for_each_data(&mut self.buffer, |offset, data| {
            end = offset + data.len() as u64;
            file.write_all_at(data, offset)
                .map_err(ArchiveError::io("write", &lossy(&header.path)))
        })?;
        if end != header.size {
            file.set_len(header.size)
                .map_err(ArchiveError::io("write", &lossy(&header.path)))?;
        }
        self.stats.content_bytes += header.size;
        self.open_metadata(header, &file)?;
        rustix::fs::futimens(&file, &timestamps(header.mtime))
            .map_err(self.root.fail("set times of", &header.path))
    }

    fn directory(
        &mut self,
        header: &Header,
        parents: &[&[u8]],
        parent: &OwnedFd,
        base: &[u8],
    ) -> Result<()> {
        let mut replaced = false;
        match rustix::fs::mkdirat(parent, base, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = self.stat(parent, base)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    self.remove(parent, base)?;
                    rustix::fs::mkdirat(parent, base, Mode::RWXU)
                        .map_err(self.root.fail("mkdir", &header.path))?;
                    // What was replaced hid a directory below, if there is one.
                    replaced = true;
                }
            }
            Err(error) => return Err(self.root.fail("mkdir", &header.path)(error)),
        }
        let fd = rustix::fs::openat(parent, base, OPEN_DIR | OFlags::NOFOLLOW, Mode::empty())
            .map_err(self.root.fail("open", &header.path))?;
        if replaced && self.layer {
            make_opaque(&by_descriptor(parent, base))
                .map_err(self.root.fail("set attribute of", &header.path))?;
        }
        self.open_metadata(header, &fd)?;
        let path = [parents, &[base]].concat();
        self.root.explain(&path);
        self.times.push((path.join(&b'/'), header.mtime));
        Ok(())
    }

    fn device(&mut self, header: &Header, parent: &OwnedFd, base: &[u8]) -> Result<()> {
        let kind = match header.kind {
            EntryKind::CharDevice => FileType::CharacterDevice,
            EntryKind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(header.dev_major, header.dev_minor);
        let mode = Mode::from_raw_mode(header.mode & 0o777);
        self.place(parent, base, || {
            rustix::fs::mknodat(parent, base, kind, mode, device)
        })?;
        self.stats.whiteouts |= kind == FileType::CharacterDevice && device == 0;
        self.node_metadata(header, parent, base)
    }

    fn hard_link(&mut self, header: &Header, parent: &OwnedFd, base: &[u8]) -> Result<()> {
        let Some((target_parents, target)) = split(&header.link) else {
            return Err(ArchiveError::entry(&header.path, "a hard link to the root"));
        };
        if clean(&header.path) == clean(&header.link) {
            return Err(ArchiveError::entry(&header.path, "a hard link to itself"));
        }
        let found = match self.root.existing(&target_parents.join(&b'/')) {
            Ok(dir) => match rustix::fs::statat(&dir, target, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if self.layer && is_whiteout(&stat) => {
                    let reason = "a hard link to a deleted file";
                    return Err(ArchiveError::entry(&header.path, reason));
                }
                Ok(_) => Some(dir),
                Err(Errno::NOENT) => None,
                Err(error) => return Err(self.root.fail("stat", &header.link)(error)),
            },
            Err(_) => None,
        };
        let dir = match found {
            Some(dir) => dir,
            None => self.copy_up(header, &target_parents, target)?,
        };
        self.place(parent, base, || {
            rustix::fs::linkat(&dir, target, parent, base, AtFlags::empty())
        })?;
        self.node_metadata(header, parent, base)
    }

    /// Brings the target of a hard link here from the layers below; returns its directory here.
    fn copy_up(&mut self, header: &Header, parents: &[&[u8]], name: &[u8]) -> Result<OwnedFd> {
        let link = || String::from_utf8_lossy(&header.path).into_owned();
        if self.root.lowers().is_none() {
            return match self.layer {
                true => Err(ArchiveError::NeedsLowers(link())),
                false => Err(self.root.fail("link", &header.link)(Errno::NOENT)),
            };
        }
        let here = self.root.directory(parents)?;
        let below = self.root.lower_of(parents)?;
        let stat = below
            .as_ref()
            .ok_or(Errno::NOENT)
            .and_then(|below| rustix::fs::statat(below, name, AtFlags::SYMLINK_NOFOLLOW));
        let (Some(below), Ok(stat)) = (below, stat) else {
            return Err(self.root.fail("link", &header.link)(Errno::NOENT));
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(ArchiveError::entry(
                &header.path,
                "a hard link to a directory",
            ));
        }
        copy_entry(
            &by_descriptor(&below, name),
            &stat,
            &by_descriptor(&here, name),
        )?;
        self.stats.used_lowers = true;
        rustix::io::fcntl_dupfd_cloexec(&*here, 0).map_err(self.root.fail("open", &header.link))
    }

    fn whiteout(&mut self, header: &Header, parents: &[&[u8]], base: &[u8]) -> Result<()> {
        let name = &base[PREFIX.len()..];
        // Bookkeeping of aufs that some old archives carry.
        if [&b".wh.aufs"[..], b".wh.orph", b".wh.plnk"].contains(&name) {
            return Ok(());
        }
        if name.is_empty() || name == b"." || name == b".." {
            return Err(ArchiveError::entry(&header.path, "invalid whiteout name"));
        }
        if base == OPAQUE_ENTRY {
            return self.opaque(header, parents);
        }
        let parent = self.root.directory(parents)?;
        self.stats.whiteouts = true;
        match make_whiteout(&parent, name) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                // Only what is below goes: a file of this layer hides that already, a directory
                // must be told to.
                let stat = self.stat(&parent, name)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    return Ok(());
                }
                make_opaque(&by_descriptor(&parent, name))
                    .map_err(self.root.fail("set attribute of", &header.path))
            }
            Err(error) => Err(self.root.fail("mknod", &header.path)(error)),
        }
    }

    fn opaque(&mut self, header: &Header, parents: &[&[u8]]) -> Result<()> {
        self.stats.whiteouts = true;
        if parents.is_empty() {
            // overlayfs never takes the root for opaque.
            if self.root.lowers().is_none() {
                let path = String::from_utf8_lossy(&header.path).into_owned();
                return Err(ArchiveError::NeedsLowers(path));
            }
            self.opaque_root = true;
            return Ok(());
        }
        let dir = self.root.directory(parents)?;
        make_opaque(&by_descriptor(&*dir, b"."))
            .map_err(self.root.fail("set attribute of", &header.path))
    }

    /// Hides every name of the layers' root below, one by one.
    fn hide_lower_root(&mut self) -> Result<()> {
        let Some(lowers) = self.root.lowers() else {
            return Ok(());
        };
        let fail = |error: Errno| self.root.fail("hide", b"/")(error);
        let names = crate::tree::child_names(lowers).map_err(fail)?;
        let here = self.root.existing(b"").map_err(fail)?;
        self.stats.used_lowers = true;
        for name in names {
            match make_whiteout(&here, &name) {
                Err(Errno::EXIST) => {
                    let stat = self.stat(&here, &name)?;
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                        make_opaque(&by_descriptor(&here, &name)).map_err(fail)?;
                    }
                }
                result => result.map_err(fail)?,
            }
        }
        Ok(())
    }

    /// Makes something under a name, removing first what is there.
    fn place<T>(
        &mut self,
        parent: &OwnedFd,
        base: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(parent, base)?;
                make()
            }
            result => result,
        }
        .map_err(self.root.fail("make", base))
    }

    fn remove(&mut self, parent: &OwnedFd, base: &[u8]) -> Result<()> {
        self.root.forget();
        remove_tree(parent, base).map_err(self.root.fail("remove", base))
    }

    fn stat(&self, parent: impl AsFd, base: &[u8]) -> Result<Stat> {
        rustix::fs::statat(parent, base, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.root.fail("stat", base))
    }

    fn owner(&self, header: &Header) -> Result<(Uid, Gid)> {
        let (uid, gid) = match self.options.owner {
            Some(owner) => owner,
            None => {
                let id = |id: u64| {
                    u32::try_from(id)
                        .ok()
                        .filter(|id| *id != u32::MAX)
                        .ok_or_else(|| ArchiveError::entry(&header.path, "owner out of range"))
                };
                (id(header.uid)?, id(header.gid)?)
            }
        };
        Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    /// Owner, then attributes (a change of owner drops capabilities), then mode (it also drops
    /// setuid).
    fn open_metadata(&self, header: &Header, fd: impl AsFd) -> Result<()> {
        let (uid, gid) = self.owner(header)?;
        rustix::fs::fchown(&fd, Some(uid), Some(gid))
            .map_err(self.root.fail("chown", &header.path))?;
        for (name, value) in header.xattrs.iter().filter(|(n, _)| xattr::is_settable(n)) {
            let set = rustix::fs::fsetxattr(&fd, name.as_slice(), value, XattrFlags::empty());
            self.check_xattr(header, name, set)?;
        }
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(header.mode & 0o7777))
            .map_err(self.root.fail("chmod", &header.path))
    }

    /// The same for what cannot be opened: links, devices, fifos; with the time.
    fn node_metadata(&self, header: &Header, parent: &OwnedFd, base: &[u8]) -> Result<()> {
        let fail = |action| self.root.fail(action, &header.path);
        let (uid, gid) = self.owner(header)?;
        rustix::fs::chownat(
            parent,
            base,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(fail("chown"))?;
        for (name, value) in header.xattrs.iter().filter(|(n, _)| xattr::is_settable(n)) {
            let set = xattr::set(&by_descriptor(parent, base), name, value);
            self.check_xattr(header, name, set)?;
        }
        let kind = FileType::from_raw_mode(self.stat(parent, base)?.st_mode);
        if kind != FileType::Symlink {
            let mode = Mode::from_raw_mode(header.mode & 0o7777);
            rustix::fs::chmodat(parent, base, mode, AtFlags::empty()).map_err(fail("chmod"))?;
        }
        let times = timestamps(header.mtime);
        rustix::fs::utimensat(parent, base, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(fail("set times of"))
    }

    /// A filesystem without attributes, or a kind of file that may have none, is no failure.
    fn check_xattr(
        &self,
        header: &Header,
        name: &[u8],
        result: rustix::io::Result<()>,
    ) -> Result<()> {
        match result {
            Err(Errno::NOTSUP) => {}
            Err(Errno::PERM) if name.starts_with(b"user.") => {}
            result => return result.map_err(self.root.fail("set attribute of", &header.path)),
        }
        let path = String::from_utf8_lossy(&header.path);
        let name = String::from_utf8_lossy(name);
        tracing::warn!(%path, %name, "ignored an extended attribute of the archive");
        Ok(())
    }
}

fn lossy(path: &[u8]) -> std::path::PathBuf {
    String::from_utf8_lossy(path).into_owned().into()
}

fn timestamps(time: Mtime) -> Timestamps {
    let time = Timespec {
        tv_sec: time.secs as _,
        tv_nsec: time.nanos as _,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
