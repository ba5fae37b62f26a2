//! Where a build's files come from: the context, the Dockerfile and the named contexts of a request
//! are turned into directories the session serves, uploads, and attributes the frontend reads.
//!
//! Looked at once per build, also when several nodes build.

mod oci_layout;
mod stdin;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diag::{Context, Error};
use tempfile::TempDir;

use crate::environment::Environment;
use crate::git_ref;
use crate::id::new_id;
use crate::request::BuildRequest;
use crate::spec::Attributes;

pub use oci_layout::OciLayoutRef;
pub use stdin::{is_archive, spool};

/// A file the server fetches over the session.
#[derive(Clone, Debug)]
pub struct Upload {
    /// The frontend's attribute that gets its URL.
    pub attribute: String,
    /// Its bytes, in a file without a name.
    pub file: Arc<fs::File>,
}

/// What the session serves and the frontend is told of it.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Attributes of the frontend.
    pub attributes: Attributes,
    /// Directories by the name the frontend asks for them.
    pub local_dirs: BTreeMap<String, PathBuf>,
    /// OCI layouts by the name of their store.
    pub oci_layouts: BTreeMap<String, PathBuf>,
    /// Archives from standard input.
    pub uploads: Vec<Upload>,
    /// What tells this directory from others to the server, without this machine's identity.
    pub shared_key: String,
    /// The URL of a Dockerfile that a server fetches for us, until [`Inputs::set_dockerfile`].
    pub dockerfile_url: Option<String>,
    /// What the user calls the Dockerfile.
    pub dockerfile_source: String,
    /// Capabilities the frontend must have.
    pub capabilities: Vec<String>,
    temporary: Vec<Arc<TempDir>>,
}

impl Inputs {
    /// Looks at what the request names. `stdin` is read only if the request says so. Blocking.
    pub fn load(
        request: &BuildRequest,
        env: &Environment,
        stdin: impl Read,
    ) -> Result<Inputs, Error> {
        if request.context.is_empty() {
            return Err(Error::invalid(
                "please specify build context (e.g. \".\" for the current directory)",
            ));
        }
        let mut loader = Loader {
            env,
            inputs: Inputs::default(),
            dockerfile: Dockerfile::Remote,
            dockerfile_name: request.dockerfile.clone(),
        };
        loader.load_context(request, stdin)?;
        loader.place_dockerfile(request)?;
        for (name, place) in &request.named_contexts {
            loader.load_named_context(name, place)?;
        }
        refuse_targets(request)?;
        let mut inputs = loader.inputs;
        inputs.capabilities.sort();
        inputs.capabilities.dedup();
        Ok(inputs)
    }

    /// Takes the text of the Dockerfile that [`Inputs::dockerfile_url`] names. Blocking.
    pub fn set_dockerfile(&mut self, text: &[u8]) -> Result<(), Error> {
        self.dockerfile_url = None;
        self.place_text(text)
    }

    /// Lets the session serve a Dockerfile of which only the text is known.
    fn place_text(&mut self, text: &[u8]) -> Result<(), Error> {
        let directory = self.temporary("dockerfile")?;
        fs::write(directory.join("Dockerfile"), text)?;
        self.local_dirs.insert("dockerfile".to_owned(), directory);
        Ok(())
    }

    fn temporary(&mut self, prefix: &str) -> Result<PathBuf, Error> {
        let directory = tempfile::Builder::new().prefix(prefix).tempdir()?;
        let path = directory.path().to_path_buf();
        self.temporary.push(Arc::new(directory));
        Ok(path)
    }
}

/// Where the Dockerfile is.
enum Dockerfile {
    /// In this directory.
    Directory(PathBuf),
    /// Its text is known.
    Text(Vec<u8>),
    /// Within a context that the server fetches.
    Remote,
}

struct Loader<'a> {
    env: &'a Environment,
    inputs: Inputs,
    dockerfile: Dockerfile,
    dockerfile_name: String,
}

