//! Outputs: where the bytes of an export go on this machine.

use std::path::{Component, Path, PathBuf};

use diag::{Context, Error};

use crate::environment::Environment;
use crate::inputs::go_path_error;
use crate::spec::{Attributes, ExportSpec, is_true, parse_bool};

/// Where an export's bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nowhere here: the server keeps or pushes them.
    Server,
    /// A file, made when the first bytes come.
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// A directory of files.
    Directory {
        /// The directory.
        path: PathBuf,
        /// Whether what is there and not in the result is deleted.
        delete_others: bool,
    },
    /// A directory in OCI's layout.
    Layout(PathBuf),
    /// The image store of a Docker Engine: that of the named context, or the current one.
    Engine(Option<String>),
}

/// An output, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The exporter's name.
    pub kind: String,
    /// What it is told.
    pub attributes: Attributes,
    /// Where its bytes go.
    pub target: Target,
}

impl Export {
    /// An export that stays with the server, or whose target is set later.
    pub fn of(kind: &str) -> Self {
        Export {
            kind: kind.to_owned(),
            attributes: Attributes::new(),
            target: Target::Server,
        }
    }

    /// Whether the image is pushed.
    pub fn pushes(&self) -> bool {
        is_true(&self.attributes, "push")
    }

    /// Whether its bytes cannot be taken back, so that a build cannot be tried again.
    pub fn is_stream(&self) -> bool {
        matches!(self.target, Target::Stdout | Target::Engine(_))
    }
}

/// Checks outputs against this machine. `stdout_is_terminal` guards it from binary data.
pub fn prepare_exports(
    specs: &[ExportSpec],
    env: &Environment,
    allow_delete: bool,
    stdout_is_terminal: bool,
) -> Result<Vec<Export>, Error> {
    let mut exports = Vec::with_capacity(specs.len());
    let mut stdout_used = false;
    for spec in specs {
        let export = prepare(spec, env, stdout_is_terminal)?;
        if export.target == Target::Stdout && std::mem::replace(&mut stdout_used, true) {
            return Err(Error::invalid(
                "multiple outputs configured to write to stdout",
            ));
        }
        if let Target::Directory {
            path,
            delete_others: true,
        } = &export.target
            && !allow_delete
            && !is_below(&env.path("."), &env.path(path))
        {
            return Err(Error::invalid(format!(
                "local output mode=delete for destination {:?} requires --allow=buildx.local.delete",
                spec.destination
            )));
        }
        exports.push(export);
    }
    Ok(exports)
}

fn prepare(spec: &ExportSpec, env: &Environment, terminal: bool) -> Result<Export, Error> {
    // Anything but a clear `false` means an archive.
    let tar = spec
        .attributes
        .get("tar")
        .is_none_or(|value| parse_bool(value).unwrap_or(true));
    let target = match spec.kind.as_str() {
        "local" => Target::Directory {
            path: directory(spec, env)?,
            delete_others: delete_mode(spec)?,
        },
        "oci" | "docker" if !tar => Target::Layout(directory(spec, env)?),
        "docker" if spec.destination.is_empty() => {
            Target::Engine(spec.attributes.get("context").cloned())
        }
        "tar" | "oci" | "docker" => file(spec, env, terminal)?,
        _ => Target::Server,
    };
    Ok(Export {
        kind: spec.kind.clone(),
        attributes: spec.attributes.clone(),
        target,
    })
}

fn directory(spec: &ExportSpec, env: &Environment) -> Result<PathBuf, Error> {
    let kind = &spec.kind;
    let destination = &spec.destination;
    match destination.as_str() {
        "" => {
            return Err(Error::invalid(format!(
                "dest is required for {kind} exporter"
            )));
        }
        "-" => {
            return Err(Error::invalid(format!(
                "dest cannot be stdout for {kind} exporter"
            )));
        }
        _ => {}
    }
    let path = env.path(destination);
    match std::fs::metadata(&path) {
        Ok(metadata) if !metadata.is_dir() => Err(Error::invalid(format!(
            "destination directory {destination} is a file"
        ))),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(go_path_error("stat", destination, &error))
                .with_context(|| format!("invalid destination directory: {destination}"))
        }
        _ => Ok(path),
    }
}

