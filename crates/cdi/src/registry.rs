//! The devices that files in some directories describe, and which of them a name means.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::spec::{ContainerEdits, Spec};
use crate::{CdiError, Edits};

/// The annotation by whose value a device can be asked for.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// The annotation of devices that need no leave.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// Where devices are described, and which of them anybody may use.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    dirs: Vec<PathBuf>,
    auto_allowed: BTreeSet<String>,
}

/// A device as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `vendor/class=name`.
    pub name: String,
    /// Whether builds may use it without being granted it.
    pub auto_allow: bool,
    /// Of its file and its own.
    pub annotations: BTreeMap<String, String>,
}

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file or directory.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// The devices that were described at one moment.
#[derive(Debug, Default)]
pub struct Devices {
    known: BTreeMap<String, Known>,
    auto_allowed: BTreeSet<String>,
    faults: Vec<Fault>,
}

/// A file that was understood.
#[derive(Debug)]
struct File {
    path: PathBuf,
    /// Of its directory; the highest wins.
    priority: usize,
    edits: ContainerEdits,
}

#[derive(Debug)]
struct Known {
    file: Arc<File>,
    edits: ContainerEdits,
    annotations: BTreeMap<String, String>,
}

impl Registry {
    /// One of those directories, later ones winning over earlier. `auto_allowed` are names or kinds
    /// (`vendor/class`) of devices that anybody may use.
    pub fn new(dirs: Vec<PathBuf>, auto_allowed: impl IntoIterator<Item = String>) -> Self {
        Registry {
            dirs,
            auto_allowed: auto_allowed.into_iter().collect(),
        }
    }

    /// Reads all files there are now. Blocking, though there are seldom more than a few small ones.
    pub fn scan(&self) -> Devices {
        let mut devices = Devices {
            auto_allowed: self.auto_allowed.clone(),
            ..Devices::default()
        };
        let mut conflicts = BTreeSet::new();
        for (priority, dir) in self.dirs.iter().enumerate() {
            let files = match files_of(dir) {
                Ok(files) => files,
                Err(error) => {
                    devices.fault(dir, error.to_string());
                    continue;
                }
            };
            for path in files {
                let read = std::fs::read_to_string(&path).map_err(|error| error.to_string());
                match read.and_then(|text| Spec::parse(&text)) {
                    Ok(spec) => devices.enter(spec, &path, priority, &mut conflicts),
                    Err(reason) => devices.fault(&path, reason),
                }
            }
        }
        // Of two that are equally good none is right.
        for (name, _) in conflicts {
            devices.known.remove(&name);
        }
        devices
    }
}

impl Devices {
    /// All devices by name.
    pub fn list(&self) -> Vec<Device> {
        let device = |(name, known): (&String, &Known)| Device {
            name: name.clone(),
            auto_allow: self.auto_allows(name),
            annotations: known.annotations.clone(),
        };
        self.known.iter().map(device).collect()
    }

