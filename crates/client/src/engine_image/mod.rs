//! Images that only the user's Docker Engine has, as bases of builds elsewhere.
//!
//! A server asks registries. What none of them has may still be in the Engine in front of the user,
//! made there by an earlier build. Such an image is exported from the Engine into a layout in a
//! temporary directory, which the session serves; to the frontend it is a named context of the
//! image's own name. So it works with every server that knows named contexts.
//!
//! An image that was exported once is remembered: then only its manifest and configuration are
//! served, and it is exported when the server asks for a layer, which it does not when it has them.

mod names;
mod remembered;
mod saved;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diag::{Context, Error};
use driver::ImageOrder;
use driver::engine::Engine;
use oci::{Descriptor, Platform, Reference};
use progress_ui::Progress;
use session::{ClientSessionBuilder, FillStore};
use tempfile::TempDir;

use crate::id::new_id;
use crate::plan::SolvePlan;
use crate::steps::Step;
use remembered::Remembered;

/// Where images are remembered, below the state of builders.
const ENTRIES: &str = "engine-images";
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
    /// Where images are remembered.
    entries: PathBuf,
    /// What the session serves, until the build ends.
    lent: Vec<Lent>,
}

/// An image that the session serves.
struct Lent {
    /// The store's name.
    store: String,
    directory: TempDir,
    /// What brings the layers.
    fill: FillStore,
}

impl ImageLender {
    /// Lends images of that Engine, if there is one.
    /// What it remembers of images is below `state`.
    pub(crate) fn new(
        engine: Option<Engine>,
        order: ImageOrder,
        progress: &Progress,
        state: &Path,
    ) -> Self {
        ImageLender {
            engine,
            order,
            progress: progress.clone(),
            entries: state.join(ENTRIES),
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
        let directory = tempfile::Builder::new()
            .prefix("engine-image-")
            .tempdir()
            .context("making a directory for an image of the Docker Engine")?;
        let export = Export {
            engine: engine.clone(),
            // Not the name, which may be another image's in a moment.
            id: image.id.clone(),
            title: format!("[internal] load {familiar} from the Docker Engine"),
            directory: directory.path().to_path_buf(),
            progress: self.progress.clone(),
        };
        let known = Remembered::find(&self.entries, &image.id);
        let digest = match known.filter(|known| known.write_to(directory.path()).is_ok()) {
            Some(known) => known.image.digest,
            None => {
                let exported = export.run().await?;
                if let Some(known) = Remembered::of_layout(&exported, directory.path()) {
                    known.keep(&self.entries, &image.id);
                }
                exported.digest
            }
        };
        let store = new_id();
        for key in keys {
            let place = format!("oci-layout://{store}@{digest}");
            plan.attributes.insert(key, place);
        }
        add_capability(plan);
        let fill: FillStore = Arc::new(move || {
            let export = export.clone();
            Box::pin(async move {
                let exported = export.run().await;
                exported.map(|_| ()).map_err(std::io::Error::other)
            })
        });
        self.lent.push(Lent {
            store,
            directory,
            fill,
        });
        Ok(true)
    }

    /// Lets a session serve what is lent.
    pub(crate) fn serve(&self, mut session: ClientSessionBuilder) -> ClientSessionBuilder {
        for lent in &self.lent {
            let (store, directory) = (format!("oci:{}", lent.store), lent.directory.path());
            session = session.oci_layout_to_fill(store, directory.to_path_buf(), lent.fill.clone());
        }
        session
    }
}

/// An export of an image out of an Engine.
#[derive(Clone)]
struct Export {
    engine: Engine,
    id: String,
    title: String,
    directory: PathBuf,
    progress: Progress,
}

impl Export {
    async fn run(&self) -> Result<Descriptor, Error> {
        let exporting = |_| saved::export(&self.engine, &self.id, self.directory.clone());
        Step::run(&self.progress, self.title.clone(), exporting).await
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
