//! The order of paths in a transfer, and the check that a peer keeps it.

use std::cmp::Ordering;

use crate::error::SessionError;
use crate::packet::FileStat;

/// The longest path taken from a peer, bytes; the kernel takes none that are longer.
const PATH_BYTES_MAX: usize = 4095;

/// Compares paths in the order of a walk: a directory before what is below it, and that before the
/// directory's next sibling, names as bytes.
pub fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let common = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    match (a.get(common), b.get(common)) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        // A slash ends a name, and what ends first comes first.
        (Some(b'/'), Some(_)) => Ordering::Less,
        (Some(_), Some(b'/')) => Ordering::Greater,
        (Some(x), Some(y)) => x.cmp(y),
    }
}

/// Whether `path` is below the directory `dir`.
pub fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.len() > dir.len() && path.starts_with(dir) && path[dir.len()] == b'/'
}

/// The directory a path is in (empty for the root) and its last name.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// A directory of the transfer whose entries may still come.
#[derive(Clone, Debug)]
pub struct OpenDir {
    /// What it is to be.
    pub stat: FileStat,
    /// Whether its own metadata has to be set when nothing comes below it any more.
    pub touched: bool,
}

/// Checks that paths are relative and clean, ascend strictly, and that each comes after its directory.
#[derive(Debug, Default)]
pub struct OrderCheck {
    last: Vec<u8>,
    dirs: Vec<OpenDir>,
}

impl OrderCheck {
    /// Takes the next entry; gives the directories that are complete now, deepest first.
    pub fn next(&mut self, stat: &FileStat) -> Result<Vec<OpenDir>, SessionError> {
        let path = &stat.path;
        check_path(path)?;
        if !self.last.is_empty() && compare(&self.last, path) != Ordering::Less {
            return Err(self.out_of_order(path));
        }
        let (parent, _) = split(path);
        let keep = self
            .dirs
            .iter()
            .rposition(|dir| dir.stat.path == parent)
            .map_or(0, |at| at + 1);
        if keep == 0 && !parent.is_empty() {
            return Err(self.out_of_order(path));
        }
        let mut done = self.dirs.split_off(keep);
        done.reverse();
        self.last.clone_from(path);
        if stat.is_dir() {
            self.dirs.push(OpenDir {
                stat: stat.clone(),
                touched: false,
            });
        }
        Ok(done)
    }

    /// Notes that the entry itself changed, which is a change of the directory it is in.
    pub fn touch_parent(&mut self, path: &[u8]) {
        let (parent, _) = split(path);
        if let Some(dir) = self.dirs.iter_mut().rfind(|dir| dir.stat.path == parent) {
            dir.touched = true;
        }
    }

    /// Notes that the directory which came last needs its metadata set in the end.
    pub fn touch_last(&mut self) {
        if let Some(dir) = self.dirs.last_mut() {
            dir.touched = true;
        }
    }

    /// All directories that are still open, deepest first.
    pub fn finish(&mut self) -> Vec<OpenDir> {
        let mut done = std::mem::take(&mut self.dirs);
        done.reverse();
        done
    }

    fn out_of_order(&self, path: &[u8]) -> SessionError {
        SessionError::Protocol(format!(
            "changes out of order: {:?} {:?}",
            String::from_utf8_lossy(path),
            String::from_utf8_lossy(&self.last)
        ))
    }
}

/// Refuses paths that are absolute, unclean, or lead out of the root.
pub fn check_path(path: &[u8]) -> Result<(), SessionError> {
    let bad_part = |part: &[u8]| part.is_empty() || part == b"." || part == b"..";
    if path.len() > PATH_BYTES_MAX
        || path.contains(&0)
        || path.split(|&byte| byte == b'/').any(bad_part)
    {
        let shown = String::from_utf8_lossy(&path[..path.len().min(200)]);
        return Err(SessionError::Protocol(format!("invalid path {shown:?}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode;

    fn stat(path: &str) -> FileStat {
        let (path, mode) = match path.strip_suffix('/') {
            Some(path) => (path, mode::DIR | 0o755),
            None => (path, 0o644),
        };
        FileStat {
            path: path.into(),
            mode,
            ..FileStat::default()
        }
    }

    fn check(paths: &[&str]) -> Result<(), SessionError> {
        let mut order = OrderCheck::default();
        for path in paths {
            order.next(&stat(path))?;
        }
        Ok(())
    }

    #[test]
    fn a_directory_comes_before_what_is_below_and_that_before_its_siblings() {
        let sorted = ["a", "a/b", "a/b/c", "a/c", "a-b", "ab"];
        for pair in sorted.windows(2) {
            assert_eq!(
                compare(pair[0].as_bytes(), pair[1].as_bytes()),
                Ordering::Less
            );
            assert_eq!(
                compare(pair[1].as_bytes(), pair[0].as_bytes()),
                Ordering::Greater
            );
        }
    }

    #[test]
    fn ordered_entries_pass() {
        check(&["a/", "a/b/", "a/b/c", "a/d", "a-b", "e/", "f"]).unwrap();
    }

    #[test]
    fn disorder_and_escapes_are_refused() {
        for paths in [
            &["b", "a"][..],
            &["a", "a"],
            &["a/b"],
            &["a", "a/b"],
            &["a/", "b", "a/c"],
            &["../x"],
            &["a/", "a/../b"],
            &["/a"],
            &[""],
            &["a//b"],
            &["./a"],
            &["a\0"],
        ] {
            assert!(check(paths).is_err(), "{paths:?}");
        }
    }

    #[test]
    fn complete_directories_are_given_back() {
        let mut order = OrderCheck::default();
        for path in ["a/", "a/b/", "a/b/c"] {
            assert!(order.next(&stat(path)).unwrap().is_empty());
        }
        order.touch_parent(b"a/b/c");
        let done = order.next(&stat("d")).unwrap();
        let done: Vec<_> = done
            .iter()
            .map(|dir| (&dir.stat.path[..], dir.touched))
            .collect();
        assert_eq!(done, [(&b"a/b"[..], true), (b"a", false)]);
    }
}
