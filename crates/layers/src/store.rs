//! The store itself.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use oci::Digest;
use rustix::fs::{FileType, FlockOperation};

use crate::db::{Database, Measure};
use crate::diff::TreeIndex;
use crate::handles::Made;
use crate::locks::KeyedLocks;
use crate::merged::{Transfer, lstat, materialise, names};
use crate::overlay::{self, Api, Request};
use crate::reaper::Reaper;
use crate::register::Register;
use crate::{
    LayerBlob, LayerDirs, LayerError, LayerHold, LayerId, LayerInfo, LayerNote, LayerStack, MadeOn,
    MountedStack, NewLayer, Result, WritableStack,
};

const FORMAT: u32 = 1;
/// A file that says that there are layers with marks which overlayfs does not understand.
const STAND_INS: &str = "stand-ins";
/// The most layers whose directories are looked through one by one. Who walks a tree has one of each
/// open for every directory on the way: a path of the longest length must not take all descriptors.
const DIRS_MAX: usize = 8;
/// Length of an id as the name of a directory.
const NAME_LENGTH: usize = 25;

/// How stacks are shown as one tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Overlayfs where it works, copying where it does not.
    #[default]
    Auto,
    /// Overlayfs or nothing.
    Overlay,
    /// Copying.
    Copy,
}

impl Backend {
    /// The name of the snapshotter in stock's words: `overlayfs`, `native`, `auto`.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Auto => "auto",
            Backend::Overlay => "overlayfs",
            Backend::Copy => "native",
        }
    }
}

/// A store of layers; clones share it.
#[derive(Clone)]
pub struct LayerStore(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    /// `None`: copying.
    overlay: Option<Api>,
    lowers_max: usize,
    database: Database,
    register: Register,
    flat_locks: KeyedLocks<Option<(LayerId, usize)>>,
    blob_locks: KeyedLocks<String>,
    reaper: Reaper,
    /// Told whenever the store has grown.
    observer: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Locked as long as the store is open.
    _lock: File,
}

impl LayerStore {
    /// Opens the store in `dir`, making it if needed. What a killed process left is unmounted and
    /// swept. Only one process may have a store open.
    pub fn open(dir: impl AsRef<Path>, backend: Backend) -> Result<Self> {
        Self::open_limited(dir.as_ref(), backend, usize::MAX)
    }

    /// The same, with at most so many lower directories in a mount.
    pub(crate) fn open_limited(dir: &Path, backend: Backend, lowers_max: usize) -> Result<Self> {
        let create = |path: &Path| fs::create_dir_all(path).map_err(LayerError::io("create", path));
        create(dir)?;
        let dir = &fs::canonicalize(dir).map_err(LayerError::io("find", dir))?;
        let lock = lock(dir)?;
        content::check_superblock(dir, FORMAT)?;
        for name in ["layers", "flat", "new", "mounts", "trash", "empty"] {
            create(&dir.join(name))?;
        }
        sweep_mounts(dir)?;
        let database = Database::open(&dir.join("layers.db"))?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        database.enter_boot(boot_id.trim())?;
        let register = Register::of(sweep_known(dir, &database)?);
        let overlay = choose(dir, backend)?;
        let reaper = Reaper::start(dir.join("trash"))?;
        let lowers_max = overlay
            .map_or(usize::MAX, |api| api.lowers_max(NAME_LENGTH))
            .min(lowers_max);
        Ok(LayerStore(Arc::new(Inner {
            dir: dir.to_owned(),
            overlay,
            lowers_max,
            database,
            register,
            flat_locks: KeyedLocks::default(),
            blob_locks: KeyedLocks::default(),
            reaper,
            observer: OnceLock::new(),
            _lock: lock,
        })))
    }

    /// Which backend is in use; never [`Backend::Auto`].
    pub fn backend(&self) -> Backend {
        match self.0.overlay {
            Some(_) => Backend::Overlay,
            None => Backend::Copy,
        }
    }

    /// Begins a layer that does not depend on any other.
    pub fn new_layer(&self) -> Result<NewLayer> {
        NewLayer::begin(self)
    }

    /// Begins a layer on top of a stack, which is shown merged with what is written.
    pub fn writable(&self, stack: &LayerStack) -> Result<WritableStack> {
        WritableStack::begin(self, stack)
    }

