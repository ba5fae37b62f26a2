//! A client's folder as a layer stack.
//!
//! What a client sent is kept, by a key that names folder and client, as a stack of layers. The next
//! time the stack is mounted writable and synchronised with the client: only what differs travels, and
//! becomes one more layer. If nothing differs, nothing is made at all. Nothing is ever changed in
//! place, so builds that use an earlier state are not disturbed.
//!
//! ```text
//! <dir>/superblock
//! <dir>/<sha256 of the key>.json    the stack and its digest
//! <dir>/<name of the stack>.list    what it holds, so that nobody need walk it (see [`Listings`])
//! ```
//!
//! **Invariant**: a state is written only after its layers were committed. A state whose layers are
//! gone counts as none: the client then sends everything again. A listing belongs to one stack, whose
//! layers never change, so it is true as long as it is there.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use diag::Result;
use layers::{LayerError, LayerHold, LayerNote, LayerStack, LayerStore, RecordType};
use oci::Digest;
use serde::{Deserialize, Serialize};
use session::diffcopy::Listing;

use crate::flatten::flatten;
use crate::flights::Flights;
use crate::listings::Listings;
use crate::resolve::blocking;
use crate::state_file::{read_state, sweep, write_state};

/// Version of the directory's format.
const FORMAT: u32 = 1;

/// Changes are stacked up to this height; then a single layer is made of them, because every layer
/// makes the mounted folder slower to walk.
const LAYERS_MAX: usize = 8;

/// The client's side of a synchronisation: mostly its session.
#[async_trait]
pub trait DirSync: Send + Sync {
    /// Makes `dest`, which has what the client had the last time, the same as the client's folder.
    /// `known` is what it has, if that is known.
    async fn sync(&self, dest: &Path, known: Option<Arc<Listing>>) -> Result<DirChanges>;
}

/// What a synchronisation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirChanges {
    /// Entries made, changed or removed.
    pub count: u64,
    /// What the folder holds now; `None` if it has to be walked to know.
    pub listing: Option<Listing>,
}

/// Which folder of which client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRequest {
    /// The name of the folder, such as `context` or `dockerfile`.
    pub name: String,
    /// Names folder and client: equal keys are synchronised with each other's last state, one at a
    /// time. It has no influence on the result.
    pub shared_key: String,
}

/// A client's folder as it was.
#[derive(Clone)]
pub struct LocalSnapshot {
    /// The files.
    pub stack: LayerStack,
    /// Digest of names, kinds, modes, owners, attributes and contents; times do not count.
    pub digest: Digest,
    /// Entries that differed from the last time.
    pub changed: u64,
    /// Keeps the layers.
    pub hold: LayerHold,
}

/// Takes folders of clients; clones share what is under way.
#[derive(Clone)]
pub struct LocalSource {
    dir: PathBuf,
    listings: Listings,
    layers: LayerStore,
    flights: Arc<Flights<Digest>>,
}

/// What is known of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    name: String,
    stack: LayerStack,
    digest: Digest,
}

