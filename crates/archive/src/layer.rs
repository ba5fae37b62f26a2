//! Writing directories as archives: a layer directory as an OCI layer, or any tree as it is.
//!
//! Order is that of a walk with names sorted in each directory, a directory before what is in it.
//! Names are relative; directories end in `/`; the root has no entry. Users' names are left out.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::whiteout::{OPAQUE_ENTRY, PREFIX, is_opaque, is_whiteout};
use crate::{ArchiveError, EntryKind, Header, Mtime, Result, Writer, xattr};

/// How a tree is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TarOptions {
    /// Put before every name, such as `linux_amd64/`. Its own entry is the caller's matter.
    pub prefix: Vec<u8>,
    /// Later times become this one (`SOURCE_DATE_EPOCH` with `rewrite-timestamp`).
    pub mtime_max: Option<Mtime>,
}

/// Writes the layer directory `upper` as an OCI layer.
///
/// With the merged view `lower` of the layers below, what only looks like a change is left out as
/// other builders leave it out (a directory that was only passed through, a whiteout of nothing),
/// and an opaque directory is written as whiteouts of what it really hides. Without it everything in
/// `upper` is written, opaque directories with a `.wh..wh..opq` entry. Times are cut to the second.
pub fn write_layer(
    upper: &Path,
    lower: Option<&Path>,
    out: &mut impl Write,
    options: &TarOptions,
) -> Result<()> {
    let mut walk = Walk::new(Writer::new(out), options, true);
    walk.layer_directory(upper, lower, &[])?;
    walk.tar.finish()?;
    Ok(())
}

/// Writes the whole tree at `root` as it is. Times are rounded to the second, as the tar exporters of
/// other builders do.
pub fn write_tree<W: Write>(root: &Path, out: W, options: &TarOptions) -> Result<W> {
    let mut tar = Writer::new(out);
    tar.append_tree(root, options)?;
    tar.finish()
}

impl<W: Write> Writer<W> {
    /// Appends the whole tree at `root`, as [`write_tree`] does; several trees may be put into one
    /// archive under different prefixes.
    pub fn append_tree(&mut self, root: &Path, options: &TarOptions) -> Result<()> {
        let mut walk = Walk::new(self, options, false);
        walk.tree(root, &[])
    }
}

/// Something entries can be appended to: a writer, owned or borrowed.
trait Sink {
    fn put(&mut self, header: &Header, content: Option<&mut File>) -> Result<()>;
}

impl<W: Write> Sink for Writer<W> {
    fn put(&mut self, header: &Header, content: Option<&mut File>) -> Result<()> {
        self.append_header(header)?;
        match content {
            Some(file) => self.append_content(header, file),
            None => Ok(()),
        }
    }
}

impl<S: Sink> Sink for &mut S {
    fn put(&mut self, header: &Header, content: Option<&mut File>) -> Result<()> {
        (**self).put(header, content)
    }
}

struct Walk<'a, S> {
    tar: S,
    options: &'a TarOptions,
    /// Times are cut (layers) or rounded (trees).
    cut_times: bool,
    /// First name of every file that has several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Unchanged directories on the way down, written only when something in them is.
    pending: Vec<Header>,
}

impl<'a, S: Sink> Walk<'a, S> {
    fn new(tar: S, options: &'a TarOptions, cut_times: bool) -> Self {
        Walk {
            tar,
            options,
            cut_times,
            links: HashMap::new(),
            pending: Vec::new(),
        }
    }

    fn tree(&mut self, dir: &Path, name: &[u8]) -> Result<()> {
        for (child, child_name) in children(dir, name)? {
            let stat = lstat(&child)?;
            if let Some(header) = self.header(&child, &child_name, &stat)? {
                self.emit(header, &child, &stat)?;
            }
            if is_dir(&stat) {
                self.tree(&child, &child_name)?;
            }
        }
        Ok(())
    }

