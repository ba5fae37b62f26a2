//! Which entries of a directory a transfer is about.

use pathmatch::{LinkTree, PathFilter, follow_links};

use crate::error::SessionError;

/// The filter of a request: what is included (nothing is everything), what is excluded, and paths
/// whose symbolic links are followed through `tree` and whose targets are included.
pub(crate) fn transfer_filter(
    tree: &impl LinkTree,
    mut include: Vec<String>,
    exclude: &[String],
    follow: &[String],
) -> Result<PathFilter, SessionError> {
    if !follow.is_empty()
        && let Some(targets) = follow_links(tree, follow)?
    {
        include.extend(targets);
    }
    // The root itself among the patterns means that there are none.
    if include.iter().any(|pattern| pattern == ".") {
        include.clear();
    }
    let broken = |kind, patterns: &[String], source| SessionError::Pattern {
        kind,
        patterns: patterns.to_vec(),
        source,
    };
    PathFilter::new(&include, &[] as &[&str])
        .map_err(|source| broken("includepatterns", &include, source))?;
    PathFilter::new(&include, exclude).map_err(|source| broken("excludepatterns", exclude, source))
}
