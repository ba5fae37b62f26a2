//! `buildkitd.toml` for a server in a container: the file itself with the certificates it names,
//! under the paths they will have there.
//!
//! Certificates are named by their content, so two files of the same name are both kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci::Digest;
use toml::{Table, Value};

use crate::BuilderError;

/// Where the files stand in the container.
const CONFIG_DIR: &str = "/etc/buildkit";
/// Longest file that is taken, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a configuration and what it names; the result is keyed by paths below `/etc/buildkit`.
pub(crate) fn load_config_files(path: &Path) -> Result<BTreeMap<String, Vec<u8>>, BuilderError> {
    let mut table = load(path)?;
    let mut files = BTreeMap::new();
    if let Some(registries) = table.get_mut("registry") {
        let registries = registries.as_table_mut().ok_or_else(|| {
            config_error(path, "failed to load", "registry is not a table".to_owned())
        })?;
        for (host, registry) in registries.iter_mut() {
            let Some(registry) = registry.as_table_mut() else {
                return Err(BuilderError::Invalid(format!(
                    "invalid registry config for {host:?}"
                )));
            };
            take_certificates(host, registry, &mut files)?;
        }
    }
    let text = toml::to_string(&table)
        .map_err(|error| config_error(path, "failed to marshal", error.to_string()))?;
    files.insert("buildkitd.toml".to_owned(), text.into_bytes());
    Ok(files)
}

/// The entitlements that a configuration grants.
pub(crate) fn config_entitlements(path: &Path) -> Result<Vec<String>, BuilderError> {
    let table = load(path)?;
    let list = table.get("insecure-entitlements").and_then(Value::as_array);
    Ok(list
        .into_iter()
        .flatten()
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect())
}

fn load(path: &Path) -> Result<Table, BuilderError> {
    if let Err(error) = std::fs::metadata(path) {
        let what = if error.kind() == std::io::ErrorKind::NotFound {
            "buildkit configuration file not found"
        } else {
            "invalid buildkit configuration file"
        };
        return Err(BuilderError::Config {
            context: format!("{what}: {}", path.display()),
            reason: match error.kind() {
                std::io::ErrorKind::NotFound => {
                    format!("stat {}: no such file or directory", path.display())
                }
                _ => error.to_string(),
            },
        });
    }
    let bytes = read(path).map_err(|e| config_error(path, "failed to read", e.to_string()))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| config_error(path, "failed to parse", e.to_string()))?;
    text.parse()
        .map_err(|e: toml::de::Error| config_error(path, "failed to parse", e.to_string()))
}

fn config_error(path: &Path, what: &str, reason: String) -> BuilderError {
    BuilderError::Config {
        context: format!("{what} buildkit configuration file: {}", path.display()),
        reason,
    }
}

fn take_certificates(
    host: &str,
    registry: &mut Table,
    files: &mut BTreeMap<String, Vec<u8>>,
) -> Result<(), BuilderError> {
    if let Some(authorities) = registry.get_mut("ca").and_then(Value::as_array_mut) {
        for authority in authorities {
            take(host, "CA", authority, files)?;
        }
    }
    if let Some(pairs) = registry.get_mut("keypair").and_then(Value::as_array_mut) {
        for pair in pairs.iter_mut().filter_map(Value::as_table_mut) {
            for key in ["key", "cert"] {
                if let Some(value) = pair.get_mut(key) {
                    take(host, key, value, files)?;
                }
            }
        }
    }
    Ok(())
}

/// Takes a file and puts the path it will have in its place.
fn take(
    host: &str,
    what: &str,
    value: &mut Value,
    files: &mut BTreeMap<String, Vec<u8>>,
) -> Result<(), BuilderError> {
    let Some(source) = value.as_str().filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    let source = PathBuf::from(source);
    let data = read(&source).map_err(|error| BuilderError::Config {
        context: format!("failed to read {what} file: {}", source.display()),
        reason: error.to_string(),
    })?;
    let name = format!(
        "certs/{}/{}",
        directory_name(host),
        content_name(&source, &data)
    );
    *value = Value::String(format!("{CONFIG_DIR}/{name}"));
    files.insert(name, data);
    Ok(())
}

/// `myca.pem` of some content becomes `myca-0123456789ab.pem`.
fn content_name(source: &Path, data: &[u8]) -> String {
    let part = |text: Option<&std::ffi::OsStr>| {
        directory_name(&text.unwrap_or_default().to_string_lossy())
    };
    let digest = &Digest::of(data).hex()[..12];
    // A long name would not fit an archive's header.
    let stem: String = part(source.file_stem()).chars().take(24).collect();
    match source.extension() {
        Some(extension) => {
            let extension: String = part(Some(extension)).chars().take(8).collect();
            format!("{stem}-{digest}.{extension}")
        }
        None => format!("{stem}-{digest}"),
    }
}

/// A text as a file name: every run of other characters becomes one underscore.
fn directory_name(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
            out.push(c);
        } else if !out.ends_with('_') {
            out.push('_');
        }
    }
    out
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut data = Vec::new();
    std::fs::File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut data)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_authorities_of_the_same_name_are_both_kept() {
        let dir = tempfile::tempdir().unwrap();
        for (sub, data) in [("a", "one"), ("b", "two")] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
            std::fs::write(dir.path().join(sub).join("ca.pem"), data).unwrap();
        }
        let config = dir.path().join("buildkitd.toml");
        let ca = |sub: &str| dir.path().join(sub).join("ca.pem").display().to_string();
        std::fs::write(
            &config,
            format!(
                "insecure-entitlements = [\"network.host\"]\n[registry.\"r:5000\"]\nca = [{:?}, {:?}]\n",
                ca("a"),
                ca("b")
            ),
        )
        .unwrap();
        let files = load_config_files(&config).unwrap();
        assert_eq!(files.len(), 3);
        let table: Table = std::str::from_utf8(&files["buildkitd.toml"])
            .unwrap()
            .parse()
            .unwrap();
        for path in table["registry"]["r:5000"]["ca"].as_array().unwrap() {
            let name = path
                .as_str()
                .unwrap()
                .strip_prefix("/etc/buildkit/")
                .unwrap();
            assert!(name.starts_with("certs/r_5000/ca-"), "{name}");
            assert!(files.contains_key(name));
        }
        assert_eq!(config_entitlements(&config).unwrap(), ["network.host"]);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load_config_files(Path::new("/nonexistent/x.toml")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("buildkit configuration file not found: /nonexistent/x.toml")
        );
    }
}