    /// Shows a stack to read. A single layer is shown in place where nothing in it deletes anything.
    pub fn mount(&self, stack: &LayerStack) -> Result<MountedStack> {
        MountedStack::begin(self, stack)
    }

    /// The directories of a stack's layers; `None` for a stack of so many that to look through all of
    /// them takes longer than to mount them.
    pub fn dirs(&self, stack: &LayerStack) -> Result<Option<LayerDirs>> {
        let layers = stack.effective();
        if layers.len() > DIRS_MAX {
            return Ok(None);
        }
        let hold = self.try_hold(stack)?;
        let paths = layers.iter().map(|id| self.layer_path(*id)).collect();
        Ok(Some(LayerDirs::new(paths, hold)))
    }

    /// Protects the layers of a stack from removal. Whether they are there is not looked at: see
    /// [`LayerStore::try_hold`].
    pub fn hold(&self, stack: &LayerStack) -> LayerHold {
        self.0.register.hold(stack);
        LayerHold::new(self.clone(), stack.clone())
    }

    /// Protects the layers of a stack from removal if all of them are there.
    pub fn try_hold(&self, stack: &LayerStack) -> Result<LayerHold> {
        self.0.register.try_hold(stack)?;
        Ok(LayerHold::new(self.clone(), stack.clone()))
    }

    /// True if all layers of a stack are there.
    pub fn contains(&self, stack: &LayerStack) -> bool {
        self.0.register.contains(stack)
    }

    /// The short form of a stack, which [`LayerStore::stack_of`] makes it of again.
    pub fn short_form(&self, stack: &LayerStack) -> MadeOn {
        self.0.register.short_form(stack)
    }

    /// The stack of that short form; `None` if a layer that it is found by is gone. Whether all others
    /// are there is not looked at.
    pub fn stack_of(&self, short: &MadeOn) -> Option<LayerStack> {
        self.0.register.stack_of(short)
    }

    /// All that is known about a layer, or `None` if there is none of that name.
    pub fn info(&self, id: LayerId) -> Result<Option<LayerInfo>> {
        let Some(mut info) = self.0.database.info(id)? else {
            return Ok(None);
        };
        info.size = self.size(id)?;
        info.blob = self.blob(id)?;
        info.held = self.0.register.is_held(id);
        Ok(Some(info))
    }

    /// All that is known of all layers, in order of names, each with every way in which it is packed.
    pub fn infos(&self) -> Result<Vec<(LayerInfo, Vec<LayerBlob>)>> {
        let mut blobs: HashMap<LayerId, Vec<LayerBlob>> = HashMap::new();
        for (id, blob) in self.0.database.all_blobs()? {
            blobs.entry(id).or_default().push(blob);
        }
        let mut infos = Vec::new();
        for (mut info, size) in self.0.database.infos()? {
            info.size = match size {
                Some(size) => size,
                None => match self.size(info.id) {
                    Ok(size) => size,
                    // Removed meanwhile.
                    Err(_) if self.0.database.info(info.id)?.is_none() => continue,
                    Err(error) => return Err(error),
                },
            };
            let packed = blobs.remove(&info.id).unwrap_or_default();
            info.blob = packed.first().cloned();
            infos.push((info, packed));
        }
        for (info, _) in &mut infos {
            info.held = self.0.register.is_held(info.id);
        }
        Ok(infos)
    }

    /// Has a function called whenever a layer is committed or packed, so that whoever limits the
    /// store can look at it. Only the first one given counts.
    pub fn on_growth(&self, observer: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.observer.set(Box::new(observer));
    }

    /// Every layer, in order of names.
    pub fn list(&self) -> Result<Vec<LayerId>> {
        let mut ids = self.0.database.ids()?;
        ids.sort();
        Ok(ids)
    }

    /// Bytes of disk blocks that a layer occupies; measured when first asked for.
    pub fn size(&self, id: LayerId) -> Result<u64> {
        Ok(self.measure(id)?.size)
    }

    /// Notes that layers were used now.
    pub fn touch(&self, stack: &LayerStack) -> Result<()> {
        self.0.database.touch(stack.as_slice())
    }

