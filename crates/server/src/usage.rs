//! What the cache holds, and removing from it: disk usage, pruning, GC policies.
//!
//! A layer is removed only when no layer that was made on it is left, as a stack without one of its
//! layers is of no use; so removal goes on in rounds, newest first.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use content::ContentStore;
use diag::Result;
use jiff::Timestamp;
use layers::{LayerId, LayerStore, RecordType};
use oci::Digest;
use ops::work::{CacheMounts, Output};
use parking_lot::Mutex;
use proto::control::UsageRecord;
use solver::KeyStore;

use crate::config::{Disk, GcPolicyConfig, WorkerConfig};
use crate::filters::Filters;
use crate::history::History;
use crate::wire::timestamp;

/// How long the key of a step is remembered after its files are gone.
const KEYS_AGE_MAX: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// One thing in the cache.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its id on the wire.
    pub id: String,
    /// What it is.
    pub place: Place,
    /// Why it exists.
    pub record_type: RecordType,
    /// For people.
    pub description: String,
    /// Bytes of disk it takes.
    pub size_bytes: i64,
    /// When it was made.
    pub created: Timestamp,
    /// When it was used last.
    pub last_used: Option<Timestamp>,
    /// How often it was used.
    pub usage_count: i64,
    /// Whether something uses it now.
    pub in_use: bool,
    /// What it was made on.
    pub parents: Vec<String>,
}

/// Where a record is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A layer.
    Layer(LayerId),
    /// A cache mount, by its id.
    CacheMount(String),
}

/// What is to be removed.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Internal records too.
    pub all: bool,
    /// Only what fits.
    pub filters: Vec<String>,
    /// Only what was not used for so long.
    pub keep_duration: Duration,
    /// What it never goes below, in bytes.
    pub reserved_space: i64,
    /// What it keeps the cache under, in bytes; 0 for no limit.
    pub max_used_space: i64,
    /// What it tries to leave free on the disk, in bytes.
    pub min_free_space: i64,
}

/// The stores that the cache is made of.
pub struct Cache {
    layers: LayerStore,
    content: ContentStore,
    cache_mounts: CacheMounts,
    keys: Arc<dyn KeyStore<Output>>,
    history: Arc<History>,
    root: std::path::PathBuf,
    /// One pruning at a time.
    pruning: Mutex<()>,
}

impl Cache {
    /// The cache of these stores, all on the disk that `root` is on.
    pub fn new(
        layers: LayerStore,
        content: ContentStore,
        cache_mounts: CacheMounts,
        keys: Arc<dyn KeyStore<Output>>,
        history: Arc<History>,
        root: std::path::PathBuf,
    ) -> Self {
        Cache {
            layers,
            content,
            cache_mounts,
            keys,
            history,
            root,
            pruning: Mutex::new(()),
        }
    }

    /// Everything in the cache. Blocks on the disk.
    pub fn records(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut counted = HashSet::new();
        for id in self.layers.list()? {
            let Some(info) = self.layers.info(id)? else {
                continue;
            };
            // A blob that two layers share takes its space once.
            let packed: u64 = self
                .layers
                .blobs(id)?
                .into_iter()
                .filter(|(_, blob)| counted.insert(blob.descriptor.digest))
                .filter_map(|(_, blob)| self.content.size(&blob.descriptor.digest))
                .sum();
            records.push(Record {
                id: id.to_string(),
                place: Place::Layer(id),
                record_type: info.record_type,
                description: info.description,
                size_bytes: (info.size + packed) as i64,
                created: info.created_at,
                last_used: info.last_used_at,
                usage_count: info.usage_count as i64,
                in_use: info.held,
                parents: info
                    .made_on
                    .iter()
                    .filter_map(|stack| stack.top())
                    .map(|id| id.to_string())
                    .collect(),
            });
        }
        for mount in self.cache_mounts.list()? {
            records.push(Record {
                id: mount.id.clone(),
                place: Place::CacheMount(mount.id),
                record_type: RecordType::ExecCacheMount,
                description: format!("cached mount {}", mount.name),
                size_bytes: mount.size_bytes as i64,
                created: time(mount.created),
                last_used: Some(time(mount.last_used)),
                usage_count: mount.usage_count as i64,
                in_use: mount.in_use,
                parents: Vec::new(),
            });
        }
        Ok(records)
    }

