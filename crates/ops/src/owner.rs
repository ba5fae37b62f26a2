//! Owners given by name or number.

use std::path::Path;

use llb::{ChownOpt, UserOpt};

use crate::OpError;
use crate::root::Root;

/// The longest user database that is read, in bytes.
const FILE_SIZE_BYTES_MAX: u64 = 10 << 20;

/// A user and a group by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// The owner that an option names. `root_of` gives the root whose files a name is looked up in, by
/// the input number of the option.
///
/// A user's group is the one of `/etc/passwd`, or of the same number as the user for one given by
/// number, unless a group is given. Names that are not found are root, as for stock.
pub fn resolve_owner<'r>(
    option: &ChownOpt,
    mut root_of: impl FnMut(usize) -> Result<&'r Root, OpError>,
) -> Result<Owner, OpError> {
    let mut owner = Owner::default();
    match &option.user {
        Some(UserOpt::ById(id)) => owner = Owner { uid: *id, gid: *id },
        Some(UserOpt::ByName { name, input }) => {
            let input = input.ok_or_else(|| OpError::Invalid("invalid user index: -1".into()))?;
            if let Some(found) = lookup(root_of(input)?, "/etc/passwd", name)? {
                owner = Owner {
                    uid: number(&found, 2).unwrap_or(0),
                    gid: number(&found, 3).unwrap_or(0),
                };
            }
        }
        None => {}
    }
    match &option.group {
        Some(UserOpt::ById(id)) => owner.gid = *id,
        Some(UserOpt::ByName { name, input }) => {
            let input = input.ok_or_else(|| OpError::Invalid("invalid user index: -1".into()))?;
            if let Some(found) = lookup(root_of(input)?, "/etc/group", name)? {
                owner.gid = number(&found, 2).unwrap_or(0);
            }
        }
        None => {}
    }
    Ok(owner)
}

/// The line of a user database whose first field is `name`.
fn lookup(root: &Root, file: &str, name: &str) -> Result<Option<String>, OpError> {
    let Some(data) = root.read_file(Path::new(file), FILE_SIZE_BYTES_MAX)? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&data);
    Ok(text
        .lines()
        .map(str::trim)
        .find(|line| line.split(':').next() == Some(name))
        .map(str::to_owned))
}

fn number(line: &str, field: usize) -> Option<u32> {
    line.split(':').nth(field)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_in_the_root_and_unknown_ones_are_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = "root:x:0:0::/:\napp:x:1000:1001::/:/bin/sh\n";
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), "staff:x:50:app\n").unwrap();
        let root = Root::open(dir.path()).unwrap();
        let by_name = |name: &str| {
            Some(UserOpt::ByName {
                name: name.into(),
                input: Some(0),
            })
        };
        let owner = |user, group| {
            let owner = resolve_owner(&ChownOpt { user, group }, |_| Ok(&root)).unwrap();
            (owner.uid, owner.gid)
        };
        assert_eq!(owner(by_name("app"), None), (1000, 1001));
        assert_eq!(owner(by_name("app"), by_name("staff")), (1000, 50));
        assert_eq!(owner(by_name("ghost"), by_name("app")), (0, 0));
        assert_eq!(owner(Some(UserOpt::ById(7)), None), (7, 7));
        assert_eq!(owner(None, Some(UserOpt::ById(7))), (0, 7));
    }
}