    /// The files that cannot be used.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Whether anybody may use a device, by its own name.
    pub fn auto_allows(&self, name: &str) -> bool {
        let kind = name.split('=').next().unwrap_or(name);
        let annotation = self
            .known
            .get(name)
            .and_then(|known| known.annotations.get(AUTO_ALLOW));
        let annotated = annotation.is_some_and(|text| {
            matches!(text.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True")
        });
        annotated || self.auto_allowed.contains(name) || self.auto_allowed.contains(kind)
    }

    /// The devices that a name means: the one of that name, for a kind alone its first, for `kind=*`
    /// all of it, or those annotated with it as their class. Empty if there is none.
    pub fn find(&self, asked: &str) -> Vec<String> {
        let (kind, name) = asked.split_once('=').unwrap_or((asked, ""));
        let qualified = matches!(kind.split_once('/'), Some((vendor, class))
            if !vendor.is_empty() && !class.is_empty());
        let mut found = Vec::new();
        if qualified {
            let prefix = format!("{kind}=");
            let of_kind = self.known.keys().filter(|known| known.starts_with(&prefix));
            match name {
                "" => found.extend(of_kind.take(1).cloned()),
                "*" => found.extend(of_kind.cloned()),
                _ => found.extend(
                    self.known
                        .get_key_value(asked)
                        .map(|(name, _)| name.clone()),
                ),
            }
        }
        if found.is_empty() {
            let of_class = self.known.iter().filter(|(_, known)| {
                let class = known.annotations.get(CLASS);
                class.is_some_and(|class| class == asked)
            });
            found.extend(of_class.map(|(name, _)| name.clone()));
        }
        found
    }

    /// The devices that several names mean, each once; those of an optional name that means none are
    /// left out.
    ///
    /// # Errors
    /// [`CdiError::NotRegistered`] for another name that means none.
    pub fn find_all(&self, asked: &[(String, bool)]) -> Result<Vec<String>, CdiError> {
        let mut all: Vec<String> = Vec::new();
        for (name, optional) in asked {
            let found = self.find(name);
            if found.is_empty() && !optional {
                return Err(CdiError::NotRegistered(name.clone()));
            }
            for name in found {
                if !all.contains(&name) {
                    all.push(name);
                }
            }
        }
        Ok(all)
    }

    /// What has to be done to a container for devices, by their own names. Blocking.
    ///
    /// # Errors
    /// A device that is not described any more or that needs what cannot be done.
    pub fn edits(&self, names: &[String]) -> Result<Edits, CdiError> {
        let mut edits = Edits::default();
        let mut files: Vec<&Arc<File>> = Vec::new();
        for name in names {
            let known = self
                .known
                .get(name)
                .ok_or_else(|| CdiError::NotRegistered(name.clone()))?;
            if !files.iter().any(|file| Arc::ptr_eq(file, &known.file)) {
                files.push(&known.file);
                edits.add(name, &known.file.edits)?;
            }
            edits.add(name, &known.edits)?;
        }
        Ok(edits)
    }

    fn fault(&mut self, path: &Path, reason: String) {
        self.faults.push(Fault {
            path: path.to_owned(),
            reason,
        });
    }

    fn enter(
        &mut self,
        spec: Spec,
        path: &Path,
        priority: usize,
        conflicts: &mut BTreeSet<(String, usize)>,
    ) {
        let file = Arc::new(File {
            path: path.to_owned(),
            priority,
            edits: spec.container_edits,
        });
        for device in spec.devices {
            let name = format!("{}={}", spec.kind, device.name);
            if let Some(old) = self.known.get(&name)
                && old.file.priority == priority
            {
                let reason = format!(
                    "conflicting device {name:?}, which {} describes too",
                    old.file.path.display()
                );
                self.fault(path, reason);
                conflicts.insert((name, priority));
                continue;
            }
            // A better directory ends a conflict of others.
            conflicts.retain(|(conflicting, _)| *conflicting != name);
            let mut annotations = spec.annotations.clone();
            annotations.extend(device.annotations);
            let known = Known {
                file: file.clone(),
                edits: device.container_edits,
                annotations,
            };
            self.known.insert(name, known);
        }
    }
}

/// The files of a directory that may be specifications, by name; none if it is not there.
fn files_of(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let named = path
            .extension()
            .is_some_and(|ext| ext == "json" || ext == "yaml");
        if named && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MULTI: &str = "cdiVersion: 0.6.0\nkind: vendor.example/multi\n\
        containerEdits:\n  env: [WHOLE=yes]\n\
        devices:\n\
        - name: foo\n  containerEdits: {env: [FOO=1]}\n\
        - name: bar\n  annotations: {org.mobyproject.buildkit.device.class: class1}\n  containerEdits: {env: [BAR=1]}\n";
    const OTHER: &str = r#"{"cdiVersion": "0.6.0", "kind": "vendor.example/other",
        "annotations": {"org.mobyproject.buildkit.device.class": "class1",
                        "org.mobyproject.buildkit.device.autoallow": "true"},
        "devices": [{"name": "one", "containerEdits": {"env": ["ONE=1"]}}]}"#;

