//! Doing a thing once when several want it at the same time.

use std::collections::HashSet;
use std::hash::Hash;

use parking_lot::{Condvar, Mutex};

/// Locks by key: at most one holder for each.
pub struct KeyedLocks<K> {
    busy: Mutex<HashSet<K>>,
    freed: Condvar,
}

/// Holds a key until dropped.
pub struct KeyGuard<'a, K: Eq + Hash> {
    locks: &'a KeyedLocks<K>,
    key: K,
}

impl<K> Default for KeyedLocks<K> {
    fn default() -> Self {
        KeyedLocks {
            busy: Mutex::new(HashSet::new()),
            freed: Condvar::new(),
        }
    }
}

impl<K: Eq + Hash + Clone> KeyedLocks<K> {
    /// Waits until nobody else has the key. Whoever gets it must look first whether the thing has been
    /// done meanwhile.
    pub fn lock(&self, key: K) -> KeyGuard<'_, K> {
        let mut busy = self.busy.lock();
        while !busy.insert(key.clone()) {
            self.freed.wait(&mut busy);
        }
        KeyGuard { locks: self, key }
    }
}

impl<K: Eq + Hash> Drop for KeyGuard<'_, K> {
    fn drop(&mut self) {
        self.locks.busy.lock().remove(&self.key);
        self.locks.freed.notify_all();
    }
}
