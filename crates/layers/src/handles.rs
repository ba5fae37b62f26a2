//! What one holds while working with layers. Dropping a handle undoes what was not committed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::diff::TreeIndex;
use crate::store::LayerStore;
use crate::{LayerId, LayerNote, LayerStack, Result, overlay};

/// Keeps layers from being removed until it and all its clones are dropped.
#[derive(Clone)]
pub struct LayerHold(Arc<Held>);

struct Held {
    store: LayerStore,
    stack: LayerStack,
}

impl LayerHold {
    pub(crate) fn new(store: LayerStore, stack: LayerStack) -> Self {
        LayerHold(Arc::new(Held { store, stack }))
    }

    /// The store that the layers are in.
    pub fn store(&self) -> &LayerStore {
        &self.0.store
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.store.register().release(&self.stack);
    }
}

/// The directories of a stack's layers, to be read as they are: each is what an overlay takes as lower
/// directory, with devices 0/0 and opaque directories where something of those below is gone.
pub struct LayerDirs {
    paths: Vec<PathBuf>,
    #[expect(dead_code, reason = "it is there to be dropped, after the last use")]
    hold: LayerHold,
}

impl LayerDirs {
    pub(crate) fn new(paths: Vec<PathBuf>, hold: LayerHold) -> Self {
        LayerDirs { paths, hold }
    }

    /// The directories, the bottom one first.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }
}

/// A directory being made into a layer: something is unpacked or copied into it.
pub struct NewLayer {
    store: LayerStore,
    id: LayerId,
    dir: PathBuf,
    fs: PathBuf,
}

impl NewLayer {
    pub(crate) fn begin(store: &LayerStore) -> Result<Self> {
        let id = LayerId::random();
        let dir = store.begin(id)?;
        Ok(NewLayer {
            store: store.clone(),
            id,
            fs: dir.join("fs"),
            dir,
        })
    }

    /// The directory to fill. Devices 0/0 and opaque directories in it mean what they mean in a layer.
    pub fn path(&self) -> &Path {
        &self.fs
    }

    /// Makes it a layer.
    pub fn commit(self, note: LayerNote) -> Result<LayerId> {
        Ok(self.commit_held(note)?.0)
    }

    /// Makes it a layer that is protected from removal from the first moment.
    pub fn commit_held(self, note: LayerNote) -> Result<(LayerId, LayerHold)> {
        let hold = self.store.hold(&self.id.into());
        self.store.adopt(self.id, &self.fs, &note, None)?;
        Ok((self.id, hold))
    }
}

impl Drop for NewLayer {
    fn drop(&mut self) {
        discard(&self.store, &self.dir);
    }
}

/// A stack that can be written to; what is written becomes a layer on top of it.
pub struct WritableStack {
    store: LayerStore,
    base: LayerStack,
    id: LayerId,
    dir: PathBuf,
    kind: Writable,
    hold: LayerHold,
}

enum Writable {
    /// Nothing is below: the layer's own directory is all there is.
    Plain,
    /// An overlay mounted here.
    Overlay(PathBuf),
    /// A joined tree in `tree` of the directory; taken when it is committed.
    Copied(Option<TreeIndex>),
}

impl WritableStack {
    pub(crate) fn begin(store: &LayerStore, base: &LayerStack) -> Result<Self> {
        let hold = store.try_hold(base)?;
        let id = LayerId::random();
        let dir = store.begin(id)?;
        let mut stack = WritableStack {
            store: store.clone(),
            base: base.clone(),
            id,
            dir,
            kind: Writable::Plain,
            hold,
        };
        // From here on a failure cleans up by dropping the handle.
        let Some(top) = base.top() else {
            return Ok(stack);
        };
        let top = store.layer_path(top);
        archive::copy_metadata(&top, &crate::merged::lstat(&top)?, &stack.dir.join("fs"))?;
        stack.kind = store.make_writable(id, &stack.dir, base)?.into();
        Ok(stack)
    }

