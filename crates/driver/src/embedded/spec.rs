//! What a server is started from, and the digest by which a change is noticed.
//!
//! | part | in the digest |
//! |---|---|
//! | the executable | version, size and time |
//! | arguments, `env.*` | yes |
//! | configuration files | names and contents |
//! | proxies of the environment | no: they differ from terminal to terminal |

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci::{Digest, DigestHasher};
use toml::{Table, Value};

use super::EmbeddedDriver;
use super::places::{failed, make_private};
use crate::DriverError;
use crate::registries::CONFIG_FILE;

/// The variable that tells what a server was started from.
pub(super) const SPEC_VARIABLE: &str = "COOPERAGE_SPEC";
/// Under which path files are recorded.
const RECORDED_DIR: &str = "/etc/buildkit/";
/// Where programs that the server runs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Flags that the driver gives by itself.
const OWN_FLAGS: &[(&str, &str)] = &[
    ("root", "--driver-opt state=FOLDER says where state is kept"),
    ("addr", "the server listens on a socket of its own"),
    ("config", "--buildkitd-config names a configuration"),
    ("idle-timeout", "--driver-opt idle-timeout=DURATION says it"),
];

/// What a server is started from.
pub(super) struct ServerSpec {
    pub(super) executable: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: BTreeMap<String, String>,
    /// Files of the configuration folder.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) digest: Digest,
}

/// Refuses flags that the driver gives by itself.
pub(super) fn check_flags(flags: &[String]) -> Result<(), DriverError> {
    for flag in flags {
        let name = flag.trim_start_matches('-');
        let name = name.split('=').next().unwrap_or(name);
        let own = OWN_FLAGS.iter().find(|(own, _)| *own == name);
        if let Some((_, instead)) = own.filter(|_| flag.starts_with('-')) {
            return Err(DriverError::Option(format!(
                "buildkit flag {flag} cannot be used with the embedded driver: {instead}"
            )));
        }
    }
    Ok(())
}

impl EmbeddedDriver {
    /// Computes what the server should be.
    pub(super) fn spec(&self) -> Result<ServerSpec, DriverError> {
        let places = &self.places;
        let files = moved(&self.node.files, &places.config)?;
        let mut arguments: Vec<OsString> = vec!["--root".into(), places.state.clone().into()];
        let mut address = OsString::from("unix://");
        address.push(&places.socket);
        arguments.extend(["--addr".into(), address]);
        arguments.extend(["--config".into(), places.config.join(CONFIG_FILE).into()]);
        let idle = self.options.idle_timeout;
        if !idle.is_zero() {
            arguments.push("--idle-timeout".into());
            arguments.push(format!("{}ms", idle.as_millis().max(1)).into());
        }
        arguments.extend(self.node.flags.iter().map(OsString::from));
        let mut environment = BTreeMap::from([
            ("PATH".to_owned(), PATH.to_owned()),
            ("HOME".to_owned(), "/root".to_owned()),
        ]);
        environment.extend(self.options.env.clone());
        let executable = self.node.executable.clone();
        let digest = digest(&executable, &arguments, &environment, &files)?;
        if self.options.inherit_proxies {
            add_proxies(&mut environment, self.proxies());
        }
        environment.insert(SPEC_VARIABLE.to_owned(), digest.to_string());
        Ok(ServerSpec {
            executable,
            arguments,
            environment,
            files,
            digest,
        })
    }

    /// The proxies of the user's Docker configuration, or else of our environment.
    fn proxies(&self) -> BTreeMap<String, String> {
        let configured = &self.node.proxies.variables;
        if !configured.is_empty() {
            return configured.clone();
        }
        ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"]
            .into_iter()
            .filter_map(|name| {
                let value = std::env::var(name.to_ascii_lowercase())
                    .or_else(|_| std::env::var(name))
                    .ok()?;
                (!value.is_empty()).then(|| (name.to_owned(), value))
            })
            .collect()
    }
}

/// Adds proxies under names in capitals and in small letters, but not against what is there.
fn add_proxies(environment: &mut BTreeMap<String, String>, proxies: BTreeMap<String, String>) {
    for (name, value) in proxies {
        if environment
            .keys()
            .any(|known| known.eq_ignore_ascii_case(&name))
        {
            continue;
        }
        environment.insert(name.to_ascii_lowercase(), value.clone());
        environment.insert(name.to_ascii_uppercase(), value);
    }
}

