//! Who a process runs as, by the root file system's own `/etc/passwd` and `/etc/group`.
//!
//! Both files are written by strangers: they are opened inside the root, must be regular files and
//! are read up to a limit.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags};

use crate::rootpath::{open_in_root, open_root};
use crate::spec::UserIds;

/// Largest file that is read, in bytes.
const FILE_SIZE_MAX: u64 = 10 << 20;
/// Largest number of a user or group.
const ID_MAX: u32 = i32::MAX as u32;

/// Resolves `user`, `user:group` or nothing (root), names or numbers, as `USER` has them.
///
/// A number needs no entry; a user without entry has group 0. Supplementary groups are those that
/// list the user, unless a group is given. Errors name what is missing in stock's words.
pub fn resolve_user(rootfs: &Path, user: &str) -> Result<UserIds, diag::Error> {
    let (user_name, group_name) = match user.split_once(':') {
        Some((user, group)) => (user, group),
        None => (user, ""),
    };
    if let (Some(uid), Some(gid)) = (number(user_name)?, number(group_name)?) {
        return with_own_group(uid, gid, Vec::new());
    }
    let root = open_root(rootfs).map_err(diag::Error::from)?;
    let passwd = read_file(&root, "/etc/passwd").unwrap_or_default();
    let groups = read_file(&root, "/etc/group").unwrap_or_default();
    let user_name = if user.is_empty() { "0" } else { user_name };
    resolve(&passwd, &groups, user_name, group_name)
}

/// The home directory of the user with that number, by the `/etc/passwd` in the root.
pub(crate) fn home(root: impl AsFd, uid: u32) -> Option<String> {
    let passwd = read_file(root, "/etc/passwd").ok()?;
    passwd_entries(&passwd)
        .find(|entry| entry.uid == uid)
        .map(|entry| entry.home.to_owned())
        .filter(|home| !home.is_empty())
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn resolve(passwd: &str, groups: &str, user: &str, group: &str) -> Result<UserIds, diag::Error> {
    let user_number = number(user)?;
    let entry = passwd_entries(passwd).find(|entry| {
        if user.is_empty() {
            return entry.uid == 0;
        }
        entry.name == user || Some(entry.uid) == user_number
    });
    let (uid, mut gid) = match (&entry, user_number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(number)) => (number, 0),
        (None, None) if user.is_empty() => (0, 0),
        (None, None) => {
            return Err(diag::Error::invalid(format!(
                "unable to find user {user}: no matching entries in passwd file"
            )));
        }
    };
    let mut additional = BTreeSet::new();
    if group.is_empty() {
        if let Some(entry) = &entry {
            for (_, number, members) in group_entries(groups) {
                if members.split(',').any(|member| member == entry.name) {
                    additional.insert(number);
                }
            }
        }
    } else {
        let group_number = number(group)?;
        let found = group_entries(groups)
            .find(|(name, number, _)| *name == group || Some(*number) == group_number);
        gid = match (found, group_number) {
            (Some((_, number, _)), _) => number,
            (None, Some(number)) => number,
            (None, None) => {
                return Err(diag::Error::invalid(format!(
                    "unable to find group {group}: no matching entries in group file"
                )));
            }
        };
    }
    with_own_group(uid, gid, additional.into_iter().collect())
}

fn with_own_group(uid: u32, gid: u32, mut additional: Vec<u32>) -> Result<UserIds, diag::Error> {
    if !additional.contains(&gid) {
        additional.insert(0, gid);
    }
    Ok(UserIds {
        uid,
        gid,
        additional_gids: additional,
    })
}

/// A number, or `root`, which needs no entry either; one that is out of range is an error.
fn number(text: &str) -> Result<Option<u32>, diag::Error> {
    if text == "root" {
        return Ok(Some(0));
    }
    let Ok(number) = text.parse::<i64>() else {
        return Ok(None);
    };
    match u32::try_from(number) {
        Ok(id) if id <= ID_MAX => Ok(Some(id)),
        _ => Err(diag::Error::invalid(format!(
            "uids and gids must be in range 0-{ID_MAX}"
        ))),
    }
}

