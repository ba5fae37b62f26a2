//! The worker as clients see it: id, labels, platforms, GC policies.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use diag::{Context, Result};
use oci::Platform;
use parking_lot::Mutex;
use proto::worker::{BuildkitVersion, CdiDevice, WorkerRecord};

use crate::config::Config;
use crate::filters::Filters;
use crate::gc_policy::{self, Policy};
use crate::version;

/// How long the list of platforms is believed unless configured otherwise.
const PLATFORMS_AGE_MAX: Duration = Duration::from_secs(60);

/// The worker.
pub struct Worker {
    id: String,
    labels: BTreeMap<String, String>,
    configured: Vec<Platform>,
    platforms_age_max: Duration,
    detected: Mutex<Option<(Instant, Vec<Platform>)>>,
    devices: Option<cdi::Registry>,
    /// What GC does, in order.
    pub policies: Vec<Policy>,
}

impl Worker {
    /// The worker of a configuration, whose id is kept in `root`.
    pub fn new(config: &Config, root: &Path, snapshotter: &str) -> Result<Self> {
        let worker = &config.worker.oci;
        let mut labels = BTreeMap::from([
            label("executor", "oci"),
            label("hostname", &hostname()),
            label("network", network_name(&worker.network_mode)),
            label("oci.process-mode", "sandbox"),
            label("selinux.enabled", "false"),
            label("snapshotter", snapshotter),
        ]);
        labels.extend(worker.labels.clone());
        let configured = worker
            .platforms
            .iter()
            .map(|text| {
                text.parse::<Platform>()
                    .map(Platform::normalized)
                    .map_err(|error| diag::Error::invalid(error.to_string()))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Worker {
            id: worker_id(&root.join("workerid"))?,
            labels,
            configured,
            platforms_age_max: config
                .system
                .platforms_cache_max_age
                .map_or(PLATFORMS_AGE_MAX, |span| span.0),
            detected: Mutex::new(None),
            devices: config.cdi.registry(),
            policies: gc_policy::policies(worker, gc_policy::disk(root)),
        })
    }

    /// The platforms that steps can run on, the native one first. May block for self-tests of
    /// emulators.
    pub fn platforms(&self) -> Vec<Platform> {
        if !self.configured.is_empty() {
            return self.configured.clone();
        }
        let mut detected = self.detected.lock();
        if let Some((at, platforms)) = &*detected
            && at.elapsed() < self.platforms_age_max
        {
            return platforms.clone();
        }
        let platforms = executor::platforms();
        *detected = Some((Instant::now(), platforms.clone()));
        platforms
    }

    /// Whether filters mean this worker.
    pub fn matches(&self, filters: &[String]) -> Result<bool> {
        let filters = Filters::parse(filters)?;
        Ok(filters.matches(|path| match path {
            ["id"] => Some(self.id.clone()),
            ["labels", name @ ..] => self.labels.get(&name.join(".")).cloned(),
            _ => None,
        }))
    }

    /// As clients see it. May block, as [`Worker::platforms`].
    pub fn to_proto(&self) -> WorkerRecord {
        WorkerRecord {
            id: self.id.clone(),
            labels: self.labels.clone().into_iter().collect::<HashMap<_, _>>(),
            platforms: self
                .platforms()
                .iter()
                .map(llb::platform_to_proto)
                .collect(),
            gc_policy: gc_policy::to_proto(&self.policies),
            buildkit_version: Some(buildkit_version()),
            cdi_devices: self.devices.as_ref().map(devices).unwrap_or_default(),
        }
    }
}

/// The devices there are now.
fn devices(registry: &cdi::Registry) -> Vec<CdiDevice> {
    let devices = registry.scan().list().into_iter();
    let to_proto = |device: cdi::Device| CdiDevice {
        name: device.name,
        auto_allow: device.auto_allow,
        annotations: device.annotations.into_iter().collect(),
        on_demand: false,
    };
    devices.map(to_proto).collect()
}

/// The version as clients see it.
pub fn buildkit_version() -> BuildkitVersion {
    BuildkitVersion {
        package: version::PACKAGE.to_owned(),
        version: version::VERSION.to_owned(),
        revision: version::REVISION.to_owned(),
    }
}

fn label(name: &str, value: &str) -> (String, String) {
    (
        format!("org.mobyproject.buildkit.worker.{name}"),
        value.to_owned(),
    )
}

/// The network of steps in stock's words.
fn network_name(mode: &str) -> &str {
    match mode {
        "" | "auto" => "host",
        "bridge" => "cni",
        mode => mode,
    }
}

fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The worker's id: made once, kept in a file.
fn worker_id(path: &Path) -> Result<String> {
    if let Ok(id) = std::fs::read_to_string(path)
        && !id.trim().is_empty()
    {
        return Ok(id.trim().to_owned());
    }
    let digits = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let id: String = (0..25)
        .map(|_| digits[rand::random_range(0..digits.len())] as char)
        .collect();
    let new = path.with_extension("new");
    std::fs::write(&new, &id)
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| format!("{}", path.display()))?;
    Ok(id)
}