impl Loader<'_> {
    fn load_context(&mut self, request: &BuildRequest, stdin: impl Read) -> Result<(), Error> {
        let (context, dockerfile) = (&request.context, &request.dockerfile);
        if context == "-" {
            if dockerfile == "-" {
                return Err(Error::invalid(
                    "invalid argument: can't use stdin for both build context and dockerfile",
                ));
            }
            return self.load_stdin(dockerfile, stdin);
        }
        let directory = self.env.path(context);
        if directory.is_dir() {
            self.serve("context", &directory, context)?;
            self.inputs.shared_key = base_name(&directory);
            self.dockerfile = match dockerfile.as_str() {
                "-" => Dockerfile::Text(read_all(stdin)?),
                "" => Dockerfile::Directory(directory),
                path => self.split_dockerfile(path),
            };
            return Ok(());
        }
        if !git_ref::is_remote(context) {
            return Err(Error::not_found(format!(
                "unable to prepare context: path {context:?} not found"
            )));
        }
        if dockerfile == "-" {
            self.dockerfile = Dockerfile::Text(read_all(stdin)?);
        } else if Path::new(dockerfile).is_absolute() {
            self.dockerfile = self.split_dockerfile(dockerfile);
            self.attribute("dockerfilekey", "dockerfile");
        }
        self.attribute("context", context);
        if git_ref::has_query(context) {
            self.capability("moby.buildkit.frontend.gitquerystring");
        }
        Ok(())
    }

    /// Standard input is an archive with the context, or a Dockerfile that needs none.
    fn load_stdin(&mut self, dockerfile: &str, mut stdin: impl Read) -> Result<(), Error> {
        let head = stdin::peek(&mut stdin).context("failed to peek context header from STDIN")?;
        if head.is_empty() {
            return Ok(());
        }
        let stdin = io::Cursor::new(head.clone()).chain(stdin);
        if is_archive(&head) {
            self.inputs.uploads.push(Upload {
                attribute: "context".to_owned(),
                file: Arc::new(spool(stdin)?),
            });
            return Ok(());
        }
        if !dockerfile.is_empty() {
            return Err(Error::invalid(
                "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles",
            ));
        }
        self.dockerfile = Dockerfile::Text(read_all(stdin)?);
        let empty = self.inputs.temporary("empty-dir")?;
        self.inputs.local_dirs.insert("context".to_owned(), empty);
        Ok(())
    }

    /// The directory of a Dockerfile named by a path; its name is remembered.
    fn split_dockerfile(&mut self, path: &str) -> Dockerfile {
        let path = Path::new(path);
        let parent = path.parent().unwrap_or(Path::new(""));
        self.dockerfile_name = base_name(path);
        Dockerfile::Directory(match parent.as_os_str().is_empty() {
            true => self.env.path("."),
            false => self.env.path(parent),
        })
    }

    fn place_dockerfile(&mut self, request: &BuildRequest) -> Result<(), Error> {
        self.inputs.dockerfile_source = match request.dockerfile.as_str() {
            "-" => "stdin".to_owned(),
            "" => join_path(&request.context, "Dockerfile"),
            path => path.to_owned(),
        };
        if git_ref::is_http(&request.dockerfile) {
            // Its server fetches it: the builder's network and trust count, and not this machine's.
            self.inputs.dockerfile_url = Some(request.dockerfile.clone());
            self.attribute("dockerfilekey", "dockerfile");
            self.attribute("filename", "Dockerfile");
            return Ok(());
        }
        match std::mem::replace(&mut self.dockerfile, Dockerfile::Remote) {
            Dockerfile::Remote => {}
            Dockerfile::Text(text) => {
                self.inputs.place_text(&text)?;
                self.dockerfile_name = "Dockerfile".to_owned();
                self.attribute("dockerfilekey", "dockerfile");
            }
            Dockerfile::Directory(directory) => {
                let shown = match Path::new(&request.dockerfile).parent() {
                    Some(parent) if !request.dockerfile.is_empty() => parent.to_path_buf(),
                    _ => PathBuf::from(&request.context),
                };
                self.serve("dockerfile", &directory, &shown.to_string_lossy())?;
                self.dockerfile_name = lowercase_name(&directory, &self.dockerfile_name);
            }
        }
        if self.dockerfile_name.is_empty() {
            self.dockerfile_name = "Dockerfile".to_owned();
        }
        let name = self.dockerfile_name.clone();
        self.attribute("filename", &name);
        Ok(())
    }

    fn load_named_context(&mut self, name: &str, place: &str) -> Result<(), Error> {
        self.capability("moby.buildkit.frontend.contexts+forward");
        let key = format!("context:{name}");
        let passed = ["docker-image://", "target:"];
        if git_ref::is_remote(place) || passed.iter().any(|prefix| place.starts_with(prefix)) {
            if git_ref::has_query(place) {
                self.capability("moby.buildkit.frontend.gitquerystring+forward");
            }
            self.attribute(&key, place);
            return Ok(());
        }
        if let Some(mut reference) = OciLayoutRef::parse(place)? {
            let directory = self.env.path(&reference.path);
            reference
                .resolve(&directory)
                .with_context(|| format!("oci-layout reference {place:?} could not be resolved"))?;
            reference.path = new_id();
            self.attribute(&key, &reference.to_string());
            self.inputs.oci_layouts.insert(reference.path, directory);
            return Ok(());
        }
        let directory = self.env.path(place);
        let metadata = fs::metadata(&directory)
            .map_err(|error| go_path_error("stat", place, &error))
            .with_context(|| format!("failed to get build context {name}"))?;
        if !metadata.is_dir() {
            return Err(Error::invalid("not a directory").context(format!(
                "failed to get build context path {{{place} <nil>}}"
            )));
        }
        // An underscore tells it from the build's own context and Dockerfile.
        let local = match name {
            "context" | "dockerfile" => format!("_{name}"),
            name => name.to_owned(),
        };
        self.serve(&local, &directory, place)?;
        self.attribute(&key, &format!("local:{local}"));
        let shared_key = base_name(&directory);
        self.attribute(&format!("sharedkey:localdir:{name}"), &shared_key);
        Ok(())
    }

    /// Lets the session serve a directory; `shown` is what the user calls it.
    fn serve(&mut self, name: &str, directory: &Path, shown: &str) -> Result<(), Error> {
        let resolved = fs::canonicalize(directory).map_err(|error| {
            let inner = go_path_error("lstat", shown, &error);
            inner.context("resolve ")
        })?;
        if !resolved.is_dir() {
            let error = io::Error::from_raw_os_error(libc::ENOTDIR);
            return Err(go_path_error("stat", &resolved.to_string_lossy(), &error));
        }
        self.inputs.local_dirs.insert(name.to_owned(), resolved);
        Ok(())
    }

    fn attribute(&mut self, key: &str, value: &str) {
        self.inputs
            .attributes
            .insert(key.to_owned(), value.to_owned());
    }

    fn capability(&mut self, name: &str) {
        self.inputs.capabilities.push(name.to_owned());
    }
}

