//! Include and exclude patterns together, as a walk of a tree applies them.

use crate::{ParentMatches, PatternError, PatternMatcher};

/// Which paths of a tree are wanted.
///
/// A path is wanted when an include pattern matches it or a parent (or there are none) and the
/// exclude patterns do not match it. Directories that are not wanted are still looked into when
/// something below may be wanted; such a directory becomes part of the result with its first
/// wanted descendant.
#[derive(Clone, Debug, Default)]
pub struct PathFilter {
    include: Option<PatternMatcher>,
    exclude: Option<PatternMatcher>,
    includes_are_prefixes: bool,
    exceptions_are_prefixes: bool,
}

/// What is known of a directory, needed to judge its children.
#[derive(Clone, Debug, Default)]
pub struct FilterState {
    include: Option<ParentMatches>,
    exclude: Option<ParentMatches>,
}

/// The judgement on one path.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The path itself is wanted.
    pub wanted: bool,
    /// The path is a directory in which something may be wanted.
    pub descend: bool,
    /// For the children, when `descend`.
    pub state: FilterState,
}

impl PathFilter {
    /// Compiles the patterns; no include patterns means everything is included.
    pub fn new<I: AsRef<str>, E: AsRef<str>>(
        include: &[I],
        exclude: &[E],
    ) -> Result<Self, PatternError> {
        let include = Some(PatternMatcher::new(include)?).filter(|_| !include.is_empty());
        let exclude = Some(PatternMatcher::new(exclude)?).filter(|_| !exclude.is_empty());
        Ok(PathFilter {
            includes_are_prefixes: prefixes_only(include.as_ref(), false),
            exceptions_are_prefixes: prefixes_only(exclude.as_ref(), true),
            include,
            exclude,
        })
    }

    /// Whether a path is wanted, for a single path outside a walk.
    pub fn wants(&self, path: &[u8]) -> bool {
        self.include.as_ref().is_none_or(|m| m.matches(path))
            && self.exclude.as_ref().is_none_or(|m| !m.matches(path))
    }

    /// Judges a path whose parent's state is given; that of the root's children is the default.
    pub fn check(&self, path: &[u8], is_dir: bool, parent: &FilterState) -> Verdict {
        let mut verdict = Verdict {
            wanted: true,
            descend: is_dir,
            state: FilterState::default(),
        };
        if let Some(include) = &self.include {
            let (matched, info) = include.matches_below(path, parent.include.as_ref());
            if !matched {
                verdict.wanted = false;
                if self.includes_are_prefixes && !any_below(include, false, path) {
                    verdict.descend = false;
                    return verdict;
                }
            }
            verdict.state.include = is_dir.then_some(info);
        }
        if let Some(exclude) = &self.exclude {
            let (matched, info) = exclude.matches_below(path, parent.exclude.as_ref());
            if matched {
                verdict.wanted = false;
                if self.exceptions_are_prefixes && !any_below(exclude, true, path) {
                    verdict.descend = false;
                    return verdict;
                }
            }
            verdict.state.exclude = is_dir.then_some(info);
        }
        verdict
    }
}

/// Whether all patterns of one sort name a directory without wildcards before it, so that it can be
/// told from a directory's name whether anything below can match.
fn prefixes_only(matcher: Option<&PatternMatcher>, exceptions: bool) -> bool {
    matcher.is_none_or(|matcher| {
        matcher
            .patterns()
            .iter()
            .filter(|pattern| pattern.is_exception() == exceptions)
            .all(|pattern| {
                !pattern
                    .without_trailing_glob()
                    .contains(['*', '[', ']', '?', '^', '\\'])
            })
    })
}

/// Whether a pattern of that sort names something below the directory.
fn any_below(matcher: &PatternMatcher, exceptions: bool, dir: &[u8]) -> bool {
    matcher
        .patterns()
        .iter()
        .filter(|pattern| pattern.is_exception() == exceptions)
        .any(|pattern| {
            let path = pattern.without_trailing_glob().as_bytes();
            // Equal counts too: with its trailing glob the pattern is about what is below.
            path.strip_prefix(dir)
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks a list of paths (directories end in `/`, parents first) and gives what is sent.
    fn walk(include: &[&str], exclude: &[&str], paths: &[&str]) -> (Vec<String>, Vec<String>) {
        let filter = PathFilter::new(include, exclude).unwrap();
        let mut states = vec![(String::new(), FilterState::default())];
        let (mut wanted, mut entered) = (Vec::new(), Vec::new());
        for path in paths {
            let (name, is_dir) = match path.strip_suffix('/') {
                Some(name) => (name, true),
                None => (*path, false),
            };
            let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
            let Some((_, state)) = states.iter().find(|(dir, _)| dir == parent).cloned() else {
                continue;
            };
            let verdict = filter.check(name.as_bytes(), is_dir, &state);
            if verdict.wanted {
                wanted.push(name.to_owned());
            }
            if verdict.descend {
                entered.push(name.to_owned());
                states.push((name.to_owned(), verdict.state));
            }
        }
        (wanted, entered)
    }

    const TREE: [&str; 8] = [
        "a/",
        "a/b/",
        "a/b/c",
        "a/b/d",
        "e/",
        "e/f",
        "foo",
        "node_modules/",
    ];

    #[test]
    fn includes_by_prefix_enter_only_their_directories() {
        let (wanted, entered) = walk(&["a/b/c"], &[], &TREE);
        assert_eq!(wanted, ["a/b/c"]);
        assert_eq!(entered, ["a", "a/b"]);
    }

    #[test]
    fn an_included_directory_brings_everything_below() {
        let (wanted, _) = walk(&["a"], &[], &TREE);
        assert_eq!(wanted, ["a", "a/b", "a/b/c", "a/b/d"]);
    }

    #[test]
    fn excluded_directories_are_not_entered_without_exceptions() {
        let (wanted, entered) = walk(&[], &["a", "node_modules"], &TREE);
        assert_eq!(wanted, ["e", "e/f", "foo"]);
        assert_eq!(entered, ["e"]);
    }

    #[test]
    fn exceptions_below_excluded_directories_are_found() {
        let (wanted, entered) = walk(&[], &["**", "!a/b/d"], &TREE);
        assert_eq!(wanted, ["a/b/d"]);
        assert_eq!(entered, ["a", "a/b"]);
    }

    #[test]
    fn wildcards_in_exceptions_look_everywhere() {
        let (wanted, entered) = walk(&[], &["*", "!**/f"], &TREE);
        assert_eq!(wanted, ["e/f"]);
        assert_eq!(entered, ["a", "a/b", "e", "node_modules"]);
    }
}