    /// Removes a layer.
    ///
    /// # Errors
    /// [`LayerError::Held`] while something uses it.
    pub fn remove(&self, id: LayerId) -> Result<()> {
        let removal = self.0.register.removal(id)?;
        self.drop_flats_with(id)?;
        if !self.0.database.delete(id)? {
            return Err(LayerError::NotFound(id));
        }
        removal.done();
        self.0.reaper.discard(&self.layer_path(id))
    }

    /// Records how a layer is packed, under a key that names compression and level.
    pub fn set_blob(&self, id: LayerId, key: &str, blob: &LayerBlob) -> Result<()> {
        self.0.database.set_blob(id, key, blob)?;
        self.grown();
        Ok(())
    }

    /// A layer packed the way that was recorded first. Whether the blob is stored is not looked at.
    pub fn blob(&self, id: LayerId) -> Result<Option<LayerBlob>> {
        let first = self.blobs(id)?.into_iter().next();
        Ok(first.map(|(_, blob)| blob))
    }

    /// Every way in which a layer is packed, with its key, in the order they were recorded.
    pub fn blobs(&self, id: LayerId) -> Result<Vec<(String, LayerBlob)>> {
        self.0.database.blobs(id)
    }

    /// The layer that an archive of this digest (unpacked) was unpacked into, whatever is below.
    pub fn find_by_diff_id(&self, diff_id: &Digest) -> Result<Option<LayerId>> {
        self.0.database.find_name(&format!("diff:{diff_id}"))
    }

    /// Records what [`LayerStore::find_by_diff_id`] finds.
    pub fn set_diff_id(&self, id: LayerId, diff_id: &Digest) -> Result<()> {
        self.0.database.set_name(&format!("diff:{diff_id}"), id)
    }

    /// The layer recorded for a chain: one that depends on what is below it.
    pub fn find_by_chain(&self, chain: &Digest) -> Result<Option<LayerId>> {
        self.0.database.find_name(&format!("chain:{chain}"))
    }

    /// Records what [`LayerStore::find_by_chain`] finds.
    pub fn set_chain(&self, id: LayerId, chain: &Digest) -> Result<()> {
        self.0.database.set_name(&format!("chain:{chain}"), id)
    }

    /// Waits until all layers committed so far are on disk, so that they outlive a crash of the
    /// machine. A crash of the process alone needs no such care.
    pub fn sync(&self) -> Result<()> {
        let unsynced = self.0.database.unsynced()?;
        if unsynced.is_empty() {
            return Ok(());
        }
        rustix::fs::syncfs(&self.0._lock).map_err(LayerError::io("sync", &self.0.dir))?;
        self.0.database.set_synced(&unsynced)
    }
}

// What the handles and the other parts of the store need.
impl LayerStore {
    pub(crate) fn layer_path(&self, id: LayerId) -> PathBuf {
        self.0.dir.join("layers").join(id.to_string())
    }

    pub(crate) fn flat_path(&self, id: LayerId) -> PathBuf {
        self.0.dir.join("flat").join(id.to_string())
    }

    pub(crate) fn empty_path(&self) -> PathBuf {
        self.0.dir.join("empty")
    }

    pub(crate) fn database(&self) -> &Database {
        &self.0.database
    }

    pub(crate) fn reaper(&self) -> &Reaper {
        &self.0.reaper
    }

    pub(crate) fn flat_locks(&self) -> &KeyedLocks<Option<(LayerId, usize)>> {
        &self.0.flat_locks
    }

    pub(crate) fn blob_locks(&self) -> &KeyedLocks<String> {
        &self.0.blob_locks
    }

    pub(crate) fn lowers_max(&self) -> usize {
        self.0.lowers_max
    }

    pub(crate) fn register(&self) -> &Register {
        &self.0.register
    }

    /// Makes the directory in which a layer is prepared, with the empty `fs` in it.
    pub(crate) fn begin(&self, id: LayerId) -> Result<PathBuf> {
        let dir = self.0.dir.join("new").join(id.to_string());
        let fs = dir.join("fs");
        fs::create_dir_all(&fs).map_err(LayerError::io("create", &fs))?;
        fs::set_permissions(&fs, fs::Permissions::from_mode(0o755))
            .map_err(LayerError::io("chmod", &fs))?;
        Ok(dir)
    }

