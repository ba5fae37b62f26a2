//! Cached evaluation of a DAG of work, generic over what the work is.
//!
//! The solver knows nothing of containers, LLB or gRPC: a vertex is a [`Work`], its outcome is
//! `Work::Output`, and whoever watches is a [`Context`].
//!
//! # Keys
//!
//! | key | made of | known |
//! |---|---|---|
//! | identity | what the vertex is, without its inputs; sources pin what they stand for (image digest, content of a context) | after [`Work::identity`] |
//! | definition key | identity, canonical keys and output numbers of all inputs | before anything runs |
//! | content key | identity; for inputs keyed by content the digest of what is read, for the others their canonical key | when those inputs exist |
//! | canonical key | the content key if the vertex has one, else the definition key | with the two above |
//!
//! A vertex is looked up by definition key first. On a miss, inputs that can be keyed by content are
//! realised and the content key is looked up; a hit there makes the definition key an alias of the
//! same record, so the next build finds it without realising anything. Records keep the canonical
//! key they were made under, and users of the vertex are keyed by it: what two ways lead to is one
//! thing from there on. A step that must ignore its cache runs and replaces what was kept under its keys;
//! what other builds made on top of the earlier outcome stays theirs. A record whose output was evicted still gives its canonical key.
//!
//! # In-flight work
//!
//! Running work is shared by canonical key across builds. A build that wants it subscribes until
//! the build ends; when the last subscriber has gone the work is cancelled. Events of running work
//! go to every subscriber, and one that comes late gets those it missed first. Work that ignores its cache is
//! shared with its like only. Work that failed after a build it was asking things of had gone is done
//! again for those that remain, unless the failure is the step's own.
//!
//! # Misses
//!
//! Each record says why it had to be made ([`Miss`]): which named components of its key differ from
//! the most similar record of the same description.
//!
//! The simulator in `tests/simulation.rs` compares this with naive evaluation under random graphs,
//! faults and cancellations.

mod build;
mod flight;
mod keys;
mod miss;
mod sqlite;
mod store;
mod work;

pub use build::{Build, NodeRef};
pub use flight::RunContext;
pub use miss::{Miss, PartChange};
pub use sqlite::SqliteKeyStore;
pub use store::{KeyStore, Record, RecordInfo, RecordNote, StoreError};
pub use work::{Context, Identity, InputKey, KeyPart, Outcome, Work};

use std::collections::HashMap;
use std::sync::Arc;

use oci::Digest;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// What builds share: the key store, work in flight, and the limit on parallel runs.
pub struct Solver<W: Work> {
    inner: Arc<Inner<W>>,
}

impl<W: Work> Clone for Solver<W> {
    fn clone(&self) -> Self {
        Solver {
            inner: self.inner.clone(),
        }
    }
}

pub(crate) struct Inner<W: Work> {
    pub(crate) store: Arc<dyn KeyStore<W::Output>>,
    pub(crate) flights: Mutex<HashMap<Digest, Arc<flight::Flight<W>>>>,
    pub(crate) slots: Arc<Semaphore>,
}

impl<W: Work> Solver<W> {
    /// A solver over that store that runs at most `parallelism` limited works at once
    /// (see [`Work::limited`]); 0 means no limit.
    pub fn new(store: Arc<dyn KeyStore<W::Output>>, parallelism: usize) -> Self {
        let permits = match parallelism {
            0 => Semaphore::MAX_PERMITS,
            n => n.min(Semaphore::MAX_PERMITS),
        };
        Solver {
            inner: Arc::new(Inner {
                store,
                flights: Mutex::new(HashMap::new()),
                slots: Arc::new(Semaphore::new(permits)),
            }),
        }
    }

    /// Starts a build whose work is watched by, and gets its outside from, `context`.
    /// Dropping the build gives up what only it wanted.
    pub fn build(&self, context: W::Context) -> Build<W> {
        Build::new(self.inner.clone(), context)
    }

    /// How many works are running or waiting for a slot.
    pub fn in_flight(&self) -> usize {
        self.inner.flights.lock().len()
    }
}
