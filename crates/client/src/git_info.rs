//! What git knows of a build context: `vcs:` attributes and labels, told by the `git` program.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use diag::Error;

use crate::environment::Environment;
use crate::spec::{Attributes, parse_bool};

/// What was found about the repository a context is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitInfo {
    attributes: Attributes,
    root: Option<PathBuf>,
}

impl GitInfo {
    /// Asks git about the directory of a context. Nothing is found outside of a repository, for
    /// contexts that are no directories, or when the environment says not to
    /// (`BUILDX_GIT_INFO=false`); labels are set only with `BUILDX_GIT_LABELS`. Blocking.
    pub fn find(context: &str, dockerfile: &str, env: &Environment) -> Result<Self, Error> {
        let labels = env
            .get("BUILDX_GIT_LABELS")
            .is_some_and(|value| value == "full" || parse_bool(value).unwrap_or(false));
        let info = env
            .get("BUILDX_GIT_INFO")
            .is_none_or(|value| parse_bool(value).unwrap_or(true));
        let directory = env.path(context);
        if context.is_empty() || !(labels || info) || !directory.is_dir() {
            return Ok(GitInfo::default());
        }
        let git = Git(&directory);
        let is_repository = directory.join(".git").is_dir();
        match git.run(&["rev-parse", "--is-inside-work-tree"]) {
            Ok(answer) if answer == "true" => {}
            Err(GitError::Missing) if is_repository => {
                return Err(Error::not_found("git was not found in the system"));
            }
            _ if is_repository => {
                return Err(Error::internal(
                    "failed to read current commit information with git rev-parse --is-inside-work-tree",
                ));
            }
            _ => return Ok(GitInfo::default()),
        }
        let root = git
            .run(&["rev-parse", "--show-toplevel"])
            .map_err(|error| error.into_error().context("failed to get git root dir"))?;
        let root = PathBuf::from(root);
        let mut attributes = Attributes::new();
        let mut set = |label: &str, vcs: &str, value: &str| {
            if labels {
                attributes.insert(format!("label:{label}"), value.to_owned());
            }
            if info {
                attributes.insert(vcs.to_owned(), value.to_owned());
            }
        };
        if let Some(commit) = git.commit(env.is_true("BUILDX_GIT_CHECK_DIRTY"))? {
            set("org.opencontainers.image.revision", "vcs:revision", &commit);
        }
        if let Some(url) = git.remote_url() {
            set("org.opencontainers.image.source", "vcs:source", &url);
        }
        if labels && let Some(path) = dockerfile_in(&root, &directory, dockerfile, env) {
            attributes.insert("label:com.docker.image.source.entrypoint".to_owned(), path);
        }
        Ok(GitInfo {
            attributes,
            root: info.then_some(root),
        })
    }

    /// Adds what was found to a frontend's attributes, with the place in the repository of each
    /// directory that is served.
    pub fn add_to<'a>(
        &self,
        attributes: &mut Attributes,
        local_dirs: impl Iterator<Item = (&'a String, &'a PathBuf)>,
    ) {
        attributes.extend(self.attributes.clone());
        let Some(root) = &self.root else { return };
        for (name, directory) in local_dirs {
            if let Some(relative) = relative(root, directory) {
                attributes.insert(format!("vcs:localdir:{name}"), relative);
            }
        }
    }
}

enum GitError {
    Missing,
    Failed(String),
}

impl GitError {
    fn into_error(self) -> Error {
        match self {
            GitError::Missing => Error::not_found("git was not found in the system"),
            GitError::Failed(text) => Error::internal(text),
        }
    }
}

struct Git<'a>(&'a Path);

