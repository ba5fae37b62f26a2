//! Work that is under way, so that nobody does it twice at the same time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// A lock for each thing that is worked on.
pub(crate) struct Flights<K>(Mutex<HashMap<K, Weak<AsyncMutex<()>>>>);

impl<K> Default for Flights<K> {
    fn default() -> Self {
        Flights(Mutex::default())
    }
}

impl<K: Hash + Eq> Flights<K> {
    /// Takes the work up if nobody works on this now.
    pub(crate) fn try_enter(&self, key: K) -> Option<OwnedMutexGuard<()>> {
        let lock = self.lock_of(key);
        lock.try_lock_owned().ok()
    }

    /// Waits until nobody works on this. Whoever gets it then looks first whether it is done.
    pub(crate) async fn enter(&self, key: K) -> OwnedMutexGuard<()> {
        let lock = self.lock_of(key);
        lock.lock_owned().await
    }

    fn lock_of(&self, key: K) -> Arc<AsyncMutex<()>> {
        let mut all = self.0.lock();
        match all.get(&key).and_then(Weak::upgrade) {
            Some(lock) => lock,
            None => {
                all.retain(|_, lock| lock.strong_count() > 0);
                let lock = Arc::new(AsyncMutex::new(()));
                all.insert(key, Arc::downgrade(&lock));
                lock
            }
        }
    }
}