/// The files with the paths in the configuration made those that the files will have.
fn moved(
    recorded: &BTreeMap<String, Vec<u8>>,
    config_dir: &Path,
) -> Result<BTreeMap<String, Vec<u8>>, DriverError> {
    let mut files = recorded.clone();
    let wrong = |reason: String| DriverError::Option(format!("{CONFIG_FILE}: {reason}"));
    for name in files.keys() {
        let plain = |part: &str| !matches!(part, "" | "." | "..");
        if !name.split('/').all(plain) {
            return Err(DriverError::Option(format!(
                "invalid config file path {name:?}"
            )));
        }
    }
    // Without one the server would read the machine's own.
    let text = files.remove(CONFIG_FILE).unwrap_or_default();
    let text = String::from_utf8(text).map_err(|error| wrong(error.to_string()))?;
    let mut table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| wrong(error.to_string()))?;
    let target = config_dir.to_string_lossy();
    for (_, value) in table.iter_mut() {
        move_paths(value, &files, &target);
    }
    let text = toml::to_string(&table).map_err(|error| wrong(error.to_string()))?;
    files.insert(CONFIG_FILE.to_owned(), text.into_bytes());
    Ok(files)
}

fn move_paths(value: &mut Value, files: &BTreeMap<String, Vec<u8>>, target: &str) {
    match value {
        Value::String(text) => {
            let name = text.strip_prefix(RECORDED_DIR);
            if let Some(name) = name.filter(|name| files.contains_key(*name)) {
                *text = format!("{target}/{name}");
            }
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| move_paths(item, files, target)),
        Value::Table(table) => table
            .iter_mut()
            .for_each(|(_, item)| move_paths(item, files, target)),
        _ => {}
    }
}

fn digest(
    executable: &Path,
    arguments: &[OsString],
    environment: &BTreeMap<String, String>,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<Digest, DriverError> {
    let found = std::fs::metadata(executable)
        .map_err(|source| failed("looking at the executable", executable, source))?;
    let identity = format!(
        "{} {} {}.{:09}",
        env!("CARGO_PKG_VERSION"),
        found.size(),
        found.mtime(),
        found.mtime_nsec()
    );
    let mut hasher = DigestHasher::new();
    hasher.field(identity.as_bytes());
    hasher.field(&arguments.len().to_le_bytes());
    for argument in arguments {
        hasher.field(argument.as_encoded_bytes());
    }
    hasher.field(&environment.len().to_le_bytes());
    for (name, value) in environment {
        hasher.field(name.as_bytes());
        hasher.field(value.as_bytes());
    }
    for (name, data) in files {
        hasher.field(name.as_bytes());
        hasher.field(data);
    }
    Ok(hasher.finish())
}

/// Writes the files of a configuration folder, each beside its place first.
pub(super) fn write_files(
    dir: &Path,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<(), DriverError> {
    for (name, data) in files {
        let path = dir.join(name);
        let parent = path.parent().unwrap_or(dir);
        make_private(parent)?;
        let write = || -> std::io::Result<()> {
            let mut new = tempfile::NamedTempFile::new_in(parent)?;
            new.write_all(data)?;
            new.as_file().sync_all()?;
            new.persist(&path)?;
            Ok(())
        };
        write().map_err(|source| failed("writing", &path, source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_found_where_they_are_written() {
        let toml = b"debug = true\n[registry.\"r\"]\nca = [\"/etc/buildkit/certs/r/ca.pem\"]\n";
        let recorded = BTreeMap::from([
            (CONFIG_FILE.to_owned(), toml.to_vec()),
            ("certs/r/ca.pem".to_owned(), b"x".to_vec()),
        ]);
        let files = moved(&recorded, Path::new("/d/config")).unwrap();
        let text = std::str::from_utf8(&files[CONFIG_FILE]).unwrap();
        assert!(text.contains("\"/d/config/certs/r/ca.pem\""), "{text}");
        assert!(
            moved(&BTreeMap::new(), Path::new("/d"))
                .unwrap()
                .contains_key(CONFIG_FILE)
        );
    }

    #[test]
    fn flags_that_the_driver_gives_are_refused_with_what_to_use() {
        let check = |flag: &str| check_flags(&[flag.to_owned()]).map_err(|e| e.to_string());
        assert_eq!(
            check("--root=/x"),
            Err(
                "buildkit flag --root=/x cannot be used with the embedded driver: --driver-opt \
                 state=FOLDER says where state is kept"
                    .to_owned()
            )
        );
        assert!(check("-addr").is_err());
        assert!(check("--debug").is_ok());
    }

    #[test]
    fn what_was_set_is_not_contradicted_by_a_proxy() {
        let mut environment = BTreeMap::from([("https_proxy".to_owned(), "mine".to_owned())]);
        let proxies = ["HTTPS_PROXY", "HTTP_PROXY"].map(|name| (name.to_owned(), "p".to_owned()));
        add_proxies(&mut environment, proxies.into());
        assert_eq!(environment["https_proxy"], "mine");
        assert!(!environment.contains_key("HTTPS_PROXY"));
        assert_eq!(environment["http_proxy"], "p");
    }
}
