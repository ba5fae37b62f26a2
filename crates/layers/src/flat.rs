//! Stacks longer than one mount can take.
//!
//! The bottom of such a stack is joined once into a directory that stands for it. Where it is cut does
//! not depend on how long the stack is beyond that, so a stack that grows step by step meets the same
//! joined bottoms again; each is made from the one before it.

use std::path::PathBuf;

use crate::merged::{Transfer, materialise};
use crate::store::LayerStore;
use crate::{LayerError, LayerId, Result};

/// Where to cut a stack of `count` layers that may have `max`: a multiple of half of that.
fn cut(count: usize, max: usize) -> usize {
    if count <= max {
        return 0;
    }
    let step = (max / 2).max(1);
    (count + 1 - max).div_ceil(step) * step
}

impl LayerStore {
    /// The directories to mount for these layers (held by the caller), bottom first.
    pub(crate) fn lower_paths(&self, layers: &[LayerId]) -> Result<Vec<PathBuf>> {
        let max = self.lowers_max();
        let at = cut(layers.len(), max);
        let mut paths = Vec::with_capacity(layers.len() + 1 - at);
        if at > 0 {
            paths.push(self.flat(&layers[..at], (max / 2).max(1))?);
        }
        paths.extend(layers[at..].iter().map(|id| self.layer_path(*id)));
        Ok(paths)
    }

    /// The joined directory of these layers, made now if need be.
    fn flat(&self, layers: &[LayerId], step: usize) -> Result<PathBuf> {
        let key = layers.last().copied().map(|top| (top, layers.len()));
        let _guard = self.flat_locks().lock(key);
        if let Some(id) = self.database().find_flat(layers)? {
            return Ok(self.flat_path(id));
        }
        let below = layers.len().saturating_sub(step);
        let mut parts = Vec::new();
        if below > 0 {
            parts.push(self.flat(&layers[..below], step)?);
        }
        parts.extend(layers[below..].iter().map(|id| self.layer_path(*id)));
        let id = LayerId::random();
        let work = self.begin(id)?;
        let made = materialise(&parts, &work.join("fs"), Transfer::Link).and_then(|()| {
            let path = self.flat_path(id);
            std::fs::rename(work.join("fs"), &path).map_err(LayerError::io("rename to", &path))?;
            self.database().insert_flat(id, layers)?;
            Ok(path)
        });
        self.reaper().discard(&work)?;
        made
    }

    /// Gives up the joined directories that have a layer in them.
    pub(crate) fn drop_flats_with(&self, layer: LayerId) -> Result<()> {
        for id in self.database().flats_with(layer)? {
            self.database().delete_flat(id)?;
            self.reaper().discard(&self.flat_path(id))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_growing_stack_is_cut_at_few_places_and_always_fits() {
        let max = 10;
        let mut places = std::collections::BTreeSet::new();
        for count in 1..100 {
            let at = cut(count, max);
            let rest = count - at + usize::from(at > 0);
            assert!(rest <= max, "{count}: {rest}");
            assert!(at <= count);
            places.insert(at);
        }
        assert!(places.iter().all(|at| at % 5 == 0), "{places:?}");
    }
}
