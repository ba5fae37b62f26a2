//! Which paths of a tree are meant.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci::{Digest, DigestHasher};
use pathmatch::{ParentMatches, PatternMatcher};
use serde::{Deserialize, Serialize};

use super::digest::Hasher;
use super::tree::{Found, Node};
use crate::file_actions::split_pattern;
use crate::root::{LastLink, is_dir, is_link};
use crate::{OpError, clean};

/// A path or pattern with filters.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Selector {
    /// Path or, with `wildcard`, pattern; from the root of the tree.
    pub path: String,
    /// Whether a link at the end of the path is followed.
    pub follow_links: bool,
    /// Whether `path` is a pattern.
    pub wildcard: bool,
    /// Only these below the path, if any are given.
    pub include: Vec<String>,
    /// Not these below the path.
    pub exclude: Vec<String>,
    /// Paths that must be among what is selected.
    pub required: Vec<String>,
}

impl Selector {
    /// One path with everything below it, a link at its end kept.
    pub fn path(path: impl Into<String>) -> Self {
        Selector {
            path: path.into(),
            ..Selector::default()
        }
    }

    /// One path with everything below it, a link at its end followed.
    pub fn followed(path: impl Into<String>) -> Self {
        Selector {
            follow_links: true,
            ..Self::path(path)
        }
    }

    /// True when more than a path has to be looked at.
    pub fn has_wildcard_or_filters(&self) -> bool {
        self.wildcard || !self.include.is_empty() || !self.exclude.is_empty()
    }

    fn last_link(&self) -> LastLink {
        match self.follow_links {
            true => LastLink::Follow,
            false => LastLink::Keep,
        }
    }
}

/// The include and exclude patterns of a selector.
struct Filters {
    include: Option<PatternMatcher>,
    exclude: Option<PatternMatcher>,
}

/// What is known of the patterns at a directory.
#[derive(Default)]
struct Above {
    include: Option<ParentMatches>,
    exclude: Option<ParentMatches>,
}

/// Collects selected paths.
struct Selection<'s> {
    hasher: &'s Hasher<'s>,
    filters: Filters,
    /// Path and digest of everything selected, parents before children.
    selected: Vec<(PathBuf, Digest)>,
    /// Directories on the way down that count as soon as something in them is selected.
    waiting: Vec<(PathBuf, Option<Digest>)>,
}

impl Hasher<'_> {
    /// The digest of what a selector selects.
    pub(super) fn select(&self, selector: &Selector) -> Result<Digest, OpError> {
        let path = clean(&selector.path);
        if !selector.has_wildcard_or_filters() {
            let found = self.tree.resolve(Path::new(&path), selector.last_link())?;
            return match found {
                Some(found) => self.whole(&found.node),
                None if path == "/" => Ok(Digest::of(b"")),
                None => Err(OpError::NotFound(path)),
            };
        }
        let matcher = |what: &str, patterns: &[String]| match patterns {
            [] => Ok(None),
            patterns => PatternMatcher::new(patterns).map(Some).map_err(|error| {
                OpError::Invalid(format!("invalid {what}: [{}]: {error}", patterns.join(" ")))
            }),
        };
        let mut selection = Selection {
            hasher: self,
            filters: Filters {
                include: matcher("includepatterns", &selector.include)?,
                exclude: matcher("excludepatterns", &selector.exclude)?,
            },
            selected: Vec::new(),
            waiting: Vec::new(),
        };
        let prefix = selection.collect(selector, &path)?;
        selection.check_required(&selector.required)?;
        Ok(selection.digest(&path, &prefix))
    }
}