/// Other targets are there only in a bake, which builds several.
fn refuse_targets(request: &BuildRequest) -> Result<(), Error> {
    let mut contexts = request.named_contexts.iter();
    let target = contexts.find_map(|(name, place)| Some((name, place.strip_prefix("target:")?)));
    match target {
        Some((name, target)) => Err(Error::not_found(format!(
            "failed to find target {target} for context {name}"
        ))),
        None => Ok(()),
    }
}

/// An error of a file as Go words it, such as `stat x: no such file or directory`.
pub(crate) fn go_path_error(operation: &str, path: &str, error: &io::Error) -> Error {
    let code = Error::from(io::Error::from(error.kind())).code();
    let words = match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        io::ErrorKind::IsADirectory => "is a directory".to_owned(),
        _ => {
            let text = error.to_string();
            let end = text.find(" (os error").unwrap_or(text.len());
            text[..end].to_lowercase()
        }
    };
    Error::new(code, format!("{operation} {path}: {words}"))
}

fn read_all(mut reader: impl Read) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    reader.read_to_end(&mut text)?;
    Ok(text)
}

/// The last part of a path, of the directory itself for `.`.
fn base_name(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut clean = PathBuf::new();
    for part in absolute.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    name(&clean).unwrap_or_else(|| "/".to_owned())
}

fn join_path(context: &str, name: &str) -> String {
    match context {
        "." | "" => name.to_owned(),
        context => format!("{}/{name}", context.trim_end_matches('/')),
    }
}

/// `dockerfile` where the directory has that and no `Dockerfile`.
fn lowercase_name(directory: &Path, name: &str) -> String {
    let name = if name.is_empty() { "Dockerfile" } else { name };
    if name != "Dockerfile" {
        return name.to_owned();
    }
    // The listing is read, since a file system may not tell the two names apart.
    let names: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect();
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    match !has("Dockerfile") && has("dockerfile") {
        true => "dockerfile".to_owned(),
        false => "Dockerfile".to_owned(),
    }
}

#[cfg(test)]
mod tests;