impl Git<'_> {
    /// The first line git prints.
    fn run(&self, arguments: &[&str]) -> Result<String, GitError> {
        let output = Command::new("git")
            .args(arguments)
            .current_dir(self.0)
            .stdin(Stdio::null())
            // Repository and index come from the directory, not from a hook's surroundings.
            .env_remove("GIT_DIR")
            .env_remove("GIT_INDEX_FILE")
            .env("LC_ALL", "C")
            .output()
            .map_err(|_| GitError::Missing)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(GitError::Failed(text.trim_end().to_owned()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().replace('\'', ""))
    }

    /// The commit, marked when asked for and the tree has changes; `None` before the first commit.
    fn commit(&self, check_dirty: bool) -> Result<Option<String>, Error> {
        let commit = match self.run(&["show", "--format=%H", "HEAD", "--quiet", "--"]) {
            Ok(commit) => commit,
            Err(GitError::Failed(text)) => {
                let text = text.to_lowercase();
                let none = ["unknown revision or path", "bad revision"];
                if none.iter().any(|words| text.contains(words)) {
                    return Ok(None);
                }
                return Err(Error::internal(text).context("failed to get git commit"));
            }
            Err(missing) => return Err(missing.into_error()),
        };
        let dirty = check_dirty
            && self
                .run(&["status", "--porcelain", "--ignored=no"])
                .is_ok_and(|changes| !changes.is_empty());
        let mark = if dirty { "-dirty" } else { "" };
        Ok(Some(format!("{commit}{mark}")).filter(|commit| !commit.is_empty()))
    }

    /// Where the repository came from: the branch's remote, else `origin`, else `upstream`.
    fn remote_url(&self) -> Option<String> {
        let tracked = self
            .run(&["symbolic-ref", "-q", "HEAD"])
            .and_then(|branch| {
                self.run(&["for-each-ref", "--format=%(upstream:remotename)", &branch])
            });
        let usual = ["origin", "upstream"].map(str::to_owned);
        tracked
            .into_iter()
            .chain(usual)
            .filter(|remote| !remote.is_empty())
            .find_map(|remote| self.run(&["remote", "get-url", &remote]).ok())
            .filter(|url| !url.is_empty())
            .map(|url| diag::redact_url(&url))
    }
}

fn dockerfile_in(
    root: &Path,
    directory: &Path,
    dockerfile: &str,
    env: &Environment,
) -> Option<String> {
    let path = match dockerfile {
        "" => directory.join("Dockerfile"),
        path => env.path(path),
    };
    let parent = path.parent()?.canonicalize().ok()?;
    relative(root, &parent.join(path.file_name()?))
}

/// The path within `root`, `.` for the root itself; `None` outside.
fn relative(root: &Path, path: &Path) -> Option<String> {
    let relative = path.strip_prefix(root).ok()?;
    match relative.as_os_str().is_empty() {
        true => Some(".".to_owned()),
        false => Some(relative.to_string_lossy().into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(directory: &Path, arguments: &[&str]) {
        let status = Command::new("git")
            .args(["-c", "user.name=a", "-c", "user.email=a@b"])
            .args(arguments)
            .current_dir(directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{arguments:?}");
    }

    #[test]
    fn a_repository_is_described() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("app")).unwrap();
        std::fs::write(root.join("app/Dockerfile"), "FROM scratch\n").unwrap();
        let env = Environment::new([("BUILDX_GIT_LABELS", "1")]).in_directory(&root);
        assert_eq!(GitInfo::find("app", "", &env).unwrap(), GitInfo::default());
        git(&root, &["init", "-q"]);
        git(
            &root,
            &["remote", "add", "origin", "https://me:pw@host/x.git"],
        );
        git(&root, &["add", "."]);
        git(&root, &["commit", "-q", "-m", "one"]);
        let info = GitInfo::find("app", "", &env).unwrap();
        let mut attributes = Attributes::new();
        let dirs = [("context".to_owned(), root.join("app"))];
        info.add_to(&mut attributes, dirs.iter().map(|(k, v)| (k, v)));
        assert_eq!(attributes["vcs:revision"].len(), 40);
        assert_eq!(attributes["vcs:source"], "https://me:xxxxx@host/x.git");
        assert_eq!(attributes["vcs:localdir:context"], "app");
        assert_eq!(
            attributes["label:com.docker.image.source.entrypoint"],
            "app/Dockerfile"
        );
        let quiet = Environment::new([("BUILDX_GIT_INFO", "0")]).in_directory(&root);
        assert_eq!(
            GitInfo::find("app", "", &quiet).unwrap(),
            GitInfo::default()
        );
    }

    #[test]
    fn an_empty_repository_has_no_commit() {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["init", "-q"]);
        let env = Environment::default().in_directory(dir.path());
        let info = GitInfo::find(".", "", &env).unwrap();
        assert!(!info.attributes.contains_key("vcs:revision"));
    }
}