impl Selection<'_> {
    /// Selects, and returns the part of all paths that does not count.
    fn collect(&mut self, selector: &Selector, path: &str) -> Result<String, OpError> {
        let tree = self.hasher.tree;
        let keep_header = !selector.path.ends_with('/') || path == "/";
        if !selector.wildcard {
            let Some(found) = tree.resolve(Path::new(path), LastLink::Follow)? else {
                // A link to nowhere is there; what it is to give is not.
                let link = tree.resolve(Path::new(path), LastLink::Keep)?;
                if selector.follow_links && link.is_some() {
                    return Err(OpError::NotFound(path.to_owned()));
                }
                return Ok(path.to_owned());
            };
            self.top(Path::new(path), &found.node, selector, keep_header)?;
            return Ok(path.to_owned());
        }
        let (fixed, pattern) = split_pattern(path);
        let last = if pattern.is_empty() {
            selector.last_link()
        } else {
            LastLink::Follow
        };
        let Some(base) = tree.resolve(Path::new(&fixed), last)? else {
            return Ok(fixed);
        };
        if pattern.is_empty() {
            self.top(Path::new(&fixed), &base.node, selector, keep_header)?;
        } else {
            let depth = pattern.split('/').count();
            let wanted = (pattern.as_str(), depth);
            self.matching(Path::new(&fixed), Path::new(""), &base, wanted, selector)?;
        }
        Ok(if fixed == "/" { String::new() } else { fixed })
    }

    /// Selects what matches a pattern below a directory.
    fn matching(
        &mut self,
        shown: &Path,
        below: &Path,
        dir: &Found,
        (pattern, depth): (&str, usize),
        selector: &Selector,
    ) -> Result<(), OpError> {
        if !is_dir(&dir.node.stat) {
            return Ok(());
        }
        for (name, node) in self.hasher.tree.children(&dir.node)? {
            let below = below.join(&name);
            let shown = shown.join(&name);
            let hit = pathmatch::glob_match(pattern, below.as_os_str().as_bytes());
            if hit.map_err(|error| OpError::Invalid(error.to_string()))? {
                self.top(&shown, &node, selector, true)?;
            } else if is_dir(&node.stat) && below.components().count() < depth {
                let path = dir.path.join(&name);
                let dir = Found { path, node };
                self.matching(&shown, &below, &dir, (pattern, depth), selector)?;
            }
        }
        Ok(())
    }

    /// Selects a path that was named or matched, and what is below it.
    fn top(
        &mut self,
        shown: &Path,
        node: &Node,
        selector: &Selector,
        keep_header: bool,
    ) -> Result<(), OpError> {
        let filtered = self.filters.include.is_some() || self.filters.exclude.is_some();
        if is_link(&node.stat) && selector.follow_links {
            let found = self.hasher.tree.resolve(shown, LastLink::Follow)?;
            let found = found.ok_or_else(|| OpError::NotFound(shown.display().to_string()))?;
            let digest = self.hasher.whole(&found.node)?;
            self.selected.push((shown.to_owned(), digest));
            return Ok(());
        }
        if !filtered && keep_header {
            let digest = self.hasher.whole(node)?;
            self.selected.push((shown.to_owned(), digest));
            return Ok(());
        }
        if !is_dir(&node.stat) {
            // Include patterns speak of what is below the path, so they never name itself.
            if self.filters.include.is_none() {
                let digest = self.hasher.file(node)?;
                self.selected.push((shown.to_owned(), digest));
            }
            return Ok(());
        }
        let header = keep_header.then(|| self.hasher.header(node)).transpose()?;
        self.waiting.push((shown.to_owned(), header));
        if self.filters.include.is_none() {
            self.admit();
        }
        self.entries(shown, Path::new(""), node, &Above::default(), true)?;
        self.waiting.pop();
        Ok(())
    }

    fn entries(
        &mut self,
        shown: &Path,
        below: &Path,
        dir: &Node,
        above: &Above,
        top: bool,
    ) -> Result<(), OpError> {
        for (name, node) in self.hasher.tree.children(dir)? {
            let below = below.join(&name);
            let shown = shown.join(&name);
            let (selected, here) = self.filters.ask(below.as_os_str(), above, top);
            if is_dir(&node.stat) {
                let header = self.hasher.header(&node)?;
                self.waiting.push((shown.clone(), Some(header)));
                if selected {
                    self.admit();
                }
                self.entries(&shown, &below, &node, &here, false)?;
                self.waiting.pop();
            } else if selected {
                self.admit();
                let digest = self.hasher.file(&node)?;
                self.selected.push((shown, digest));
            }
        }
        Ok(())
    }

    /// Something was selected: the directories it is in count from now on.
    fn admit(&mut self) {
        for (path, header) in &mut self.waiting {
            if let Some(digest) = header.take() {
                self.selected.push((path.clone(), digest));
            }
        }
    }

    fn check_required(&self, required: &[String]) -> Result<(), OpError> {
        for wanted in required {
            let found = self
                .selected
                .iter()
                .any(|(path, _)| path.as_os_str().as_bytes().starts_with(wanted.as_bytes()));
            if !found {
                return Err(OpError::NotFound(wanted.clone()));
            }
        }
        Ok(())
    }

    fn digest(&self, path: &str, prefix: &str) -> Digest {
        if let [(only, digest)] = self.selected.as_slice()
            && only.file_name() == Path::new(path).file_name()
        {
            return *digest;
        }
        let mut hasher = DigestHasher::new();
        for (path, digest) in &self.selected {
            let bytes = path.as_os_str().as_bytes();
            hasher.field(bytes.strip_prefix(prefix.as_bytes()).unwrap_or(bytes));
            hasher.field(digest.as_bytes());
        }
        hasher.finish()
    }
}

impl Filters {
    fn ask(&self, below: &OsStr, above: &Above, top: bool) -> (bool, Above) {
        let path = below.as_bytes();
        let mut here = Above::default();
        let mut selected = true;
        if let Some(matcher) = &self.include {
            let parent = if top { None } else { above.include.as_ref() };
            let (hit, info) = matcher.matches_below(path, parent);
            here.include = Some(info);
            selected = hit;
        }
        if let Some(matcher) = &self.exclude {
            let parent = if top { None } else { above.exclude.as_ref() };
            let (hit, info) = matcher.matches_below(path, parent);
            here.exclude = Some(info);
            selected &= !hit;
        }
        (selected, here)
    }
}
