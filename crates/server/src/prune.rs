//! Removing from the cache what nobody uses.
//!
//! A layer is removed only when no layer that was made on it is left, as a stack without one of its
//! layers is of no use. Of what may be removed, what was used longest ago goes first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use diag::Result;
use jiff::Timestamp;
use layers::{LayerError, LayerId, RecordType};
use oci::Digest;

use crate::filters::Filters;
use crate::gc_policy::{AGE_MAX, Policy, disk};
use crate::usage::{Cache, Place, Record};

/// How many keys of steps whose files are gone are remembered.
const EVICTED_KEYS_MAX: usize = 20_000;

impl Cache {
    /// Removes what a policy says, telling of each record. Blocks on the disk.
    pub fn prune(&self, policy: &Policy, removed: impl FnMut(&Record)) -> Result<()> {
        let _one = self.pruning.lock();
        self.reserve.give_way();
        let pruned = self.prune_alone(policy, removed);
        self.reserve.take();
        pruned
    }

    fn prune_alone(&self, policy: &Policy, mut removed: impl FnMut(&Record)) -> Result<()> {
        let filters = Filters::parse(&policy.filters)?;
        let records = self.records()?;
        let mut left: i64 = records.iter().map(|record| record.size_bytes).sum();
        let keep = policy.keep_bytes(left, disk(&self.root));
        let mut queue = Queue::new(&records, |record| may_go(record, policy, &filters));
        let mut any = false;
        while keep == 0 || left > keep {
            let Some(record) = queue.next() else { break };
            if !self.remove(&record.place)? {
                continue;
            }
            any = true;
            left -= record.size_bytes;
            queue.gone(record);
            removed(record);
        }
        if any || policy.all {
            self.sweep_content()?;
            self.ops.locals.forget_gone()?;
        }
        self.forget_keys(policy.all && policy.filters.is_empty() && keep == 0)?;
        Ok(())
    }

    /// Whether a policy wants something removed. Blocks on the disk.
    pub fn is_over(&self, policies: &[Policy]) -> Result<bool> {
        let total = self.records()?.iter().map(|record| record.size_bytes).sum();
        let disk = disk(&self.root);
        Ok(policies
            .iter()
            .any(|policy| policy.is_exceeded(total, disk)))
    }

    /// Forgets keys whose files are gone: all of them, or those that are old or too many.
    fn forget_keys(&self, all: bool) -> Result<()> {
        match all {
            true => self.keys.forget_evicted(i64::MAX, 0)?,
            false => {
                let oldest = (Timestamp::now() - AGE_MAX).as_millisecond();
                self.keys.forget_evicted(oldest, EVICTED_KEYS_MAX)?
            }
        };
        Ok(())
    }

    /// Removes a record; false if it is in use after all.
    fn remove(&self, place: &Place) -> Result<bool> {
        match place {
            Place::Layer(id) => match self.ops.layers.remove(*id) {
                Ok(()) => Ok(true),
                Err(LayerError::Held(_) | LayerError::NotFound(_)) => Ok(false),
                Err(error) => Err(error.into()),
            },
            Place::CacheMount(id) => self.ops.cache_mounts.remove(id),
            Place::Repository(id) => self.ops.git.remove_repository(id),
            Place::LooseBlobs => Ok(self.sweep_content()? > 0),
            Place::Own => Ok(false),
        }
    }

    /// Removes blobs that nothing names any more; says how many bytes that freed.
    fn sweep_content(&self) -> Result<u64> {
        self.content.sweep(|| {
            let mut roots: HashSet<Digest> = self.history.blobs()?;
            for (_, packed) in self.ops.layers.infos()? {
                roots.extend(packed.into_iter().map(|blob| blob.descriptor.digest));
            }
            Ok(roots)
        })
    }
}

/// Whether a policy lets a record go, were nothing made on it.
fn may_go(record: &Record, policy: &Policy, filters: &Filters) -> bool {
    let internal = matches!(
        record.record_type,
        RecordType::Internal | RecordType::Frontend
    );
    let old = || record.used() <= Timestamp::now() - policy.keep_duration;
    !record.in_use
        && (policy.all || !internal)
        && (policy.keep_duration.is_zero() || old())
        && filters.matches(|path| record.field(path))
}

/// What may be removed, in order; what others were made on comes when these are gone.
struct Queue<'r> {
    records: &'r [Record],
    wanted: Vec<bool>,
    /// How many layers are made on a layer.
    children: HashMap<LayerId, usize>,
    by_layer: HashMap<LayerId, usize>,
    ready: BinaryHeap<Reverse<(Timestamp, i64, usize)>>,
}

impl<'r> Queue<'r> {
    fn new(records: &'r [Record], wanted: impl Fn(&Record) -> bool) -> Self {
        let mut queue = Queue {
            records,
            wanted: records.iter().map(wanted).collect(),
            children: HashMap::new(),
            by_layer: HashMap::new(),
            ready: BinaryHeap::new(),
        };
        for (at, record) in records.iter().enumerate() {
            if let Place::Layer(id) = record.place {
                queue.by_layer.insert(id, at);
            }
            for parent in distinct(&record.made_on) {
                *queue.children.entry(parent).or_insert(0) += 1;
            }
        }
        for at in 0..records.len() {
            queue.offer(at);
        }
        queue
    }

    fn next(&mut self) -> Option<&'r Record> {
        self.ready
            .pop()
            .map(|Reverse((_, _, at))| &self.records[at])
    }

    /// A record was removed: what it was made on may be next.
    fn gone(&mut self, record: &Record) {
        for parent in distinct(&record.made_on) {
            if let Some(count) = self.children.get_mut(&parent) {
                *count -= 1;
                if *count == 0
                    && let Some(at) = self.by_layer.get(&parent)
                {
                    self.offer(*at);
                }
            }
        }
    }

    fn offer(&mut self, at: usize) {
        let record = &self.records[at];
        let bare = match record.place {
            Place::Layer(id) => self.children.get(&id).is_none_or(|count| *count == 0),
            _ => true,
        };
        if bare && self.wanted[at] {
            let key = (record.used(), record.usage_count, at);
            self.ready.push(Reverse(key));
        }
    }
}

fn distinct(layers: &[LayerId]) -> HashSet<LayerId> {
    layers.iter().copied().collect()
}