    fn registry(files: &[(&str, &str)]) -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let dirs = ["a", "b"].map(|name| dir.path().join(name)).to_vec();
        (
            dir,
            Registry::new(dirs, ["vendor.example/multi=foo".to_owned()]),
        )
    }

    #[test]
    fn names_kinds_wildcards_and_classes_are_found() {
        let (_dir, registry) = registry(&[("a/multi.yaml", MULTI), ("b/other.json", OTHER)]);
        let devices = registry.scan();
        assert_eq!(devices.faults(), []);
        let multi = |name: &str| format!("vendor.example/multi={name}");
        let other = "vendor.example/other=one".to_owned();
        for (asked, found) in [
            ("vendor.example/multi=foo", vec![multi("foo")]),
            ("vendor.example/multi", vec![multi("bar")]),
            ("vendor.example/multi=*", vec![multi("bar"), multi("foo")]),
            ("class1", vec![multi("bar"), other.clone()]),
            ("vendor.example/multi=none", vec![]),
            ("vendor.example/none", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(devices.find(asked), found, "{asked}");
        }
        let asked = |name: &str, optional| [(name.to_owned(), optional)];
        assert_eq!(devices.find_all(&asked("none", true)).unwrap(), [""; 0]);
        assert_eq!(
            devices.find_all(&asked("none", false)).unwrap_err(),
            CdiError::NotRegistered("none".to_owned())
        );
        let allowed = devices
            .list()
            .into_iter()
            .filter(|device| device.auto_allow);
        let allowed: Vec<String> = allowed.map(|device| device.name).collect();
        assert_eq!(allowed, [multi("foo"), other]);
    }

    #[test]
    fn what_a_file_says_for_all_its_devices_is_done_once() {
        let (_dir, registry) = registry(&[("a/multi.yaml", MULTI)]);
        let devices = registry.scan();
        let names = devices.find("vendor.example/multi=*");
        let edits = devices.edits(&names).unwrap();
        assert_eq!(edits.env, ["WHOLE=yes", "BAR=1", "FOO=1"]);
        assert!(devices.edits(&["vendor.example/multi=x".into()]).is_err());
    }

    #[test]
    fn later_directories_win_and_equals_are_in_conflict() {
        let changed = MULTI.replace("FOO=1", "FOO=2");
        let foo = ["vendor.example/multi=foo".to_owned()];
        let (_dir, winning) = registry(&[("a/m.yaml", MULTI), ("b/m.yaml", &changed)]);
        let edits = winning.scan().edits(&foo).unwrap();
        assert_eq!(edits.env, ["WHOLE=yes", "FOO=2"]);
        let (_dir, conflict) = registry(&[("a/m.yaml", MULTI), ("a/n.yaml", &changed)]);
        let devices = conflict.scan();
        assert_eq!(devices.list(), []);
        assert!(devices.faults()[0].reason.contains("conflicting device"));
        let files = [
            ("a/m.yaml", MULTI),
            ("a/n.yaml", &changed),
            ("b/m.yaml", MULTI),
        ];
        let (_dir, settled) = registry(&files);
        assert_eq!(settled.scan().list().len(), 2);
    }

    #[test]
    fn files_that_cannot_be_used_are_told_and_others_are_not_looked_at() {
        let (_dir, registry) = registry(&[
            ("a/bad.yaml", "cdiVersion: 0.6.0\nkind: x\n"),
            ("a/note.txt", "no specification"),
            ("a/folder.yaml/inner.yaml", "x"),
            ("a/multi.yaml", MULTI),
        ]);
        let devices = registry.scan();
        assert_eq!(devices.list().len(), 2);
        assert_eq!(devices.faults().len(), 1);
        assert!(devices.faults()[0].path.ends_with("a/bad.yaml"));
    }
}