impl LocalSource {
    /// Opens the directory of states, making it if needed; states without layers are removed.
    pub fn open(dir: impl Into<PathBuf>, layers: LayerStore) -> Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir)?;
        content::check_superblock(&dir, FORMAT)?;
        let source = LocalSource {
            listings: Listings::new(&dir),
            dir,
            layers,
            flights: Arc::default(),
        };
        source.sweep()?;
        Ok(source)
    }

    /// The client's folder as it is now.
    ///
    /// # Errors
    /// Those of the client and of the stores. What came before an error is lost.
    pub async fn snapshot(
        &self,
        request: &LocalRequest,
        client: &dyn DirSync,
    ) -> Result<LocalSnapshot> {
        let key = Digest::of(&request.shared_key);
        let _alone = self.flights.enter(key).await;
        let (layers, path) = (self.layers.clone(), self.state_path(key));
        let listings = self.listings.clone();
        let (state, writable, known) = blocking(move || {
            // A layer of the last state may be removed at this moment.
            let state: Option<State> = read_state(&path);
            let known = state.and_then(|state| {
                let writable = layers.writable(&state.stack);
                let gone = matches!(writable, Err(LayerError::NotFound(_)));
                (!gone).then_some((state, writable))
            });
            match known {
                Some((state, writable)) => {
                    let known = listings.read(&state.stack);
                    Ok((Some(state), writable?, known))
                }
                None => {
                    let writable = layers.writable(&LayerStack::empty())?;
                    Ok((None, writable, Some(Listing::default())))
                }
            }
        })
        .await?;
        let changes = client.sync(&writable.path(), known.map(Arc::new)).await;
        if let (Err(_), Some(state)) = (&changes, &state) {
            // Should the listing have been why, the folder is walked the next time.
            self.listings.remove(&state.stack);
        }
        let changes = changes?;
        let (own, request) = (self.clone(), request.clone());
        blocking(move || own.finish(key, &request, state, writable, changes)).await
    }

    /// What a stack holds, if it is the last state of a folder and that was written down. Blocks on the
    /// disk.
    pub fn listing(&self, stack: &LayerStack) -> Option<Listing> {
        self.listings.read(stack)
    }

    /// Removes what is known of folders whose layers are gone. Blocks on the disk.
    pub fn forget_gone(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let key = name.and_then(|name| name.strip_suffix(".json"));
            let Some(Ok(key)) = key.map(|hex| format!("sha256:{hex}").parse::<Digest>()) else {
                continue;
            };
            // Whoever synchronises the folder now writes a new state.
            let Some(_alone) = self.flights.try_enter(key) else {
                continue;
            };
            let state: Option<State> = read_state(&path);
            if !state
                .as_ref()
                .is_some_and(|state| self.layers.contains(&state.stack))
            {
                std::fs::remove_file(&path)?;
                if let Some(state) = state {
                    self.listings.remove(&state.stack);
                }
            }
        }
        Ok(())
    }

    fn finish(
        &self,
        key: Digest,
        request: &LocalRequest,
        state: Option<State>,
        writable: layers::WritableStack,
        changes: DirChanges,
    ) -> Result<LocalSnapshot> {
        if let Some(state) = &state
            && changes.count == 0
        {
            let hold = writable.hold();
            self.layers.touch(&state.stack)?;
            return Ok(LocalSnapshot {
                stack: state.stack.clone(),
                digest: state.digest,
                changed: 0,
                hold,
            });
        }
        let listing = match changes.listing {
            Some(listing) => listing,
            None => Listing::of(&writable.path())?,
        };
        let note = LayerNote::new(format!("local source for {}", request.name))
            .of_type(RecordType::SourceLocal);
        let (mut stack, mut hold) = writable.commit_held(note.clone())?;
        if stack.len() > LAYERS_MAX {
            (stack, hold) = flatten(&self.layers, &stack, note)?;
        }
        let before = state.map(|state| state.stack);
        let state = State {
            name: request.name.clone(),
            digest: listing.digest(),
            stack,
        };
        self.listings.write(&state.stack, &listing)?;
        write_state(&self.state_path(key), &state)?;
        if let Some(before) = before.filter(|before| *before != state.stack) {
            self.listings.remove(&before);
        }
        Ok(LocalSnapshot {
            stack: state.stack,
            digest: state.digest,
            changed: changes.count,
            hold,
        })
    }

    fn state_path(&self, key: Digest) -> PathBuf {
        self.dir.join(format!("{}.json", key.hex()))
    }

    fn sweep(&self) -> Result<()> {
        let state_of = |path: &Path| {
            let state = read_state::<State>(path);
            state.filter(|state| self.layers.contains(&state.stack))
        };
        let mut listed = HashSet::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                listed.extend(state_of(&path).map(|state| self.listings.path(&state.stack)));
            }
        }
        sweep(&self.dir, |path| {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => state_of(path).is_some(),
                Some("list") => listed.contains(path),
                // Half written, or of versions before there were listings.
                Some("new" | "sums") => false,
                _ => true,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use layers::Backend;
    use parking_lot::Mutex;

    use super::*;

    /// A client whose folder is a map; it notes down how often it was asked for contents.
    #[derive(Default)]
    struct Folder {
        files: Mutex<BTreeMap<String, String>>,
        sent: Mutex<Vec<String>>,
        without_listing: bool,
        fails: bool,
        /// How often it was said what the destination holds.
        listings_known: AtomicUsize,
    }

    impl Folder {
        fn put(&self, name: &str, text: &str) {
            self.files.lock().insert(name.into(), text.into());
        }
    }

    #[async_trait]
    impl DirSync for Folder {
        async fn sync(&self, dest: &Path, known: Option<Arc<Listing>>) -> Result<DirChanges> {
            if let Some(known) = known {
                assert_eq!(*known, Listing::of(dest)?, "a listing is always true");
                self.listings_known.fetch_add(1, Ordering::Relaxed);
            }
            let files = self.files.lock().clone();
            let mut count = 0;
            for (name, text) in &files {
                let path = dest.join(name);
                if std::fs::read_to_string(&path).is_ok_and(|known| known == *text) {
                    continue;
                }
                if let Some((dir, _)) = name.split_once('/') {
                    std::fs::create_dir_all(dest.join(dir))?;
                }
                let temporary = dest.join(".tmp");
                std::fs::write(&temporary, text)?;
                std::fs::rename(&temporary, &path)?;
                self.sent.lock().push(name.clone());
                count += 1;
            }
            for entry in std::fs::read_dir(dest)? {
                let name = entry?.file_name().into_string().unwrap();
                let wanted =
                    |known: &String| *known == name || known.starts_with(&format!("{name}/"));
                if !files.keys().any(wanted) {
                    let path = dest.join(&name);
                    match path.is_dir() {
                        true => std::fs::remove_dir_all(path)?,
                        false => std::fs::remove_file(path)?,
                    }
                    count += 1;
                }
            }
            if self.fails {
                return Err(diag::Error::internal("the client went away"));
            }
            let listing = (!self.without_listing).then(|| Listing::of(dest));
            Ok(DirChanges {
                count,
                listing: listing.transpose()?,
            })
        }
    }

    struct Site {
        _dir: tempfile::TempDir,
        layers: LayerStore,
        source: LocalSource,
        states: PathBuf,
    }

    fn site() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let layers = LayerStore::open(dir.path().join("layers"), Backend::Auto).unwrap();
        let states = dir.path().join("local");
        let source = LocalSource::open(&states, layers.clone()).unwrap();
        Site {
            _dir: dir,
            layers,
            source,
            states,
        }
    }

    fn request() -> LocalRequest {
        LocalRequest {
            name: "context".into(),
            shared_key: "context::me".into(),
        }
    }

    fn read(site: &Site, snapshot: &LocalSnapshot, name: &str) -> Option<String> {
        let mounted = site.layers.mount(&snapshot.stack).unwrap();
        std::fs::read_to_string(mounted.path().join(name)).ok()
    }

    #[tokio::test]
    async fn an_unchanged_folder_is_the_very_same_stack() {
        let (site, folder) = (site(), Folder::default());
        folder.put("a", "1");
        folder.put("d/b", "2");
        let first = site.source.snapshot(&request(), &folder).await.unwrap();
        let second = site.source.snapshot(&request(), &folder).await.unwrap();
        assert_eq!((&second.stack, second.digest), (&first.stack, first.digest));
        assert_eq!(second.changed, 0);
        assert_eq!(site.layers.list().unwrap().len(), 1);
        assert_eq!(*folder.sent.lock(), ["a", "d/b"]);
        assert_eq!(read(&site, &second, "d/b").as_deref(), Some("2"));
    }

    #[tokio::test]
    async fn a_change_travels_alone_and_earlier_states_stay_as_they_were() {
        let (site, folder) = (site(), Folder::default());
        folder.put("a", "1");
        folder.put("d/b", "2");
        let first = site.source.snapshot(&request(), &folder).await.unwrap();
        folder.put("a", "changed");
        folder.files.lock().remove("d/b");
        let second = site.source.snapshot(&request(), &folder).await.unwrap();
        assert_ne!(second.digest, first.digest);
        assert_eq!(folder.sent.lock().last().unwrap(), "a");
        assert_eq!(read(&site, &second, "a").as_deref(), Some("changed"));
        assert_eq!(read(&site, &second, "d/b"), None);
        assert_eq!(read(&site, &first, "a").as_deref(), Some("1"));
        folder.put("a", "1");
        folder.put("d/b", "2");
        let third = site.source.snapshot(&request(), &folder).await.unwrap();
        assert_eq!(third.digest, first.digest);
        // The same folder of somebody else, computed as a whole, has the same digest.
        let other = Folder {
            without_listing: true,
            ..Folder::default()
        };
        other.put("d/b", "2");
        other.put("a", "1");
        let elsewhere = LocalRequest {
            shared_key: "context::you".into(),
            ..request()
        };
        let fourth = site.source.snapshot(&elsewhere, &other).await.unwrap();
        assert_eq!(fourth.digest, first.digest);
    }

    #[tokio::test]
    async fn what_is_known_goes_with_the_layers_and_everything_is_sent_again() {
        let (site, folder) = (site(), Folder::default());
        folder.put("a", "1");
        let first = site.source.snapshot(&request(), &folder).await.unwrap();
        site.source.forget_gone().unwrap();
        let count = || std::fs::read_dir(&site.states).unwrap().count();
        assert_eq!(count(), 3, "the superblock, the state and its listing");
        let LocalSnapshot {
            stack,
            digest,
            hold,
            ..
        } = first;
        drop(hold);
        site.layers.remove(stack.top().unwrap()).unwrap();
        site.source.forget_gone().unwrap();
        assert_eq!(count(), 1);
        let again = site.source.snapshot(&request(), &folder).await.unwrap();
        assert_eq!(again.digest, digest);
        assert_eq!(*folder.sent.lock(), ["a", "a"]);
    }

    #[tokio::test]
    async fn many_changes_do_not_make_a_high_stack() {
        let (site, folder) = (site(), Folder::default());
        folder.put("kept", "k");
        folder.put("d/kept", "k");
        let mut last = None;
        for round in 0..2 * LAYERS_MAX + 3 {
            folder.put("a", &round.to_string());
            folder.put(&format!("file{round}"), "x");
            if round > 0 {
                folder.files.lock().remove(&format!("file{}", round - 1));
            }
            let snapshot = site.source.snapshot(&request(), &folder).await.unwrap();
            assert!(snapshot.stack.len() <= LAYERS_MAX);
            assert_eq!(read(&site, &snapshot, "a"), Some(round.to_string()));
            assert_eq!(read(&site, &snapshot, "file0").is_some(), round == 0);
            assert_eq!(read(&site, &snapshot, "d/kept").as_deref(), Some("k"));
            last = Some(snapshot);
        }
        let mounted = site.layers.mount(&last.unwrap().stack).unwrap();
        assert_eq!(std::fs::read_dir(mounted.path()).unwrap().count(), 4);
        let kept = folder
            .sent
            .lock()
            .iter()
            .filter(|name| *name == "kept")
            .count();
        assert_eq!(kept, 1, "what did not change was sent once");
    }

    #[tokio::test]
    async fn states_outlive_a_restart_and_lost_layers_are_sent_again() {
        let (site, folder) = (site(), Folder::default());
        folder.put("a", "1");
        let first = site.source.snapshot(&request(), &folder).await.unwrap();
        let again = LocalSource::open(&site.states, site.layers.clone()).unwrap();
        let second = again.snapshot(&request(), &folder).await.unwrap();
        assert_eq!(second.stack, first.stack);
        let id = first.stack.top().unwrap();
        drop((first, second));
        site.layers.remove(id).unwrap();
        let third = again.snapshot(&request(), &folder).await.unwrap();
        assert_eq!(read(&site, &third, "a").as_deref(), Some("1"));
        drop(again);
        let id = third.stack.top().unwrap();
        drop(third);
        site.layers.remove(id).unwrap();
        LocalSource::open(&site.states, site.layers.clone()).unwrap();
        let names: Vec<_> = std::fs::read_dir(&site.states)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["superblock"]);
    }

    fn listings(site: &Site) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&site.states).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "list")
            })
            .collect()
    }

    #[tokio::test]
    async fn a_damaged_listing_counts_as_none_and_is_made_anew() {
        let (site, folder) = (site(), Folder::default());
        folder.put("a", "1");
        let first = site.source.snapshot(&request(), &folder).await.unwrap();
        assert!(site.source.listing(&first.stack).is_some());
        let [path] = listings(&site).try_into().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(site.source.listing(&first.stack).is_none());
        folder.put("b", "2");
        let known = folder.listings_known.load(Ordering::Relaxed);
        let changed = site.source.snapshot(&request(), &folder).await.unwrap();
        assert_eq!(folder.listings_known.load(Ordering::Relaxed), known);
        let mounted = site.layers.mount(&changed.stack).unwrap();
        let expected = Listing::of(mounted.path()).unwrap();
        assert_eq!(expected.digest(), changed.digest);
        assert_eq!(site.source.listing(&changed.stack), Some(expected));
    }

    #[tokio::test]
    async fn a_listing_goes_with_the_state_it_belongs_to() {
        let (site, folder) = (site(), Folder::default());
        folder.put("a", "1");
        let first = site.source.snapshot(&request(), &folder).await.unwrap();
        folder.put("a", "2");
        let second = site.source.snapshot(&request(), &folder).await.unwrap();
        assert!(site.source.listing(&first.stack).is_none());
        assert!(site.source.listing(&second.stack).is_some());
        std::fs::write(site.states.join("00.list"), "of nothing").unwrap();
        std::fs::write(site.states.join("00.list.new"), "half").unwrap();
        let again = LocalSource::open(&site.states, site.layers.clone()).unwrap();
        assert!(again.listing(&second.stack).is_some());
        assert_eq!(listings(&site).len(), 1);
        assert!(!site.states.join("00.list.new").exists());
    }

    #[tokio::test]
    async fn after_a_failed_synchronisation_the_folder_is_walked() {
        let (site, mut folder) = (site(), Folder::default());
        folder.put("a", "1");
        site.source.snapshot(&request(), &folder).await.unwrap();
        folder.fails = true;
        assert!(site.source.snapshot(&request(), &folder).await.is_err());
        folder.fails = false;
        let known = folder.listings_known.load(Ordering::Relaxed);
        let last = site.source.snapshot(&request(), &folder).await.unwrap();
        assert_eq!(folder.listings_known.load(Ordering::Relaxed), known);
        assert_eq!(last.changed, 0);
    }
}