    /// Makes a prepared directory a layer.
    pub(crate) fn adopt(
        &self,
        id: LayerId,
        fs: &Path,
        note: &LayerNote,
        made_on: Option<&LayerStack>,
    ) -> Result<()> {
        let path = self.layer_path(id);
        fs::rename(fs, &path).map_err(LayerError::io("rename to", &path))?;
        let made_on = made_on.map(|stack| self.0.register.short_form(stack));
        let recorded = self.0.database.insert(id, note, made_on.as_ref());
        match &recorded {
            Ok(()) => {
                self.0.register.add(id, made_on);
                self.grown();
            }
            Err(_) => self.0.reaper.discard(&path)?,
        }
        recorded
    }

    fn grown(&self) {
        if let Some(observer) = self.0.observer.get() {
            observer();
        }
    }

    pub(crate) fn make_writable(&self, id: LayerId, dir: &Path, base: &LayerStack) -> Result<Made> {
        let layers = base.effective();
        let Some(api) = self.0.overlay else {
            let tree = dir.join("tree");
            fs::create_dir(&tree).map_err(LayerError::io("create", &tree))?;
            let paths: Vec<PathBuf> = layers.iter().map(|id| self.layer_path(*id)).collect();
            materialise(&paths, &tree, Transfer::Copy)?;
            let index = TreeIndex::of(&tree, dir)?;
            return Ok(Made::Copied(tree, Some(index)));
        };
        let (upper, work) = (dir.join("fs"), dir.join("work"));
        fs::create_dir(&work).map_err(LayerError::io("create", &work))?;
        self.mount_overlay(api, id, self.lower_paths(&layers)?, Some((&upper, &work)))
    }

    pub(crate) fn make_readable(&self, layers: &[LayerId]) -> Result<Made> {
        let id = LayerId::random();
        let Some(api) = self.0.overlay else {
            let paths: Vec<PathBuf> = layers.iter().map(|id| self.layer_path(*id)).collect();
            let dir = self.begin(id)?;
            let target = self.0.dir.join("mounts").join(id.to_string());
            let made = materialise(&paths, &dir.join("fs"), Transfer::Copy).and_then(|()| {
                fs::rename(dir.join("fs"), &target).map_err(LayerError::io("rename to", &target))
            });
            self.0.reaper.discard(&dir)?;
            return made.map(|()| Made::Copied(target, None));
        };
        let mut lowers = self.lower_paths(layers)?;
        if lowers.len() == 1 {
            // An overlay to read has two directories at least.
            lowers.insert(0, self.empty_path());
        }
        self.mount_overlay(api, id, lowers, None)
    }

    fn mount_overlay(
        &self,
        api: Api,
        id: LayerId,
        lowers: Vec<PathBuf>,
        upper: Option<(&Path, &Path)>,
    ) -> Result<Made> {
        let target = self.0.dir.join("mounts").join(id.to_string());
        fs::create_dir(&target).map_err(LayerError::io("create", &target))?;
        let mounted = api.mount(&Request {
            lowers,
            upper,
            target: &target,
            base: &self.0.dir.join("layers"),
        });
        if let Err(error) = mounted {
            let _ = fs::remove_dir(&target);
            return Err(error);
        }
        Ok(Made::Overlay(target))
    }

    /// What a walk over a layer finds, remembered.
    pub(crate) fn measure(&self, id: LayerId) -> Result<Measure> {
        if let Some(measure) = self.0.database.measure(id)? {
            return Ok(measure);
        }
        let mut measure = Measure {
            size: 0,
            whiteouts: false,
        };
        walk(&self.layer_path(id), &mut measure, &mut HashSet::new())?;
        // It may be that nothing can be written: who looks at a full disk wants to know the more.
        if let Err(error) = self.0.database.set_measure(id, measure) {
            tracing::debug!(%error, "the size of a layer is not remembered");
        }
        Ok(measure)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Best effort: what is not synced now is dropped if the machine crashes before it is.
        if let Ok(unsynced) = self.database.unsynced()
            && !unsynced.is_empty()
            && rustix::fs::syncfs(&self._lock).is_ok()
        {
            let _ = self.database.set_synced(&unsynced);
        }
    }
}

