//! GC policies: those configured, or stock's, and how many bytes one leaves.

use std::time::Duration;

use crate::config::{Disk, DiskSpace, GcPolicyConfig, WorkerConfig};

/// How long anything is kept that nobody uses.
pub(crate) const AGE_MAX: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// What is to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Internal records and images of frontends too.
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

impl Policy {
    /// How many bytes are left of `total`; 0 means that there is no limit and all goes that may.
    pub fn keep_bytes(&self, total: i64, disk: Disk) -> i64 {
        if self.max_used_space == 0 && self.reserved_space == 0 && self.min_free_space == 0 {
            return 0;
        }
        let mut keep = self.max_used_space;
        let missing = self.min_free_space - disk.free;
        if missing > 0 {
            let room = total - missing;
            keep = if keep == 0 { room } else { keep.min(room) };
        } else if self.min_free_space != 0 && keep == 0 {
            keep = total;
        }
        // Never 0, which would mean no limit.
        keep.max(self.reserved_space).max(1)
    }

    /// Whether there is more than it leaves.
    pub fn is_exceeded(&self, total: i64, disk: Disk) -> bool {
        let keep = self.keep_bytes(total, disk);
        keep != 0 && total > keep
    }
}

/// The policies of a worker: those configured, else stock's default ones.
pub fn policies(config: &WorkerConfig, disk: Disk) -> Vec<Policy> {
    if config.gc == Some(false) {
        return Vec::new();
    }
    if !config.gcpolicy.is_empty() {
        let configured = config
            .gcpolicy
            .iter()
            .map(|policy| configured(policy, disk));
        return configured.collect();
    }
    let bytes = |space: DiskSpace| space.bytes(disk);
    let mut reserved = bytes(config.reserved_space);
    let mut max_used = bytes(config.max_used_space);
    let mut min_free = bytes(config.min_free_space);
    if reserved == 0 && max_used == 0 && min_free == 0 {
        reserved = bytes(config.gc_keep_storage);
    }
    if reserved == 0 && max_used == 0 && min_free == 0 {
        let share = |percent| DiskSpace::Percent(percent).bytes(disk);
        reserved = share(10).min(10_000_000_000);
        max_used = share(80).min(100_000_000_000);
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
            keep_duration: AGE_MAX,
            ..limits.clone()
        },
        limits.clone(),
        Policy {
            all: true,
            ..limits
        },
    ]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const DISK: Disk = Disk {
        total: 1 << 40,
        free: 1 << 39,
    };

    fn of(text: &str) -> Vec<Policy> {
        let (config, unknown) = Config::parse(text, "test.toml").unwrap();
        let unknown = unknown
            .iter()
            .any(|remark| matches!(remark.kind, crate::config::RemarkKind::Unknown(_)));
        assert!(!unknown);
        policies(&config.worker.oci, DISK)
    }

    #[test]
    fn limits_are_weighed_as_stock_weighs_them() {
        let disk = Disk {
            total: 1000,
            free: 100,
        };
        let keep = |max_used_space, reserved_space, min_free_space| {
            let policy = Policy {
                max_used_space,
                reserved_space,
                min_free_space,
                ..Policy::default()
            };
            policy.keep_bytes(500, disk)
        };
        assert_eq!(keep(0, 0, 0), 0);
        assert_eq!(keep(300, 0, 0), 300);
        assert_eq!(keep(0, 50, 0), 50);
        assert_eq!(keep(0, 0, 50), 500);
        assert_eq!(keep(0, 0, 300), 300);
        assert_eq!(keep(400, 350, 300), 350);
        assert_eq!(keep(0, 0, 5000), 1, "no room at all is not no limit");
    }

    #[test]
    fn default_policies_are_stocks() {
        let policies = of("");
        assert_eq!(policies.len(), 4);
        assert_eq!(policies[0].max_used_space, 512_000_000);
        assert_eq!(policies[0].filters.len(), 3);
        assert_eq!(policies[1].keep_duration, AGE_MAX);
        assert_eq!(policies[2].reserved_space, 10_000_000_000);
        assert_eq!(policies[2].max_used_space, 100_000_000_000);
        assert_eq!(policies[2].min_free_space, 205_000_000_000);
        assert!(policies[3].all);
    }

    #[test]
    fn every_key_of_the_file_has_its_effect() {
        assert!(of("[worker.oci]\ngc = false\nreservedSpace = 1\n").is_empty());
        let legacy = of("[worker.oci]\ngckeepstorage = \"1GB\"\n");
        assert_eq!(legacy[2].reserved_space, 1 << 30);
        assert_eq!((legacy[2].max_used_space, legacy[2].min_free_space), (0, 0));
        let limits =
            of("[worker.oci]\nreservedSpace = \"1%\"\nmaxUsedSpace = 5\nminFreeSpace = \"2MB\"\n");
        assert_eq!(limits[3].reserved_space, 11_000_000_000);
        assert_eq!(
            (limits[3].max_used_space, limits[3].min_free_space),
            (5, 2 << 20)
        );
        let own = of(
            "[[worker.oci.gcpolicy]]\nall = true\nkeepBytes = 7\nkeepDuration = \"1h\"\n\
                      filters = [\"type==regular\"]\n\
                      [[worker.oci.gcpolicy]]\nkeepBytes = 7\nreservedSpace = 8\nmaxUsedSpace = \"50%\"\n\
                      minFreeSpace = 9\nkeepDuration = 60\n",
        );
        let first = Policy {
            all: true,
            filters: vec!["type==regular".into()],
            keep_duration: Duration::from_secs(3600),
            reserved_space: 7,
            ..Policy::default()
        };
        let second = Policy {
            keep_duration: Duration::from_secs(60),
            reserved_space: 8,
            max_used_space: 513_000_000_000,
            min_free_space: 9,
            ..Policy::default()
        };
        assert_eq!(own, [first, second]);
    }
}