    /// A directory in which names of the layers below show through.
    fn layer_directory(&mut self, dir: &Path, lower: Option<&Path>, name: &[u8]) -> Result<()> {
        for (child, child_name) in children(dir, name)? {
            let stat = lstat(&child)?;
            let below = Below::of(lower, &child)?;
            if is_whiteout(&stat) {
                if lower.is_none() || below.is_some() {
                    self.emit_whiteout(&child_name)?;
                }
                continue;
            }
            let same = match &below {
                Some(below) => same_entry(&child, &stat, below)?,
                None => false,
            };
            let depth = self.pending.len();
            if let Some(header) = self.header(&child, &child_name, &stat)? {
                match (same, is_dir(&stat)) {
                    (false, _) => self.emit(header, &child, &stat)?,
                    (true, true) => self.pending.push(header),
                    (true, false) => {}
                }
            }
            if is_dir(&stat) {
                self.enter(&child, &child_name, lower.is_some(), below)?;
            }
            self.pending.truncate(depth);
        }
        Ok(())
    }

    /// Goes into a directory of a layer, whose counterpart below is known if there is one.
    fn enter(
        &mut self,
        dir: &Path,
        name: &[u8],
        lower_known: bool,
        below: Option<Below>,
    ) -> Result<()> {
        let opaque = is_opaque(dir).map_err(ArchiveError::io("read attribute of", dir))?;
        let below = below.filter(|below| is_dir(&below.stat));
        match (opaque, lower_known) {
            (true, false) => {
                self.emit_marker([name, b"/", OPAQUE_ENTRY].concat())?;
                self.layer_directory(dir, None, name)
            }
            (true, true) => match below {
                Some(below) => self.opaque_directory(dir, &below.path, name),
                None => self.covered_directory(dir, name),
            },
            // Below there is nothing, or no directory: what is here is all there is.
            (false, true) if below.is_none() => self.covered_directory(dir, name),
            (false, _) => self.layer_directory(dir, below.as_ref().map(|b| b.path.as_path()), name),
        }
    }

    /// A directory with nothing below: whiteouts in it say nothing.
    fn covered_directory(&mut self, dir: &Path, name: &[u8]) -> Result<()> {
        for (child, child_name) in children(dir, name)? {
            let stat = lstat(&child)?;
            if is_whiteout(&stat) {
                continue;
            }
            if let Some(header) = self.header(&child, &child_name, &stat)? {
                self.emit(header, &child, &stat)?;
            }
            if is_dir(&stat) {
                self.covered_directory(&child, &child_name)?;
            }
        }
        Ok(())
    }

