//! Images that only the user's Docker Engine has, as bases of builds elsewhere.
//!
//! A server asks registries. What none of them has may still be in the Engine in front of the user,
//! made there by an earlier build. Such an image is exported from the Engine into a layout in a
//! temporary directory, which the session serves; to the frontend it is a named context of the
//! image's own name. So it works with every server that knows named contexts.

mod names;
mod saved;

use std::collections::BTreeSet;

use diag::Error;
use driver::ImageOrder;
use driver::engine::Engine;
use oci::{Platform, Reference};
use progress_ui::Progress;
use tempfile::TempDir;

use crate::id::new_id;
use crate::plan::SolvePlan;
use crate::steps::Step;

/// What servers say when a registry has no such image, before its full name.
const UNRESOLVED: &str = "failed to resolve source metadata for ";
/// What a frontend must know to be given contexts.
const CONTEXTS: &str = "moby.buildkit.frontend.contexts+forward";

/// Lends images of an Engine to a build.
pub(crate) struct ImageLender {
    engine: Option<Engine>,
    order: ImageOrder,
    progress: Progress,
    /// Full names that were looked at.
    seen: BTreeSet<String>,
    /// What the session serves, until the build ends.
    lent: Vec<TempDir>,
}

impl ImageLender {
    /// Lends images of that Engine, if there is one.
    pub(crate) fn new(engine: Option<Engine>, order: ImageOrder, progress: &Progress) -> Self {
        ImageLender {
            engine,
            order,
            progress: progress.clone(),
            seen: BTreeSet::new(),
            lent: Vec::new(),
        }
    }

    /// Before a build: lends what its Dockerfile names, if the Engine goes first.
    pub(crate) async fn lend_first(&mut self, plan: &mut SolvePlan) -> Result<(), Error> {
        if self.order != ImageOrder::LocalFirst {
            return Ok(());
        }
        for name in names::of_plan(plan).await {
            self.lend(plan, &name).await?;
        }
        Ok(())
    }

    /// After a build failed: lends the image that no registry had; false if that was not it, or the
    /// Engine has it neither.
    pub(crate) async fn lend_unresolved(
        &mut self,
        plan: &mut SolvePlan,
        failure: &Error,
    ) -> Result<bool, Error> {
        if self.order == ImageOrder::Off {
            return Ok(false);
        }
        match unresolved(&failure.to_string()) {
            Some(name) => self.lend(plan, &name).await,
            None => Ok(false),
        }
    }

    /// Lets the session serve an image, if the Engine has it for the platforms of the build.
    async fn lend(&mut self, plan: &mut SolvePlan, name: &Reference) -> Result<bool, Error> {
        // A digest names what a registry has; the Engine would give the same files another one.
        if name.digest().is_some() || !self.seen.insert(name.to_string()) {
            return Ok(false);
        }
        let Some(engine) = &self.engine else {
            return Ok(false);
        };
        let familiar = name.familiar();
        let image = match engine.image(&familiar).await {
            Ok(image) => image,
            Err(error) => {
                tracing::debug!(%error, familiar, "not in the Engine");
                return Ok(false);
            }
        };
        let own = Platform::new(&image.os, &image.architecture, &image.variant);
        let keys = context_keys(&familiar, plan.attributes.get("platform"), &own);
        if keys.is_empty() || keys.iter().any(|key| plan.attributes.contains_key(key)) {
            return Ok(false);
        }
        let title = format!("[internal] load {familiar} from the Docker Engine");
        let exporting = |_| saved::export(engine, &familiar);
        let (directory, image) = Step::run(&self.progress, title, exporting).await?;
        let store = new_id();
        for key in keys {
            let place = format!("oci-layout://{store}@{}", image.digest);
            plan.attributes.insert(key, place);
        }
        add_capability(plan);
        plan.oci_layouts
            .insert(store, directory.path().to_path_buf());
        self.lent.push(directory);
        Ok(true)
    }
}

/// The image that an error says no registry has.
fn unresolved(text: &str) -> Option<Reference> {
    let (_, rest) = text.split_once(UNRESOLVED)?;
    let name = rest.split(": ").next()?;
    let parsed: Reference = name.trim().parse().ok()?;
    Some(parsed.with_default_tag())
}

/// The frontend's attributes that put a context in an image's place: for all platforms, or for those
/// of the build that the image is for.
fn context_keys(familiar: &str, platforms: Option<&String>, own: &Platform) -> Vec<String> {
    let name = familiar.strip_suffix(":latest").unwrap_or(familiar);
    let Some(platforms) = platforms else {
        return vec![format!("context:{name}")];
    };
    platforms
        .split(',')
        .filter_map(|text| text.parse::<Platform>().ok())
        .filter(|platform| own.match_rank(platform).is_some())
        .map(|platform| format!("context:{name}::{}", platform.normalized()))
        .collect()
}

fn add_capability(plan: &mut SolvePlan) {
    let list = plan
        .attributes
        .entry("frontend.caps".to_owned())
        .or_default();
    if list.split(',').any(|capability| capability == CONTEXTS) {
        return;
    }
    let mut all: BTreeSet<&str> = list.split(',').filter(|one| !one.is_empty()).collect();
    all.insert(CONTEXTS);
    *list = all.into_iter().collect::<Vec<_>>().join(",");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_that_no_registry_has_is_found_in_the_error() {
        let text = "failed to build: failed to solve: mine:1: failed to resolve source metadata \
                    for docker.io/library/mine:1: docker.io/library/mine:1: not found";
        assert_eq!(unresolved(text).unwrap().familiar(), "mine:1");
        assert!(unresolved("failed to solve: process did not complete").is_none());
    }

    #[test]
    fn an_image_stands_only_for_platforms_that_it_is_for() {
        let own = Platform::new("linux", "amd64", "");
        let keys = |platforms: Option<&str>| {
            context_keys("mine:latest", platforms.map(str::to_owned).as_ref(), &own)
        };
        assert_eq!(keys(None), ["context:mine"]);
        assert_eq!(
            keys(Some("linux/arm64,linux/amd64")),
            ["context:mine::linux/amd64"]
        );
        assert!(keys(Some("linux/arm64")).is_empty());
    }
}
