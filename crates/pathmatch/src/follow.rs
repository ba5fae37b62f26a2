//! Following symbolic links of paths that are asked for, so that what they point at is sent too.

use std::collections::BTreeSet;
use std::io;

use crate::{clean_path, glob_match, has_wildcards};

/// What following links needs to know of a tree; paths are relative to its root.
pub trait LinkTree {
    /// Where the symbolic link points, or nothing when the path is no link or does not exist.
    fn read_link(&self, path: &str) -> io::Result<Option<String>>;
    /// The names in a directory, or nothing when the path is no directory; `.` is the root.
    fn read_dir(&self, path: &str) -> io::Result<Option<Vec<String>>>;
}

/// The include patterns that stand for the paths (which may hold wildcards) and for every link
/// target on the way to them, sorted, with what is below another left out.
///
/// [`None`] means that the root itself is among them: nothing is to be filtered.
pub fn follow_links<S: AsRef<str>>(
    tree: &dyn LinkTree,
    paths: &[S],
) -> io::Result<Option<Vec<String>>> {
    let mut resolver = Resolver {
        tree,
        resolved: BTreeSet::new(),
    };
    for path in paths {
        resolver.follow(path.as_ref(), 0)?;
    }
    Ok(without_descendants(resolver.resolved))
}

struct Resolver<'a> {
    tree: &'a dyn LinkTree,
    resolved: BTreeSet<String>,
}

/// Chains of links longer than this are not followed on; the set of resolved paths already ends
/// cycles, this only bounds the recursion.
const DEPTH_MAX: usize = 255;

impl Resolver<'_> {
    fn follow(&mut self, path: &str, depth: usize) -> io::Result<()> {
        // Joined to the root: what would climb out of it stays in.
        let path = clean_path(&format!("/{path}"));
        let mut rest = path.trim_start_matches('/');
        let mut current = String::new();
        loop {
            let (part, after) = rest.split_once('/').unwrap_or((rest, ""));
            if !current.is_empty() && !part.is_empty() {
                current.push('/');
            }
            current.push_str(part);
            let here = if current.is_empty() { "." } else { &current };
            let targets = self.targets(here, true)?;
            rest = after;
            if targets.is_empty() {
                if rest.is_empty() {
                    self.resolved.insert(here.to_owned());
                    return Ok(());
                }
                continue;
            }
            if !self.resolved.insert(here.to_owned()) || depth >= DEPTH_MAX {
                return Ok(());
            }
            for target in targets {
                self.follow(&format!("{target}/{rest}"), depth + 1)?;
            }
            return Ok(());
        }
    }

    /// Where the path, or everything its last part matches as a glob, points.
    fn targets(&self, path: &str, wildcards: bool) -> io::Result<Vec<String>> {
        let (dir, base) = path.rsplit_once('/').unwrap_or((".", path));
        if wildcards && has_wildcards(base.as_bytes()) {
            let mut targets = Vec::new();
            for name in self.tree.read_dir(dir)?.unwrap_or_default() {
                if glob_match(base, name.as_bytes()).unwrap_or(false) {
                    let path = if dir == "." {
                        name
                    } else {
                        format!("{dir}/{name}")
                    };
                    targets.extend(self.targets(&path, false)?);
                }
            }
            return Ok(targets);
        }
        if path == "." {
            return Ok(Vec::new());
        }
        Ok(match self.tree.read_link(path)? {
            None => Vec::new(),
            Some(link) if link.starts_with('/') => vec![clean_path(&link)],
            Some(link) => vec![clean_path(&format!("/{dir}/{link}"))],
        })
    }
}

fn without_descendants(sorted: BTreeSet<String>) -> Option<Vec<String>> {
    let mut kept: Vec<String> = Vec::with_capacity(sorted.len());
    for path in sorted {
        if path == "." {
            return None;
        }
        let below = kept
            .last()
            .and_then(|last| path.strip_prefix(last.as_str()))
            .is_some_and(|rest| rest.starts_with('/'));
        if !below {
            kept.push(path);
        }
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Links(BTreeMap<&'static str, &'static str>);

    impl LinkTree for Links {
        fn read_link(&self, path: &str) -> io::Result<Option<String>> {
            Ok(self
                .0
                .get(path)
                .filter(|t| !t.is_empty())
                .map(|t| t.to_string()))
        }

        fn read_dir(&self, path: &str) -> io::Result<Option<Vec<String>>> {
            let prefix = if path == "." {
                String::new()
            } else {
                format!("{path}/")
            };
            Ok(Some(
                self.0
                    .keys()
                    .filter_map(|key| key.strip_prefix(&prefix))
                    .filter(|name| !name.contains('/'))
                    .map(str::to_owned)
                    .collect(),
            ))
        }
    }

    fn follow(links: &[(&'static str, &'static str)], paths: &[&str]) -> Option<Vec<String>> {
        follow_links(&Links(links.iter().copied().collect()), paths).unwrap()
    }

    #[test]
    fn links_and_their_targets_are_both_wanted() {
        let links = [("a", "b/real"), ("dir/l", "../other"), ("c", "/abs/x")];
        assert_eq!(follow(&links, &["a"]).unwrap(), ["a", "b/real"]);
        assert_eq!(
            follow(&links, &["dir/l/sub"]).unwrap(),
            ["dir/l", "other/sub"]
        );
        assert_eq!(follow(&links, &["c"]).unwrap(), ["abs/x", "c"]);
    }

    #[test]
    fn links_never_lead_out_of_the_root() {
        assert_eq!(follow(&[("a", "../../x")], &["a"]).unwrap(), ["a", "x"]);
    }

    #[test]
    fn cycles_end() {
        assert_eq!(
            follow(&[("a", "b"), ("b", "a")], &["a"]).unwrap(),
            ["a", "b"]
        );
    }

    #[test]
    fn wildcards_follow_what_they_match() {
        let links = [("foo1", "bar"), ("foo2", ""), ("bar", "")];
        assert_eq!(follow(&links, &["foo*"]).unwrap(), ["bar", "foo*"]);
    }

    #[test]
    fn the_root_means_no_filter_and_descendants_are_left_out() {
        assert_eq!(follow(&[], &["."]), None);
        assert_eq!(follow(&[], &["a/b", "a", "c"]).unwrap(), ["a", "c"]);
    }
}