    /// A directory that hides its counterpart below: the difference of the two, name by name.
    fn opaque_directory(&mut self, dir: &Path, lower: &Path, name: &[u8]) -> Result<()> {
        let mut uppers = Vec::new();
        for (child, child_name) in children(dir, name)? {
            let stat = lstat(&child)?;
            if !is_whiteout(&stat) {
                uppers.push((child, child_name, stat));
            }
        }
        let mut uppers = uppers.into_iter().peekable();
        let mut lowers = children(lower, name)?.into_iter().peekable();
        loop {
            let order = match (uppers.peek(), lowers.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((_, upper, _)), Some((_, lower))) => upper.cmp(lower),
            };
            if order == Ordering::Greater {
                if let Some((_, gone)) = lowers.next() {
                    self.emit_whiteout(&gone)?;
                }
                continue;
            }
            let below = match order {
                Ordering::Equal => lowers.next(),
                _ => None,
            };
            if let Some((child, child_name, stat)) = uppers.next() {
                self.opaque_child(&child, &child_name, &stat, below.map(|(path, _)| path))?;
            }
        }
    }

    fn opaque_child(
        &mut self,
        child: &Path,
        name: &[u8],
        stat: &Stat,
        below: Option<PathBuf>,
    ) -> Result<()> {
        let below = match below {
            Some(path) => Some(Below {
                stat: lstat(&path)?,
                path,
            }),
            None => None,
        };
        let same = match &below {
            Some(below) => same_entry(child, stat, below)?,
            None => false,
        };
        let depth = self.pending.len();
        if let Some(header) = self.header(child, name, stat)? {
            match (same, is_dir(stat)) {
                (false, _) => self.emit(header, child, stat)?,
                (true, true) => self.pending.push(header),
                (true, false) => {}
            }
        }
        if is_dir(stat) {
            match below.filter(|below| is_dir(&below.stat)) {
                Some(below) => self.opaque_directory(child, &below.path, name)?,
                None => self.covered_directory(child, name)?,
            }
        }
        self.pending.truncate(depth);
        Ok(())
    }

    fn emit_whiteout(&mut self, name: &[u8]) -> Result<()> {
        let base = name.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
        self.emit_marker([&name[..base], PREFIX, &name[base..]].concat())
    }

    /// An empty file of mode 0 and time 0, as other builders write them.
    fn emit_marker(&mut self, name: Vec<u8>) -> Result<()> {
        self.flush_pending()?;
        let name = [self.options.prefix.as_slice(), &name].concat();
        let mut header = Header::file(name, 0);
        header.mode = 0;
        self.tar.put(&header, None)
    }

    fn flush_pending(&mut self) -> Result<()> {
        for header in std::mem::take(&mut self.pending) {
            self.tar.put(&header, None)?;
        }
        Ok(())
    }

    fn emit(&mut self, mut header: Header, path: &Path, stat: &Stat) -> Result<()> {
        self.flush_pending()?;
        if stat.st_nlink > 1 && !is_dir(stat) {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                header.kind = EntryKind::HardLink;
                header.link = first.clone();
                header.size = 0;
            } else {
                self.links.insert(key, header.path.clone());
            }
        }
        if header.kind != EntryKind::Regular || header.size == 0 {
            return self.tar.put(&header, None);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(ArchiveError::io("open", path))?;
        self.tar.put(&header, Some(&mut File::from(fd)))
    }

    /// The header of an entry; `None` for a socket, which archives do not have.
    fn header(&self, path: &Path, name: &[u8], stat: &Stat) -> Result<Option<Header>> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => EntryKind::Regular,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            FileType::CharacterDevice => EntryKind::CharDevice,
            FileType::BlockDevice => EntryKind::BlockDevice,
            FileType::Fifo => EntryKind::Fifo,
            _ => return Ok(None),
        };
        let slash: &[u8] = if is_dir(stat) { b"/" } else { b"" };
        let mut header = Header::new(kind, [&self.options.prefix, name, slash].concat());
        header.mode = stat.st_mode & 0o7777;
        header.uid = u64::from(stat.st_uid);
        header.gid = u64::from(stat.st_gid);
        header.mtime = self.mtime(stat);
        match kind {
            EntryKind::Regular => header.size = stat.st_size as u64,
            EntryKind::Symlink => {
                let target = rustix::fs::readlinkat(CWD, path, Vec::new())
                    .map_err(ArchiveError::io("read link", path))?;
                header.link = target.into_bytes();
            }
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                header.dev_major = rustix::fs::major(stat.st_rdev);
                header.dev_minor = rustix::fs::minor(stat.st_rdev);
            }
            _ => {}
        }
        let names = xattr::list(path).map_err(ArchiveError::io("list attributes of", path))?;
        for name in names.into_iter().filter(|name| xattr::is_portable(name)) {
            let value =
                xattr::get(path, &name).map_err(ArchiveError::io("read attribute of", path))?;
            header.xattrs.extend(value.map(|value| (name, value)));
        }
        Ok(Some(header))
    }

    fn mtime(&self, stat: &Stat) -> Mtime {
        let mut secs = stat.st_mtime;
        let nanos = stat.st_mtime_nsec as u32;
        let time = Mtime { secs, nanos };
        if let Some(max) = self.options.mtime_max
            && time > max
        {
            return Mtime::from_secs(max.secs);
        }
        if !self.cut_times && nanos >= 500_000_000 {
            secs += 1;
        }
        Mtime::from_secs(secs)
    }
}