fn walk(dir: &Path, measure: &mut Measure, seen: &mut HashSet<u64>) -> Result<()> {
    measure.size += lstat(dir)?.st_blocks as u64 * 512;
    for name in names(dir)? {
        let path = dir.join(name);
        let stat = lstat(&path)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            walk(&path, measure, seen)?;
            continue;
        }
        measure.whiteouts |= archive::is_whiteout(&stat);
        if stat.st_nlink == 1 || seen.insert(stat.st_ino) {
            measure.size += stat.st_blocks as u64 * 512;
        }
    }
    Ok(())
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(LayerError::io("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LayerError::Locked(dir.to_owned())),
        Err(error) => Err(LayerError::io("lock", &path)(error)),
    }
}

fn choose(dir: &Path, backend: Backend) -> Result<Option<Api>> {
    let stood_in = dir.join(STAND_INS).exists();
    if backend == Backend::Copy || (stood_in && backend == Backend::Auto) {
        return note_stand_ins(dir).map(|()| None);
    }
    let scratch = dir.join("new").join("probe");
    let probed = overlay::probe(&scratch);
    archive::remove_tree(rustix::fs::CWD, &scratch).map_err(LayerError::io("remove", &scratch))?;
    match (probed, backend) {
        (Ok(_), Backend::Overlay) if stood_in => Err(LayerError::StandIns(dir.to_owned())),
        (Ok(api), _) => Ok(Some(api)),
        (Err(error), Backend::Overlay) => Err(error),
        (Err(error), _) if error.is_full_disk() => Err(error),
        (Err(error), _) => {
            tracing::warn!(%error, "overlayfs does not work here; layers are copied together");
            note_stand_ins(dir).map(|()| None)
        }
    }
}

/// Notes that layers have marks which overlayfs does not understand, where it will be so: should the
/// directory be moved to another disk, they are copied together there as well.
fn note_stand_ins(dir: &Path) -> Result<()> {
    let scratch = dir.join("new");
    if archive::has_overlays_marks(&scratch)
        .map_err(LayerError::io("make whiteout in", &scratch))?
    {
        return Ok(());
    }
    let path = dir.join(STAND_INS);
    fs::write(&path, "").map_err(LayerError::io("write", &path))
}

/// Unmounts what a killed process left mounted and throws away what it was making.
fn sweep_mounts(dir: &Path) -> Result<()> {
    let mounts = dir.join("mounts");
    for name in names(&mounts)? {
        overlay::unmount(&mounts.join(name))?;
    }
    // Mounts of a probe that was interrupted.
    for name in overlay::PROBES {
        overlay::unmount(&dir.join("new/probe").join(name).join("target"))?;
    }
    for parent in [mounts, dir.join("new")] {
        for name in names(&parent)? {
            to_trash(dir, &parent.join(name))?;
        }
    }
    Ok(())
}

/// Brings directories and database together: what only one of them knows goes. The rest is returned.
fn sweep_known(dir: &Path, database: &Database) -> Result<Vec<(LayerId, Option<MadeOn>)>> {
    let layers = dir.join("layers");
    let mut whole = Vec::new();
    for (id, made_on) in database.all_made_on()? {
        match layers.join(id.to_string()).is_dir() {
            true => whole.push((id, made_on)),
            false => _ = database.delete(id)?,
        }
    }
    let known: HashSet<String> = whole.iter().map(|(id, _)| id.to_string()).collect();
    sweep_unknown(dir, &layers, &known)?;
    let flats = dir.join("flat");
    let mut known_flats = HashSet::new();
    for (id, parts) in database.flats()? {
        let complete = parts.iter().all(|part| known.contains(&part.to_string()));
        match complete && flats.join(id.to_string()).is_dir() {
            true => _ = known_flats.insert(id.to_string()),
            false => database.delete_flat(id)?,
        }
    }
    sweep_unknown(dir, &flats, &known_flats)?;
    Ok(whole)
}

fn sweep_unknown(dir: &Path, parent: &Path, known: &HashSet<String>) -> Result<()> {
    for name in names(parent)? {
        if !name.to_str().is_some_and(|name| known.contains(name)) {
            to_trash(dir, &parent.join(name))?;
        }
    }
    Ok(())
}

fn to_trash(dir: &Path, path: &Path) -> Result<()> {
    let target = dir.join("trash").join(LayerId::random().to_string());
    fs::rename(path, &target).map_err(LayerError::io("discard", path))
}