    /// Removes what a policy says, telling of each record. Blocks on the disk.
    pub fn prune(&self, policy: &Policy, mut removed: impl FnMut(&Record)) -> Result<()> {
        let _one = self.pruning.lock();
        let filters = Filters::parse(&policy.filters)?;
        let disk = disk(&self.root);
        let mut any = false;
        loop {
            let records = self.records()?;
            let total: i64 = records.iter().map(|record| record.size_bytes).sum();
            let keep = keep_bytes(total, disk, policy);
            if keep != 0 && total < keep {
                break;
            }
            let limited = keep != 0;
            let doomed = self.candidates(records, policy, &filters, limited)?;
            let mut progress = false;
            let mut left = total;
            for record in doomed {
                if limited && left < keep {
                    break;
                }
                if self.remove(&record.place)? {
                    left -= record.size_bytes;
                    progress = true;
                    removed(&record);
                }
            }
            any |= progress;
            if !progress {
                break;
            }
        }
        self.forget_keys(policy.all && policy.filters.is_empty())?;
        if any || policy.all {
            self.sweep_content()?;
        }
        Ok(())
    }

    /// What may be removed now, what was used longest ago first if there is a limit.
    fn candidates(
        &self,
        records: Vec<Record>,
        policy: &Policy,
        filters: &Filters,
        limited: bool,
    ) -> Result<Vec<Record>> {
        let parents = self.parents(&records)?;
        let cutoff = Timestamp::now() - policy.keep_duration;
        let mut doomed: Vec<Record> = records
            .into_iter()
            .filter(|record| !record.in_use)
            .filter(|record| match &record.place {
                Place::Layer(id) => !parents.contains(id),
                Place::CacheMount(_) => true,
            })
            .filter(|record| {
                policy.all
                    || !matches!(
                        record.record_type,
                        RecordType::Internal | RecordType::Frontend
                    )
            })
            .filter(|record| {
                policy.keep_duration.is_zero()
                    || record.last_used.unwrap_or(record.created) <= cutoff
            })
            .filter(|record| filters.matches(|path| field(record, path)))
            .collect();
        if limited {
            doomed.sort_by_key(|record| {
                (
                    record.last_used.unwrap_or(record.created),
                    record.usage_count,
                )
            });
        }
        Ok(doomed)
    }

    /// The layers that another layer was made on.
    fn parents(&self, records: &[Record]) -> Result<HashSet<LayerId>> {
        let mut parents = HashSet::new();
        for record in records {
            if let Place::Layer(id) = record.place
                && let Some(stack) = self.layers.info(id)?.and_then(|info| info.made_on)
            {
                parents.extend(stack.iter());
            }
        }
        Ok(parents)
    }

    /// Removes a record; false if it is in use after all.
    fn remove(&self, place: &Place) -> Result<bool> {
        match place {
            Place::Layer(id) => match self.layers.remove(*id) {
                Ok(()) => Ok(true),
                Err(layers::LayerError::Held(_) | layers::LayerError::NotFound(_)) => Ok(false),
                Err(error) => Err(error.into()),
            },
            Place::CacheMount(id) => self.cache_mounts.remove(id),
        }
    }

    /// Forgets keys whose files are gone: all of them, or those not asked for in a long time.
    fn forget_keys(&self, all: bool) -> Result<()> {
        let oldest = (Timestamp::now() - KEYS_AGE_MAX).as_millisecond();
        for record in self.keys.list()? {
            if record.outputs.is_none() && (all || record.last_used_at_ms < oldest) {
                self.keys.remove(&record.canonical)?;
            }
        }
        Ok(())
    }