/// What the layers below have under a name.
struct Below {
    path: PathBuf,
    stat: Stat,
}

impl Below {
    fn of(lower: Option<&Path>, upper: &Path) -> Result<Option<Self>> {
        let (Some(lower), Some(name)) = (lower, upper.file_name()) else {
            return Ok(None);
        };
        let path = lower.join(name);
        match rustix::fs::lstat(&path) {
            Ok(stat) => Ok(Some(Below { path, stat })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(ArchiveError::io("stat", &path)(error)),
        }
    }
}

/// Whether an entry is no change against what is below: same kind, mode, owner, device and
/// attributes, and for anything but directories same size, time and content. Equal times alone prove
/// nothing: they may be cut to the second, or two files may have been written within one tick.
fn same_entry(path: &Path, stat: &Stat, below: &Below) -> Result<bool> {
    let other = &below.stat;
    let key = |s: &Stat| (s.st_mode, s.st_uid, s.st_gid, s.st_rdev);
    if key(stat) != key(other) {
        return Ok(false);
    }
    if !is_dir(stat) {
        let time = |s: &Stat| (s.st_size, s.st_mtime, s.st_mtime_nsec);
        if time(stat) != time(other) {
            return Ok(false);
        }
    }
    let portable = |path: &Path| -> Result<Vec<(Vec<u8>, Option<Vec<u8>>)>> {
        let fail = |error| ArchiveError::io("read attributes of", path)(error);
        let names = xattr::list(path).map_err(fail)?;
        let names = names.into_iter().filter(|name| xattr::is_portable(name));
        names
            .map(|name| Ok((name.clone(), xattr::get(path, &name).map_err(fail)?)))
            .collect()
    };
    if portable(path)? != portable(&below.path)? {
        return Ok(false);
    }
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let target = |path: &Path| {
                rustix::fs::readlinkat(CWD, path, Vec::new())
                    .map_err(ArchiveError::io("read link", path))
            };
            Ok(target(path)? == target(&below.path)?)
        }
        FileType::RegularFile if stat.st_size > 0 => same_content(path, &below.path),
        _ => Ok(true),
    }
}

fn same_content(a: &Path, b: &Path) -> Result<bool> {
    let open = |path: &Path| File::open(path).map_err(ArchiveError::io("open", path));
    let (mut left, mut right) = (open(a)?, open(b)?);
    let (mut x, mut y) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let fill = |file: &mut File, buffer: &mut [u8], path: &Path| -> Result<usize> {
            let mut filled = 0;
            while filled < buffer.len() {
                match file.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(ArchiveError::io("read", path)(error)),
                }
            }
            Ok(filled)
        };
        let n = fill(&mut left, &mut x, a)?;
        let m = fill(&mut right, &mut y, b)?;
        if x[..n] != y[..m] {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn lstat(path: &Path) -> Result<Stat> {
    rustix::fs::lstat(path).map_err(ArchiveError::io("stat", path))
}

/// Paths and archive names of what is in a directory, sorted by name.
fn children(dir: &Path, name: &[u8]) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let fd = rustix::fs::openat(CWD, dir, crate::resolve::OPEN_DIR, Mode::empty())
        .map_err(ArchiveError::io("open", dir))?;
    let mut names = crate::tree::child_names(&fd).map_err(ArchiveError::io("list", dir))?;
    names.sort();
    Ok(names
        .into_iter()
        .map(|child| {
            let path = dir.join(OsStr::from_bytes(&child));
            let full = match name {
                b"" => child,
                name => [name, b"/", &child].concat(),
            };
            (path, full)
        })
        .collect())
}
