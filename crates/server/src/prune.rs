//! Removing from the cache what nobody uses.
//!
//! A layer is removed only when no layer that was made on it is left, as a stack without one of its
//! layers is of no use. Of what may be removed, what was used long ago and seldom goes first: as with
//! stock, the rank by time and the rank by number of uses count alike.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};

use diag::Result;
use jiff::Timestamp;
use layers::{LayerError, LayerId, RecordType};
use oci::Digest;

use crate::filters::Filters;
use crate::gc_policy::{AGE_MAX, Policy, disk};
use crate::usage::{Cache, Place, Record};

/// How many keys of steps whose files are gone are remembered.
const EVICTED_KEYS_MAX: usize = 20_000;
/// The highest rank of a record, by time or by uses.
const RANK_MAX: u64 = 1 << 32;

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
        let mut left = Cache::bytes_kept(&records);
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
        let total = Cache::bytes_kept(&self.records()?);
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
            Place::Own | Place::Going => Ok(false),
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
    /// Small for what goes first.
    ranks: Vec<u64>,
    ready: BinaryHeap<Reverse<(u64, Timestamp, usize)>>,
}

impl<'r> Queue<'r> {
    fn new(records: &'r [Record], wanted: impl Fn(&Record) -> bool) -> Self {
        let mut queue = Queue {
            records,
            wanted: records.iter().map(wanted).collect(),
            ranks: Vec::new(),
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
        queue.ranks = ranks(records, &queue.wanted);
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
            let key = (self.ranks[at], record.used(), at);
            self.ready.push(Reverse(key));
        }
    }
}

/// For each record the sum of two ranks among those wanted, each from 0 to [`RANK_MAX`]: by the time it
/// was used last, and by how often it was used.
fn ranks(records: &[Record], wanted: &[bool]) -> Vec<u64> {
    let by_time = shares(records, wanted, |record| record.used());
    let by_uses = shares(records, wanted, |record| record.usage_count);
    by_time.iter().zip(by_uses).map(|(a, b)| a + b).collect()
}

/// Where each record stands among the different values of those wanted.
fn shares<V: Ord>(records: &[Record], wanted: &[bool], of: impl Fn(&Record) -> V) -> Vec<u64> {
    let among = records.iter().zip(wanted).filter(|(_, wanted)| **wanted);
    let values: BTreeSet<V> = among.map(|(record, _)| of(record)).collect();
    let count = (values.len() as u64).max(1);
    let places: BTreeMap<&V, u64> = values.iter().zip(1..).collect();
    records
        .iter()
        .map(|record| places.get(&of(record)).copied().unwrap_or(0) * RANK_MAX / count)
        .collect()
}

fn distinct(layers: &[LayerId]) -> HashSet<LayerId> {
    layers.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static NEXT: AtomicUsize = AtomicUsize::new(1);

    fn record(used_second: i64, usage_count: i64) -> Record {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id: LayerId = format!("{number:025}").parse().unwrap();
        Record {
            id: id.to_string(),
            place: Place::Layer(id),
            record_type: RecordType::Regular,
            description: String::new(),
            size_bytes: 1,
            created: Timestamp::UNIX_EPOCH,
            last_used: Timestamp::from_second(used_second).ok(),
            usage_count,
            in_use: false,
            parents: Vec::new(),
            made_on: Vec::new(),
        }
    }

    /// The places of records in the order in which they go.
    fn order(records: &[Record]) -> Vec<usize> {
        let mut queue = Queue::new(records, |record| !record.in_use);
        let mut order = Vec::new();
        while let Some(record) = queue.next() {
            queue.gone(record);
            order.extend(records.iter().position(|other| other.id == record.id));
        }
        order
    }

    #[test]
    fn what_was_used_long_ago_and_seldom_goes_first() {
        let by_time = [record(30, 1), record(10, 1), record(20, 1)];
        assert_eq!(order(&by_time), [1, 2, 0]);
        // The oldest one was used most often, so it is not the first to go.
        let often = [record(10, 9), record(20, 1), record(30, 1), record(40, 2)];
        assert_eq!(order(&often), [1, 2, 0, 3]);
    }

    #[test]
    fn what_others_were_made_on_goes_after_them_and_stays_with_them() {
        let mut records = [record(10, 1), record(30, 1), record(20, 1), record(5, 1)];
        let id = |record: &Record| match record.place {
            Place::Layer(id) => id,
            _ => unreachable!(),
        };
        records[1].made_on = vec![id(&records[0])];
        assert_eq!(order(&records), [3, 2, 1, 0]);
        records[1].in_use = true;
        assert_eq!(order(&records), [3, 2]);
    }
}
