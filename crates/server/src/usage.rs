//! What the cache holds, and how much of the disk that takes.
//!
//! The records add up to what `du` says of the state directory: besides layers (with the blobs they
//! are packed as), cache mounts and repositories there is one record each for what running steps
//! write, for what is being removed, for logs of finished builds, for manifests and configurations of
//! images, and for the server's own databases.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use content::ContentStore;
use diag::Result;
use jiff::Timestamp;
use layers::{LayerId, RecordType};
use oci::Digest;
use ops::work::{Output, Parts};
use parking_lot::Mutex;
use proto::control::UsageRecord;
use solver::KeyStore;

use crate::filters::Filters;
use crate::history::History;
use crate::reserve::Reserve;
use crate::wire::timestamp;

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
    /// What it was made on, directly.
    pub parents: Vec<String>,
    /// Layers it was made on: those, and what they were made on, must stay as long as it does.
    pub made_on: Vec<LayerId>,
}

/// Where a record is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A layer.
    Layer(LayerId),
    /// A cache mount, by its id.
    CacheMount(String),
    /// What was fetched of a repository, by its id.
    Repository(String),
    /// Blobs that belong to no layer and no build.
    LooseBlobs,
    /// What the server needs itself; never removed.
    Own,
    /// What is thrown away already, and goes from the disk bit by bit.
    Going,
}

/// The stores that the cache is made of.
pub struct Cache {
    pub(crate) ops: Arc<Parts>,
    pub(crate) content: ContentStore,
    pub(crate) keys: Arc<dyn KeyStore<Output>>,
    pub(crate) history: Arc<History>,
    pub(crate) root: PathBuf,
    pub(crate) reserve: Reserve,
    /// One pruning at a time.
    pub(crate) pruning: Mutex<()>,
}

impl Cache {
    /// The cache of these stores, all below the state directory `root`.
    pub fn new(
        ops: Arc<Parts>,
        content: ContentStore,
        keys: Arc<dyn KeyStore<Output>>,
        history: Arc<History>,
        root: PathBuf,
    ) -> Self {
        Cache {
            ops,
            content,
            keys,
            history,
            reserve: Reserve::of(&root),
            root,
            pruning: Mutex::new(()),
        }
    }

    /// Bytes that limits count: all but what is going anyway.
    pub(crate) fn bytes_kept(records: &[Record]) -> i64 {
        let kept = records.iter().filter(|record| record.place != Place::Going);
        kept.map(|record| record.size_bytes).sum()
    }