    /// The root of the filesystem to work in.
    pub fn path(&self) -> PathBuf {
        match &self.kind {
            Writable::Plain => self.dir.join("fs"),
            Writable::Overlay(target) => target.clone(),
            Writable::Copied(_) => self.dir.join("tree"),
        }
    }

    /// What it began as.
    pub fn base(&self) -> &LayerStack {
        &self.base
    }

    /// Makes what was written a layer; returns the stack with it on top. Nothing may be using
    /// [`WritableStack::path`] any more.
    pub fn commit(self, note: LayerNote) -> Result<LayerStack> {
        Ok(self.commit_held(note)?.0)
    }

    /// The same, and all layers of the stack are protected from removal from the first moment.
    pub fn commit_held(mut self, note: LayerNote) -> Result<(LayerStack, LayerHold)> {
        let fs = self.dir.join("fs");
        match &mut self.kind {
            Writable::Plain => {}
            Writable::Overlay(target) => overlay::unmount(target)?,
            Writable::Copied(index) => {
                if let Some(index) = index.take() {
                    index.extract(&fs)?;
                }
            }
        }
        let stack = self.base.with(self.id);
        let hold = self.store.hold(&stack);
        let base = &self.base;
        self.store.adopt(self.id, &fs, &note, Some(base))?;
        Ok((stack, hold))
    }

    /// Protects the layers below beyond the life of this handle.
    pub fn hold(&self) -> LayerHold {
        self.hold.clone()
    }
}

impl Drop for WritableStack {
    fn drop(&mut self) {
        if let Writable::Overlay(target) = &self.kind {
            end_mount(target);
        }
        discard(&self.store, &self.dir);
    }
}

/// A stack to be read at a path.
pub struct MountedStack {
    store: LayerStore,
    path: PathBuf,
    kind: Mounted,
    #[expect(dead_code, reason = "it is there to be dropped, after the mount")]
    hold: LayerHold,
}

enum Mounted {
    /// A directory that is there anyway.
    Plain,
    Overlay,
    Copied,
}

impl MountedStack {
    pub(crate) fn begin(store: &LayerStore, stack: &LayerStack) -> Result<Self> {
        let hold = store.try_hold(stack)?;
        let layers = stack.effective();
        let (path, kind) = match layers.as_slice() {
            [] => (store.empty_path(), Mounted::Plain),
            [one] if !store.measure(*one)?.whiteouts => (store.layer_path(*one), Mounted::Plain),
            layers => match store.make_readable(layers)? {
                Made::Overlay(path) => (path, Mounted::Overlay),
                Made::Copied(path, _) => (path, Mounted::Copied),
            },
        };
        Ok(MountedStack {
            store: store.clone(),
            path,
            kind,
            hold,
        })
    }

    /// The root of the filesystem; it must not be written to, also where it could be.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for MountedStack {
    fn drop(&mut self) {
        match self.kind {
            Mounted::Plain => {}
            Mounted::Overlay => end_mount(&self.path),
            Mounted::Copied => discard(&self.store, &self.path),
        }
    }
}

/// What a backend made out of a stack.
pub(crate) enum Made {
    /// A mount at this mount point.
    Overlay(PathBuf),
    /// A joined tree, with what it looked like if it is to be written to.
    Copied(PathBuf, Option<TreeIndex>),
}

impl From<Made> for Writable {
    fn from(made: Made) -> Self {
        match made {
            Made::Overlay(target) => Writable::Overlay(target),
            Made::Copied(_, index) => Writable::Copied(index),
        }
    }
}

fn end_mount(target: &Path) {
    if let Err(error) = overlay::unmount(target) {
        tracing::warn!(%error, "left for the next start");
        return;
    }
    let _ = std::fs::remove_dir(target);
}

fn discard(store: &LayerStore, dir: &Path) {
    // After a commit it is usually empty.
    if std::fs::remove_dir(dir).is_ok() {
        return;
    }
    if let Err(error) = store.reaper().discard(dir) {
        tracing::warn!(%error, "left for the next start");
    }
}