/// `name:password:uid:gid:comment:home:shell`; lines that are not that are passed over.
fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        Some(PasswdEntry {
            name: fields.next().filter(|name| !name.is_empty())?,
            uid: fields.nth(1)?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
            home: fields.nth(1).unwrap_or_default(),
        })
    })
}

/// `name:password:gid:members`.
fn group_entries(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let number = fields.nth(1)?.parse().ok()?;
        Some((name, number, fields.next().unwrap_or_default()))
    })
}

fn read_file(root: impl AsFd, path: &str) -> io::Result<String> {
    // First as a place only: opening a FIFO would wait, opening a device can do anything.
    let place = open_in_root(root, path, OFlags::PATH)?;
    let stat = rustix::fs::fstat(&place)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other(format!("{path} is not a regular file")));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))?
        .take(FILE_SIZE_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_SIZE_MAX {
        return Err(io::Error::other(format!(
            "{path} exceeds {FILE_SIZE_MAX} bytes"
        )));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# comment\nbad\nann:x:1000:100:Ann:/home/ann:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\nwheel:x:10:root,ann\naudio:x:29:ann\n";

    fn rootfs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(dir.path().join("etc/group"), GROUP).unwrap();
        dir
    }

    fn ids(uid: u32, gid: u32, additional: &[u32]) -> UserIds {
        UserIds {
            uid,
            gid,
            additional_gids: additional.to_vec(),
        }
    }

    #[test]
    fn users_and_groups_by_name_and_number() {
        let dir = rootfs();
        let of = |user: &str| resolve_user(dir.path(), user).unwrap();
        assert_eq!(of(""), ids(0, 0, &[0, 10]));
        assert_eq!(of("ann"), ids(1000, 100, &[100, 10, 29]));
        assert_eq!(of("1000"), ids(1000, 100, &[100, 10, 29]));
        assert_eq!(of("ann:wheel"), ids(1000, 10, &[10]));
        assert_eq!(of("ann:77"), ids(1000, 77, &[77]));
        assert_eq!(of("5:6"), ids(5, 6, &[6]));
        assert_eq!(of("4242"), ids(4242, 0, &[0]));
    }

    #[test]
    fn what_is_missing_is_named_in_stocks_words() {
        let dir = rootfs();
        let error = |user: &str| resolve_user(dir.path(), user).unwrap_err().to_string();
        assert_eq!(
            error("bob"),
            "unable to find user bob: no matching entries in passwd file"
        );
        assert_eq!(
            error("ann:bobs"),
            "unable to find group bobs: no matching entries in group file"
        );
        assert_eq!(
            error("3000000000:0"),
            "uids and gids must be in range 0-2147483647"
        );
    }

    #[test]
    fn a_passwd_that_leads_outside_or_is_no_file_is_not_read() {
        let dir = rootfs();
        let passwd = dir.path().join("etc/passwd");
        std::fs::remove_file(&passwd).unwrap();
        symlink("/../../../../../../etc/passwd", &passwd).unwrap();
        assert!(resolve_user(dir.path(), "daemon").is_err());
        std::fs::remove_file(&passwd).unwrap();
        symlink("/proc/self/root/etc/passwd", &passwd).unwrap();
        assert!(resolve_user(dir.path(), "daemon").is_err());
        std::fs::remove_file(&passwd).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &passwd,
            FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
        assert!(resolve_user(dir.path(), "daemon").is_err());
        assert_eq!(resolve_user(dir.path(), "").unwrap(), ids(0, 0, &[0]));
    }

    #[test]
    fn a_root_without_files_has_numbers_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(resolve_user(dir.path(), "7").unwrap(), ids(7, 0, &[0]));
        assert_eq!(resolve_user(dir.path(), "root").unwrap(), ids(0, 0, &[0]));
    }
}