    /// Everything in the cache. Blocks on the disk.
    pub fn records(&self) -> Result<Vec<Record>> {
        let blobs = self.content.list()?;
        let mut blobs: HashMap<Digest, u64> = blobs
            .into_iter()
            .map(|blob| (blob.digest, blob.allocated))
            .collect();
        let mut records = self.layer_records(&mut blobs)?;
        for mount in self.ops.cache_mounts.list()? {
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
                made_on: Vec::new(),
            });
        }
        for repository in self.ops.git.repositories()? {
            records.push(Record {
                id: repository.id.clone(),
                place: Place::Repository(repository.id),
                record_type: RecordType::Regular,
                description: format!("shared git repo for {}", repository.remote),
                size_bytes: repository.size_bytes as i64,
                created: time(repository.created),
                last_used: Some(time(repository.last_used)),
                usage_count: 1,
                in_use: repository.in_use,
                parents: Vec::new(),
                made_on: Vec::new(),
            });
        }
        records.extend(self.own_records(blobs)?);
        Ok(records)
    }

    /// Layers, each with the blobs it is packed as, which are taken out of `blobs`: one that two
    /// layers share takes its space once.
    fn layer_records(&self, blobs: &mut HashMap<Digest, u64>) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for (info, packed) in self.ops.layers.infos()? {
            let packed: u64 = packed
                .iter()
                .filter_map(|blob| blobs.remove(&blob.descriptor.digest))
                .sum();
            let made_on = info.made_on.map_or(Vec::new(), |on| on.layers().to_vec());
            records.push(Record {
                id: info.id.to_string(),
                place: Place::Layer(info.id),
                record_type: info.record_type,
                description: info.description,
                size_bytes: (info.size + packed) as i64,
                created: info.created_at,
                last_used: info.last_used_at,
                usage_count: info.usage_count as i64,
                in_use: info.held,
                parents: made_on.last().iter().map(|id| id.to_string()).collect(),
                made_on,
            });
        }
        Ok(records)
    }

    /// What is no layer, mount or repository; `blobs` are those that belong to no layer.
    fn own_records(&self, blobs: HashMap<Digest, u64>) -> Result<Vec<Record>> {
        let named = self.history.blobs()?;
        let (mut builds, mut loose) = (0, 0);
        for (digest, size) in blobs {
            match named.contains(&digest) {
                true => builds += size,
                false => loose += size,
            }
        }
        let within = |name: &str| archive::allocated(&self.root.join(name), &|_| false);
        // Where layers are copied together and not mounted, those take space as well.
        let running = within("layers/new") + within("layers/mounts");
        let own = [
            (
                "running-steps",
                "what running steps have written",
                running,
                Place::Own,
            ),
            (
                "being-removed",
                "what is being removed",
                within("layers/trash"),
                Place::Going,
            ),
            (
                "build-records",
                "logs and results of finished builds",
                builds,
                Place::Own,
            ),
            (
                "image-metadata",
                "manifests and configurations of images",
                loose,
                Place::LooseBlobs,
            ),
            (
                "server-state",
                "databases of the build server",
                self.state_bytes(),
                Place::Own,
            ),
        ];
        let created = std::fs::metadata(&self.root).and_then(|meta| meta.created());
        let created = created.map_or(Timestamp::UNIX_EPOCH, time);
        let records = own.into_iter().filter(|(_, _, size, _)| *size > 0).map(
            |(id, description, size, place)| Record {
                id: id.to_owned(),
                record_type: RecordType::Internal,
                description: description.to_owned(),
                size_bytes: size as i64,
                created,
                last_used: None,
                usage_count: 0,
                in_use: place != Place::LooseBlobs,
                place,
                parents: Vec::new(),
                made_on: Vec::new(),
            },
        );
        Ok(records.collect())
    }

    /// Bytes of what has no record of its own: databases, states of sources, folders of folders.
    fn state_bytes(&self) -> u64 {
        let at = |name: &str| self.root.join(name);
        let (layers, mounts, blobs, git) = (
            at("layers/layers"),
            at("cache-mounts"),
            at("content/blobs/sha256"),
            at("git"),
        );
        let elsewhere = [at("layers/new"), at("layers/mounts"), at("layers/trash")];
        let flats = at("layers/flat");
        archive::allocated(&self.root, &|path| {
            let parent = path.parent();
            elsewhere.iter().any(|place| place == path)
                || [&layers, &blobs, &git].iter().any(|place| parent == Some(place))
                    && (parent != Some(&git) || path.extension() == Some("git".as_ref()))
                || parent.and_then(|parent| parent.parent()) == Some(&mounts)
                // Files of joined layers are further names of the layers' own.
                || path.starts_with(&flats) && !path.is_dir()
        })
    }
}

impl Record {
    /// As clients see it.
    #[expect(deprecated, reason = "old clients read the one parent only")]
    pub fn to_proto(&self) -> UsageRecord {
        UsageRecord {
            id: self.id.clone(),
            mutable: self.is_mutable(),
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

    /// When it was used last, or made if it never was.
    pub(crate) fn used(&self) -> Timestamp {
        self.last_used.unwrap_or(self.created)
    }

    fn is_mutable(&self) -> bool {
        !matches!(self.place, Place::Layer(_))
    }

    /// A field that filters ask for; `None` when it is not present.
    pub(crate) fn field(&self, path: &[&str]) -> Option<String> {
        let flag = |value: bool| value.then(String::new);
        let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
        match path {
            ["id"] => text(&self.id),
            ["parents"] => text(&self.parents.join(";")),
            ["description"] => text(&self.description),
            ["inuse"] => flag(self.in_use),
            ["mutable"] => flag(self.is_mutable()),
            ["immutable"] => flag(!self.is_mutable()),
            ["type"] => Some(self.record_type.name().to_owned()),
            // Nothing here belongs to somebody else too.
            ["private"] => flag(true),
            ["shared"] => flag(false),
            _ => None,
        }
    }
}

/// The records that fit filters and are old enough.
pub fn select(records: Vec<Record>, filters: &[String], age: Duration) -> Result<Vec<Record>> {
    let filters = Filters::parse(filters)?;
    let cutoff = Timestamp::now() - age;
    Ok(records
        .into_iter()
        .filter(|record| age.is_zero() || record.used() <= cutoff)
        .filter(|record| filters.matches(|path| record.field(path)))
        .collect())
}

fn time(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
}
