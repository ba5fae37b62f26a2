//! What of an image a Docker Engine already has.
//!
//! The classic store knows a layer by the chain of diff IDs that ends with it: a layer can be left
//! out when the Engine has an image that begins with the same chain. The containerd store knows
//! blobs by their digest, of which its API does not tell; from an image with the same diff ID the
//! same blob is guessed, and after the load [`is_complete`] tells whether that was right.

use std::collections::HashSet;

use driver::engine::{Engine, EngineError, ImageSummary};
use futures::StreamExt;
use oci::{Digest, Reference};

use super::wanted::{WantedImage, WantedLayer};

/// Images that are looked at in an Engine at most.
const IMAGES_MAX: usize = 256;
/// How many are looked at at once.
const IMAGES_AT_ONCE: usize = 8;
/// Layers of fewer bytes are not worth looking on for.
const BYTES_WORTH_LOOKING: u64 = 64 << 10;

/// How an Engine keeps images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// Layers by chains of diff IDs; an image's ID is its configuration's digest.
    Classic,
    /// Blobs by digest; an image's ID is its manifest's or index' digest.
    Containerd,
}

/// The ID the Engine goes by, if it has the very image, whole.
pub(super) async fn same_image(
    engine: &Engine,
    store: Store,
    image: &WantedImage,
) -> Result<Option<String>, EngineError> {
    let id = match (store, image.manifests.as_slice()) {
        (Store::Containerd, _) => image.root.digest,
        (Store::Classic, [only]) => only.config,
        (Store::Classic, _) => return Ok(None),
    };
    let found = match engine.image(&id.to_string()).await {
        Ok(found) => found,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    // Some Engines find an image by a digest that is not its own, such as its index'.
    if found.id != id.to_string() {
        return Ok(None);
    }
    let whole = store == Store::Classic || is_complete(engine, image).await?;
    Ok(whole.then_some(found.id))
}

/// Whether the containerd store of an Engine has all blobs of an image; false when it cannot tell.
pub(super) async fn is_complete(engine: &Engine, image: &WantedImage) -> Result<bool, EngineError> {
    if !engine.lists_manifests().await? {
        return Ok(false);
    }
    let manifests = match engine.image_manifests(&image.root.digest.to_string()).await {
        Ok(manifests) => manifests,
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(image.manifests.iter().all(|wanted| {
        let id = wanted.digest.to_string();
        manifests.iter().any(|one| one.id == id && one.available)
    }))
}

/// The blobs of layers that need not be sent.
pub(super) async fn known_layers(
    engine: &Engine,
    store: Store,
    image: &WantedImage,
) -> Result<HashSet<Digest>, EngineError> {
    if store == Store::Containerd && !engine.lists_manifests().await? {
        // What was guessed could not be proved.
        return Ok(HashSet::new());
    }
    let candidates = in_order(engine.images().await?, &image.names);
    let mut looking = futures::stream::iter(candidates)
        .map(|one| async move { engine.image(&one.id).await })
        .buffered(IMAGES_AT_ONCE);
    let mut known = Known::default();
    while let Some(found) = looking.next().await {
        // It may have been removed since it was listed.
        let Ok(found) = found else { continue };
        let layers: Vec<Digest> = found
            .root_fs
            .layers
            .iter()
            .filter_map(|layer| layer.parse().ok())
            .collect();
        known.add(store, image, &layers);
        if known.rest(image) < BYTES_WORTH_LOOKING {
            break;
        }
    }
    Ok(known.blobs)
}

/// Images with one of these names first.
fn in_order(mut images: Vec<ImageSummary>, names: &[Reference]) -> Vec<ImageSummary> {
    let names: Vec<String> = names.iter().map(Reference::familiar).collect();
    images.sort_by_key(|image| {
        let named = image.repo_tags.iter().any(|tag| names.contains(tag));
        (!named, std::cmp::Reverse(image.created))
    });
    images.truncate(IMAGES_MAX);
    images
}

/// Blobs of the wanted image that the Engine is taken to have.
#[derive(Default)]
struct Known {
    blobs: HashSet<Digest>,
}

impl Known {
    /// Takes in the diff IDs of an image of the Engine.
    fn add(&mut self, store: Store, image: &WantedImage, layers: &[Digest]) {
        for manifest in &image.manifests {
            let wanted = &manifest.layers;
            let known: Vec<&WantedLayer> = match store {
                Store::Classic => wanted
                    .iter()
                    .zip(layers)
                    .take_while(|(wanted, has)| wanted.diff_id == Some(**has))
                    .map(|(wanted, _)| wanted)
                    .collect(),
                Store::Containerd => wanted
                    .iter()
                    .filter(|wanted| wanted.diff_id.is_some_and(|id| layers.contains(&id)))
                    .collect(),
            };
            self.blobs
                .extend(known.into_iter().map(|layer| layer.descriptor.digest));
        }
    }

    /// Bytes of layers that are still to be sent.
    fn rest(&self, image: &WantedImage) -> u64 {
        let layers = image.layers();
        let missing = layers
            .values()
            .filter(|one| !self.blobs.contains(&one.digest));
        missing.map(|one| one.size).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use oci::{Descriptor, media_type};

    use super::super::wanted::WantedManifest;
    use super::*;

    fn image(layers: &[&str]) -> WantedImage {
        let layers = layers.iter().map(|name| WantedLayer {
            descriptor: Descriptor::new(
                media_type::OCI_LAYER_GZIP,
                Digest::of(format!("blob {name}")),
                1 << 20,
            ),
            diff_id: Some(Digest::of(name)),
        });
        WantedImage {
            root: Descriptor::new(media_type::OCI_MANIFEST, Digest::of("m"), 1),
            names: vec!["a:1".parse().unwrap()],
            small: BTreeMap::new(),
            manifests: vec![WantedManifest {
                digest: Digest::of("m"),
                config: Digest::of("c"),
                layers: layers.collect(),
            }],
        }
    }

    fn known(store: Store, has: &[&str]) -> usize {
        let image = image(&["base", "lib", "app"]);
        let has: Vec<Digest> = has.iter().map(Digest::of).collect();
        let mut known = Known::default();
        known.add(store, &image, &has);
        let left = (3 - known.blobs.len() as u64) << 20;
        assert_eq!(known.rest(&image), left);
        known.blobs.len()
    }

    #[test]
    fn the_classic_store_knows_layers_only_on_the_same_layers() {
        assert_eq!(known(Store::Classic, &["base", "lib", "old app"]), 2);
        assert_eq!(known(Store::Classic, &["other", "lib", "app"]), 0);
    }

    #[test]
    fn the_containerd_store_knows_layers_wherever_they_are() {
        assert_eq!(known(Store::Containerd, &["other", "lib", "app"]), 2);
    }

    #[test]
    fn images_of_the_same_name_are_looked_at_first() {
        let summary = |id: &str, tag: &str, created| ImageSummary {
            id: id.into(),
            repo_tags: vec![tag.into()],
            created,
        };
        let images = vec![
            summary("old", "b:1", 1),
            summary("new", "c:1", 3),
            summary("same", "a:1", 2),
        ];
        let order: Vec<String> = in_order(images, &["a:1".parse().unwrap()])
            .into_iter()
            .map(|image| image.id)
            .collect();
        assert_eq!(order, ["same", "new", "old"]);
    }
}