    /// Removes blobs that nothing names any more.
    fn sweep_content(&self) -> Result<()> {
        let mut roots: HashSet<Digest> = self.history.blobs()?;
        for id in self.layers.list()? {
            let blobs = self.layers.blobs(id)?;
            roots.extend(blobs.into_iter().map(|(_, blob)| blob.descriptor.digest));
        }
        self.content.sweep(&roots)?;
        Ok(())
    }
}

impl Record {
    /// As clients see it.
    #[expect(deprecated, reason = "old clients read the one parent only")]
    pub fn to_proto(&self) -> UsageRecord {
        UsageRecord {
            id: self.id.clone(),
            mutable: matches!(self.place, Place::CacheMount(_)),
            in_use: self.in_use,
            size: self.size_bytes,
            parent: self.parents.first().cloned().unwrap_or_default(),
            parents: self.parents.clone(),
            created_at: Some(timestamp(self.created)),
            last_used_at: self.last_used.map(timestamp),
            usage_count: self.usage_count,
            description: self.description.clone(),
            record_type: self.record_type.name().to_owned(),
            shared: false,
        }
    }
}

/// The records that fit filters and are old enough.
pub fn select(records: Vec<Record>, filters: &[String], age: Duration) -> Result<Vec<Record>> {
    let filters = Filters::parse(filters)?;
    let cutoff = Timestamp::now() - age;
    Ok(records
        .into_iter()
        .filter(|record| age.is_zero() || record.last_used.unwrap_or(record.created) <= cutoff)
        .filter(|record| filters.matches(|path| field(record, path)))
        .collect())
}

fn field(record: &Record, path: &[&str]) -> Option<String> {
    let flag = |value: bool| value.then(String::new);
    match path {
        ["id"] => Some(record.id.clone()),
        ["parents"] => Some(record.parents.join(";")),
        ["description"] => Some(record.description.clone()),
        ["inuse"] => flag(record.in_use),
        ["mutable"] => flag(matches!(record.place, Place::CacheMount(_))),
        ["immutable"] => flag(matches!(record.place, Place::Layer(_))),
        ["type"] => Some(record.record_type.name().to_owned()),
        ["private"] => flag(true),
        _ => None,
    }
}

/// How many bytes a policy leaves; 0 means that it has no limit and removes all it may.
fn keep_bytes(total: i64, disk: Disk, policy: &Policy) -> i64 {
    if policy.max_used_space == 0 && policy.reserved_space == 0 && policy.min_free_space == 0 {
        return 0;
    }
    let mut keep = policy.max_used_space;
    let missing = policy.min_free_space - disk.free;
    if missing > 0 {
        let room = total - missing;
        keep = if keep == 0 { room } else { keep.min(room) };
    } else if policy.min_free_space != 0 && keep == 0 {
        keep = total;
    }
    // Never 0, which would mean no limit.
    keep.max(policy.reserved_space).max(1)
}