fn file(spec: &ExportSpec, env: &Environment, terminal: bool) -> Result<Target, Error> {
    let destination = spec.destination.as_str();
    if matches!(destination, "" | "-") {
        if terminal {
            return Err(Error::invalid(format!(
                "dest file is required for {} exporter. refusing to write to console",
                spec.kind
            )));
        }
        return Ok(Target::Stdout);
    }
    let path = env.path(destination);
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Err(Error::invalid(format!(
            "destination file {destination} is a directory"
        ))),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(go_path_error("stat", destination, &error))
                .with_context(|| format!("invalid destination file: {destination}"))
        }
        _ => Ok(Target::File(path)),
    }
}

fn delete_mode(spec: &ExportSpec) -> Result<bool, Error> {
    let mode = spec.attributes.get("mode").map_or("", String::as_str);
    match mode.trim().to_lowercase().as_str() {
        "" | "copy" => Ok(false),
        "delete" => Ok(true),
        _ => Err(Error::invalid(format!(
            "invalid local exporter mode {mode:?}"
        ))),
    }
}

/// Whether a path, its existing part resolved, is within a directory and not the directory itself.
fn is_below(directory: &Path, path: &Path) -> bool {
    let (Ok(directory), Some(path)) = (directory.canonicalize(), resolve_existing(path)) else {
        return false;
    };
    path != directory && path.starts_with(directory)
}

/// The path with the part of it that exists resolved. What follows may not step up.
fn resolve_existing(path: &Path) -> Option<PathBuf> {
    let mut existing = path.to_path_buf();
    let mut rest = Vec::new();
    while !existing.exists() {
        match existing.components().next_back()? {
            Component::Normal(name) => rest.push(name.to_owned()),
            Component::CurDir => {}
            _ => return None,
        }
        existing.pop();
    }
    let mut resolved = existing.canonicalize().ok()?;
    resolved.extend(rest.into_iter().rev());
    Some(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse_exports;

    fn exports(dir: &Path, values: &[&str], terminal: bool) -> Result<Vec<Export>, String> {
        let values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        let specs = parse_exports(&values).map_err(|e| e.to_string())?;
        let env = Environment::default().in_directory(dir);
        prepare_exports(&specs, &env, false, terminal).map_err(|e| e.to_string())
    }

    #[test]
    fn outputs_have_their_targets() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let targets = exports(
            dir.path(),
            &[
                "out",
                "type=tar,dest=a.tar",
                "type=oci,dest=l,tar=false",
                "type=docker",
                "-",
                "type=image",
            ],
            false,
        )
        .unwrap();
        let targets: Vec<Target> = targets.into_iter().map(|export| export.target).collect();
        assert_eq!(
            targets,
            [
                Target::Directory {
                    path: at("out"),
                    delete_others: false
                },
                Target::File(at("a.tar")),
                Target::Layout(at("l")),
                Target::Engine(None),
                Target::Stdout,
                Target::Server,
            ]
        );
    }

    #[test]
    fn bad_destinations_are_refused_in_the_known_words() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        for (values, words) in [
            (&["type=local"][..], "dest is required for local exporter"),
            (
                &["type=local,dest=-"],
                "dest cannot be stdout for local exporter",
            ),
            (&["f"], "destination directory f is a file"),
            (&["type=tar,dest=d"], "destination file d is a directory"),
            (
                &["type=tar", "type=oci"],
                "multiple outputs configured to write to stdout",
            ),
            (
                &["type=local,dest=x,mode=y"],
                "invalid local exporter mode \"y\"",
            ),
            (
                &["type=local,dest=/tmp/other,mode=delete"],
                "local output mode=delete for destination \"/tmp/other\" requires --allow=buildx.local.delete",
            ),
        ] {
            assert_eq!(exports(dir.path(), values, false).unwrap_err(), words);
        }
        assert!(exports(dir.path(), &["type=local,dest=new/x,mode=delete"], false).is_ok());
        assert_eq!(
            exports(dir.path(), &["-"], true).unwrap_err(),
            "dest file is required for tar exporter. refusing to write to console"
        );
    }
}
