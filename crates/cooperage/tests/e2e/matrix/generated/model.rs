//! What the generator thinks is in a file system: enough to name more paths that exist than not.

use std::collections::BTreeMap;

use testkit::Dice;

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    Link,
    Other,
}

/// Absolute paths and what is there.
#[derive(Clone, Debug, Default)]
pub struct Model {
    paths: BTreeMap<String, Kind>,
}

const NAMES: &[&str] = &[
    "a", "b", "c", "a", "b", "x.txt", "y.md", "z", ".hid", "s p", "l", "deep.d",
];

impl Model {
    pub fn kind(&self, path: &str) -> Option<Kind> {
        self.paths.get(path).copied()
    }

    /// Whether nothing on the way to a path is a link or a file.
    pub fn leads_to(&self, path: &str) -> bool {
        let ancestors = path.match_indices('/').map(|(at, _)| &path[..at]);
        let mut kinds = ancestors.filter_map(|ancestor| self.kind(ancestor));
        kinds.all(|kind| kind == Kind::Directory)
    }

    pub fn put(&mut self, path: &str, kind: Kind) {
        if kind != Kind::Directory {
            self.remove(path);
        }
        let parents: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
        for parent in parents.into_iter().filter(|parent| !parent.is_empty()) {
            self.paths
                .entry(parent.to_owned())
                .or_insert(Kind::Directory);
        }
        if path.len() > 1 {
            self.paths.insert(path.to_owned(), kind);
        }
    }

    pub fn remove(&mut self, path: &str) {
        let path = path.trim_end_matches('/');
        let below = format!("{path}/");
        self.paths
            .retain(|found, _| found != path && !found.starts_with(&below));
    }

    /// What is below a path, as it is seen there.
    pub fn below(&self, path: &str) -> Model {
        let below = path.trim_end_matches('/');
        let paths = self.paths.iter().filter_map(|(found, kind)| {
            let rest = found.strip_prefix(below)?;
            rest.starts_with('/').then(|| (rest.to_owned(), *kind))
        });
        Model {
            paths: paths.collect(),
        }
    }

    /// Puts another at a path.
    pub fn graft(&mut self, other: &Model, at: &str) {
        let at = at.trim_end_matches('/');
        for (path, kind) in &other.paths {
            self.put(&format!("{at}{path}"), *kind);
        }
    }

    /// A path that is there, if possible of that kind.
    pub fn existing(&self, dice: &mut Dice, wanted: Option<Kind>) -> String {
        let fits = |kind: &Kind| wanted.is_none_or(|wanted| *kind == wanted);
        let fitting = self.paths.iter().filter(|(_, kind)| fits(kind));
        let fitting: Vec<&String> = fitting.map(|(path, _)| path).collect();
        match fitting.as_slice() {
            [] => fresh(dice),
            some => dice.pick(some).clone(),
        }
    }

    /// Somewhere: in a directory that is there, or anywhere.
    pub fn place(&self, dice: &mut Dice) -> String {
        match dice.below(6) {
            0 => fresh(dice),
            1 => self.existing(dice, None),
            2 => format!("{}{}", self.existing(dice, None), fresh(dice)),
            _ => {
                let directory = self.existing(dice, Some(Kind::Directory));
                format!("{directory}/{}", dice.pick(NAMES))
            }
        }
    }

    /// Mostly one that is there.
    pub fn path(&self, dice: &mut Dice) -> String {
        match dice.below(8) {
            0 => self.place(dice),
            1 => "/".to_owned(),
            2 | 3 => self.existing(dice, Some(Kind::Directory)),
            _ => self.existing(dice, None),
        }
    }
}

/// A path of a few names.
pub fn fresh(dice: &mut Dice) -> String {
    let depth = 1 + dice.below(3);
    (0..depth)
        .map(|_| format!("/{}", dice.pick(NAMES)))
        .collect()
}

/// The same path in another spelling, sometimes.
pub fn spelled(dice: &mut Dice, path: &str) -> String {
    match dice.below(24) {
        0 => format!("{path}/"),
        1 => format!("{path}/."),
        2 => path.trim_start_matches('/').to_owned(),
        3 => format!("/..{path}"),
        4 => path.replacen('/', "//", 1),
        5 => format!("/b/..{path}"),
        6 => format!("{path}/.."),
        7 => format!("/.{path}"),
        _ => path.to_owned(),
    }
}

/// A pattern that a path fits, mostly.
pub fn pattern(dice: &mut Dice, path: &str) -> String {
    let stars = [
        "*", "*", "?", "[a-c]", "*.txt", "?.*", "[!a]*", "a*", "*d*", "\\a", "**", ".*",
    ];
    let mut parts: Vec<&str> = path.split('/').collect();
    let at = match dice.one_in(3) {
        true => dice.below(parts.len()).max(1),
        false => parts.len() - 1,
    };
    if let Some(part) = parts.get_mut(at) {
        *part = dice.pick(&stars);
    }
    parts.join("/")
}