/// The policies of a worker: those configured, else stock's default ones.
pub fn policies(config: &WorkerConfig, disk: Disk) -> Vec<Policy> {
    if config.gc == Some(false) {
        return Vec::new();
    }
    if !config.gcpolicy.is_empty() {
        return config
            .gcpolicy
            .iter()
            .map(|p| configured(p, disk))
            .collect();
    }
    let bytes = |space: crate::config::DiskSpace| space.bytes(disk);
    let mut reserved = bytes(config.reserved_space);
    let mut max_used = bytes(config.max_used_space);
    let mut min_free = bytes(config.min_free_space);
    if reserved == 0 && max_used == 0 && min_free == 0 {
        reserved = bytes(config.gc_keep_storage);
    }
    if reserved == 0 && max_used == 0 && min_free == 0 {
        let share = |percent| crate::config::DiskSpace::Percent(percent).bytes(disk);
        reserved = share(10).min(10_000_000_000);
        max_used = share(60).min(100_000_000_000);
        min_free = share(20);
    }
    let limits = Policy {
        reserved_space: reserved,
        max_used_space: max_used,
        min_free_space: min_free,
        ..Policy::default()
    };
    let reproducible = ["source.local", "exec.cachemount", "source.git.checkout"];
    vec![
        Policy {
            filters: reproducible.map(|kind| format!("type=={kind}")).to_vec(),
            keep_duration: Duration::from_secs(48 * 60 * 60),
            max_used_space: 512_000_000,
            ..Policy::default()
        },
        Policy {
            keep_duration: KEYS_AGE_MAX,
            ..limits.clone()
        },
        limits.clone(),
        Policy {
            all: true,
            ..limits
        },
    ]
}

fn configured(policy: &GcPolicyConfig, disk: Disk) -> Policy {
    let reserved = match policy.reserved_space.is_unset() {
        true => policy.keep_bytes,
        false => policy.reserved_space,
    };
    Policy {
        all: policy.all,
        filters: policy.filters.clone(),
        keep_duration: policy.keep_duration.0,
        reserved_space: reserved.bytes(disk),
        max_used_space: policy.max_used_space.bytes(disk),
        min_free_space: policy.min_free_space.bytes(disk),
    }
}

/// The disk that a path is on.
pub fn disk(path: &std::path::Path) -> Disk {
    match rustix::fs::statvfs(path) {
        Ok(stat) => Disk {
            total: (stat.f_blocks * stat.f_frsize) as i64,
            free: (stat.f_bavail * stat.f_frsize) as i64,
        },
        Err(_) => Disk::default(),
    }
}

/// The policies as clients see them.
pub fn to_proto(policies: &[Policy]) -> Vec<proto::worker::GcPolicy> {
    policies
        .iter()
        .map(|policy| proto::worker::GcPolicy {
            all: policy.all,
            keep_duration: policy.keep_duration.as_nanos() as i64,
            filters: policy.filters.clone(),
            reserved_space: policy.reserved_space,
            max_used_space: policy.max_used_space,
            min_free_space: policy.min_free_space,
        })
        .collect()
}

fn time(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// For tests and messages: how many records there are of each type.
pub fn count_by_type(records: &[Record]) -> HashMap<&'static str, usize> {
    let mut counts = HashMap::new();
    for record in records {
        *counts.entry(record.record_type.name()).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_weighed_as_stock_weighs_them() {
        let disk = Disk {
            total: 1000,
            free: 100,
        };
        let policy = |max_used_space, reserved_space, min_free_space| Policy {
            max_used_space,
            reserved_space,
            min_free_space,
            ..Policy::default()
        };
        assert_eq!(keep_bytes(500, disk, &policy(0, 0, 0)), 0);
        assert_eq!(keep_bytes(500, disk, &policy(300, 0, 0)), 300);
        assert_eq!(keep_bytes(500, disk, &policy(0, 50, 0)), 50);
        assert_eq!(keep_bytes(500, disk, &policy(0, 0, 50)), 500);
        assert_eq!(keep_bytes(500, disk, &policy(0, 0, 300)), 300);
        assert_eq!(keep_bytes(500, disk, &policy(400, 350, 300)), 350);
    }

    #[test]
    fn default_policies_are_stocks() {
        let disk = Disk {
            total: 1 << 40,
            free: 1 << 39,
        };
        let policies = policies(&WorkerConfig::default(), disk);
        assert_eq!(policies.len(), 4);
        assert_eq!(policies[0].max_used_space, 512_000_000);
        assert_eq!(policies[2].reserved_space, 10_000_000_000);
        assert_eq!(policies[2].max_used_space, 100_000_000_000);
        assert!(policies[3].all);
    }
}
