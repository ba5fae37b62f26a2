//! Looking into a solved state: files, directories, metadata, as frontends ask for them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use diag::{Code, Error, Result};
use ops::{LastLink, Resolved, Root, is_dir, is_link, is_regular};
use proto::fsutil::Stat;
use rustix::fs::OFlags;

/// The largest file that is read into memory, in bytes; messages have a limit too.
const FILE_SIZE_BYTES_MAX: u64 = 512 << 20;

/// Which bytes of a file are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From which byte on.
    pub offset: u64,
    /// How many at most; `None` for all that follow.
    pub length: Option<u64>,
}

impl Part {
    /// All of it.
    pub const WHOLE: Part = Part {
        offset: 0,
        length: None,
    };
}

/// A file or a part of it.
pub fn read_file(root: &Root, path: &str, part: Part) -> Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let resolved = root.resolve(Path::new(path), LastLink::Follow)?;
    let stat = root.stat(&resolved)?.ok_or_else(|| missing("open", path))?;
    if !is_regular(&stat) {
        return Err(Error::invalid(format!("{path} is not a regular file")));
    }
    let rest = (stat.st_size as u64).saturating_sub(part.offset);
    let wanted = part.length.map_or(rest, |length| length.min(rest));
    if wanted > FILE_SIZE_BYTES_MAX {
        return Err(Error::new(
            Code::ResourceExhausted,
            format!("{} is larger than {FILE_SIZE_BYTES_MAX} bytes", clean(path)),
        ));
    }
    let mut file = std::fs::File::from(root.open_at(&resolved, OFlags::RDONLY)?);
    file.seek(SeekFrom::Start(part.offset))?;
    let mut data = Vec::new();
    file.take(wanted).read_to_end(&mut data)?;
    Ok(data)
}

/// What is at a path; links are followed. Its name is that of what they lead to.
pub fn stat_file(root: &Root, path: &str) -> Result<Stat> {
    let resolved = root.resolve(Path::new(path), LastLink::Follow)?;
    let mut stat = stat(root, &resolved)?.ok_or_else(|| missing("lstat", path))?;
    let name = resolved.name().unwrap_or_default();
    stat.path = name.to_string_lossy().into_owned();
    Ok(stat)
}

/// The entries of a directory whose names match a pattern (empty for all), sorted by name.
pub fn read_dir(root: &Root, path: &str, include: &str) -> Result<Vec<Stat>> {
    let resolved = root.resolve(Path::new(path), LastLink::Follow)?;
    match root.stat(&resolved)? {
        Some(found) if is_dir(&found) => {}
        Some(_) => {
            let text = format!("readdir {}: not a directory", clean(path));
            return Err(Error::invalid(text));
        }
        None => return Err(missing("open", path)),
    }
    let dir = root.open_dir(&resolved)?;
    let mut entries = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir).map_err(std::io::Error::from)? {
        let entry = entry.map_err(std::io::Error::from)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let wanted = include.is_empty()
            || pathmatch::glob_match(include, name.as_bytes()).map_err(|error| {
                Error::invalid(format!("invalid includepatterns: [{include}]: {error}"))
            })?;
        if !wanted {
            continue;
        }
        // An entry that vanished cannot be: nothing writes to a solved state.
        if let Some(mut stat) = stat(root, &resolved.child(name))? {
            stat.path = name.to_string_lossy().into_owned();
            entries.push(stat);
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn stat(root: &Root, path: &Resolved) -> Result<Option<Stat>> {
    let Some(found) = root.stat(path)? else {
        return Ok(None);
    };
    let mut stat = Stat {
        mode: session::mode::from_unix(found.st_mode),
        uid: found.st_uid,
        gid: found.st_gid,
        size: if is_dir(&found) { 0 } else { found.st_size },
        mod_time: found.st_mtime * 1_000_000_000 + found.st_mtime_nsec as i64,
        devmajor: i64::from(rustix::fs::major(found.st_rdev)),
        devminor: i64::from(rustix::fs::minor(found.st_rdev)),
        ..Stat::default()
    };
    if is_link(&found)
        && let (Some(parent), Some(name)) = (root.open_parent(path)?, path.name())
    {
        let target = rustix::fs::readlinkat(&parent, name, Vec::new());
        let target = target.map_err(std::io::Error::from)?;
        stat.linkname = target.to_string_lossy().into_owned();
    }
    Ok(Some(stat))
}

fn missing(call: &str, path: &str) -> Error {
    Error::not_found(format!("{call} {}: no such file or directory", clean(path)))
}

fn clean(path: &str) -> String {
    ops::clean(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_directories_and_links_are_read_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), "hello").unwrap();
        std::fs::write(dir.path().join("d/g.txt"), "x").unwrap();
        std::os::unix::fs::symlink("/d/f", dir.path().join("link")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(read_file(&root, "link", Part::WHOLE).unwrap(), b"hello");
        let part = |offset, length| {
            let length = Some(length);
            read_file(&root, "/d/f", Part { offset, length }).unwrap()
        };
        assert_eq!(part(1, 3), b"ell");
        assert_eq!(part(3, 1 << 40), b"lo");
        assert!(part(1, 0).is_empty() && part(99, 1).is_empty());
        let error = read_file(&root, "/d", Part::WHOLE).unwrap_err();
        assert_eq!(error.to_string(), "/d is not a regular file");
        let error = read_file(&root, "Dockerfile", Part::WHOLE).unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        assert_eq!(
            error.to_string(),
            "open /Dockerfile: no such file or directory"
        );
        let names = |include| -> Vec<String> {
            let entries = read_dir(&root, "/d", include).unwrap();
            entries.into_iter().map(|entry| entry.path).collect()
        };
        assert_eq!(names(""), ["f", "g.txt"]);
        assert_eq!(names("*.txt"), ["g.txt"]);
        let stat = stat_file(&root, "/d/f").unwrap();
        assert_eq!((stat.size, stat.path.as_str()), (5, "f"));
        assert_eq!(stat_file(&root, "link").unwrap().path, "f");
        let error = read_dir(&root, "/d", "[").unwrap_err().to_string();
        assert!(
            error.starts_with("invalid includepatterns: [[]: "),
            "{error}"
        );
        assert!(session::mode::is_dir(stat_file(&root, "/").unwrap().mode));
    }
}
